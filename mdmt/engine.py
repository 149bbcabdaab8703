"""The only training loop: `fit` and `predict` over `mdmt.Model`.

Everything that decides the next step (weights, optimiser moments, position of the sampler,
learning-rate schedule, best weights, history) is in the checkpoint, so that a training that was
stopped at any moment goes on to the same bits as one that was not.
"""

from __future__ import annotations

import json
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import _core, kinds, weighting
from .errors import BadInput, Interrupted, write_failure
from .inputs import micro_batches
from .loss import masked_loss
from .paths import write_csv

FORMAT = 1
# kind of task -> what the history gives beside the validation loss
MEASURES = {kinds.CLASSES: "accuracy", kinds.NUMBER: "mae", kinds.FINDINGS: "accuracy"}


@dataclass(frozen=True)
class Unit:
    """Mean and standard deviation of a number over the training parts of its task. Training sees
    the number in this unit, so that its loss is of the size of the others'; afterwards the last
    layer of the head is changed so that the network gives the number itself."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, numbers: np.ndarray) -> Unit:
        """The unit of training numbers (n,); equal ones have the deviation 1."""
        numbers = np.asarray(numbers, np.float64)
        return cls(float(numbers.mean()), float(numbers.std()) or 1.0)

    def standardised(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers as multiples of the deviation from the mean, float64."""
        return (np.asarray(numbers, np.float64) - self.mean) / self.deviation


@dataclass
class Part:
    """One data set as the engine sees it.

    images (M, S, S) or, in colour, (M, 3, S, S) uint8; labels: (M,) class numbers, (M,) numbers in
    their unit, (M, K) findings (1, 0, NaN: not labelled), or masks (M, S, S) uint8, 255 inside, of
    a head that gives masks; task: number of the head; train, val, test: rows.
    """

    images: np.ndarray
    labels: np.ndarray
    task: int
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray | None = None

    def attached(self, unit: Unit | None = None, weights: np.ndarray | None = None) -> dict:
        """The form that `Model.attach` takes; numbers are given in `unit`; weights: the weight of
        each label, or None."""
        target = self.labels if unit is None else unit.standardised(self.labels)
        if target.ndim < 3:
            target = np.ascontiguousarray(target, np.float32)
        found = {"images": self.images, "task": self.task, "target": target}
        return found if weights is None else found | {"sample_weight": weights}


