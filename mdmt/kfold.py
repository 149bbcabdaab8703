"""Folds of one data set: stratified cross-validation, leave one center out, nested, fixed test set.

All of a patient's images stay in one part of a fold. The validation part is taken from the
training part, by patient, stratified. The same inputs and seed give the same folds on every
platform and Python version and whatever the order of the rows: patients are shuffled by a hash of
their id, and what is compared is computed in a fixed order of operations.

Where cases came in waves (cumulative releases), the patients of the first wave are assigned as if
there were no later one, and those of each later wave are added to these folds: nobody changes the
part of a fold with a release, so that no network of an earlier release has been trained on what a
fold of a later one tests. (Except where a later wave joins two patients of earlier ones, of whom it
has the same picture: these are one from then on, and the folds are those of other patients.)
"""

from __future__ import annotations

import hashlib

import numpy as np

from .errors import BadInput
from .shown import html_table

PARTS = ("train", "val", "test")
CENTER_WEIGHT = 0.5  # of the balance over centers, where that over classes counts 1


class MissingClass(BadInput):
    """A class has no case in a training part. where: the fold; label: the class, as given."""

    def __init__(self, where: str, label: str, shown: str | None = None):
        super().__init__(
            f"{where}: the training part has no case of class {shown or repr(label)}; give more "
            "patients of that class or fewer folds"
        )
        self.where, self.label = where, label


class Folds(list):
    """Folds, a list of dictionaries that shows itself as a table in a notebook."""

    def _repr_html_(self) -> str:
        heads = ["fold", "training", "validation", "test"]
        center = any("center" in f for f in self)
        rows = [
            [f["fold"], *([f.get("center", "")] if center else []), *(len(f[p]) for p in PARTS)]
            for f in self
        ]
        if center:
            heads.insert(1, "center left out")
        return html_table("Folds: cases per part", heads, rows)


def _empty(value) -> bool:
    """Whether a value is None or NaN, as tables have it for an empty cell."""
    return value is None or (isinstance(value, float) and value != value)


def _texts(values) -> np.ndarray:
    """Values as text, "" for an empty one."""
    return np.array(["" if _empty(v) else str(v) for v in np.asarray(values, dtype=object)])


