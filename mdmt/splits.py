"""Splits by patient: stratified cross-validation, leave one center out, and their audit.

All of a patient's images stay in one part of a fold. The validation part is taken from the
training part, by patient, stratified. The same inputs and seed give the same splits on every
platform and whatever the order of the rows: patients are shuffled by a hash of their id.

In `cv`, fold i of the first data set goes with fold i of the others. In `loco`, a data set with
centers has one fold per center; a data set without centers (or with fewer) goes through its folds
again and again: fold i is paired with fold i mod n.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .errors import BadInput
from .paths import digest, read_json, write_json
from .published import folds_for, read_published

__all__ = [
    "Finding",
    "as_record",
    "audit",
    "audit_centers",
    "leave_one_center_out",
    "make",
    "read",
    "read_published",
    "stratified_group_kfold",
    "write",
]
# Findings that make every result of a run worthless.
LEAKS = ("patient_overlap", "image_overlap", "row_overlap", "unknown_row")


class Finding(NamedTuple):
    """Something an audit found: its kind, how many times, a few examples, a sentence."""

    kind: str
    count: int
    examples: list
    message: str


def _as_codes(values, name: str) -> tuple[list[str], np.ndarray]:
    """Return the sorted distinct values as text and the code (M,) of each."""
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise BadInput(
            f"{name} has shape {array.shape}; it must be one value per case, at least one case"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInput(f"{name} holds NaN; leave cases with a missing value out")
    distinct, codes = np.unique(array, return_inverse=True)
    return [str(v) for v in distinct.tolist()], codes.reshape(-1)


def _shuffled(names: list[str], seed: int, salt: str) -> np.ndarray:
    """Order of `names` (ints) by a hash of seed and name: the same on every platform."""
    keys = [hashlib.sha256(f"{salt}:{seed}:{n}".encode()).digest() for n in names]
    return np.array(sorted(range(len(names)), key=lambda i: keys[i]), np.int64)


def _assign(counts: np.ndarray, shares: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Spread groups over bins so that every class fills the bins in proportion to `shares`.

    counts (G, K): cases of each class in each group; shares (B,) sum to 1; order (G,): the
    shuffle that breaks ties. Greedy, the most one-sided groups first (as in scikit-learn's
    StratifiedGroupKFold). Returns the bin of each group (G,). No bin stays empty if G >= B.
    """
    total = np.maximum(counts.sum(0), 1).astype(np.float64)
    bins = len(shares)
    filled = np.zeros((bins, counts.shape[1]))
    sizes = np.zeros(bins)
    chosen = np.full(len(counts), -1, np.int64)
    spread = np.round(counts.std(1), 9)
    spread = spread[order]
    order = order[np.argsort(-spread, kind="stable")]
    for position, group in enumerate(order):
        empty = np.flatnonzero(np.bincount(chosen[chosen >= 0], minlength=bins) == 0)
        left = len(order) - position
        candidates = empty if len(empty) >= left else range(bins)
        best, best_cost = -1, None
        for b in candidates:
            filled[b] += counts[group]
            fill = filled / (shares[:, None] * total)
            cost = (round(float(fill.std(0).mean()), 12), round(float(sizes[b] / shares[b]), 9), b)
            filled[b] -= counts[group]
            if best_cost is None or cost < best_cost:
                best, best_cost = b, cost
        chosen[group] = best
        filled[best] += counts[group]
        sizes[best] += counts[group].sum()
    return chosen


def _group_counts(codes: np.ndarray, groups: np.ndarray, classes: int) -> np.ndarray:
    counts = np.zeros((int(groups.max()) + 1, classes), np.int64)
    np.add.at(counts, (groups, codes), 1)
    return counts


def _hold_out(rows, codes, groups, names, share: float, seed: int, fold: int):
    """Split `rows` into (training, validation), by group, stratified; int64 arrays."""
    if share == 0:
        return rows, rows[:0]
    inside, local = np.unique(groups[rows], return_inverse=True)
    if len(inside) < 2:
        raise BadInput(
            f"fold {fold}: the training part has {len(inside)} patient, so no "
            "validation part can be taken from it; give more patients"
        )
    counts = _group_counts(codes[rows], local, int(codes.max()) + 1)
    order = _shuffled([names[g] for g in inside], seed, f"validation-{fold}")
    part = _assign(counts, np.array([1 - share, share]), order)[local]
    return rows[part == 0], rows[part == 1]