@dataclass
class State:
    """Where a training stands, besides what the model itself holds."""

    epoch: int = 0
    images: int = 0  # trained on so far
    sums: np.ndarray | None = None  # (tasks, 2): this epoch's loss sums and sample counts
    history: list[dict] = field(default_factory=list)
    best: dict | None = None  # weights of the best epoch
    best_epoch: int = -1
    finished: bool = False
    norms: np.ndarray | None = None  # (2): this epoch's sum of gradients' norms, and of how many


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, C) float32 of logits (N, C), computed in float64."""
    z = np.asarray(logits, np.float64)
    z = np.exp(z - z.max(1, keepdims=True))
    return (z / z.sum(1, keepdims=True)).astype(np.float32)


def decoded(kind: str, logits: np.ndarray) -> np.ndarray:
    """What outputs (N, C) of a head mean, float32: probabilities (N, C) of classes or of findings,
    or numbers (N, 1)."""
    if kind == kinds.NUMBER:
        return np.asarray(logits, np.float32)
    if kind == kinds.CLASSES:
        return softmax(logits)
    from scipy.special import expit

    return expit(np.asarray(logits, np.float64)).astype(np.float32)


def mean_loss(loss: str, logits: np.ndarray, target: np.ndarray, weights=None) -> float:
    """Mean of a task's loss over its labelled samples, float64; logits (N, C), target and weights
    (N,) or (N, C), as for `mdmt.masked_loss`."""
    task = np.zeros(len(logits), np.int64)
    return masked_loss([logits], task, target, losses=[loss], sample_weight=weights)[0]


def mask_scores(logits: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(loss dice_ce, Dice coefficient of the decisions) of each sample, float64, from logits
    (N, 1, H, W) and masks (N, H, W) uint8, 255 inside. Two empty masks have the coefficient 1."""
    z = np.asarray(logits, np.float64).reshape(len(masks), -1)
    t = masks.reshape(len(masks), -1) / 255.0
    small = np.exp(-np.abs(z))
    p = np.where(z >= 0, 1, small) / (1 + small)
    entropy = (np.maximum(z, 0) - z * t + np.log1p(small)).mean(1)
    soft = (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
    guess, truth = z > 0, t > 0.5
    both, all_ = (guess & truth).sum(1), guess.sum(1) + truth.sum(1)
    return entropy + 1 - soft, np.where(all_ > 0, 2 * both / np.maximum(all_, 1), 1.0)


def predict(model, dataset: int, rows, batch_size: int = 64, stop=None) -> dict:
    """Return {head: logits (N, C)} for `rows` of attached data set `dataset`, evaluation mode."""
    rows = np.asarray(rows, np.int64)
    parts: dict[str, list] = {}
    for start in range(0, len(rows), batch_size):
        _heed(stop)
        index = rows[start : start + batch_size]
        out = model.predict(np.full(len(index), dataset, np.int64), index, batch_size=batch_size)
        for name, values in out.items():
            if name != "features":
                parts.setdefault(name, []).append(np.asarray(values))
    return {name: np.concatenate(values) for name, values in parts.items()}


def available_memory() -> int | None:
    """Bytes this process could still use: the system's free ones, or its control group's; None
    where the system does not say."""
    return _core.available_memory()


def at_once(settings: dict) -> int:
    """Samples that a training computes at once, of `train` of the configuration."""
    return min(settings["batch_size"], settings.get("micro_batch") or settings["batch_size"])


def in_parts(batch_size: int, most: int | None) -> str:
    """What follows the size of a batch of which at most so many samples are computed at once."""
    return f" in parts of at most {most}" if most and most < batch_size else ""


def takes_one(model) -> bool:
    """Whether a training step can be of a single image: whether its smallest feature map, over
    which the batch is normalised, has more than one pixel."""
    try:
        model.memory(1, training=True)
    except ValueError:
        return False
    return True


def leaves_one(batch: int, most: int | None) -> bool:
    """Whether a batch of so many images, or one of its parts, is of a single image."""
    return micro_batches(batch, most)[-1][0] == 1


def lonely(model, images: int, batch_size: int) -> str:
    """The sentence for an epoch of so many images whose last batch, or a part of it, is one image,
    which cannot be."""
    last = (images - 1) % batch_size + 1
    size = " x ".join(map(str, model.image_size))
    parted = f"{last}{in_parts(last, model.micro_batch)}, with a part of " if last > 1 else ""
    key = "train.micro_batch, train.batch_size" if last > 1 else "train.batch_size"
    return (
        f"{images} training images in batches of {batch_size} leave a last batch of {parted}one, "
        f"which {model.backbone} cannot normalise at {size} pixels; set sampler.drop_last to true, "
        f"or change {key} or image_size"
    )


# What to do where the memory is too small; follows a MemoryError.
SMALLER = "set or lower train.micro_batch, or lower train.batch_size or image_size"


def check_memory(model, batch_size: int) -> int:
    """Return the planned bytes of a training step; MemoryError names them when they cannot fit, and
    the largest of some micro-batches with which they would. BadInput for a batch that no training
    step can be of."""
    if leaves_one(batch_size, model.micro_batch) and not takes_one(model):
        key = "batch_size is 1" if batch_size == 1 else f"micro_batch is {model.micro_batch}"
        of = "" if batch_size == 1 else f" (of a batch of {batch_size})"
        raise BadInput(
            f"train.{key}, and {model.backbone} cannot normalise a single image{of} of "
            f"{' x '.join(map(str, model.image_size))} pixels; give a larger batch or image_size"
        )
    try:
        planned = sum(model.memory(batch_size, training=True).values())
    except (ValueError, OverflowError) as error:
        raise MemoryError(f"a batch of {batch_size} is larger than any memory ({error})") from error
    # A GPU has memory of its own, and says itself what it lacks.
    available = available_memory() if model.device == "cpu" else None
    if available is not None and planned > available:
        raise MemoryError(
            f"a batch of {batch_size}{in_parts(batch_size, model.micro_batch)} needs "
            f"{planned / 2**30:.1f} GiB as planned, and {available / 2**30:.1f} GiB are free"
            f"{_fitting(model, batch_size, available)}"
        )
    return planned


def _fitting(model, batch_size: int, available: int) -> str:
    """A micro-batch with which a step fits, as the end of a sentence; "" where none of 2 or more
    does."""
    former = model.micro_batch
    try:
        most = min(former or batch_size, batch_size) // 2
        while most >= 2:
            model.micro_batch = most
            planned = sum(model.memory(batch_size, training=True).values())
            if planned <= available:
                return f", of which train.micro_batch {most} would need {planned / 2**30:.1f}"
            most //= 2
    finally:
        model.micro_batch = former
    return ""


def augmentation(settings: dict | None, size: int) -> dict | None:
    """The engine's augmentation for images of side `size`.

    The configuration gives the elastic field in pixels of a 256-pixel image, as the paper's code
    does. Displacements grow like alpha / sigma, so alpha is scaled by the square of the size.
    """
    if settings is None:
        return None
    scale = size / 256
    low, high = settings["elastic_alpha"]
    return {
        **settings,
        "elastic_alpha": (low * scale**2, high * scale**2),
        "elastic_sigma": settings["elastic_sigma"] * scale if high > 0 else 0.0,
    }


def make_sampler(sizes: list[int], batch_size: int, settings: dict, seed: int):
    """Return the MixedBatchSampler that the `sampler` part of a configuration describes.

    A last batch that is not full is kept, whatever drop_last says, where it is the only one that an
    epoch over all samples (`epoch: union`) has.
    Raises BadInput.
    """
    from .sampler import MixedBatchSampler

    try:
        return MixedBatchSampler(
            sizes,
            batch_size,
            mode=settings["mode"],
            ratio=settings["ratio"],
            epoch=settings["epoch"],
            drop_last=settings["drop_last"] and sum(sizes) >= batch_size,
            seed=seed,
        )
    except ValueError as error:
        raise BadInput(f"sampler: {error}") from error


class _Stop(Exception):
    """Raised inside the loop when a stop was asked for."""


def _heed(stop) -> None:
    if stop is not None and stop():
        raise _Stop


class Fit:
    """One training of `model` on `parts`.

    tasks: names of the heads in order; settings: `train` of a configuration; sampler: its
    `sampler`; select: number of the task whose validation loss selects the epoch; seed: of the
    sampler; checkpoint: file, or None; task_weights: "equal", "uncertainty" or {task: factor};
    freeze: train the heads alone; max_steps: train exactly so many steps; kept: tasks whose heads
    the model has from an earlier training. stop() -> bool is asked after every step;
    progress(State, loss) is called after every step.

    class_weights: {task: "balanced" or (K,) weights of its classes, or of its findings' positives};
    balanced ones are `mdmt.class_weights` of the labels of the task's training parts.

    The loss of a task of numbers (mse) is of the number in its `Unit`, in training and validation.
    The validation loss has the class weights of training, too: what selects the epoch is what is
    minimised. It is without the head's label smoothing, which makes training harder on purpose.
    """

    def __init__(
        self,
        model,
        parts: list[Part],
        tasks: list[str],
        settings: dict,
        sampler: dict,
        *,
        select: int = 0,
        seed: int = 0,
        checkpoint=None,
        seconds: float = 60,
        steps: int = 0,
        stop=None,
        progress=None,
        task_weights="equal",
        freeze: bool = False,
        max_steps: int | None = None,
        kept=(),
        class_weights: dict | None = None,
    ):
        self.model, self.parts, self.tasks, self.settings = model, parts, tasks, settings
        self.select, self.stop, self.progress = select, stop, progress
        self.checkpoint = Path(checkpoint) if checkpoint else None
        self.seconds, self.steps = seconds, steps
        for part in parts:
            if len(part.train) == 0:
                raise BadInput(
                    f"task '{tasks[part.task]}': the training part is empty; give more patients"
                )
        for k, name in enumerate(tasks):
            if not any(len(p.val) for p in parts if p.task == k):
                raise BadInput(
                    f"task '{name}': the validation part, by which the epoch is selected, is "
                    "empty; give more patients"
                )
        model.micro_batch = settings.get("micro_batch")
        check_memory(model, settings["batch_size"])
        self.units = self._units()
        #: {task: (K,) weights of its classes, or of its findings' positives}
        self.class_weights = self._class_weights(class_weights or {})
        weights = [self._weights_of(p.task, p.labels) for p in parts]
        units = [self.units.get(tasks[p.task]) for p in parts]
        model.attach([p.attached(u, w) for p, u, w in zip(parts, units, weights)])
        try:
            model.groups = settings.get("groups", {})
        except ValueError as error:
            raise BadInput(f"train.{error}") from error
        self.kept = [t for t in kept if t in self.units]
        sizes = [len(p.train) for p in parts]
        self.sampler = make_sampler(sizes, settings["batch_size"], sampler, seed)
        self.task_weights, self.freeze, self.max_steps = task_weights, freeze, max_steps
        #: Most epochs of this training.
        self.epochs = settings["epochs"]
        if max_steps is not None:
            self.epochs = max(-(-max_steps // max(len(self.sampler), 1)), 1)
        self._check_last_batch()
        self.schedule = self._schedule()
        self.state = State()
        self.options = {
            "betas": tuple(settings["betas"]),
            "eps": settings["eps"],
            "weight_decay": settings["weight_decay"],
            "decoupled": settings["decoupled"],
            "clip": settings.get("clip_norm"),
            "augment": augmentation(settings["augment"], parts[0].images.shape[-1]),
        }
        self.resumed = 0  # images that an earlier process has trained on
        self.loss_at_start: float | None = None  # of what is not trained
        self.saved_at, self.since_saved = time.monotonic(), 0

    def _check_last_batch(self) -> None:
        """BadInput where an epoch ends in a batch that cannot be trained on."""
        steps, most = len(self.sampler), self.max_steps
        if self.freeze or not self.epochs or not steps or (most is not None and most < steps):
            return
        size = self.settings["batch_size"]
        last = len(self.sampler.batch(0, steps - 1)[1])
        if leaves_one(last, self.model.micro_batch) and not takes_one(self.model):
            raise BadInput(lonely(self.model, (steps - 1) * size + last, size))

    def _schedule(self):
        """The schedule of the settings, of the length that this training has."""
        from .schedule import TrainingSchedule

        settings, epochs, steps = self.settings, self.epochs, self.max_steps
        kind, plateau = settings.get("schedule", "plateau"), settings["plateau"]
        before_last = max(epochs - 1, 0)
        return TrainingSchedule(
            lr=settings["lr"],
            factor=plateau["factor"],
            patience=plateau["patience"],
            min_lr=plateau["minimum"] if kind == "plateau" else settings.get("lr_minimum", 0.0),
            warmup=min(settings["warmup_epochs"], before_last),
            stop_patience=max(settings["patience"] if steps is None else epochs, 1),
            max_epochs=max(epochs, 1),
            kind=kind,
            lr_warmup=min(settings.get("lr_warmup_epochs", 0), before_last),
            length=steps / len(self.sampler) if steps else None,
        )

    def _units(self) -> dict[str, Unit]:
        """{task: Unit} of the tasks of numbers."""
        found = {}
        for k, name in enumerate(self.tasks):
            if self.model.heads[name]["loss"] == "mse":
                mine = [p.labels[p.train] for p in self.parts if p.task == k]
                found[name] = Unit.of(np.concatenate(mine))
        return found

    def _class_weights(self, chosen: dict) -> dict[str, np.ndarray]:
        found = {}
        for name, weights in chosen.items():
            if isinstance(weights, str):
                k, head = self.tasks.index(name), self.model.heads[name]
                mine = np.concatenate([p.labels[p.train] for p in self.parts if p.task == k])
                weights = weighting.class_weights(mine, head["classes"], head["loss"])
            found[name] = np.asarray(weights, np.float64)
        return found

    def _weights_of(self, task: int, labels: np.ndarray) -> np.ndarray | None:
        """The weight of each label of a task, or None where all count alike."""
        weights = self.class_weights.get(self.tasks[task])
        if weights is None:
            return None
        return weighting.of_labels(labels, weights, self.model.heads[self.tasks[task]]["loss"])

    def run(self) -> State:
        """Train to the end, or until stop(): then checkpoint and raise Interrupted. At the end the
        model has the best weights, and its numbers their own unit."""
        for name in self.kept:
            unit = self.units[name]
            self.model.rescale_head(name, 1 / unit.deviation, -unit.mean / unit.deviation)
        if self.checkpoint is not None and self.checkpoint.exists():
            self.load()
        state = self._untrained() if self.epochs == 0 else self._trained()
        for name, unit in self.units.items():
            self.model.rescale_head(name, unit.deviation, unit.mean)
        return state

    def _trained(self) -> State:
        if self.freeze:
            self.model.freeze_backbone()
        try:
            while not self.state.finished:
                self._train_epoch()
                self._close_epoch()
        except _Stop:
            if self.checkpoint is not None:
                self.save()
            raise Interrupted(
                f"stopped in epoch {self.state.epoch + 1} after a signal; the same command goes "
                "on from there"
                if self.checkpoint is not None
                else "stopped after a signal"
            ) from None
        if self.state.best_epoch != self.state.epoch - 1:  # else the model holds them
            self.model.load_state_dict(self.state.best)
        return self.state

    def _untrained(self) -> State:
        """No training: the weights at the start are the best ones."""
        self.state.finished = True
        self.state.best = self.model.state_dict()
        self.loss_at_start = self.validate(self.select)[0]
        return self.state

    def _weights(self) -> dict:
        """Factor of each task's loss in this epoch, with a mean of 1.

        "uncertainty": Kendall et al. (CVPR 2018) minimise sum_k exp(-s_k) L_k + s_k over s, too;
        its optimum exp(-s_k) = 1 / L_k is taken from the mean losses of the epoch before, so that
        it needs no parameters of its own. Fixed weights are scaled likewise.
        """
        chosen = self.task_weights
        if chosen == "uncertainty":
            last = self.state.history[-1] if self.state.history else {}
            losses = {t: last.get(f"loss_{t}") for t in self.tasks}
            chosen = {t: 1 / max(v, 1e-3) for t, v in losses.items() if v is not None}
            chosen = chosen or dict.fromkeys(self.tasks, 1.0)
        if not isinstance(chosen, dict) or not any(chosen.get(t, 1) for t in self.tasks):
            return {}
        found = {t: float(chosen.get(t, 1.0)) for t in self.tasks}
        mean = sum(found.values()) / len(found)
        return {t: w / mean for t, w in found.items()}

    def _spent(self) -> bool:
        return self.max_steps is not None and self.model.training_step >= self.max_steps

    def _train_epoch(self) -> None:
        """Run the steps of this epoch that are still to do."""
        state = self.state
        self.model.task_weights = self._weights()
        if state.sums is None:
            state.sums, state.norms = np.zeros((len(self.tasks), 2)), np.zeros(2)
            self.sampler.set_epoch(state.epoch)
        batches = iter(self.sampler)
        while group := self._group(batches):
            dataset, rows = (np.stack(arrays) for arrays in zip(*group))
            losses, per_task = self.model.fit_steps(
                dataset, rows, lr=self.schedule.lr, epoch=state.epoch, **self.options
            )
            for norm in [] if self.model.gradient_norms is None else self.model.gradient_norms:
                state.norms += norm, 1
            for loss, one in zip(losses, per_task):
                state.sums += np.asarray(one, np.float64)
                state.images += rows.shape[1]
                if self.progress is not None:
                    self.progress(state, float(loss))
            self.since_saved += len(group)
            _heed(self.stop)
            if self._due():
                self.save()

    def _group(self, batches) -> list:
        """The next batches of one size, [(dataset, rows)], to be trained on in one call: as many as
        the model wants at once, and none beyond the next checkpoint or the last step."""
        most = self.model.steps_at_once
        if self.steps:
            most = min(most, max(self.steps - self.since_saved, 1))
        if self.max_steps is not None:
            most = min(most, self.max_steps - self.model.training_step)
        left = len(self.sampler) - self.sampler.state_dict()["position"]
        most = min(most, left if left < 2 else left - 1)  # the last batch may be smaller
        group: list = []
        while len(group) < most:
            dataset, index = next(batches)
            rows = np.empty(len(index), np.int64)
            for d, part in enumerate(self.parts):
                mine = dataset == d
                rows[mine] = part.train[index[mine]]
            group.append((dataset, rows))
        return group

    def _due(self) -> bool:
        if self.checkpoint is None:
            return False
        if self.steps and self.since_saved >= self.steps:
            return True
        return bool(self.seconds) and time.monotonic() - self.saved_at >= self.seconds

    def _close_epoch(self) -> None:
        """Validation loss, history, best weights, learning rate, end."""
        state = self.state
        row = {"epoch": state.epoch, "lr": self.schedule.lr}
        for k, name in enumerate(self.tasks):
            total, count = state.sums[k]
            row[f"loss_{name}"] = float(total / count) if count else None
        for k, name in enumerate(self.tasks):
            loss, measured = self.validate(k)
            kind = kinds.OF_LOSS.get(self.model.heads[name]["loss"], kinds.CLASSES)
            row[f"val_loss_{name}"], row[f"val_{MEASURES[kind]}_{name}"] = loss, measured
            if not np.isfinite(loss):
                raise FloatingPointError(
                    f"epoch {state.epoch + 1}: the validation loss of task '{name}' is {loss}"
                )
        value = row[f"val_loss_{self.tasks[self.select]}"]
        _, best, stop = self.schedule.update(state.epoch, value)
        row["best"] = int(best)
        for name, weight in self.model.task_weights.items():
            row[f"weight_{name}"] = weight
        if self.options["clip"] is not None:
            total, count = state.norms
            row["grad_norm"] = float(total / count) if count else None
        state.history.append(row)
        if best:
            state.best = self.model.state_dict()
            state.best_epoch = state.epoch
        state.epoch += 1
        state.sums = None
        state.finished = bool(stop) or self._spent()

    def validate(self, task: int) -> tuple[float, float]:
        """Mean loss of head `task` over its validation parts, and the accuracy (of findings, over
        all that are labelled), the mean absolute error in the number's unit, or of masks the mean
        Dice coefficient."""
        if self.parts[0].labels.ndim == 3:
            return self._validate_masks(task)
        name = self.tasks[task]
        logits, labels = [], []
        for d, part in enumerate(self.parts):
            if part.task == task and len(part.val):
                out = predict(self.model, d, part.val, at_once(self.settings), self.stop)
                logits.append(out[name])
                labels.append(part.labels[part.val])
        logits, labels = np.concatenate(logits), np.concatenate(labels)
        loss, unit = self.model.heads[name]["loss"], self.units.get(name)
        if unit is not None:
            target = unit.standardised(labels)
            error = np.abs(logits[:, 0].astype(np.float64) - target)
            return mean_loss(loss, logits, target), float(error.mean() * unit.deviation)
        kind = kinds.OF_LOSS[loss]
        known = ~np.isnan(labels)
        right = (kinds.called(kind, decoded(kind, logits)) == labels)[known]
        value = mean_loss(loss, logits, labels, self._weights_of(task, labels))
        return value, float(np.mean(right))

    def _validate_masks(self, task: int) -> tuple[float, float]:
        scores, batch = [], at_once(self.settings)
        for d, part in enumerate(self.parts):
            for start in range(0, len(part.val) if part.task == task else 0, batch):
                rows = part.val[start : start + batch]
                out = predict(self.model, d, rows, batch, self.stop)
                scores.append(mask_scores(out[self.tasks[task]], part.labels[rows]))
        loss, dice = (np.concatenate(s) for s in zip(*scores))
        return float(loss.mean()), float(dice.mean())

    def best_loss(self) -> float | None:
        """The validation loss that selects, at the best epoch so far, or of what is not trained."""
        if self.state.best_epoch < 0:
            return self.loss_at_start
        return self.state.history[self.state.best_epoch][f"val_loss_{self.tasks[self.select]}"]

    def save(self) -> None:
        """Write the checkpoint, atomically."""
        from ._core import write_safetensors

        state = self.state
        arrays = {f"weights/{k}": v for k, v in self.model.state_dict().items()}
        moments, step = self.model.optimizer_state()
        arrays.update({f"adam/{k}": v for k, v in moments.items()})
        if state.best is not None:
            arrays.update({f"best/{k}": v for k, v in state.best.items()})
        record = {
            "format": FORMAT,
            "epoch": state.epoch,
            "images": state.images,
            "sums": None if state.sums is None else state.sums.tolist(),
            "history": state.history,
            "best_epoch": state.best_epoch,
            "finished": state.finished,
            "optimizer_step": int(step),
            "training_step": int(self.model.training_step),
            "norms": None if state.norms is None else state.norms.tolist(),
            "sampler": self.sampler.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        try:
            text = json.dumps(record)
            given = {"mdmt": text, "crc": _checksum(text, arrays)}
            write_safetensors(str(self.checkpoint), arrays, given)
        except OSError as error:
            raise write_failure(self.checkpoint, error) from error
        self.saved_at, self.since_saved = time.monotonic(), 0

    def load(self) -> None:
        """Go back to where the checkpoint was written."""
        from safetensors import SafetensorError, safe_open

        parts: dict[str, dict] = {"weights": {}, "adam": {}, "best": {}}
        try:
            with safe_open(str(self.checkpoint), "np") as stream:
                given = stream.metadata()
                record = json.loads(given["mdmt"])
                arrays = {k: stream.get_tensor(k) for k in stream.keys()}  # noqa: SIM118
            if given.get("crc") not in (None, _checksum(given["mdmt"], arrays)):
                raise ValueError("its checksum is another")
            for key, value in arrays.items():
                group, _, name = key.partition("/")
                parts[group][name] = value
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{self.checkpoint}: is not a checkpoint that can be read ({error}); "
                "delete it to start this training anew"
            ) from error
        self.model.load_state_dict(parts["weights"])
        self.model.load_optimizer_state(parts["adam"], record["optimizer_step"])
        self.model.training_step = record["training_step"]
        self.sampler.load_state_dict(record["sampler"])
        self.schedule.load_state_dict(record["schedule"])
        self.state = State(
            record["epoch"],
            record["images"],
            None if record["sums"] is None else np.array(record["sums"]),
            record["history"],
            parts["best"] or None,
            record["best_epoch"],
            record["finished"],
        )
        self.state.norms = np.array(record.get("norms") or [0.0, 0.0])
        self.resumed = self.state.images


def _checksum(text: str, arrays: dict) -> str:
    """What tells that a byte of a checkpoint is not as it was written."""
    value = zlib.crc32(text.encode())
    for name in sorted(arrays):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(np.ascontiguousarray(arrays[name]), value)
    return f"{value:08x}"


def write_history(path, history: list[dict]) -> None:
    """Write history.csv: one row per epoch."""
    write_csv(path, list(history[0]) if history else ["epoch"], history)
