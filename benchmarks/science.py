"""Can a study of this size see what the method claims, and does it see things that are not there?

    python -m benchmarks.science [--cohorts 100] [--report] [--csv FILE]

Draws whole cohorts of SYNTHETIC radiographs, trains the configurations on each with
cross-validation as a study would, and asks what the tests say. Two data sets as in the paper, 1/12
of their size (132 and 391 images), with its prevalences; six small networks at 32 pixels stand for
the backbones.

shared     both labels come from one hidden severity: how often is MDMT found better, and by how
           much?
exchanged  the same predictions, but for every patient a coin decides which configuration is called
           MDMT: neither is better on any patient, and the networks are as they are. A test that
           claims a difference here is wrong, and may be in 5 % of cohorts.
unrelated  the severity labels are shuffled, so that the second data set holds nothing worth
           knowing. Two such data sets are drawn alike, and MDMT with the one is compared with MDMT
           with the other: the same steps, the same starts, no difference by construction, but
           other networks and other second data. MDMT against STL stands beside: whether a
           worthless second data set helps (longer training, a start from averaged weights) is not
           known beforehand.

Tests: the primary one (paired bootstrap by patient, backbones resampled as well; two-sided 5 %),
the same with the networks taken as given, and the paper's (one-tailed t-test paired over backbones,
5 %). A cohort takes 11 s of one core; every finished one is kept in the CSV, and the same command
goes on from there. The last lines are the table of the documentation.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import machine, smallnets
from mdmt import config, engine, experiments, paths, splits, stats
from mdmt.data import synthetic
from mdmt.errors import BadInput, MdmtError
from mdmt.weights import average_weights

SCALE = 12
IMAGES = {"prognosis": 1586 // SCALE, "severity": 4695 // SCALE}
PICTURES = {"prognosis": (0.7, 0.2, 0.1), "severity": (0.4, 0.3, 0.2, 0.1)}
# Shapes of the severity's distribution, and the limit of SEVERE, that give the paper's class
# shares: 47 % SEVERE; severity 22, 29, 36 and 13 %.
DRAWN = {"severity": (1.7, 1.95), "limit": 8.7, "noise": 0.8}
FOLDS, RESAMPLES, EXCHANGES = 3, 1000, 2
METRICS = ("accuracy", "f1", "gmean", "auc")
METHOD = "MDMT"
OTHERS = ("STL-tau1", "FT", "STL-tau1-long")
STUDY = {
    "name": "science",
    "data": {
        "root": "drawn",
        "datasets": [
            {"name": "one", "table": "one.csv", "task": "prognosis"},
            {"name": "two", "table": "two.csv", "task": "severity"},
        ],
    },
    "tasks": {
        "prognosis": {"classes": ["MILD", "SEVERE"], "positive": "SEVERE",
                      "head": {"hidden": [], "dropout": 0.0}},
        "severity": {"classes": ["0", "1", "2", "3"], "thresholds": [5, 9, 14],
                     "head": {"hidden": [], "dropout": 0.0}},
    },
    "configurations": ["STL-tau1", "STL-tau2", "FT", "MDMT", "STL-tau1-long"],
    "cv": {"folds": FOLDS},
    "image_size": 32,
    "train": {"epochs": 12, "warmup_epochs": 2, "patience": 12, "batch_size": 16, "lr": 0.002,
              "augment": None},
}  # fmt: skip
COLUMNS = ["scenario", "cohort", "repeat", "against", "metric", "ours", "theirs", "difference",
           "pvalue", "pvalue_fixed", "pvalue_paper", "patients", "settings"]  # fmt: skip


def settings(backbones):
    """A digest of everything that decides the numbers, so that runs of two kinds are not mixed."""
    known = [STUDY, backbones, SCALE, IMAGES, PICTURES, DRAWN, FOLDS, RESAMPLES, EXCHANGES,
             synthetic.VERSION]  # fmt: skip
    return paths.digest(known, 8)


def cohort_of(name, task, seed):
    """One data set: rows as of synthetic.cohort, labels (M,), patients [M]."""
    rows = synthetic.cohort(
        name, IMAGES[task], DRAWN["noise"], seed, severity=DRAWN["severity"],
        limit=DRAWN["limit"], pictures=PICTURES[task],
    )[: IMAGES[task]]  # fmt: skip
    if task == "prognosis":
        labels = [row["prognosis"] == "SEVERE" for row in rows]
    else:
        labels = np.digitize([row["score"] for row in rows], STUDY["tasks"][task]["thresholds"])
    return rows, np.asarray(labels, np.int64), [row["patient"] for row in rows]


def draw(name, task, seed, size):
    """One data set with its images: images (M, S, S) uint8, labels (M,), patients [M]."""
    rows, labels, patients = cohort_of(name, task, seed)
    images = np.stack([
        np.rint(255 * synthetic.draw([int(z) for z in row["zones"]], row["center"],
                                     np.random.default_rng(row["seed"]), size))
        for row in rows
    ]).astype(np.uint8)  # fmt: skip
    return images, labels, patients


def shuffled(drawn, seed):
    """The data set with its labels in another order, so that they say nothing about the images."""
    images, labels, patients = drawn
    return images, np.random.default_rng(seed).permutation(labels), patients


class World:
    """The data sets of a cohort, {task: (images, labels, patients)}, with their folds."""

    def __init__(self, data, seed):
        self.data = data
        self.folds = {
            task: splits.stratified_group_kfold(labels, patients, FOLDS, seed)
            for task, (_, labels, patients) in data.items()
        }

    def part(self, task, fold, position):
        """The engine's part of `task`, whose head has number `position`."""
        images, labels, _ = self.data[task]
        rows = self.folds[task][fold]
        return engine.Part(images, labels, position, rows["train"], rows["val"], rows["test"])