def as_codes(values, name: str) -> tuple[list[str], np.ndarray]:
    """Return the sorted distinct values as text and the code (M,) of each."""
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise BadInput(
            f"{name} has shape {array.shape}; it must be one value per case, at least one case"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInput(f"{name} holds NaN; leave cases with a missing value out")
    if array.dtype.kind == "O":
        if any(_empty(v) for v in array):
            raise BadInput(f"{name} holds empty values; leave cases with a missing value out")
        if len({isinstance(v, str) for v in array}) > 1:  # text and numbers have no order
            array = array.astype(str)
    distinct, codes = np.unique(array, return_inverse=True)
    return [str(v) for v in distinct.tolist()], codes.reshape(-1)


def _shuffled(names: list[str], seed: int, salt: str) -> np.ndarray:
    """Order of `names` (ints) by a hash of seed and name: the same on every platform."""
    keys = [hashlib.sha256(f"{salt}:{seed}:{n}".encode()).digest() for n in names]
    return np.array(sorted(range(len(names)), key=lambda i: keys[i]), np.int64)


def _mean_deviation(fill: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean over columns of the deviation over bins: fill (C, B, K) -> (C,).

    Summed one by one, since the order in which numpy sums depends on the processor.
    """
    bins, columns = fill.shape[1:]
    mean = fill[:, 0]
    for b in range(1, bins):
        mean = mean + fill[:, b]
    mean = mean / bins
    square = np.zeros_like(mean)
    for b in range(bins):
        square = square + (fill[:, b] - mean) ** 2
    deviation = np.sqrt(square / bins)
    total = np.zeros(len(fill))
    for k in range(columns):
        total = total + weights[k] * deviation[:, k]
    return total


def _assign(counts, shares, order, weights=None, chosen=None) -> np.ndarray:
    """Spread groups over bins so that every column fills the bins in proportion to `shares`.

    counts (G, K): cases of each column (class, or class at a center) in each group; shares (B,)
    sum to 1; order: the groups to assign, in the shuffle that breaks ties; weights (K,) of the
    columns, default equal; chosen (G,): bins of groups that have one already, else -1. Greedy, the
    most one-sided groups first (as in scikit-learn's StratifiedGroupKFold). Returns the bin of each
    group (G,). No bin stays empty if there are enough groups.
    """
    bins = len(shares)
    chosen = np.full(len(counts), -1, np.int64) if chosen is None else chosen.copy()
    used = np.r_[order, np.flatnonzero(chosen >= 0)]
    total = counts[used].sum(0).astype(np.float64)
    columns = np.flatnonzero(total)
    counts, total = counts[:, columns], total[columns]
    weights = np.ones(len(columns)) if weights is None else np.asarray(weights)[columns]
    weights = weights / len(columns)
    filled = np.zeros((bins, len(columns)))
    sizes = np.zeros(bins)
    for group in np.flatnonzero(chosen >= 0):
        filled[chosen[group]] += counts[group]
        sizes[chosen[group]] += counts[group].sum()
    spread = np.round(counts.std(1), 9)[order]
    order = order[np.argsort(-spread, kind="stable")]
    members = np.bincount(chosen[chosen >= 0], minlength=bins)
    scale = shares[:, None] * total
    for position, group in enumerate(order):
        empty = np.flatnonzero(members == 0)
        candidates = empty if len(empty) >= len(order) - position else np.arange(bins)
        trial = np.repeat(filled[None], len(candidates), 0)
        trial[np.arange(len(candidates)), candidates] += counts[group]
        cost = np.round(_mean_deviation(trial / scale, weights), 12)
        size = np.round(sizes[candidates] / shares[candidates], 9)
        best = candidates[min(range(len(candidates)), key=lambda i: (cost[i], size[i], i))]
        chosen[group] = best
        members[best] += 1
        filled[best] += counts[group]
        sizes[best] += counts[group].sum()
    return chosen


class Cohort:
    """What folds are made of: classes, patients, centers and waves of one data set's cases.

    labels, groups, centers, waves (M,); centers and waves may be None. needed: the labels that
    every training part must have, as text (default: all).
    """

    def __init__(self, labels, groups, centers=None, waves=None, needed=None):
        self.classes, self.codes = as_codes(labels, "labels")
        self.needed = set(self.classes if needed is None else needed)
        self.names, self.group = as_codes(groups, "groups")
        if len(self.codes) != len(self.group):
            raise BadInput(
                f"labels has {len(self.codes)} values and groups {len(self.group)}; give one of "
                "each per case"
            )
        self.center = None
        if centers is not None and len(set(map(str, centers))) > 1:
            texts = _texts(centers)
            self.center = as_codes(texts, "centers")[1]
        self.wave = np.zeros(len(self.codes), np.int64)
        if waves is not None:
            self.wave = as_codes(waves, "waves")[1]
        for name, values in (("centers", self.center), ("waves", self.wave)):
            if values is not None and len(values) != len(self.codes):
                raise BadInput(f"{name} has {len(values)} values for {len(self.codes)} cases")

    def spread(self, rows: np.ndarray, shares: np.ndarray, seed: int, salt: str) -> np.ndarray:
        """Bin of each of `rows` (int64), by group, stratified, wave after wave."""
        inside, local = np.unique(self.group[rows], return_inverse=True)
        first = np.full(len(inside), np.iinfo(np.int64).max)
        np.minimum.at(first, local, self.wave[rows])
        names = [self.names[g] for g in inside]
        order = _shuffled(names, seed, salt)
        chosen = np.full(len(inside), -1, np.int64)
        for wave in np.unique(first):
            known = self.wave[rows] <= wave
            counts, weights = self._counts(rows[known], local[known], len(inside), len(shares))
            now = order[first[order] == wave]
            chosen = _assign(counts, shares, now, weights, chosen)
        return chosen[local]

    def _counts(self, rows, local, groups: int, bins: int) -> tuple[np.ndarray, np.ndarray]:
        """Cases per group of each class, then of each class at a center with enough patients."""
        counts = np.zeros((groups, len(self.classes)), np.int64)
        np.add.at(counts, (local, self.codes[rows]), 1)
        present = max(int((counts.sum(0) > 0).sum()), 1)
        strata = []
        if self.center is not None:
            for center in np.unique(self.center[rows]):
                for label in np.unique(self.codes[rows]):
                    here = (self.center[rows] == center) & (self.codes[rows] == label)
                    if len(np.unique(local[here])) >= bins:
                        strata.append(np.bincount(local[here], minlength=groups))
        weights = np.ones(len(self.classes) + len(strata))
        if strata:
            counts = np.concatenate([counts, np.stack(strata, 1)], 1)
            weights[len(self.classes) :] = CENTER_WEIGHT * present / len(strata)
        return counts, weights

    def hold_out(self, rows: np.ndarray, share: float, seed: int, name) -> tuple:
        """Split `rows` into (training, validation), by group, stratified; int64 arrays."""
        if share == 0:
            return rows, rows[:0]
        count = len(np.unique(self.group[rows]))
        if count < 2:
            raise BadInput(
                f"fold {name}: the training part has {count} patient, so no "
                "validation part can be taken from it; give more patients"
            )
        part = self.spread(rows, np.array([1 - share, share]), seed, f"validation-{name}")
        return rows[part == 0], rows[part == 1]

    def check_training(self, fold: dict, what: str = "") -> None:
        """Every class that is needed must occur in the training part."""
        present = set(self.codes[fold["train"]].tolist())
        absent = [c for i, c in enumerate(self.classes) if i not in present and c in self.needed]
        if absent:
            raise MissingClass(f"{what}fold {fold['fold']}", absent[0])

    def check_count(self, n_splits: int, rows=None, name: str = "n_splits") -> None:
        """There must be a patient for every part."""
        groups = len(self.names) if rows is None else len(np.unique(self.group[rows]))
        if n_splits < 2:
            raise BadInput(f"{name} is {n_splits}; give at least 2")
        if groups < n_splits:
            fewer = f"use at most {groups} folds or " if groups > 1 else ""
            raise BadInput(
                f"{groups} patient{'s' * (groups > 1)} cannot fill {n_splits} folds; {fewer}give "
                "more patients"
            )


def _check_share(validation: float) -> float:
    if not 0 <= validation < 1:
        raise BadInput(f"validation is {validation}; it must be at least 0 and below 1")
    return float(validation)


def stratified_group_kfold(
    labels, groups, n_splits: int = 5, seed: int = 0, validation: float = 0.2, *,
    centers=None, waves=None, needed=None,
) -> list[dict]:  # fmt: skip
    """Stratified folds by group (patient).

    labels (M,): class of each case; groups (M,): patient of each case; centers (M,): balanced too
    where a center has enough patients of a class; waves (M,): when each case came (cumulative
    releases), sortable; needed: the labels (as text) that every training part must have, default
    all.
    Returns [{"fold": i, "train", "val", "test": sorted int64 rows}]; every case is tested once.
    Raises BadInput with fewer patients than folds, or a class missing in a training part.
    """
    cohort = Cohort(labels, groups, centers, waves, needed)
    share = _check_share(validation)
    cohort.check_count(n_splits)
    bins = cohort.spread(
        np.arange(len(cohort.codes)), np.full(n_splits, 1 / n_splits), seed, "fold"
    )
    folds = []
    for i in range(n_splits):
        test = np.flatnonzero(bins == i)
        train, val = cohort.hold_out(np.flatnonzero(bins != i), share, seed, i)
        folds.append({"fold": i, "train": train, "val": val, "test": test})
        cohort.check_training(folds[-1])
    return Folds(folds)


def nested_kfold(
    labels, groups, n_splits: int = 5, inner: int = 5, seed: int = 0, *, centers=None, waves=None,
    needed=None,
) -> list[dict]:  # fmt: skip
    """Nested cross-validation: what no outer fold tests is cut into `inner` parts, each of which is
    the validation part once.

    Arguments and form as in `stratified_group_kfold`, with the extra keys "outer" and "inner"; fold
    `outer * inner_count + inner`. Every case is tested in `inner` folds, all of one outer fold.
    """
    outer = stratified_group_kfold(
        labels, groups, n_splits, seed, 0, centers=centers, waves=waves, needed=needed
    )
    cohort = Cohort(labels, groups, centers, waves, needed)
    folds = []
    for one in outer:
        rest = one["train"]
        cohort.check_count(inner, rest, "inner")
        bins = cohort.spread(rest, np.full(inner, 1 / inner), seed, f"inner-{one['fold']}")
        for i in range(inner):
            parts = {"train": rest[bins != i], "val": rest[bins == i], "test": one["test"]}
            folds.append({"fold": len(folds), "outer": one["fold"], "inner": i, **parts})
            cohort.check_training(folds[-1])
    return Folds(folds)


def fixed_test_kfold(
    labels, groups, fixed, n_splits: int = 5, seed: int = 0, *, centers=None, waves=None,
    needed=None,
) -> list[dict]:  # fmt: skip
    """Folds that all test the same cases: those of `fixed` (M,) bool.

    The other patients are cut into `n_splits` parts, each of which is the validation part once; a
    patient with a fixed image has no other image in training. Form as in
    `stratified_group_kfold`, with "fixed_test": True.
    """
    cohort = Cohort(labels, groups, centers, waves, needed)
    fixed = np.asarray(fixed, bool)
    test = np.flatnonzero(fixed)
    if len(test) == 0:
        raise BadInput("the fixed test set is empty; mark its cases or use no fixed test set")
    rest = np.flatnonzero(~fixed & ~np.isin(cohort.group, np.unique(cohort.group[test])))
    cohort.check_count(n_splits, rest)
    bins = cohort.spread(rest, np.full(n_splits, 1 / n_splits), seed, "fold")
    folds = []
    for i in range(n_splits):
        parts = {"train": rest[bins != i], "val": rest[bins == i], "test": test}
        folds.append({"fold": i, "fixed_test": True, **parts})
        cohort.check_training(folds[-1])
    return Folds(folds)


def leave_one_center_out(
    labels, groups, centers, seed: int = 0, validation: float = 0.2, *, waves=None, fixed=None,
    needed=None,
) -> list[dict]:  # fmt: skip
    """One fold per center, in the order of the centers' names; that center is the test part.

    labels, groups, centers (M,). A patient with images in several centers is never in training
    when one of them is tested: the images of the other centers are left out of that fold. With
    `fixed` (M,) bool, only those cases are tested, and their patients are never trained on.
    Returns the form of `stratified_group_kfold` with the extra key "center".
    """
    texts = _texts(centers)
    cohort = Cohort(labels, groups, None, waves, needed)
    center_names, center = as_codes(texts, "centers")
    share = _check_share(validation)
    if len(center) != len(cohort.codes):
        raise BadInput(
            f"labels, groups and centers have {len(cohort.codes)}, {len(cohort.group)} and "
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
    held = np.zeros(len(center), bool) if fixed is None else np.asarray(fixed, bool)
    never = np.isin(cohort.group, np.unique(cohort.group[held]))
    folds = []
    for i, name in enumerate(center_names):
        test = np.flatnonzero((center == i) & (held if held.any() else True))
        if len(test) == 0:
            raise BadInput(f"center '{name}' has no case of the fixed test set; use cv")
        rest = (center != i) & ~np.isin(cohort.group, np.unique(cohort.group[test])) & ~never
        rest = np.flatnonzero(rest)
        if len(rest) == 0:
            raise BadInput(
                f"fold {i} (center '{name}'): no case is left for training; give more patients"
            )
        train, val = cohort.hold_out(rest, share, seed, name)
        more = {"fixed_test": True} if held.any() else {}
        folds.append({"fold": i, "center": name, **more, "train": train, "val": val, "test": test})
        cohort.check_training(folds[-1], f"center '{name}', ")
    return Folds(folds)
