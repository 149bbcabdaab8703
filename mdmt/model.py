"""The public model: a shared backbone with one head per task, on the C engine."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mdmt import _core, inputs, system
from mdmt import groups as groups_
from mdmt.alone import alone
from mdmt.augmentation import complete
from mdmt.checked import whole
from mdmt.nets import heads as heads_
from mdmt.network import Network
from mdmt.weights import OPTIMIZER, given, load_weights, read_description, read_moments

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# What a copy takes over besides weights and description.
COPIED = (
    "mean", "std", "training_step", "steps_at_once", "task_weights", "groups", "micro_batch",
    "unused", "_frozen",
)  # fmt: skip


def _cut(array, size):
    """array (S, N, ...), the samples of S batches, as C-ordered (S N / size, size, ...)."""
    return np.ascontiguousarray(array).reshape(-1, size, *array.shape[2:])


def _calls(steps, split):
    """The calls of the engine for so many steps of batches that are split, as inputs.micro_batches
    has it: (steps, columns, samples of a part, first part). All at once where the parts of a batch
    are equal; else a step has a call for the larger ones and one for the others."""
    if len(split) == 1:
        yield slice(None), slice(None), split[0][0], 0
        return
    for step in range(steps):
        at = part = 0
        for size, count in split:
            yield slice(step, step + 1), slice(at, at + size * count), size, part
            at, part = at + size * count, part + count


class Model(Network):
    """One backbone, one head per task.

    Parameters
    ----------
    backbone : one of mdmt.backbones()
    heads : {task: class count or {"classes", "hidden", "dropout", "loss", "smoothing"}}, 1 to 16;
        task k is the k-th. loss: "ce" (one class), "ordinal" (ordered classes), "bce" (any of the
        classes), "mse" (a number), "dice_ce" (a mask, of a U-Net). smoothing: of ce, the share of
        the target that training spreads over all classes, 0 to below 1 (PyTorch's label_smoothing)
    image_size : side, or (height, width), of resident images; forward takes any size. By default
        that of the backbone's ImageNet weights, 224 (240 for efficientnet_b1_pruned)
    channels : of the input, 1 to 4
    device : "cpu", "cuda" or "cuda:i"
    precision : "fp32", or "fp32-direct": without Winograd convolution; on a GPU and on a CPU with
        AVX512-BF16 "bf16" (feature maps in bfloat16; weights, statistics and sums in float32); on a
        GPU "tf32"
    seed : of the initial weights, dropout and augmentation
    weights : None, "imagenet" (the published file, fetched once into the user's cache), or a file
        or dictionary whose keys are those of torchvision, timm, the EfficientNet-PyTorch family or
        state_dict(); what of a file has no place in the backbone, as the classifier, is listed in
        `unused`. A dictionary may hold heads, too; of a file the backbone alone is taken (load
        takes all of what save wrote). What is not given is drawn

    Attributes
    ----------
    heads : {task: its full description}, in the order of the tasks' numbers
    mean, std : of resident images, per channel, in values of 0..1; those of the backbone's ImageNet
        weights. forward and train_step take images to which they were applied
    training_step : steps done; keys the dropout and counts for Adam's bias correction
    task_weights : {task: factor of its loss in training}, 1 where a task is not named
    groups : {pattern: {"lr": factor, "weight_decay": factor}}: parameters that learn at another
        rate, or decay otherwise
    micro_batch : the most samples of a batch that training computes at once, or None: all
    gradient_norms : where the last call clipped gradients, their norms before that (steps); or None
    steps_at_once : how many steps fit_steps had best be given at once on this device
    unused : keys of the file of weights that the model does not use

    A model may be used from several threads, one call after the other, and, on the CPU, in a
    forked child (there on one thread, until it asks for more with set_num_threads); a forked child
    cannot use CUDA. copy.deepcopy and pickle give a model of its own that goes on to the same bits;
    a pickle leaves the data sets out.

    Raises ValueError, NotImplementedError or OSError with one sentence.

    >>> model = Model("resnet18", {"outcome": 2, "findings": {"classes": 3, "loss": "bce"}})
    >>> loss = model.train_step(x, task=[0, 1], target=[[1, 0, 0], [0, 1, 1]])
    >>> probability = softmax(model.forward(x)["outcome"], axis=1)
    """

    def __init__(
        self,
        backbone: str,
        heads: Mapping[str, int | Mapping[str, Any]] | None = None,
        image_size: int | Sequence[int] | None = None,
        channels: int = 3,
        device: str = "cpu",
        precision: str = "fp32",
        seed: int = 0,
        weights: str | os.PathLike | Mapping[str, ArrayLike] | None = None,
    ) -> None:
        super().__init__(backbone, heads, image_size, channels, device, precision, seed, weights)
        #: Steps that fit_steps should be given at once: a GPU waits between calls, and between two
        #: calls a training can be stopped.
        self.steps_at_once = 1 if self._on is None else 64
        #: Factor of each task's loss in training; a task that is not named counts 1.
        self.task_weights = {}
        self._groups = {}
        self._micro_batch = None
        #: L2 norms (S,) of the last call's gradients before it clipped them; None: it did not.
        self.gradient_norms = None
        self._frozen = False  # the heads learn alone
        self._sources, self._labels, self._resident = [], [], []

    @property
    def groups(self) -> dict[str, dict[str, float]]:
        """{pattern: {"lr": factor, "weight_decay": factor}}: what the learning rate and the weight
        decay of a step are multiplied by for some parameters, as by param_groups of torch.optim; a
        copy, so assign to change it.

        A pattern is `backbone`, `heads`, `norm` (batch normalisations), `bias` (theirs, too), or
        keys of state_dict with wildcards as in file names ("layer4.*"). Each factor of a parameter
        is that of the last pattern which names it and gives one, else 1. lr 0 leaves a parameter
        exactly as it is, while its moments go on. ValueError, and nothing changed, for a pattern
        that names nothing or a factor below 0.

        >>> model.groups = {"backbone": {"lr": 0.1}, "norm": {"weight_decay": 0}}
        """
        return copy.deepcopy(self._groups)

    @groups.setter
    @alone
    def groups(self, groups: Mapping[str, Mapping[str, float]]) -> None:
        groups = groups_.checked(groups)
        self._network.set_groups(*groups_.numbered(groups, self._entries, self.backbone))
        self._groups = groups

    @property
    def micro_batch(self) -> int | None:
        """The most samples that training computes at once; None: a whole batch. A larger batch is
        cut into as few and as equal parts as that takes, one after the other, and their gradients
        are added up before one update, so that memory is needed for a part alone.

        The loss stays the mean over the labelled samples of the whole batch, exactly, however its
        parts mix the tasks. Batch normalisation sees the parts: its statistics are theirs, and each
        moves the running ones, as in other frameworks that accumulate gradients.
        """
        return self._micro_batch

    @micro_batch.setter
    def micro_batch(self, most: int | None) -> None:
        self._micro_batch = None if most is None else whole("micro_batch", most, 1, (1 << 31) - 1)

    # Running -----------------------------------------------------------------------------------

    def _mode(
        self, n, size, training, gradients=False, width=None, store=None, weighted=False, parts=1
    ):
        """parts: of a step, of which this is one."""
        mode = {"batch": n, "height": size[0], "width": size[1], "training": int(training)}
        if gradients:
            mode["gradients"] = 1
            width = width or heads_.target_width(self.heads)
            mode |= {"target_width": 2 * width if weighted else width, "weighted": int(weighted)}
            weights = inputs.task_weights(self.task_weights, self.heads)
            mode["tasks"] = [
                (t, head["loss"], weights[t], head.get("smoothing", 0.0))
                for t, head in self.heads.items()
            ]
            mode["reduction"] = "sum" if parts > 1 else "mean"
        if store is not None:
            mean, std = inputs.scaling(self.mean, self.std, self.channels)
            mode |= {"from_store": 1, "augment": int(store), "mean": mean, "std": std}
            mode["colour"] = int(any(source.ndim == 4 for source in self._sources))
        return mode

    def normalise(self, pictures: ArrayLike) -> np.ndarray:
        """What forward takes, of uint8 pictures (N, H, W) grey or (N, channels, H, W): float32
        (N, channels, H, W), (pictures / 255 - mean) / std."""
        return inputs.normalised(pictures, *inputs.scaling(self.mean, self.std, self.channels))

    @alone
    def forward(self, x: ArrayLike, training: bool = False) -> dict[str, np.ndarray]:
        """x (N, channels, H, W) float32, normalised, or (N, H, W) grey.

        Returns {"features": (N, C), task: logits (N, classes), or (N, 1, H, W) of a mask}.
        training=True uses batch statistics and dropout, and updates the running statistics.
        Raises ValueError for another shape or type, FloatingPointError for NaN or infinity in x,
        MemoryError where the batch does not fit.
        """
        x = inputs.images(x, self.channels, self.backbone)
        mode = self._mode(len(x), x.shape[2:], training)
        names = ("features", *self.heads)
        out = self._network.run(mode, {"image": x}, names, seed=self.seed, step=self.training_step)
        self._keep_tuning()
        self._batches += bool(training)
        return out

    def __call__(self, x: ArrayLike, training: bool = False) -> dict[str, np.ndarray]:
        """As forward."""
        return self.forward(x, training)

    def _pass(self, x, task, target, training, adam=None, mask=None, weight=None):
        """The loss of a batch, of which the gradients are there then; adam: and the update done."""
        x = inputs.images(x, self.channels, self.backbone)
        if mask is None and target is not None and np.ndim(target) > 2:
            target, mask = None, target
        task, target = inputs.targets(task, target, len(x), self.heads)
        weight = inputs.weights(weight, task, target, self.heads)
        weighted, width = weight is not None, target.shape[1]
        share = inputs.shares(task[None], target[None], self.heads)
        feeds = {"image": x, "task": task}
        feeds["target"] = np.hstack([target, weight]) if weighted else target
        if self._masks:
            feeds["mask"] = inputs.masks(task, mask, (len(x), *x.shape[2:]), self.heads)
        split = inputs.micro_batches(len(x), self.micro_batch)
        sizes = [size for size, count in split for _ in range(count)]
        self.gradient_norms = None
        loss, at, parts = 0.0, 0, len(sizes)
        for part, size in enumerate(sizes):
            mode = self._mode(size, x.shape[2:], training, True, width, None, weighted, parts)
            if adam and self._frozen:
                mode["learns"] = "heads."
            how = {"seed": self.seed, "step": self.training_step}
            how |= {"parts": (parts, part, share)} if parts > 1 else {}
            piece = {key: value[at : at + size] for key, value in feeds.items()}
            out = self._network.run(mode, piece, ("loss",), adam, **how)
            loss += float(out["loss"][0]) * (float(share[0]) if parts > 1 else 1)
            at += size
            self._batches += bool(training)
        if adam and adam[-1]:
            self.gradient_norms = np.array([out["gradient_norm"]])
        self._keep_tuning()
        return loss

    @alone
    def loss_and_gradients(
        self,
        x: ArrayLike,
        task: ArrayLike,
        target: ArrayLike | None,
        training: bool = True,
        mask: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> tuple[float, dict[str, np.ndarray]]:
        """x as for forward; task (N) int: the number of the head that each sample has a label for,
        -1 for none; target (N) or (N, k): the class (ce, ordinal), a number (mse), or k values in 0
        to 1 (bce). A task reads the first columns; those that only other tasks read may be left
        out. NaN is no label: of loss bce for one output, else for the sample.

        Of a task with a mask (loss dice_ce) target is (N, H, W) in 0 to 1, 1 inside; in a batch
        that mixes masks with classes, the masks come as `mask`. Their loss is the mean over the
        pixels of the binary cross-entropy plus 1 - (2 sum p t + 1) / (sum p + sum t + 1).

        sample_weight (N,) or (N, k): the weight of each sample, or of each of its targets (bce,
        mse), 0 or more; the mean is divided by the number of samples all the same, see
        `mdmt.masked_loss`. `mdmt.class_weights` gives those that balance classes.

        Returns (loss, {key: gradient}); loss = mean over the samples of the batch (equation 2).
        """
        loss = self._pass(x, task, target, training, mask=mask, weight=sample_weight)
        return loss, self._collect("gradient")

    @alone
    def train_step(
        self,
        x: ArrayLike,
        task: ArrayLike,
        target: ArrayLike | None,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        decoupled: bool = False,
        clip: float | None = None,
        mask: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """One whole step: forward, masked loss, backward, Adam with L2 in the gradient (Adam of
        PyTorch) or decoupled (its AdamW). x, task, target, mask, sample_weight as for
        loss_and_gradients.

        clip: a gradient (of all parameters that learn) whose L2 norm is above it is multiplied by
        clip / (norm + 1e-6), before the weight decay, as by torch.nn.utils.clip_grad_norm_; the
        norm is left in `gradient_norms`.

        Returns the loss before the step: the mean over the labelled samples, with dropout. Raises
        as forward does, and FloatingPointError where the loss, or with clip the norm, is not
        finite: then no weight has changed.
        """
        adam = inputs.adam(lr, betas, eps, weight_decay, decoupled, self.training_step + 1, clip)
        training = not self._frozen
        loss = self._pass(x, task, target, training, adam, mask, sample_weight)
        self.training_step += 1
        return loss

    # Resident data sets ------------------------------------------------------------------------

    @alone
    def attach(self, datasets: Iterable[Any]) -> None:
        """Makes data sets resident for fit_step and predict.

        datasets: mappings or objects with images uint8 C-ordered (a memory map will do), grey
        (M, H, W), or in colour (M, channels, H, W); a grey image is repeated over the channels;
        task (int: the k-th head) and target (M) or (M, k) float32; of a task with a mask, target is
        (M, H, W) uint8 like images, 255 inside. Optional: sample_weight (M,) or (M, k), as for
        loss_and_gradients; 1 in data sets without. On a GPU images and masks are copied when they
        are first used, and later changes of the arrays are not seen.
        """
        self._sources, self._labels, self._resident = inputs.datasets(
            datasets, self.heads, self.channels
        )
        self._network.forget_images()

    def _samples(self, dataset, index):
        counts = [len(source) for source in self._sources]
        dataset, index = inputs.samples(dataset, index, counts)
        return {"sources": self._sources, "dataset": dataset, "index": index, "seed": self.seed}

    def fit_step(
        self,
        dataset: ArrayLike,
        index: ArrayLike,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        decoupled: bool = False,
        clip: float | None = None,
        augment: Mapping[str, Any] | None = None,
        epoch: int = 0,
    ) -> tuple[float, np.ndarray]:
        """One training step on resident images: gather, augment, normalise, forward, masked loss,
        backward and Adam in one call of the engine.

        dataset, index (N): which data set (its place in what attach was given), and which of its
        images; as MixedBatchSampler gives them. augment: None (off) or the ranges that differ from
        mdmt.augmentation.RANGES, {} for none; its random numbers depend on seed, epoch and image.
        lr, ..., clip: as for train_step.

        Returns (loss, per_task): per_task (K, 2) has each task's sum of losses and its samples.
        """
        losses, per_task = self.fit_steps(
            np.asarray(dataset)[None],
            np.asarray(index)[None],
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled=decoupled,
            clip=clip,
            augment=augment,
            epoch=epoch,
        )
        return float(losses[0]), per_task[0]

    @alone
    def fit_steps(
        self,
        dataset: ArrayLike,
        index: ArrayLike,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        decoupled: bool = False,
        clip: float | None = None,
        augment: Mapping[str, Any] | None = None,
        epoch: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As fit_step, one step for each row of dataset and index (S, N), with the same result. On
        a GPU the host only starts them: batches, labels and losses stay there until the last one.

        Ctrl-C (KeyboardInterrupt) ends it between two steps, or between the unequal parts of one
        (micro_batch), which then has moved running statistics alone. Returns (losses (S,), per_task
        (S, K, 2)). FloatingPointError when a loss, or with clip a norm, is not finite;
        `training_step` then counts the steps that took effect, those before it.
        """
        dataset, index = np.asarray(dataset), np.asarray(index)
        if dataset.ndim != 2 or dataset.shape != index.shape or 0 in dataset.shape:
            raise ValueError(
                f"dataset and index must both be (S, N), not {dataset.shape} and {index.shape}"
            )
        adam = inputs.adam(lr, betas, eps, weight_decay, decoupled, self.training_step + 1, clip)
        epoch = whole("epoch", epoch, 0, (1 << 63) - 1)
        ranges = None if augment is None else complete(augment)
        how = self._samples(dataset, index) | {"epoch": epoch, "augmentation": ranges}
        task, target, weighted = inputs.gathered(self._labels, how["dataset"], how["index"])
        width = target.shape[2] // (2 if weighted else 1)
        rows = {"task": task, "target": target} | {k: how.pop(k) for k in ("dataset", "index")}
        split = inputs.micro_batches(index.shape[1], self.micro_batch)
        parts = sum(count for _, count in split)
        share = np.ones(len(index), np.float32)
        if parts > 1:
            share = inputs.shares(task, target[..., :width], self.heads)
        losses, per_task = np.zeros(len(index)), np.zeros((len(index), len(self.heads), 2))
        norms, self.gradient_norms = [], None
        for steps, columns, size, part in _calls(len(index), split):
            store, learn = augment is not None, not self._frozen
            mode = self._mode(size, self.image_size, learn, True, width, store, weighted, parts)
            piece = {k: _cut(v[steps, columns], size) for k, v in rows.items()}
            if parts > 1:
                how["parts"] = parts, part, share[steps]
            out = self._series(mode, piece, adam, how, parts)
            each = (len(losses[steps]), -1)
            losses[steps] += out["loss"].reshape(each).sum(1, dtype=float)
            per_task[steps] += out["per_task"].reshape(*each, len(self.heads), 2).sum(1)
            norms.append(out.get("gradient_norm", ()))
        self.gradient_norms = np.concatenate(norms) if clip else None
        return (losses * share).astype(np.float32), per_task.astype(np.float32)

    def _series(self, mode, rows, adam, how, parts):
        """One call of the engine for batches in a row; training_step counts the steps of it."""
        how = how | {k: rows.pop(k) for k in ("dataset", "index")}
        if self._frozen:
            mode["learns"] = "heads."
        if self._masks:
            how = how | {"masks": self._resident}
        adam = inputs.at_step(adam, self.training_step + 1)
        try:
            return self._network.series(
                mode, rows, ("loss", "per_task"), adam, step=self.training_step, **how
            )
        finally:
            done = self._network.steps_done()
            self.training_step += done
            self._batches += 0 if self._frozen else done * parts
            self._keep_tuning()

    def freeze_backbone(self, frozen: bool = True) -> None:
        """Lets fit_step and train_step train the heads alone, on features in evaluation mode
        (running statistics, no dropout); weights, running statistics and Adam's moments of the
        backbone stay as they are. A step computes no gradient of the backbone: about a third of
        the time. loss_and_gradients gives all gradients, as before."""
        self._frozen = bool(frozen)

    @alone
    def rescale_head(self, task: str, scale: float, shift: float) -> None:
        """Changes the last layer of a head so that it gives scale * output + shift."""
        key = f"heads.{task}.{len(self.heads[task]['hidden'])}"
        weight = scale * self._get(f"{key}.weight").astype(np.float64)
        bias = scale * self._get(f"{key}.bias").astype(np.float64) + shift
        self._set(f"{key}.weight", weight.astype(np.float32))
        self._set(f"{key}.bias", bias.astype(np.float32))

    def _predict_at_once(self, batch_size):
        """Batches in one call; of masks, a GPU keeps some 64 MiB until the host takes them."""
        masks = 4 * batch_size * len(self._masks) * math.prod(self.image_size)
        return max(min(self.steps_at_once, (1 << 26) // max(masks, 1)), 1)

    @alone
    def predict(
        self, dataset: ArrayLike, index: ArrayLike, batch_size: int = 32
    ) -> dict[str, np.ndarray]:
        """As forward in evaluation mode, of resident images: dataset, index (N) as for fit_step.

        The batch size changes time and memory, and the result by rounding at most. IndexError for
        an image that is not attached.
        """
        dataset, index = np.asarray(dataset), np.asarray(index)
        batch_size = whole("batch_size", batch_size, 1, (1 << 31) - 1)
        if index.ndim != 1 or dataset.shape != index.shape:
            raise ValueError(
                f"dataset and index must both be (N,), not {dataset.shape} and {index.shape}"
            )
        if len(index) == 0:
            raise ValueError("there is no image to predict")
        names = ("features", *self.heads)
        full = len(index) // batch_size * batch_size
        at_once = batch_size * self._predict_at_once(batch_size)
        pieces = [slice(s, min(s + at_once, full)) for s in range(0, full, at_once)]
        pieces += [slice(full, len(index))] if full < len(index) else []
        parts = []
        for piece in pieces:
            n = min(batch_size, piece.stop - piece.start)
            samples = self._samples(dataset[piece].reshape(-1, n), index[piece].reshape(-1, n))
            mode = self._mode(n, self.image_size, False, store=False)
            out = self._network.series(mode, {}, names, **samples)
            parts.append({k: v.reshape(-1, *v.shape[2:]) for k, v in out.items()})
        self._keep_tuning()
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    # Files -------------------------------------------------------------------------------------

    @alone
    def save(self, path: str | os.PathLike, optimizer: bool = False) -> None:
        """Writes weights and description as safetensors, atomically, whatever the name.

        optimizer: writes Adam's moments, the number of training steps, the groups, micro_batch,
        task_weights and whether the backbone is frozen, too, so that a loaded model goes on to the
        same bits (three times as large). FloatingPointError, and nothing written, where a weight is
        not finite, ValueError for a mean or std that is none: load would refuse them. OSError where
        the file cannot be written.
        """
        inputs.scaling(self.mean, self.std, self.channels)
        path, arrays, description = os.fspath(path), self.state_dict(), self.description()
        try:
            given.check_values(arrays)
        except ValueError as error:
            raise FloatingPointError(
                f"{path} was not written: {error}; the training has diverged"
            ) from None
        inputs.check_place(path)
        if optimizer:
            moments, description["training_step"] = self.optimizer_state()
            arrays |= {OPTIMIZER + key: value for key, value in moments.items()}
            description |= {"groups": self._groups} if self._groups else {}
            description |= {"micro_batch": self.micro_batch} if self.micro_batch else {}
            weights = inputs.task_weights(self.task_weights, self.heads)
            weights = {task: weight for task, weight in weights.items() if weight != 1}
            description |= {"task_weights": weights} if weights else {}
            description |= {"frozen": True} if self._frozen else {}
        metadata = {"format": "np", "mdmt": json.dumps(description)}
        _core.write_safetensors(path, arrays, metadata)

    @alone
    def export_onnx(self, path: str | os.PathLike) -> None:
        """Writes the network in evaluation mode as ONNX, atomically (mdmt/onnx.py).

        Input: `image` (batch, channels, H, W) float32, normalised as for forward; the batch may
        have any size, H and W are those of `image_size`. Outputs: `features` (batch, C) and each
        head's logits under its name. The description is in the metadata entry `mdmt`. BadInput
        when the package onnx is missing, FileNotFoundError where no file can be.
        """
        from mdmt.onnx import write

        inputs.check_place(os.fspath(path))
        shape = (1, self.channels, *self.image_size)
        outputs = {"features": [self._features]}
        for k, (task, head) in enumerate(self.heads.items()):
            outputs[task] = [1, *self.image_size] if k in self._masks else [head["classes"]]
        write(path, self._draw().graph, shape, outputs, self.state_dict(), self.description())

    @classmethod
    def load(cls, path: str | os.PathLike, device: str = "cpu") -> Model:
        """The model that save wrote, with the state of the optimiser if that was saved.

        Raises FileNotFoundError or ValueError with a sentence that names the file.
        """
        description, state = read_description(path), load_weights(path)
        scaling = {k: tuple(description.pop(k)) for k in ("mean", "std") if k in description}
        step, groups, micro_batch, weights, frozen = (
            description.pop(k, None)
            for k in ("training_step", "groups", "micro_batch", "task_weights", "frozen")
        )
        if device == "cpu" and not system.cpu_has(description["precision"]):
            description["precision"] = "fp32"  # trained on a GPU or another processor
        try:
            model = cls(**description, device=device)
            model.load_state_dict(state)
            if step is not None:
                model.load_optimizer_state(read_moments(path), step)
            model.groups, model.micro_batch = groups or {}, micro_batch
            inputs.task_weights(weights or {}, model.heads)
            model.task_weights = weights or {}
            model.freeze_backbone(bool(frozen))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None
        model.mean, model.std = scaling.get("mean", model.mean), scaling.get("std", model.std)
        return model

    # Copies ------------------------------------------------------------------------------------

    @alone
    def __getstate__(self):
        """All but the data sets, which may be large: attach them to what was unpickled."""
        trained = self.training_step > 0
        return {
            "description": self.description(),
            "device": self.device,
            "weights": self.state_dict(),
            "moments": self.optimizer_state()[0] if trained else {},
            "attributes": {name: copy.copy(getattr(self, name)) for name in COPIED},
        }

    def __setstate__(self, state):
        settings = {k: v for k, v in state["description"].items() if k not in ("mean", "std")}
        self.__init__(**settings, device=state["device"], weights=state["weights"])
        self.load_optimizer_state(state["moments"], state["attributes"]["training_step"])
        for name, value in state["attributes"].items():
            setattr(self, name, value)

    @alone
    def __copy__(self):
        """A model of its own with equal weights and optimiser; only the data sets are shared."""
        twin = type(self).__new__(type(self))
        twin.__setstate__(self.__getstate__())
        twin._sources, twin._labels = self._sources, self._labels
        twin._resident = self._resident
        return twin

    def __deepcopy__(self, memo):
        return self.__copy__()

    # What it costs -----------------------------------------------------------------------------

    @alone
    def memory(self, batch_size: int = 1, training: bool = True) -> dict[str, int]:
        """Planned bytes for a batch: parameters, gradients, optimizer, activations, workspace; in
        training, of the largest part that micro_batch makes of it."""
        batch_size = whole("batch_size", batch_size, 1, (1 << 31) - 1)
        most = self.micro_batch if training else None
        size = inputs.micro_batches(batch_size, most)[0][0]
        planned = self._network.memory(self._mode(size, self.image_size, training, training))
        planned["gradients"] *= 2 if size < batch_size else 1  # and their sums
        return planned

    @alone
    def cost(self) -> dict[str, int]:
        """Per image: multiply-adds of one forward pass; operations and bytes of a training step."""
        forward = self._network.describe(self._mode(1, self.image_size, False))
        step = self._network.describe(self._mode(2, self.image_size, True, gradients=True))
        return {
            "macs": int(sum(op["macs"] for op in forward)),
            "train_flops": int(sum(op["macs"] for op in step)),  # 2 per multiply-add, 2 images
            "bytes": int(sum(op["bytes"] for op in step) / 2),
        }

    def __repr__(self):
        heads = ", ".join(f"{task} ({head['classes']})" for task, head in self.heads.items())
        count = sum(math.prod(shape) for _, role, _, shape in self._entries if role == "param")
        size = " x ".join(map(str, self.image_size))
        groups = f", groups: {groups_.text(self._groups)}" if self._groups else ""
        return f"Model({self.backbone}, heads: {heads}, {size} px, {count:,} parameters{groups})"

    def _repr_html_(self):
        from mdmt.summary import html

        return html(repr(self), self.backbone, self.heads, self.image_size, self.channels)
