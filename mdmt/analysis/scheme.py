"""What the folds of a task are, in words: what splits.json says, not what the scheme is called.

A scheme by center is of the study. A data set without a center column takes part in it with folds
of patients, and its results are then no leave-one-center-out.
"""

from __future__ import annotations

from ..splits import BY_CENTER
from .folder import Outcome

SCHEMES = {
    "cv": "cross-validation",
    "nested": "nested cross-validation",
    "loco": "leave one center out",
    "loco-all": "leave one center out, all pairs of centers",
    "external": "external validation",
}
PATIENTS = "folds of patients beside another data set's centers"


def _entries(outcome: Outcome, release: str, validation: str) -> list[dict]:
    """The folds of a scheme in splits.json; none where that is missing."""
    found = (outcome.splits or {"validation": {}})["validation"].get(validation, [])
    return [e for e in found if e.get("release") in (None, release)]


def without_centers(outcome: Outcome, release: str, validation: str, task: str) -> bool:
    """True where a scheme by center is one of patients for this task."""
    if validation not in BY_CENTER:
        return False
    names = {d["name"] for d in outcome.values["data"]["datasets"] if d["task"] == task}
    entries = _entries(outcome, release, validation)
    parts = [p for e in entries for name, p in e["datasets"].items() if name in names]
    return bool(parts) and not any("center" in p for p in parts)


def _one_test_set(outcome: Outcome, release: str, task: str) -> bool:
    """True where all folds of a cross-validation test the same images."""
    names = {d["name"] for d in outcome.values["data"]["datasets"] if d["task"] == task}
    entries = _entries(outcome, release, "cv")
    tested = {
        tuple((name, *sorted(p["test"])) for name, p in e["datasets"].items() if name in names)
        for e in entries
    }
    return len(entries) > 1 and len(tested) == 1


def in_words(outcome: Outcome, release: str, validation: str, task: str, folds: int) -> str:
    """5-fold cross-validation; leave one center out (6 folds); 1 of 5 folds of a cross-validation;
    one fixed test set (networks of 5 folds).

    folds: how many of the scheme's there are results of.
    """
    every = max(folds, len(_entries(outcome, release, validation)))
    if validation == "cv" and _one_test_set(outcome, release, task):
        return f"one fixed test set (networks of {f'{folds} of ' * (folds < every)}{every} folds)"
    if validation == "cv":
        some = f"{folds} of {every} folds of a cross-validation"
        return some if folds < every else f"{every}-fold cross-validation"
    name = SCHEMES.get(validation, validation)
    if validation == "external":
        return name
    if without_centers(outcome, release, validation, task):
        name = PATIENTS
    count = f"{folds} of {every} folds" if folds < every else f"{folds} folds"
    return f"{name} ({count if every > 1 else '1 fold'})"
