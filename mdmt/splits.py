"""Splits of a study: the folds of every data set, paired, audited, written to splits.json.

| validation | folds of a data set | pairing of data sets |
|---|---|---|
| cv | stratified by patient | fold i with fold i |
| nested | as cv, each test part with `cv.inner` validation parts | fold i with fold i |
| loco | one per center | fold i with fold i mod n, as in the paper |
| loco-all | one per center | every center of one data set with every center of the other |

In loco and loco-all a data set without centers has the folds of cv and goes through them again and
again. Data sets that hold the same image files (several targets of one collection), or whose
patient ids mean the same people (`data.same_patients`), are split together. With
`data.near_duplicates: together` patients of whom there is the same radiograph count as one. Whoever
is tested in one data set is left out of the training of the others in that fold.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from . import kinds
from .audit import LEAKS, Finding, audit, audit_across, audit_centers
from .errors import BadInput
from .kfold import (
    PARTS,
    MissingClass,
    fixed_test_kfold,
    leave_one_center_out,
    nested_kfold,
    stratified_group_kfold,
)
from .paths import digest, read_json, write_json
from .published import folds_for, read_published

__all__ = [
    "LEAKS",
    "Finding",
    "as_record",
    "audit",
    "audit_across",
    "audit_centers",
    "fixed_test_kfold",
    "leave_one_center_out",
    "make",
    "nested_kfold",
    "read",
    "read_published",
    "stratified_group_kfold",
    "write",
]
EXTRAS = ("center", "outer", "inner", "fixed_test")  # further keys of a fold
START = '{\n "format": 1,\n "hash": "'  # of a file of splits
BY_CENTER = ("loco", "loco-all")


def make(cases_list, values: dict, memo: dict | None = None, alike=(), release=None) -> dict:
    """Make the splits of every data set for every validation scheme of a configuration.

    cases_list: a `Cases` per data set; values: resolved configuration; memo: folds of data sets
    that several releases share, kept from call to call; alike: near-duplicates as from
    `mdmt.data.similar.across`; release: default `data.release`.
    Returns {validation: [{data set name: fold}, ...]}: one entry per fold of the run, with the
    data sets' folds paired as the module's text says. Raises BadInput, also for leaks.
    """
    memo = {} if memo is None else memo
    release = values["data"].get("release") if release is None else release
    together = values["data"].get("near_duplicates", "together") == "together"
    files = {d["name"]: _published(d.get("published"), release) for d in values["data"]["datasets"]}
    within = [alone(alike, k) for k in range(len(cases_list))]
    result = {}
    for validation in values["validation"]:
        folds: dict[int, list[dict]] = {}
        for members in _joint(cases_list, values, files):
            chosen = [cases_list[k] for k in members]
            key = (validation, release if any(files.values()) else None, *map(id, chosen))
            if key not in memo:
                pairs = [within[k] for k in members] if together else [[] for _ in members]
                names = f"data set{'s' * (len(chosen) > 1)} "
                names += " and ".join(f"'{c.name}'" for c in chosen)
                try:
                    made = _folds_of(chosen, validation, values, files[chosen[0].name], pairs)
                    for cases, own, k in zip(chosen, made, members, strict=True):
                        _refuse_leaks(own, cases, validation, within[k])
                except MissingClass as error:
                    named = MissingClass(error.where, "", _class_name(chosen, error.label))
                    raise BadInput(f"{names}: {named}") from error
                except BadInput as error:
                    raise BadInput(f"{names}: {error}") from error
                memo[key] = made
            folds.update(zip(members, memo[key], strict=True))
        per_dataset = [folds[k] for k in range(len(cases_list))]
        result[validation] = _paired(validation, cases_list, per_dataset)
        links = _same_people(cases_list, values, files) | _linked(cases_list, alike, together)
        links = _closed(links)
        result[validation] = _without_tested(result[validation], cases_list, links, validation)
    return result


def _published(source, release: str) -> str | None:
    """The folder of published folds of a release, where each release has its own."""
    if not isinstance(source, dict):
        return source
    if release not in source:
        raise BadInput(
            f"data.datasets: published names folds of the releases {', '.join(source)}, not of "
            f"'{release}'; add it"
        )
    return source[release]


def alone(alike, number: int) -> list[tuple]:
    """Near-duplicates within one data set, in the form that `audit` takes."""
    return [
        (p.one[1], p.two[1], p.correlation, p.exact)
        for p in alike
        if p.one[0] == p.two[0] == number
    ]


def _joint(cases_list, values: dict, files: dict) -> list[list[int]]:
    """Numbers of the data sets that are split together."""
    groups = [{k} for k in range(len(cases_list))]
    ids = bool(values["data"].get("same_patients"))
    for a, b in itertools.combinations(range(len(cases_list)), 2):
        one, two = cases_list[a], cases_list[b]
        if files[one.name] or files[two.name]:
            continue
        paths = {str(p) for p in one.paths if p is not None}
        shared = any(str(p) in paths for p in two.paths)
        if shared or (ids and set(one.patients) & set(two.patients)):
            first = next(g for g in groups if a in g)
            second = next(g for g in groups if b in g)
            if first is not second:
                first |= second
                groups.remove(second)
    return [sorted(g) for g in groups]


def _folds_of(members, validation: str, values: dict, published, pairs) -> list[list[dict]]:
    """Folds of data sets that are split together: a list per data set.

    Cases without a center, if others have one, are in no fold by center: it is not known which
    they would leak into.
    """
    if published:
        return [folds_for(members[0], published, validation)]
    cv = values["cv"]
    many = len(members) > 1
    starts = np.cumsum([0, *(len(c) for c in members)])
    labels = [_joint_label(c, k) for c in members for k in c.labels.tolist()]
    labels = np.array(labels) if many else members[0].labels
    needed = {
        _joint_label(c, k) if many else str(k)
        for c in members
        if getattr(c, "kind", kinds.CLASSES) == kinds.CLASSES
        for k in set(c.labels.tolist())
    }
    centers = [x for c in members for x in c.centers]
    fixed = np.concatenate([_fixed(c) for c in members])
    waves = _waves(members)
    groups = _patients(members, pairs, waves)
    rows = np.arange(len(labels))
    by_center = validation in BY_CENTER and any(centers)
    if by_center:
        rows = np.flatnonzero([c != "" for c in centers])

    def pick(sequence):
        return None if sequence is None else np.asarray(sequence, dtype=object)[rows]

    arguments = (labels[rows], pick(groups).astype(str))
    balanced = {
        "waves": None if waves is None else pick(waves).astype(str),
        "needed": needed,
    }
    if by_center:
        made = leave_one_center_out(
            *arguments, pick(centers), cv["seed"], cv["validation"], **balanced,
            fixed=fixed[rows],
        )  # fmt: skip
    else:
        if cv.get("centers", True) and any(centers):
            balanced["centers"] = pick(centers)
        if fixed.any():
            if validation == "nested":
                raise BadInput("a fixed test set is in no fold of nested; use cv")
            made = fixed_test_kfold(*arguments, fixed[rows], cv["folds"], cv["seed"], **balanced)
        elif validation == "nested":
            made = nested_kfold(*arguments, cv["folds"], cv["inner"], cv["seed"], **balanced)
        else:
            made = stratified_group_kfold(
                *arguments, cv["folds"], cv["seed"], cv["validation"], **balanced
            )
    return [
        [_sliced(fold, rows, starts[k], starts[k + 1]) for fold in made]
        for k in range(len(members))
    ]


def _joint_label(cases, number: int) -> str:
    return f"{cases.name}: {number}"


def _class_name(members, label: str) -> str:
    """What to call a class that folds of `members` know as `label`."""
    if len(members) == 1:
        return repr(members[0].classes[int(label)])
    known = {_joint_label(c, k): (name, c) for c in members for k, name in enumerate(c.classes)}
    name, cases = known[label]
    return f"{name!r} of data set {cases.name!r}"


def _sliced(fold: dict, rows: np.ndarray, begin: int, end: int) -> dict:
    """The part of a fold that lies in one data set."""
    out = dict(fold)
    for p in PARTS:
        own = rows[fold[p]]
        out[p] = own[(own >= begin) & (own < end)] - begin
    return out


def _fixed(cases) -> np.ndarray:
    fixed = getattr(cases, "fixed", None)
    return np.zeros(len(cases), bool) if fixed is None else np.asarray(fixed, bool)


def _waves(members) -> list[str] | None:
    """When each case came; data sets without releases came first."""
    if all(getattr(c, "waves", None) is None for c in members):
        return None
    return [w for c in members for w in (getattr(c, "waves", None) or [""] * len(c))]


def persons(cases_list, values: dict, alike=()) -> list[list[str]]:
    """Whom each case of each data set shows: its patient as the files of a run name it, or the one
    that stands for all names that this person has in the data sets of the task.

    cases_list, values, alike: as in `make`. Names are one person's where they share a radiograph
    (data.near_duplicates: together) or an image file, and where they are the same in two data sets
    and mean the same (data.same_patients), also by way of another task's data set.
    """
    together = values["data"].get("near_duplicates", "together") == "together"
    files = {d["name"]: d.get("published") for d in values["data"]["datasets"]}
    links = _same_people(cases_list, values, files) | _linked(cases_list, alike, together)
    for n, cases in enumerate(cases_list):
        own = _patients([cases], [alone(alike, n) if together else []], _waves([cases]))
        links |= {((n, a), (n, b)) for a, b in zip(cases.patients, own, strict=True) if a != b}
    same: dict[tuple, list] = {}
    for one, two in _closed(links):
        same.setdefault(one, []).append(two)
        same.setdefault(two, []).append(one)
    first: dict[tuple, tuple] = {}
    for n, cases in enumerate(cases_list):
        for name, wave in zip(cases.patients, _waves([cases]) or [""] * len(cases), strict=True):
            rank = (wave, n, name)
            first[n, name] = min(first.get((n, name), rank), rank)
    found = []
    for n, cases in enumerate(cases_list):
        of_task = {m for m, c in enumerate(cases_list) if c.task == cases.task}
        names = {}
        for name in dict.fromkeys(cases.patients):
            others = [who for who in same.get((n, name), ()) if who[0] in of_task]
            m, chosen = min([(n, name), *others], key=first.__getitem__)
            names[name] = cases_list[m].patient_prefix + chosen
        found.append([names[name] for name in cases.patients])
    return found


def _patients(members, pairs, waves) -> list[str]:
    """Patient of each case; those that near-duplicates or shared files join have one name."""
    patients = [p for c in members for p in c.patients]
    edges, begin, seen = [], 0, {}
    for cases, own in zip(members, pairs, strict=True):
        edges += [(patients[begin + a], patients[begin + b]) for a, b, _, _ in own]
        for k, path in enumerate(cases.paths):
            if path is not None:
                edges.append((seen.setdefault(str(path), patients[begin + k]), patients[begin + k]))
        begin += len(cases)
    first: dict[str, tuple] = {}
    for name, wave in zip(patients, waves or [""] * len(patients), strict=True):
        first[name] = min(first.get(name, (wave, name)), (wave, name))
    root = {name: name for name in first}

    def find(name: str) -> str:
        while root[name] != name:
            root[name] = root[root[name]]
            name = root[name]
        return name

    for a, b in edges:
        a, b = find(a), find(b)
        if a != b:
            a, b = sorted((a, b), key=first.get)  # the earliest keeps its name, and its folds
            root[b] = a
    return [find(name) for name in patients]


def _paired(validation: str, cases_list, per_dataset) -> list[dict]:
    """One entry per fold of the run."""
    with_center = [k for k, folds in enumerate(per_dataset) if "center" in folds[0]]
    if validation in BY_CENTER and not with_center:
        raise BadInput(
            f"validation {validation} needs a data set with a center column; set "
            "data.datasets.<i>.columns.center or use cv"
        )
    counts = [len(folds) for folds in per_dataset]
    if validation == "loco-all":
        numbers = []
        for i, place in enumerate(itertools.product(*(range(counts[k]) for k in with_center))):
            own = dict(zip(with_center, place, strict=True))
            numbers.append([own.get(k, i % n) for k, n in enumerate(counts)])
    else:
        total = counts[0]
        if validation == "loco" and 0 not in with_center:
            total = max(counts[k] for k in with_center)
        numbers = [[i % n for n in counts] for i in range(total)]
    return [
        {c.name: per_dataset[k][place[k]] for k, c in enumerate(cases_list)} for place in numbers
    ]


def _linked(cases_list, alike, together: bool) -> set[tuple]:
    """Patients of whom there is the same radiograph: ((data set, id), (..)). Those of one data set
    are in one part already, but whoever is linked to one of them is linked to the other, too."""
    pairs = {
        ((n, cases_list[n].patients[i]), (m, cases_list[m].patients[j]))
        for (n, i), (m, j) in ((p.one, p.two) for p in alike)
        if together
    }
    return {(one, two) for one, two in pairs if one != two}


def _same_people(cases_list, values: dict, files: dict) -> set[tuple]:
    """Equal patient ids of two data sets where they mean the same person, as `_linked`: where the
    configuration says so, and in data sets that share image files."""
    joint = {k: group for group in map(tuple, _joint(cases_list, values, files)) for k in group}
    ids = bool(values["data"].get("same_patients"))
    return {
        ((n, name), (m, name))
        for n, m in itertools.combinations(range(len(cases_list)), 2)
        if ids or joint[n] == joint[m]
        for name in set(cases_list[n].patients) & set(cases_list[m].patients)
    }


def _closed(links: set[tuple]) -> set[tuple]:
    """All pairs of those whom a chain of links joins: two patients of one data set are the same
    person, too, if both are that of another data set."""
    group: dict[tuple, set] = {}
    for one, two in links:
        merged = group.get(one, {one}) | group.get(two, {two})
        for member in merged:
            group[member] = merged
    return {
        pair
        for members in {id(g): g for g in group.values()}.values()
        for pair in itertools.combinations(sorted(members), 2)
    }


def _without_tested(entries: list[dict], cases_list, linked: set, validation: str) -> list[dict]:
    """Leave a patient out of training and validation where the same one is tested under another id
    or in another data set.

    Raises BadInput where this leaves a class without a case to train on.
    """
    if not linked:
        return entries
    rows: dict[tuple, list[int]] = {p: [] for pair in linked for p in pair}
    for n, cases in enumerate(cases_list):
        for i, name in enumerate(cases.patients):
            if (n, name) in rows:
                rows[n, name].append(i)
    out = []
    for entry in entries:
        entry = dict(entry)
        tested = [set(entry[c.name]["test"].tolist()) for c in cases_list]
        drop: dict[int, set] = {}
        for one, two in linked:
            for a, b in ((one, two), (two, one)):
                if not tested[a[0]].isdisjoint(rows[a]):
                    drop.setdefault(b[0], set()).update(set(rows[b]) - tested[b[0]])
        for m, left_out in drop.items():
            fold = dict(entry[cases_list[m].name])
            for p in ("train", "val"):
                fold[p] = fold[p][~np.isin(fold[p], sorted(left_out))]
            entry[cases_list[m].name] = fold
            cases = cases_list[m]
            lost = set(cases.labels.tolist()) - set(cases.labels[fold["train"]].tolist())
            if lost and getattr(cases, "kind", kinds.CLASSES) == kinds.CLASSES:
                remedy = "give more patients of that class or fewer folds"
                if validation.startswith("loco"):
                    remedy = "use cv, or loco instead of loco-all"
                raise BadInput(
                    f"{validation}, fold {len(out)}: without the patients who are tested in "
                    f"another data set, the training part of data set '{cases.name}' has no case "
                    f"of class {cases.classes[min(lost)]!r}; {remedy}"
                )
        out.append(entry)
    return out


def _refuse_leaks(folds: list[dict], cases, validation: str, similar) -> None:
    """Splits with a patient or an image in two parts are never trained on."""
    for finding in audit(folds, cases, similar):
        if finding.kind in LEAKS:
            remedy = "correct them"
            if finding.kind == "copy_overlap":
                remedy = "name one of each pair in leave_out or set data.near_duplicates: together"
            raise BadInput(
                f"{validation}: {finding.count} {finding.message} ({finding.examples[0]}); results "
                f"on such splits mean nothing, {remedy}"
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
                images = by_name[name].named_images
                entry["datasets"][name] = {
                    "fold": part["fold"],
                    **{k: part[k] for k in EXTRAS if k in part},
                    **{p: [images[r] for r in part[p]] for p in PARTS},
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
