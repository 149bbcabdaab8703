"""What the data of a run were: counts, exclusions and the columns that make subgroups.

`record` makes the content of cohort.json when a run has read its data, so that a report needs the
out folder alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .. import kinds, splits
from ..errors import BadInput
from ..paths import read_json

COHORT = "cohort.json"
FORMAT = 1
# subgroup variable -> names that its column may have, in lower case
VARIABLES = {
    "sex": ("sex", "gender"),
    "age": ("age",),
    "view": ("view", "projection", "viewposition", "view_position"),
    "manufacturer": ("manufacturer",),
}
BANDS = ((50, "under 50"), (65, "50 to 64"), (80, "65 to 79"), (float("inf"), "80 and over"))
UNKNOWN = "not recorded"


def read(path) -> dict | None:
    """cohort.json, checked; None where there is none. Raises BadInput."""
    path = Path(path)
    if not path.is_file():
        return None
    found = read_json(path)
    again = f"delete it and `mdmt run --resume --out {path.parent}` writes it again"
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise BadInput(
            f"{path}: is not the record of a cohort that this version writes (format {FORMAT}); "
            f"{again}"
        )
    for source in found.get("datasets") or [None]:
        cases = source.get("cases") if isinstance(source, dict) else None
        lists = cases.values() if isinstance(cases, dict) else []
        whole = all(isinstance(v, list) for v in lists) and len({len(v) for v in lists}) == 1
        if not whole or any(k not in source for k in ("name", "task", "releases", "store")):
            raise BadInput(f"{path}: lacks a data set's cases, or has columns of unlike length; "
                           f"it was changed after it was written: {again}")  # fmt: skip
    return found


def record(releases, values: dict, found=()) -> dict:
    """The content of cohort.json: what each data set was in each release (`study.Release`).

    A data set that several releases share has one entry that names them all. values: resolved
    configuration; found: sentences on the pictures and patients of the study, such as
    near-duplicates.
    """
    entries: dict = {}
    for release in releases:
        persons = splits.persons(release.cases, values, release.alike)
        for people, cases, store in zip(persons, release.cases, release.stores, strict=True):
            entry = entries.setdefault(id(cases), {"releases": [], **_described(cases, store)})
            entry["releases"].append(release.name)
            if people != cases.named_patients:
                entry["cases"]["person"] = people
    return {"format": FORMAT, "datasets": list(entries.values()), "found": list(found)}


def _described(cases, store) -> dict:
    """One data set."""
    excluded = [w for w in cases.warnings if w.startswith("excluded: ")]
    return {
        "name": cases.name,
        "task": cases.task,
        "kind": cases.kind,
        "rows": len(cases) + cases.missing_labels + len(excluded),
        "missing_labels": cases.missing_labels,
        "excluded": [w.removeprefix("excluded: ") for w in excluded],
        "warnings": [w for w in cases.warnings if w not in excluded],
        "images": len(cases),
        "patients": len(set(cases.patients)),
        "counts": dict(zip(cases.classes, cases.counts().tolist(), strict=True)),
        "store": str(store.folder.resolve()),
        **({"patient_prefix": cases.patient_prefix} if cases.patient_prefix else {}),
        "cases": {
            "image": cases.named_images,
            "patient": cases.named_patients,
            "center": list(cases.centers),
            "label": cases.texts,
            **(
                {}
                if cases.kind == kinds.CLASSES
                else {"stratum": [cases.stratum(k) for k in cases.labels]}
            ),
            **_columns(cases.columns),
            **_second(cases),
        },
    }


def _columns(columns: dict) -> dict:
    """The columns that make subgroups, by their variable."""
    found = {}
    for variable, names in VARIABLES.items():
        for column, values in columns.items():
            if column.strip().lower() in names and variable not in found:
                found[variable] = list(values)
    return found


def _second(cases) -> dict:
    """What a second reader said: class names ("" where missing), regional scores as digits."""
    found: dict = {}
    for name, values in cases.second.items():
        if name == "labels" and cases.kind == kinds.CLASSES:
            found["second"] = [cases.classes[k] if k >= 0 else "" for k in values]
        elif name == "scores" and cases.kind == kinds.NUMBER:
            found["second"] = ["" if v != v else kinds.number_text(v) for v in values.tolist()]
        elif name in ("regions", "second_regions"):
            found[name] = [
                "" if np.isnan(six).any() else "".join(str(int(d)) for d in six) for six in values
            ]
    return found


def findings(cohort: dict | None, record: dict | None) -> list[str]:
    """What was found before training, and what `mdmt.splits.audit` finds in splits.json, as
    sentences; needs both files."""
    found = [str(f) for f in (cohort or {}).get("found", [])]
    for source in (cohort or {}).get("datasets", []):
        row = {image: i for i, image in enumerate(source["cases"]["image"])}
        for validation, entries in (record or {"validation": {}})["validation"].items():
            folds: dict = {}
            for entry in entries:
                part = entry["datasets"].get(source["name"])
                if part is not None and entry.get("release") in (None, *source["releases"]):
                    rows = {p: [row.get(i, -1) for i in part[p]] for p in ("train", "val", "test")}
                    extra = {k: part[k] for k in splits.EXTRAS if k in part}
                    folds[part["fold"]] = {"fold": part["fold"], **extra, **rows}
            cases = source["cases"]
            cases = {**cases, "label": cases.get("stratum", cases["label"])}
            cases["kind"] = source.get("kind")
            for f in splits.audit(list(folds.values()), cases):
                found.append(
                    f"{validation}, {source['name']}: {f.message}: {f.count} "
                    f"({', '.join(f.examples)})"
                )
    return found


def people(cohort: dict | None, release: str, task: str, image, patient) -> np.ndarray:
    """Whom each case (n,) shows: its patient id, or that of the person who has several."""
    known: dict = {}
    for source in (cohort or {}).get("datasets", []):
        if source["task"] == task and release in source["releases"]:
            cases = source["cases"]
            known.update(zip(cases["image"], cases.get("person", ()), strict=False))
    return np.array([known.get(i, p) for i, p in zip(image, patient, strict=True)], dtype=object)


def age_band(text: str) -> str:
    """The band of an age in years, given as text."""
    try:
        age = float(text)
    except ValueError:
        return UNKNOWN
    if not 0 <= age < 130:
        return UNKNOWN
    return next(name for limit, name in BANDS if age < limit)


def groups_of(cohort: dict | None, task: str, image, center) -> dict:
    """{variable: level of each case (n,)} for cases named by image and center (n,).

    Variables that hold one level only are left out.
    """
    found = {"center": [c or UNKNOWN for c in center]}
    sources = [d for d in (cohort or {}).get("datasets", []) if d["task"] == task]
    for variable in VARIABLES:
        levels: dict = {}
        for source in sources:
            values = source["cases"].get(variable)
            if values is not None:
                levels.update(zip(source["cases"]["image"], values, strict=True))
        if levels:
            texts = [levels.get(i, "").strip() for i in image]
            if variable == "age":
                texts = [age_band(t) for t in texts]
            found[variable] = [t or UNKNOWN for t in texts]
    return {k: np.array(v, dtype=object) for k, v in found.items() if len(set(v) - {UNKNOWN}) > 1}