class Trainer:
    """Trains configurations of one backbone on one fold; stages that agree are trained once."""

    def __init__(self, values, world, backbone, fold, seed, known=None):
        self.values, self.world, self.backbone = values, world, backbone
        self.fold, self.seed = fold, seed
        self.done = dict(known or {})

    def probabilities(self, name, task="prognosis"):
        """Probabilities (cases, classes) of the test part, from the last stage of `name`."""
        stages = experiments.stages_of(self.values, name)
        model, _ = self.done[self.stage(stages, len(stages) - 1)]
        rows = self.world.folds[task][self.fold]["test"]
        position = stages[-1]["tasks"].index(task)
        batch = self.values["train"]["batch_size"]
        return engine.softmax(engine.predict(model, position, rows, batch)[task])

    def stage(self, stages, number):
        """Train stage `number` of `stages` if need be; return its key in `done`."""
        stage = stages[number]
        init = stage["init"]
        sources = [init] if isinstance(init, int) else init if isinstance(init, list) else []
        before = [self.stage(stages, k) for k in sources]
        tasks = stage["tasks"]
        key = (tuple(tasks), tuple(before), tuple(stage["shares"]), stage["steps_of"])
        if key not in self.done:
            steps = self.steps(stage["steps_of"]) if stage["steps_of"] else None
            self.done[key] = self.train(stage, before, steps)
        return key

    def steps(self, name):
        """Steps of all trainings behind configuration `name`."""
        stages = experiments.stages_of(self.values, name)
        return sum(self.done[self.stage(stages, k)][1] for k in range(len(stages)))

    def train(self, stage, before, steps):
        """(model, steps) of one stage."""
        from mdmt import Model

        tasks = stage["tasks"]
        heads = {
            t: {
                "classes": len(self.values["tasks"][t]["classes"]),
                **self.values["tasks"][t]["head"],
            }
            for t in tasks
        }
        model = Model(self.backbone, heads, image_size=self.values["image_size"], seed=self.seed)
        states = [self.done[key][0].state_dict() for key in before]
        states = [{k: v for k, v in s.items() if not k.startswith("heads.")} for s in states]
        if len(states) == 2:
            states = [average_weights(*states, stage["shares"][0])]
        if states:
            model.load_state_dict(states[0], strict=False)
        parts = [self.world.part(t, self.fold, k) for k, t in enumerate(tasks)]
        fit = engine.Fit(model, parts, tasks, self.values["train"], self.values["sampler"],
                         seed=self.seed, max_steps=steps)  # fmt: skip
        fit.run()
        return model, model.training_step


def tested(y, patient, fold, ours, theirs, seed):
    """What the tests say about two configurations: {metric: row}.

    y (cases,) 0 or 1; ours, theirs (backbones, cases) probabilities of class 1. The primary test
    is that of mdmt.analysis for five backbones or more.
    """
    wanted = [
        (metric, p if metric == "auc" else (p > 0.5).astype(np.int64))
        for metric in METRICS
        for pair in zip(ours, theirs, strict=True)
        for p in pair
    ]
    drawn = stats.resample(y, wanted, patient, RESAMPLES, seed, folds=fold)
    found, count = {}, len(ours)
    for k, metric in enumerate(METRICS):
        first = 2 * count * k
        pairs = [(first + 2 * b, first + 2 * b + 1) for b in range(count)]
        mine, other = drawn.values[[i for i, _ in pairs]], drawn.values[[j for _, j in pairs]]
        primary = drawn.mean_difference(pairs, "random")
        equal = np.ptp(mine - other) == 0
        found[metric] = {
            "ours": mine.mean(),
            "theirs": other.mean(),
            "difference": primary.difference,
            "pvalue": primary.pvalue,
            "pvalue_fixed": drawn.mean_difference(pairs, "fixed").pvalue,
            "pvalue_paper": 1.0 if equal else stats.paired_t(mine, other, "greater").pvalue,
        }
    return found


