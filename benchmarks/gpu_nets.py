"""The slice of gpu_check that compares whole networks with the CPU backend, and its limits.

    python -m benchmarks.gpu_nets [NAME ...]        (no GPU is needed)

Networks of ReLUs amplify rounding: a comparison that one rounding decides otherwise changes a
gradient, and ten steps change it further, on one processor, too. So what is allowed on a GPU is
what roundings do here: every weight of more than one dimension is changed at random by up to one
rounding of a precision (2^-24 of it in fp32, 2^-11 in tf32, 2^-8 in bf16), and the same things are
computed as before by the CPU backend in float32. The largest deviations of three such changes are
kept in benchmarks/results/gpu_rounding.csv; a GPU, which rounds in every layer, may deviate by
four times as much (or by ANYWAY, where that is more).
"""

import argparse
import csv

import numpy as np

from benchmarks import machine
from benchmarks.gpu_correct import (
    HEADS,
    MASK_NET,
    SMALL_STEPS,
    environment,
    model_of,
    relative,
    train,
)

FILE = machine.RESULTS / "gpu_rounding.csv"
COLUMNS = ["case", "precision", "features", "gradients", "losses"]
UNIT = {"fp32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-8}
TIMES, CHANGES = 4, 3
# What is allowed anyway: one comparison that is decided otherwise moves a gradient of these small
# maps by 3e-3, and three changes need not meet one.
ANYWAY = {"fp32": (1e-4, 1e-2, 2e-2), "tf32": (1e-2, 5e-2, 3e-2), "bf16": (6e-2, 3e-1, 1e-1)}


class Scene:
    """What is computed of a network: features (and masks) of a batch, gradients, losses of ten
    steps."""

    def __init__(self, name, size=96, batch=8, count=10):
        self.name, self.size, self.batch, self.count = name, size, batch, count
        rng = np.random.default_rng(2)
        self.x = rng.standard_normal((batch, 3, size, size)).astype(np.float32)
        self.task, self.target = np.arange(batch) % len(HEADS), rng.integers(0, 2, batch)
        mask = rng.integers(0, 2, (batch, size, size)).astype(np.float32)
        self.masks = {"mask": mask} if name == MASK_NET else {}

    def model(self, device, precision):
        with environment(MDMT_CUDA_TUNE="off"):  # engines are asked about in the table
            return model_of(self.name, device, precision, self.size)

    def seen(self, state, device="cpu", precision="fp32"):
        """(maps, gradients, losses) of the network with these weights; None: its first ones."""
        model = self.model(device, precision)
        state = state or model.state_dict()
        model.load_state_dict(state)
        out = model.predict(np.arange(self.batch) % len(HEADS), np.arange(self.batch), 3)
        maps = [out["features"], *([out["lungs"]] if self.masks else [])]
        gradients = model.loss_and_gradients(
            self.x, self.task, self.target, training=False, **self.masks
        )[1]
        model.load_state_dict(state)
        return maps, gradients, train(model, self.count, self.batch, SMALL_STEPS)


def deviations(found, exact):
    """Of features, relative; of gradients, the median over tensors; of losses, the largest."""
    maps = max(relative(f, e) for f, e in zip(found[0], exact[0]))
    gradients = float(np.median([relative(found[1][k], v) for k, v in exact[1].items()]))
    return maps, gradients, float(np.abs(found[2] - exact[2]).max())


def allowed(name, precision, kept=True):
    """(features, gradients, losses) that a GPU may deviate by."""
    limits = ANYWAY[precision]
    if kept and FILE.exists():
        with FILE.open(newline="") as file:
            for row in csv.DictReader(file):
                if (row["case"], row["precision"]) == (name, precision):
                    seen = (TIMES * float(row[column]) for column in COLUMNS[2:])
                    limits = tuple(map(max, limits, seen))
    return limits


def nets(run):
    for name in run.backbones:
        if run.late(f"{name} and all after it"):
            return
        scene = Scene(name, 64, 8, 2) if run.dry else Scene(name)
        state = scene.model("cpu", "fp32").state_dict()
        exact = scene.seen(state)

        def one(precision, name=name, scene=scene, state=state, exact=exact):
            found = deviations(scene.seen(state, run.device_name, precision), exact)
            limits = allowed(name, precision, kept=not run.dry)
            text = f"gradients {found[1]:.2g}, losses {found[2]:.2g}; allowed " + ", ".join(
                f"{limit:.2g}" for limit in limits
            )
            ok = all(f <= limit for f, limit in zip(found, limits))
            return f"{found[0]:.3g}", ok, text

        for precision in run.precisions():
            run.attempt(name, precision, lambda p=precision, f=one: f(p))


# ---------------------------------------------------------------- what roundings do


def rounded(state, unit, seed):
    """The weights, each changed by up to `unit` of it."""
    rng = np.random.default_rng(seed)
    return {
        k: (v * (1 + unit * rng.uniform(-1, 1, v.shape))).astype(v.dtype) if v.ndim > 1 else v
        for k, v in state.items()
    }


def measure(name):
    """Rows of one network."""
    scene = Scene(name)
    state = scene.model("cpu", "fp32").state_dict()
    exact = scene.seen(state)
    for precision, unit in UNIT.items():
        found = [deviations(scene.seen(rounded(state, unit, i)), exact) for i in range(CHANGES)]
        yield dict(zip(COLUMNS, (name, precision, *(f"{v:.3g}" for v in np.max(found, axis=0)))))


def main(arguments=None):
    import mdmt

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_nets")
    parser.add_argument("names", nargs="*", default=[*mdmt.backbones(), MASK_NET])
    names = parser.parse_args(arguments).names
    kept = []
    if FILE.exists():
        with FILE.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["case"] not in names]
    for name in names:
        rows = list(measure(name))
        kept += rows
        for row in rows:
            print(*row.values(), flush=True)
        with FILE.open("w", newline="") as file:
            out = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            out.writeheader()
            out.writerows(sorted(kept, key=lambda row: (row["case"], row["precision"])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