def _check_training(fold: dict, codes, classes: list[str], what: str) -> None:
    """Every class must occur in the training part."""
    present = set(codes[fold["train"]].tolist())
    absent = [c for i, c in enumerate(classes) if i not in present]
    if absent:
        raise BadInput(
            f"{what}fold {fold['fold']}: the training part has no case of class "
            f"'{absent[0]}'; give more patients of that class or fewer folds"
        )


def _check_share(validation: float) -> float:
    if not 0 <= validation < 1:
        raise BadInput(f"validation is {validation}; it must be at least 0 and below 1")
    return float(validation)


def stratified_group_kfold(
    labels, groups, n_splits: int = 5, seed: int = 0, validation: float = 0.2
) -> list[dict]:
    """Stratified folds by group (patient).

    labels (M,): class of each case; groups (M,): patient of each case.
    Returns [{"fold": i, "train", "val", "test": sorted int64 rows}]; every case is tested once.
    Raises BadInput with fewer patients than folds, or a class missing in a training part.
    """
    classes, codes = _as_codes(labels, "labels")
    names, group = _as_codes(groups, "groups")
    share = _check_share(validation)
    if len(codes) != len(group):
        raise BadInput(
            f"labels has {len(codes)} values and groups {len(group)}; give one of each per case"
        )
    if n_splits < 2:
        raise BadInput(f"n_splits is {n_splits}; give at least 2")
    if len(names) < n_splits:
        raise BadInput(
            f"{len(names)} patients cannot fill {n_splits} folds; use at most "
            f"{len(names)} folds or give more patients"
        )
    counts = _group_counts(codes, group, len(classes))
    order = _shuffled(names, seed, "fold")
    bins = _assign(counts, np.full(n_splits, 1 / n_splits), order)[group]
    folds = []
    for i in range(n_splits):
        test = np.flatnonzero(bins == i)
        train, val = _hold_out(np.flatnonzero(bins != i), codes, group, names, share, seed, i)
        folds.append({"fold": i, "train": train, "val": val, "test": test})
        _check_training(folds[-1], codes, classes, "")
    return folds


def leave_one_center_out(
    labels, groups, centers, seed: int = 0, validation: float = 0.2
) -> list[dict]:
    """One fold per center, in the order of the centers' names; that center is the test part.

    labels, groups, centers (M,). A patient with images in several centers is never in training
    when one of them is tested: the images of the other centers are left out of that fold.
    Returns the form of `stratified_group_kfold` with the extra key "center".
    """
    classes, codes = _as_codes(labels, "labels")
    names, group = _as_codes(groups, "groups")
    center_names, center = _as_codes(np.asarray(centers, dtype=object).astype(str), "centers")
    share = _check_share(validation)
    if not len(codes) == len(group) == len(center):
        raise BadInput(
            f"labels, groups and centers have {len(codes)}, {len(group)} and "
            f"{len(center)} values; give one of each per case"
        )
    if "" in center_names:
        raise BadInput(
            f"{int((center == center_names.index('')).sum())} cases have no center; "
            "fill the column or leave them out for loco"
        )
    if len(center_names) < 2:
        raise BadInput(
            f"there is only one center, '{center_names[0]}'; leaving one out needs at least two"
        )
    folds = []
    for i, name in enumerate(center_names):
        test = np.flatnonzero(center == i)
        rest = np.flatnonzero((center != i) & ~np.isin(group, np.unique(group[test])))
        if len(rest) == 0:
            raise BadInput(
                f"fold {i} (center '{name}'): no case is left for training; give more patients"
            )
        train, val = _hold_out(rest, codes, group, names, share, seed, i)
        folds.append({"fold": i, "center": name, "train": train, "val": val, "test": test})
        _check_training(folds[-1], codes, classes, f"center '{name}', ")
    return folds


def _columns(cases) -> dict:
    """Return {"patient", "image", "label", "center": list or None} of cases in several forms."""
    wanted = {
        "patient": ("patient", "patients", "groups"),
        "image": ("image", "images"),
        "label": ("label", "labels"),
        "center": ("center", "centers"),
    }
    found = {}
    for name, spellings in wanted.items():
        value = None
        for s in spellings:
            value = cases.get(s) if isinstance(cases, dict) else getattr(cases, s, None)
            if value is not None:
                break
        found[name] = None if value is None else [str(v) for v in np.asarray(value).tolist()]
    return found


