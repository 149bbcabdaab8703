"""How exactly every backbone computes what its original in torchvision or timm does.

    python -m benchmarks.exactness [--backbone NAME ...] [--threads 1] [--kinks] [--quick]

Per backbone, with equal weights of ours and PyTorch's: whether the keys and shapes of the state
dictionary are equal; the worst relative error of features and logits in evaluation (a batch, and a
batch of 1 at an odd size) and in a training pass, of its running statistics and of its gradient
tensors, at the original image size and at the odd one. Each error is to PyTorch in float64, ours
first, PyTorch's own float32 behind it. Last, how far ours are apart from PyTorch's float32 in the
losses of ten steps of Adam at the original size.

--kinks: where a gradient tensor is off by more than 1e-4, either one's, the comparisons that
float32 may decide otherwise than float64 are looked for (the side of a ReLU's zero, the largest
value of a pooling window) and the gradients are compared with the float64 run that decides them
likewise (tests/kinks.py). --quick: 64 px instead of the original size.

A backbone's figures are written to benchmarks/results/exactness.csv when they are there; what the
file has for the same settings is not measured again (--again: it is). The table is printed at the
end.
"""

import argparse
import csv
import time

from benchmarks import machine

ODD, ODD_BATCH, STEPS = (97, 131), 4, 10
FILE = machine.RESULTS / "exactness.csv"
PROMISED = 1e-4  # of a gradient tensor
COLUMNS = {
    "evaluation": "eval",
    "evaluation_odd_batch_1": "eval 1, odd",
    "training": "training",
    "statistics": "statistics",
    "gradient": "gradient",
    "gradient_odd": "grad. odd",
    "ten_losses": "10 losses",
}


def both(measure, found):
    """Worst errors of ours and of PyTorch's float32 to float64."""
    from tests.exactness import worst

    ours, single, double = found
    return worst(measure(ours, double))[1], worst(measure(single, double))[1]


def measured(name, size, batch, kinks):
    """A row: the errors of one backbone, "ours / PyTorch's" in every column."""
    from tests import oracle
    from tests.exactness import Sides, errors, gradient_errors
    from tests.kinks import taken

    sides, found, row = Sides(name, size), {}, {}
    state, original = sides.ours.state_dict(), oracle.state(sides.single)
    same = [(k, v.shape) for k, v in state.items()] == [(k, v.shape) for k, v in original.items()]
    row["keys"] = "equal" if same else "DIFFER"
    found["evaluation"] = both(errors, sides.evaluation(oracle.batch(batch, size)[0]))
    found["evaluation_odd_batch_1"] = both(errors, sides.evaluation(oracle.batch(1, ODD)[0]))
    batches = [oracle.batch(batch, size, step) for step in range(STEPS)]
    odd = oracle.batch(ODD_BATCH, ODD)
    first, _ = sides.training(batches[:1])
    first_odd, _ = sides.training([odd])
    found["training"] = both(errors, [one.outputs for one in first])
    found["statistics"] = both(errors, [one.statistics for one in first])
    _, (ours, single) = sides.training(batches, exact=False)
    row["ten_losses"] = f"{max(abs(a - b) / b for a, b in zip(ours, single)):.1e}"
    for column, passes, data in (
        ("gradient", first, batches[0]),
        ("gradient_odd", first_odd, odd),
    ):
        found[column] = both(gradient_errors, [one.gradients for one in passes])
        row[f"{column}_decided_otherwise"] = ""
        if kinks and max(found[column]) > PROMISED:
            doubts, sided = taken(sides, data)
            (mine, _, left), (theirs, _, left_theirs) = sided["ours"], sided["torch"]
            row[f"{column}_decided_otherwise"] = f"{mine} / {theirs} of {doubts}"
            found[f"{column}_decided_likewise"] = (left, left_theirs)
    return row | {column: f"{a:.1e} / {b:.1e}" for column, (a, b) in found.items()}


def fields():
    names = ["backbone", "image_size", "batch", "threads", "isa", "torch", "keys", *COLUMNS]
    for column in ("gradient", "gradient_odd"):
        names += [f"{column}_decided_otherwise", f"{column}_decided_likewise"]
    return names + ["seconds"]


def kept():
    """The rows of the file, if it has these columns."""
    if not FILE.exists():
        return []
    with FILE.open(newline="") as file:
        reader = csv.DictReader(file)
        return list(reader) if reader.fieldnames == fields() else []


def write(rows):
    FILE.parent.mkdir(exist_ok=True)
    with FILE.with_suffix(".part").open("w", newline="") as file:
        writer = csv.DictWriter(file, fields(), restval="")
        writer.writeheader()
        writer.writerows(rows)
    FILE.with_suffix(".part").replace(FILE)


def table(rows):
    """The rows as Markdown, and below it what rounding decided."""
    lines = ["| backbone | keys | " + " | ".join(COLUMNS.values()) + " |"]
    lines.append("|---|---|" + "---|" * len(COLUMNS))
    for row in rows:
        cells = [row["backbone"], row["keys"], *(row[column] for column in COLUMNS)]
        lines.append("| " + " | ".join(cells) + " |")
    for row in rows:
        for column in ("gradient", "gradient_odd"):
            if row[f"{column}_decided_otherwise"]:
                lines.append(
                    f"{row['backbone']}, {COLUMNS[column]}: {row[f'{column}_decided_otherwise']} "
                    f"comparisons decided otherwise (ours / PyTorch's); {row[column]} becomes "
                    f"{row[f'{column}_decided_likewise']}"
                )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.exactness", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--backbone", nargs="+", default=None)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--kinks", action="store_true", help="look for what rounding decided")
    parser.add_argument("--quick", action="store_true", help="64 px instead of the original size")
    parser.add_argument("--again", action="store_true", help="measure what is in the file again")
    options = parser.parse_args()
    import mdmt
    from mdmt import _core
    from tests import oracle
    from tests.exactness import default_size

    torch = oracle.load("torch")
    if torch is None or oracle.load("torchvision") is None or oracle.load("timm") is None:
        raise SystemExit("exactness is measured against torch, torchvision and timm: install them")
    torch.set_num_threads(options.threads)
    mdmt.set_num_threads(options.threads)
    rows, names = kept(), options.backbone or mdmt.backbones()
    for name in names:
        start, size = time.perf_counter(), 64 if options.quick else default_size(name)
        setting = {"backbone": name, "image_size": size, "batch": options.batch}
        setting |= {"threads": options.threads, "isa": _core.cpu_info()["isa"]}
        setting = {k: str(v) for k, v in (setting | {"torch": torch.__version__}).items()}
        there = [row for row in rows if all(row[k] == v for k, v in setting.items())]
        if there and not options.again:
            continue
        row = setting | measured(name, size, options.batch, options.kinks)
        row["seconds"] = f"{time.perf_counter() - start:.0f}"
        rows = [old for old in rows if old["backbone"] != name] + [row]
        rows.sort(key=lambda row: row["backbone"])
        write(rows)
        print(f"{name}: {row['seconds']} s", flush=True)
    print(table([row for row in rows if row["backbone"] in names]))


if __name__ == "__main__":
    main()
