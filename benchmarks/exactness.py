"""How exactly every backbone computes what its original in torchvision or timm does.

    python -m benchmarks.exactness [--backbone NAME ...] [--batch 4] [--threads 2] [--quick]

Per backbone, with equal weights of ours and PyTorch's: whether the keys and shapes of the state
dictionary are equal; the worst relative error of features and logits in evaluation (a batch, and a
batch of 1 at an odd size) and in a training pass with its running statistics; the worst gradient
tensor at the original image size and at the odd one (the median of three batches); the losses of
ten steps of Adam. Each error is to PyTorch in float64, ours first, PyTorch's own float32 behind it.
Weights are such that few values stand near a ReLU's zero, where the gradient jumps and rounding
decides; ShuffleNet has ordinary ones (tests/test_backbones.py says why). --quick: 64 px instead of
the original size. The table is printed and written to benchmarks/results/exactness.csv.
"""

import argparse
import csv
import statistics
import time

from benchmarks import machine

ODD = (97, 131)
COLUMNS = ("evaluation", "evaluation_odd_batch_1", "training", "statistics")
COLUMNS += ("gradient", "gradient_odd", "ten_steps")
SHORT = ("eval", "eval 1, odd", "training", "statistics", "gradient", "grad. odd", "10 losses")


def both(measure, found):
    """Worst errors of ours and of PyTorch's float32 to float64."""
    from tests.exactness import worst

    ours, single, double = found
    return worst(measure(ours, double))[1], worst(measure(single, double))[1]


def split(found):
    """Three outputs of a training pass as (features and logits, running statistics)."""
    return [
        [{k: v for k, v in out.items() if ("running" in k) == running} for out in found]
        for running in (False, True)
    ]


def steps_apart(losses):
    """Losses as dictionaries, for errors."""
    return [dict(enumerate(each)) for each in losses]


def gradients(sides, n, size):
    """The worst gradient tensor, of ours and of PyTorch's float32: medians of three batches."""
    from tests import oracle
    from tests.exactness import gradient_errors

    found = []
    for seed in range(3):
        sides.reset()
        found.append(both(gradient_errors, sides.gradients(oracle.batch(n, size, seed))[1]))
    return tuple(statistics.median(side) for side in zip(*found))


def row(name, options):
    """The errors of one backbone: {column: (ours, PyTorch)} and whether the keys are equal."""
    from tests import oracle
    from tests.exactness import Sides, default_size, errors

    size, n = 64 if options.quick else default_size(name), options.batch
    sides = Sides(name, size, smooth=not name.startswith("shufflenet"))
    state, original = sides.ours.state_dict(), oracle.state(sides.single)
    keys = [(k, v.shape) for k, v in state.items()] == [(k, v.shape) for k, v in original.items()]
    found = {}
    x = oracle.batch(n, size)[0]
    found["evaluation"] = both(errors, sides.outputs(x, False))
    x = oracle.batch(1, ODD)[0]
    found["evaluation_odd_batch_1"] = both(errors, sides.outputs(x, False))
    outputs, running = split(sides.outputs(oracle.batch(n, size)[0], True))
    found["training"], found["statistics"] = both(errors, outputs), both(errors, running)
    found["gradient"] = gradients(sides, n, size)
    found["gradient_odd"] = gradients(sides, max(n, 4), ODD)
    sides.reset()
    losses = sides.steps(max(n, 6), 64, exact=True)
    found["ten_steps"] = both(errors, steps_apart(losses))
    return keys, found


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.exactness", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--backbone", nargs="+", default=None)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--quick", action="store_true", help="64 px instead of the original size")
    options = parser.parse_args()
    import mdmt
    from tests import oracle
    from tests.exactness import default_size

    torch = oracle.load("torch")
    if torch is None or oracle.load("torchvision") is None or oracle.load("timm") is None:
        raise SystemExit("exactness is measured against torch, torchvision and timm: install them")
    torch.set_num_threads(options.threads)
    mdmt.set_num_threads(options.threads)
    rows = []
    print("| backbone | keys | " + " | ".join(SHORT) + " | seconds |")
    print("|---|---|" + "---|" * (len(SHORT) + 1))
    for name in options.backbone or mdmt.backbones():
        start = time.perf_counter()
        keys, found = row(name, options)
        cells = [f"{mine:.0e} / {theirs:.0e}" for mine, theirs in (found[c] for c in COLUMNS)]
        equal = "equal" if keys else "DIFFER"
        spent = time.perf_counter() - start
        print(f"| {name} | {equal} | {' | '.join(cells)} | {spent:.0f} |", flush=True)
        size = 64 if options.quick else default_size(name)
        line = {"backbone": name, "keys": equal, "batch": options.batch, "image_size": size}
        for column in COLUMNS:
            for side, value in zip(("ours", "torch"), found[column]):
                line[f"{column}_{side}"] = f"{value:.2e}"
        rows.append(line)
    machine.RESULTS.mkdir(exist_ok=True)
    with (machine.RESULTS / "exactness.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