def pooled(trainers, name, folds):
    """Probabilities of SEVERE (backbones, cases) of configuration `name`, folds in order."""
    return np.array([
        np.concatenate([trainers[b, f].probabilities(name)[:, 1] for f in range(folds)])
        for b in dict.fromkeys(b for b, _ in trainers)
    ])  # fmt: skip


def study(values, backbones, scenario, cohort):
    """Rows of one cohort: train everything, test everything."""
    size, seed = values["image_size"], 2 * cohort + (scenario == "unrelated")
    # names of unlike length: the drawing's random numbers depend on it
    one = draw("prognosis", "prognosis", seed, size)
    two = draw("severity", "severity", seed, size)
    worlds = {"A": World({"prognosis": one, "severity": two}, cohort)}
    if scenario == "unrelated":
        other = draw("another", "severity", seed, size)
        worlds = {
            "A": World({"prognosis": one, "severity": shuffled(two, [seed, 2])}, cohort),
            "B": World({"prognosis": one, "severity": shuffled(other, [seed, 3])}, cohort),
        }
    trainers: dict = {name: {} for name in worlds}
    for k, backbone in enumerate(backbones):
        for fold in range(FOLDS):
            alone = None
            for name, world in worlds.items():
                start = 1000 * seed + 10 * k + fold
                trainer = Trainer(values, world, backbone, fold, start, alone)
                trainer.probabilities("STL-tau1")
                alone = alone or trainer.done  # the first task alone does not know the second
                trainers[name][backbone, fold] = trainer
    tests = [f["test"] for f in worlds["A"].folds["prognosis"]]
    rows = np.concatenate(tests)
    fold = np.repeat(np.arange(FOLDS), [len(t) for t in tests])
    y, patient = one[1][rows], np.array(one[2])[rows]
    ours = pooled(trainers["A"], METHOD, FOLDS)
    if scenario == "unrelated":
        opponents = {"MDMT, other data": pooled(trainers["B"], METHOD, FOLDS)}
        opponents["STL-tau1"] = pooled(trainers["A"], "STL-tau1", FOLDS)
    else:
        opponents = {name: pooled(trainers["A"], name, FOLDS) for name in OTHERS}
    found = []

    def add(kind, repeat, against, first, second):
        place = {"scenario": kind, "cohort": cohort, "repeat": repeat, "against": against}
        place["patients"] = len(set(patient))
        result = tested(y, patient, fold, first, second, cohort)
        found.extend({**place, "metric": m, **result[m]} for m in METRICS)

    for against, theirs in opponents.items():
        add(scenario, 0, against, ours, theirs)
        if scenario == "shared" and against in OTHERS[:2]:
            for repeat in range(EXCHANGES):
                coin = exchange(patient, [cohort, repeat, OTHERS.index(against)])
                first, second = np.where(coin, theirs, ours), np.where(coin, ours, theirs)
                add("exchanged", repeat, against, first, second)
    return found


def exchange(patient, seed):
    """A fair coin per patient, for each of the patient's cases (cases,) bool."""
    codes = np.unique(patient, return_inverse=True)[1]
    return np.random.default_rng(seed).random(codes.max() + 1)[codes] < 0.5


def t_half_width(values):
    """Half of Student's 95 % interval of the mean of values (n,); NaN for a single one."""
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return float("nan")
    return float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n))


