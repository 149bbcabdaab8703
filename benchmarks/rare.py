"""What becomes of intervals and p-values where resamples lack a class.

    python -m benchmarks.rare [--studies 500] [--csv FILE]

Draws studies (SYNTHETIC) of few patients with four classes, the rarest 10 %, in five folds: two
configurations, equally good or not, each called by the class of a hidden severity with noise of
its own. Of each study the bootstrap by patient is asked for the interval of a configuration's
measure and of the difference, in three ways:

undefined   a resampled fold that lacks a class which it holds does not count (what mdmt does for
            the measures of `stats.OF_ALL_CLASSES`)
left        the measure of the classes that are left takes its place
stratified  as `undefined`, patients being drawn class by class

Counted are, in percent of the studies: intervals that hold the truth (the mean over 2,000 studies
without resampling) and differences that are claimed at 5 %.
"""

import argparse
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks import machine
from mdmt import paths, stats
from mdmt.stats import _resample, _weighted
from mdmt.stats.shared import Resampled

SHARES = (0.25, 0.35, 0.30, 0.10)
NOISE, OWN, BETTER = 0.55, 0.75, 0.35  # of the patient, of a configuration, less of a better one
FOLDS, RESAMPLES = 5, 1000
WAYS = ("undefined", "left", "stratified")
METRICS = ("gmean", "f1_macro", "balanced_accuracy", "auc")
COLUMNS = ["metric", "patients", "truth", "way", "studies", "missing", "one", "difference",
           "claimed", "width"]  # fmt: skip


def study(rng, patients, better):
    """y (n,), patient (n,), fold (n,), the hidden severities that two configurations see (2, n)."""
    while True:
        label = rng.choice(4, patients, p=SHARES)
        if np.bincount(label, minlength=4).min() >= 2:
            break
    who = np.repeat(np.arange(patients), 1 + rng.poisson(0.5, patients))
    fold = np.empty(patients, np.int64)
    for first, k in zip(np.cumsum([0, *np.bincount(label, minlength=4)]), range(4)):
        rows = rng.permutation(np.flatnonzero(label == k))
        fold[rows] = (np.arange(len(rows)) + first) % FOLDS
    seen = label[who] + rng.normal(0, NOISE, patients)[who]
    own = np.array([[OWN - better], [OWN]]) * rng.normal(size=(2, len(who)))
    return label[who], who, fold[who], seen + own


def given(metric, seen):
    """What `metric` takes of hidden severities (n,): classes, or for the AUC probabilities."""
    if metric != "auc":
        return np.clip(np.rint(seen), 0, 3).astype(np.int64)
    near = np.exp(-np.abs(seen[:, None] - np.arange(4)))
    return near / near.sum(1, keepdims=True)


def weights(rng, way, y, who):
    """Resamples (R, n): how often each case was drawn."""
    count = who.max() + 1
    if way != "stratified":
        return _resample.weights(0, RESAMPLES, count, int(rng.integers(1 << 30)))[:, who]
    label, drawn = np.empty(count, np.int64), np.zeros((RESAMPLES, count))
    label[who] = y
    for k in np.unique(label):
        rows = np.flatnonzero(label == k)
        drawn[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), RESAMPLES)
    return drawn[:, who]


def functions(metric, y, fold, seen):
    return [_weighted.by_fold(metric, y, given(metric, s), fold) for s in seen]


def asked(rng, metric, way, drawn):
    """(interval of the first configuration, difference) of a study."""
    y, who, fold, seen = drawn
    kept = () if way == "left" else stats.OF_ALL_CLASSES
    with mock.patch.object(_weighted, "OF_ALL_CLASSES", kept):
        each = functions(metric, y, fold, seen)
        found = [
            np.array([f(w) for f in each])
            for w in (np.ones((1, len(y))), weights(rng, way, y, who),
                      1.0 - (who == np.arange(who.max() + 1)[:, None]))
        ]  # fmt: skip
    both = Resampled(found[0][:, 0], *found[1:], (metric, metric), 0)
    return both.interval(0), both.difference(0, 1)


def rows_of(metric, patients, better, studies, seed):
    """Lines of the table for one truth."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(2000):
        y, who, fold, seen = study(rng, patients, better)
        one = np.ones((1, len(y)))
        values.append([f(one)[0] for f in functions(metric, y, fold, seen)])
    truth, gain = np.mean(values, 0)[0], np.mean(np.subtract(*np.transpose(values)))
    drawn = [study(rng, patients, better) for _ in range(studies)]
    lost = np.mean([stats.missing_class(y, who, fold) for y, who, fold, _ in drawn])
    lines = []
    for way in WAYS:
        said = [asked(rng, metric, way, one) for one in drawn]
        lines.append({
            "metric": metric, "patients": patients, "truth": f"{100 * gain:+.1f}", "way": way,
            "studies": studies, "missing": f"{100 * lost:.0f}",
            "one": 100 * np.mean([a.low <= truth <= a.high for a, _ in said]),
            "difference": 100 * np.mean([
                d.low <= gain <= d.high if better else d.low <= 0 <= d.high for _, d in said
            ]),
            "claimed": 100 * np.mean([d.pvalue < 0.05 for _, d in said]),
            "width": f"{100 * np.mean([d.high - d.low for _, d in said]):.0f}",
        })  # fmt: skip
    return [{k: f"{v:.1f}" if isinstance(v, float) else v for k, v in r.items()} for r in lines]


def main(arguments=None):
    """Entry of the command."""
    parser = argparse.ArgumentParser("python -m benchmarks.rare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--studies", type=int, default=500, help="of each truth (default 500)")
    parser.add_argument("--csv", type=Path, default=machine.RESULTS / "rare.csv")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", RuntimeWarning)
    rows = []
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for metric in METRICS:
        for patients in (60, 130):
            for better in (0, BETTER):
                for line in rows_of(metric, patients, better, options.studies, 1):
                    print("| " + " | ".join(str(line[c]) for c in COLUMNS) + " |", flush=True)
                    rows.append(line)
                paths.write_csv(options.csv, COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
