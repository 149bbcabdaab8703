"""A backbone with two heads beside PyTorch's in float32 and in float64, with the same weights: how
far each of the two float32 programs is from the float64 one."""

import copy
import functools
from unittest import mock

import numpy as np

import mdmt
from tests import oracle

PLAIN = {k: {"classes": c, "dropout": 0.0} for k, c in oracle.HEADS.items()}
ADAM = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4}


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
        self.single = oracle.randomize(oracle.two_heads(name, dropout=0.0), seed, smooth)
        with mock.patch("mdmt.model.initial_value", _nothing):  # not worth drawing
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

    def outputs(self, x, training, exact=True):
        """Features and logits, in training the running statistics after it, too: dictionaries of
        ours, single and, if exact, double."""
        torch = oracle.need("torch")
        found = [dict(self.ours.forward(x, training=training))]
        if training:
            found[0] |= self.ours.state_dict()
        for model in self._models(exact):
            model.train(training)
            with torch.no_grad():
                out = model(torch.from_numpy(x).to(next(model.parameters()).dtype))
            found.append({k: v.numpy() for k, v in out.items()})
            if training:
                found[-1] |= {k: v for k, v in oracle.state(model).items() if "running" in k}
        return found

    def gradients(self, data, exact=True):
        """Losses and dictionaries of gradients of ours, single and, if exact, double."""
        loss, gradients = self.ours.loss_and_gradients(*data)
        losses, found = [loss], [gradients]
        for model in self._models(exact):
            losses.append(torch_step(model.train(), *data))
            found.append(oracle.gradients(model))
        return losses, found

    def steps(self, n, size, count=10, exact=False):
        """Losses of Adam's steps on changing batches, of ours, single and, if exact, double."""
        torch = oracle.need("torch")
        models = [model.train() for model in self._models(exact)]
        optimizers = [torch.optim.Adam(model.parameters(), **ADAM) for model in models]
        losses = [[] for _ in range(1 + len(models))]
        for step in range(count):
            data = oracle.batch(n, size, seed=step)
            losses[0].append(self.ours.train_step(*data, **ADAM))
            for model, optimizer, kept in zip(models, optimizers, losses[1:]):
                kept.append(torch_step(model, *data))
                optimizer.step()
        return losses


def torch_step(model, x, task, target):
    """The loss of a model of PyTorch, whose gradients are there afterwards."""
    torch = oracle.need("torch")
    model.zero_grad()
    dtype = next(model.parameters()).dtype
    outputs = model(torch.from_numpy(x).to(dtype))
    loss = oracle.masked_loss(outputs, torch.from_numpy(task), torch.from_numpy(target))
    loss.backward()
    return loss.item()


def errors(found, exact):
    """Relative error of every tensor."""
    return {key: oracle.relative(found[key], value) for key, value in exact.items()}


def gradient_errors(found, exact):
    """Relative error of every gradient tensor; the scale is the larger one of a layer's weight and
    bias, for a shift that the next batch norm takes away has a gradient of exactly zero."""
    largest = {}
    for key, value in exact.items():
        layer = key.rpartition(".")[0]
        largest[layer] = max(largest.get(layer, 0.0), float(np.linalg.norm(value)))
    return {
        key: float(np.linalg.norm(found[key].astype(np.float64) - value))
        / largest[key.rpartition(".")[0]]
        for key, value in exact.items()
    }


def worst(table):
    """(key, largest value)."""
    key = max(table, key=table.get)
    return key, table[key]
