"""A backbone with two heads beside PyTorch's in float32 and in float64, with the same weights: how
far each of the two float32 programs is from the float64 one."""

import contextlib
import copy
import functools
from typing import NamedTuple
from unittest import mock

import numpy as np

import mdmt
from mdmt.nets.builder import Builder
from tests import oracle

PLAIN = {k: {"classes": c, "dropout": 0.0} for k, c in oracle.HEADS.items()}
ADAM = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4}


def default_size(name):
    """Pixels of the square images that the original was trained on."""
    return 240 if name == "efficientnet_b1_pruned" else 224


def _nothing(key, init, shape, seed):
    return np.zeros(shape, np.float32)


class Sides:
    """Ours, PyTorch's in float32 (single) and in float64 (double, made when asked for).

    smooth: weights with which no ReLU is near its zero, see oracle.randomize.
    """

    def __init__(self, name, size, precision="fp32", seed=0, smooth=True):
        torch = oracle.need("torch")
        torch.manual_seed(seed)
        self.name = name
        self.single = oracle.randomize(oracle.two_heads(name, dropout=0.0), seed, smooth)
        with mock.patch("mdmt.network.initial_value", _nothing):  # not worth drawing
            self.ours = mdmt.Model(name, heads=PLAIN, image_size=size, precision=precision)
        self._start = copy.deepcopy(self.single.state_dict())
        self.reset()

    @functools.cached_property
    def double(self):
        return copy.deepcopy(self.single).double()

    def reset(self):
        """All sides as they were first."""
        self.single.load_state_dict(self._start)
        if "double" in self.__dict__:
            self.double.load_state_dict(self._start)
        self.ours.load_state_dict(oracle.state(self.single))
        moments, step = self.ours.optimizer_state()
        if step:
            empty = {key: np.zeros_like(value) for key, value in moments.items()}
            self.ours.load_optimizer_state(empty, 0)

    def _models(self, exact):
        return [self.single, self.double] if exact else [self.single]

    def evaluation(self, x, exact=True):
        """Features and logits in evaluation of ours, single and, if exact, double: dictionaries."""
        torch = oracle.need("torch")
        found = [self.ours.forward(x)]
        for model in self._models(exact):
            with torch.no_grad():
                out = model.eval()(torch.from_numpy(x).to(next(model.parameters()).dtype))
            found.append({k: v.numpy() for k, v in out.items()})
        return found

    def training(self, batches, exact=True):
        """Steps of Adam, one per batch, from the start.

        Returns two lists over ours, single and, if exact, double: Pass of the first step, and the
        losses of all steps.
        """
        torch = oracle.need("torch")
        self.reset()
        x, task, target = batches[0]
        outputs = self.ours.forward(x, training=True)
        self.ours.load_state_dict(oracle.state(self.single))
        _, gradients = self.ours.loss_and_gradients(x, task, target)
        first = [Pass(outputs, statistics(self.ours.state_dict()), gradients)]
        self.ours.load_state_dict(oracle.state(self.single))
        losses = [[self.ours.train_step(*data, **ADAM) for data in batches]]
        for model in self._models(exact):
            optimizer = torch.optim.Adam(model.train().parameters(), **ADAM)
            losses.append([])
            for data in batches:
                outputs, loss = torch_step(model, *data)
                if not losses[-1]:
                    state = statistics(oracle.state(model))
                    first.append(Pass(outputs, state, oracle.gradients(model)))
                losses[-1].append(loss)
                if len(batches) > 1:
                    optimizer.step()
        return first, losses


class Pass(NamedTuple):
    """What a training pass gives: features and logits, running statistics after it, gradients."""

    outputs: dict
    statistics: dict
    gradients: dict


def statistics(state):
    return {k: v for k, v in state.items() if "running" in k}


def torch_step(model, x, task, target):
    """Features and logits and the loss of a model of PyTorch, whose gradients are there then."""
    torch = oracle.need("torch")
    model.zero_grad()
    outputs = model(torch.from_numpy(x).to(next(model.parameters()).dtype))
    loss = oracle.masked_loss(outputs, torch.from_numpy(task), torch.from_numpy(target))
    loss.backward()
    return {k: v.detach().numpy() for k, v in outputs.items()}, loss.item()


@contextlib.contextmanager
def averages():
    """Within it, models of either side are made and run with average pooling in place of maximum
    pooling: no comparison that rounding may decide otherwise is left but those of the ReLUs."""
    functions = oracle.need("torch").nn.functional

    def torch_pool(x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False, **_):
        assert dilation == 1
        return functions.avg_pool2d(x, kernel, stride, padding, ceil_mode)

    def our_pool(builder, x, kernel, stride=None, padding=0, ceil_mode=False):
        return builder.avg_pool(x, kernel, stride, padding, ceil_mode)

    with (
        mock.patch.object(functions, "max_pool2d", torch_pool),
        mock.patch.object(Builder, "max_pool", our_pool),
    ):
        yield


def errors(found, exact):
    """Relative error of every tensor."""
    return {key: oracle.relative(found[key], value) for key, value in exact.items()}


def layer_scales(exact):
    """The norm that the error of every gradient tensor is divided by: the larger one of its layer's
    weight and bias, for a shift that the next batch norm takes away has a gradient of exactly zero.
    """
    largest = {}
    for key, value in exact.items():
        layer = key.rpartition(".")[0]
        largest[layer] = max(largest.get(layer, 0.0), float(np.linalg.norm(value)))
    return {key: largest[key.rpartition(".")[0]] for key in exact}


def gradient_errors(found, exact):
    """Relative error of every gradient tensor, on the scale of its layer."""
    scales = layer_scales(exact)
    return {
        key: float(np.linalg.norm(found[key].astype(np.float64) - value)) / scales[key]
        for key, value in exact.items()
    }


def worst(table):
    """(key, largest value)."""
    key = max(table, key=table.get)
    return key, table[key]