def audit(splits: list[dict], cases) -> list[Finding]:
    """Look for leaks and gaps in splits; an empty list means clean.

    splits: folds as from `stratified_group_kfold` (rows into the cases); cases: mapping or object
    with `patient` (and, where known, `image`, `label`, `center`), one value per case.
    Kinds: patient_overlap, image_overlap, row_overlap, unknown_row, never_tested, tested_twice,
    empty_part, class_missing, small_training (fewer than two thirds of the cases tested),
    class_balance (a class is rarer or more frequent in a test part than chance explains, in folds
    that are not by center); and center_mixed for folds that name the center they test.
    """
    columns = _columns(cases)
    count = max((len(v) for v in columns.values() if v is not None), default=0)
    findings = []

    def add(kind, examples, message):
        if examples:
            findings.append(Finding(kind, len(examples), examples[:5], message))

    unknown, empty = [], []
    clean = []
    for fold in splits:
        parts = {p: np.asarray(fold[p], np.int64) for p in ("train", "val", "test")}
        for p, rows in parts.items():
            outside = rows[(rows < 0) | (rows >= count)]
            unknown += [f"fold {fold['fold']} {p}: row {r}" for r in outside.tolist()]
            parts[p] = rows[(rows >= 0) & (rows < count)]
            if len(rows) == 0 and p != "val":
                empty.append(f"fold {fold['fold']} {p}")
        clean.append((fold["fold"], parts))
    add("unknown_row", unknown, "rows that no case has")
    add("empty_part", empty, "parts without a case")
    for name, kind in (("patient", "patient_overlap"), ("image", "image_overlap")):
        if columns[name] is not None:
            add(kind, _overlaps(clean, columns[name]), f"{name}s in two parts of one fold")
    add(
        "row_overlap",
        _overlaps(clean, [str(i) for i in range(count)]),
        "cases in two parts of one fold",
    )
    _audit_tests(clean, columns, count, add)
    if columns["label"] is not None:
        labels = np.asarray(columns["label"])
        classes = sorted(set(columns["label"]))
        missing = [
            f"fold {n} {p}: class {c}"
            for n, parts in clean
            for p in ("train", "test")
            for c in classes
            if c not in set(labels[parts[p]].tolist())
        ]
        add("class_missing", missing, "classes without a case in a part")
        if not any("center" in fold for fold in splits):
            add("class_balance", _unbalanced(clean, labels, classes), "classes out of balance")
    small = [
        f"fold {n}: trains on {len(parts['train'])}, tests on {len(parts['test'])} of {count}"
        for n, parts in clean
        if 3 * len(parts["train"]) < 2 * len(parts["test"])
    ]
    add("small_training", small, "folds that train on far fewer cases than they test")
    if any("center" in fold for fold in splits):
        findings += audit_centers(splits, cases)
    return findings


def _overlaps(folds, values: list[str]) -> list[str]:
    found = []
    array = np.asarray(values, dtype=object)
    for number, parts in folds:
        sets = {p: set(array[rows].tolist()) for p, rows in parts.items()}
        for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
            found += [f"fold {number} {a}/{b}: {v}" for v in sorted(sets[a] & sets[b])]
    return found


def _unbalanced(folds, labels, classes) -> list[str]:
    """Classes whose share in a test part is 0.1 and four standard errors off the training's."""
    found = []
    for number, parts in folds:
        train, test = labels[parts["train"]], labels[parts["test"]]
        if min(len(train), len(test)) == 0:
            continue
        for name in classes:
            a, b = float((train == name).mean()), float((test == name).mean())
            p = (a * len(train) + b * len(test)) / (len(train) + len(test))
            error = (p * (1 - p) * (1 / len(train) + 1 / len(test))) ** 0.5
            if abs(a - b) > max(0.1, 4 * error):
                found.append(f"fold {number}: class {name} is {b:.0%} of test, {a:.0%} of training")
    return found


def _audit_tests(folds, columns, count: int, add) -> None:
    tested = np.zeros(count, np.int64)
    for _, parts in folds:
        np.add.at(tested, parts["test"], 1)
    names = columns["image"] or columns["patient"] or [str(i) for i in range(count)]
    add("never_tested", [names[i] for i in np.flatnonzero(tested == 0)], "cases that no fold tests")
    add(
        "tested_twice",
        [names[i] for i in np.flatnonzero(tested > 1)],
        "cases that several folds test",
    )