def shares(rows):
    """The table: a row per scenario and comparison, with Wilson's intervals."""
    lines = []
    groups: dict = {}
    for r in rows:
        groups.setdefault((r["scenario"], r["against"], r["metric"]), []).append(r)
    order = ["shared", "exchanged", "unrelated"]
    for key in sorted(groups, key=lambda k: (order.index(k[0]), k[1], METRICS.index(k[2]))):
        some = groups[key]
        d = np.array([float(r["difference"]) for r in some])
        line = {"scenario": key[0], "against": key[1], "metric": key[2], "n": len(some)}
        # repeats of a cohort are not independent: the gain's interval is over cohorts
        cohorts: dict = {}
        for r, value in zip(some, d, strict=True):
            cohorts.setdefault(r["cohort"], []).append(value)
        means = np.array([np.mean(v) for v in cohorts.values()])
        line["gain"] = means.mean()
        half = t_half_width(means)
        line["gain_low"], line["gain_high"] = means.mean() - half, means.mean() + half
        line["higher"] = stats.wilson(int(np.sum(d > 0)), len(d))
        for name, column, up in (
            ("primary", "pvalue", None),
            ("primary_better", "pvalue", True),
            ("primary_worse", "pvalue", False),
            ("fixed", "pvalue_fixed", None),
            ("paper", "pvalue_paper", None),
        ):
            p = np.array([float(r[column]) for r in some])
            claimed = (p < 0.05) & ((d > 0) == up if up is not None else True)
            line[name] = stats.wilson(int(claimed.sum()), len(p))
        lines.append(line)
    return lines


def percent(interval):
    """Share and Wilson interval in percent."""
    return f"{100 * interval.estimate:.0f} ({100 * interval.low:.0f} to {100 * interval.high:.0f})"


def show(rows):
    """Print the table in Markdown."""
    heads = ["scenario", "MDMT against", "metric", "n", "gain, points", "higher in %",
             "primary test claims, %", "of these better / worse", "networks as given, %",
             "paper's test, %"]  # fmt: skip
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for line in shares(rows):
        ends = f"{100 * line['gain_low']:+.1f} to {100 * line['gain_high']:+.1f}"
        n = line["n"]
        up, down = (round(n * line[k].estimate) for k in ("primary_better", "primary_worse"))
        cells = [line["scenario"], line["against"], line["metric"], str(n),
                 f"{100 * line['gain']:+.1f} ({ends})",
                 *(percent(line[k]) for k in ("higher", "primary")), f"{up} / {down}",
                 *(percent(line[k]) for k in ("fixed", "paper"))]  # fmt: skip
        print("| " + " | ".join(cells) + " |")


def read(path, digest):
    """Rows of the CSV; one made with other settings is refused."""
    if not path.exists():
        return []
    rows = paths.read_csv(path)
    strange = [r for r in rows if set(r) != set(COLUMNS) or r["settings"] != digest]
    if strange:
        raise BadInput(
            f"{path}: holds cohorts that were run with other settings ({len(strange)} of "
            f"{len(rows)} rows); move it away or choose another --csv"
        )
    return rows


def text(value):
    """A cell: numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run(path, cohorts, first=0, say=print):
    """Run what is missing of `cohorts` cohorts of both kinds; return all rows."""
    backbones = smallnets.register()
    values = config.resolve(STUDY, "science")
    digest = settings(backbones)
    rows = read(path, digest)
    have = {(r["scenario"], int(r["cohort"])) for r in rows}
    todo = [(k, c) for c in range(first, first + cohorts) for k in ("shared", "unrelated")
            if (k, c) not in have]  # fmt: skip
    begin = time.monotonic()
    for number, (kind, cohort) in enumerate(todo):
        found = study(values, backbones, kind, cohort)
        rows += [{c: text(row.get(c, digest)) for c in COLUMNS} for row in found]
        path.parent.mkdir(parents=True, exist_ok=True)
        paths.write_csv(path, COLUMNS, rows)
        spent = time.monotonic() - begin
        left = spent / (number + 1) * (len(todo) - number - 1)
        say(f"cohort {number + 1} of {len(todo)} ({kind} {cohort}): {spent:.0f} s, "
            f"about {left / 60:.0f} min left")  # fmt: skip
    return rows


def main(arguments=None):
    """Entry of the command."""
    parser = argparse.ArgumentParser("python -m benchmarks.science", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cohorts", type=int, default=100, help="of each kind (default 100)")
    parser.add_argument("--first", type=int, default=0, help="number of the first cohort")
    parser.add_argument("--report", action="store_true", help="print the table of the CSV only")
    parser.add_argument("--csv", type=Path, default=machine.RESULTS / "science.csv")
    options = parser.parse_args(arguments)

    def say(text):
        print(text, file=sys.stderr, flush=True)

    try:
        rows = run(options.csv, 0 if options.report else options.cohorts, options.first, say)
    except KeyboardInterrupt:
        say("stopped; the same command goes on after the last finished cohort")
        return 75
    except MdmtError as error:
        say(str(error))
        return error.exit_code
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