def audit_centers(splits: list[dict], cases) -> list[Finding]:
    """Findings of kind `center_mixed`: folds of a leave-one-center-out whose test part holds
    several centers, or a center that is in training too."""
    center = _columns(cases)["center"]
    if center is None:
        return []
    center = np.asarray(center, dtype=object)
    mixed = []
    for fold in splits:
        inside = set(center[np.asarray(fold["test"], np.int64)].tolist())
        rest = np.concatenate([np.asarray(fold[p], np.int64) for p in ("train", "val")])
        both = inside & set(center[rest].tolist())
        if len(inside) > 1 or both:
            mixed.append(
                f"fold {fold['fold']}: tests {', '.join(sorted(inside))}"
                + (f"; trains on {', '.join(sorted(both))} too" if both else "")
            )
    if not mixed:
        return []
    return [
        Finding(
            "center_mixed", len(mixed), mixed[:5], "folds that do not leave exactly one center out"
        )
    ]


def make(cases_list, values: dict, memo: dict | None = None) -> dict:
    """Make the splits of every data set for every validation scheme of a configuration.

    cases_list: a `Cases` per data set; values: resolved configuration; memo: folds of data sets
    that several releases share, kept from call to call.
    Returns {validation: [{data set name: fold}, ...]}: one entry per fold of the run, with the
    data sets' folds paired as the module's text says.
    """
    cv = values["cv"]
    result = {}
    files = {d["name"]: d.get("published") for d in values["data"]["datasets"]}
    for validation in values["validation"]:
        per_dataset = []
        for cases in cases_list:
            try:
                known = (memo or {}).get((id(cases), validation))
                if known is None:
                    known = _folds_of(cases, validation, cv, files.get(cases.name))
                    _refuse_leaks(known, cases, validation)
                per_dataset.append(known)
                if memo is not None:
                    memo[id(cases), validation] = known
            except BadInput as error:
                raise BadInput(f"data set '{cases.name}': {error}") from error
        if validation == "loco" and not any("center" in folds[0] for folds in per_dataset):
            raise BadInput(
                "validation loco needs a data set with a center column; set "
                "data.datasets.<i>.columns.center or use cv"
            )
        count = (
            len(per_dataset[0])
            if validation == "cv"
            else max(len(folds) for folds in per_dataset if "center" in folds[0])
        )
        if validation == "loco" and "center" in per_dataset[0][0]:
            count = len(per_dataset[0])
        result[validation] = [
            {
                cases.name: folds[i % len(folds)]
                for cases, folds in zip(cases_list, per_dataset, strict=True)
            }
            for i in range(count)
        ]
    return result


def _refuse_leaks(folds: list[dict], cases, validation: str) -> None:
    """Splits with a patient or an image in two parts are never trained on."""
    for finding in audit(folds, cases):
        if finding.kind in LEAKS:
            raise BadInput(
                f"{validation}: {finding.count} {finding.message} ({finding.examples[0]}); results "
                "on such splits mean nothing, correct them"
            )


def _folds_of(cases, validation: str, cv: dict, published: str | None = None) -> list[dict]:
    """Folds of one data set. Cases without a center, if others have one, are in no loco fold:
    it is not known which fold they would leak into."""
    if published:
        return folds_for(cases, published, validation)
    if validation == "loco" and any(cases.centers):
        known = np.flatnonzero([c != "" for c in cases.centers])
        part = cases if len(known) == len(cases) else cases.take(known)
        folds = leave_one_center_out(
            part.labels, part.patients, part.centers, cv["seed"], cv["validation"]
        )
        return [{**f, **{p: known[f[p]] for p in ("train", "val", "test")}} for f in folds]
    return stratified_group_kfold(
        cases.labels, cases.patients, cv["folds"], cv["seed"], cv["validation"]
    )


def as_record(splits: dict, cases_list) -> dict:
    """Return the JSON form of `make`'s result: image ids of every part, and a hash of all."""
    by_name = {c.name: c for c in cases_list}
    record = {}
    for validation, folds in splits.items():
        record[validation] = []
        for i, fold in enumerate(folds):
            entry = {"fold": i, "datasets": {}}
            for name, part in fold.items():
                images = by_name[name].images
                entry["datasets"][name] = {
                    "fold": part["fold"],
                    **({"center": part["center"]} if "center" in part else {}),
                    **{p: [images[r] for r in part[p]] for p in ("train", "val", "test")},
                }
            record[validation].append(entry)
    return {"format": 1, "hash": digest(record), "validation": record}


def write(path, splits: dict, cases_list) -> str:
    """Write splits.json; return its hash."""
    record = as_record(splits, cases_list)
    write_json(Path(path), record)
    return record["hash"]


def read(path) -> dict:
    """Read splits.json; a hash that does not fit is an error."""
    record = read_json(path)
    if digest(record.get("validation")) != record.get("hash"):
        raise BadInput(
            f"{path}: was changed after it was written (its hash does not fit); delete "
            "it and run again"
        )
    return record
