"""The kinds of tasks; the loss of a task's head says which one a task is.

| kind | loss | a label | outputs of the head |
|---|---|---|---|
| classes | ce, ordinal | one of the classes | one per class, softmax |
| number | mse | a number | one: the number |
| findings | bce | any of the findings, or none of them | one per finding, logistic |

A task is an entry of `tasks` of a configuration, or one of a job's description.
"""

from __future__ import annotations

import numpy as np

CLASSES, NUMBER, FINDINGS = "classes", "number", "findings"
OF_LOSS = {"ce": CLASSES, "ordinal": CLASSES, "mse": NUMBER, "bce": FINDINGS}
NO_FINDING = "No Finding"  # what a table may write where there is none
SEPARATOR, UNKNOWN = ";", "?"  # findings as text: "Edema;Effusion;?Mass", the last not labelled


def kind_of(task: dict) -> str:
    """CLASSES, NUMBER or FINDINGS; a task without a head is one of classes."""
    return OF_LOSS[task.get("head", {}).get("loss", "ce")]


def outputs(task: dict) -> int:
    """How many outputs the head of a task has."""
    return 1 if kind_of(task) == NUMBER else len(task["classes"])


def head_of(task: dict) -> dict:
    """The head in the form that `mdmt.Model` takes."""
    return {"classes": outputs(task), **task["head"]}


def texts(kind: str, classes: list[str], values) -> list[str]:
    """Labels or predictions as predictions.csv has them: values (n,) class numbers; (n,) numbers;
    or (n, K) of findings: 1, 0, or NaN where it is not labelled."""
    if kind == CLASSES:
        return [classes[int(k)] for k in values]
    if kind == NUMBER:
        return [number_text(v) for v in np.asarray(values).reshape(-1)]
    return [SEPARATOR.join(_marked(c, v) for c, v in zip(classes, row, strict=True) if v != 0)
            for row in values]  # fmt: skip


def _marked(finding: str, value: float) -> str:
    return finding if value == 1 else UNKNOWN + finding


def number_text(value) -> str:
    """The shortest text that reads back as `value`, a float32 or float64."""
    text = str(value)
    return text[:-2] if text.endswith(".0") else text


def values_of(kind: str, classes: list[str], written: list[str]) -> np.ndarray:
    """The inverse of `texts`: (n,) int64 class numbers, (n,) float64, or (n, K) float64. Raises
    ValueError that names the first text that is none."""
    if kind == NUMBER:
        return np.array([_finite(t) for t in written], np.float64)
    where = {c: k for k, c in enumerate(classes)}
    if kind == CLASSES:
        unknown = next((t for t in written if t not in where), None)
        if unknown is not None:
            raise ValueError(f"the class '{unknown}'; the task has {', '.join(classes)}")
        return np.array([where[t] for t in written], np.int64)
    found = np.zeros((len(written), len(classes)))
    for row, text in zip(found, written, strict=True):
        for name in text.split(SEPARATOR) if text else []:
            known = name.removeprefix(UNKNOWN)
            if known not in where:
                raise ValueError(f"the finding '{known}'; the task has {', '.join(classes)}")
            row[where[known]] = np.nan if name != known else 1
    return found


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"'{text}' where a number must be")
    return value


def called(kind: str, given: np.ndarray) -> np.ndarray:
    """The decision from what `mdmt.engine.decoded` gives: class numbers (n,), numbers (n,), or
    findings (n, K), each 1 where its probability is above a half."""
    if kind == CLASSES:
        return given.argmax(1)
    return given[:, 0] if kind == NUMBER else (given > 0.5).astype(np.float64)


def cut(scores, thresholds: list) -> np.ndarray:
    """Class numbers (n,) int64 of scores (n,): class k is t_k <= score < t_k+1 (equation 4)."""
    return np.searchsorted(np.asarray(thresholds, float), scores, side="right").astype(np.int64)


def positive_of(task: dict) -> int:
    """Number of the positive class: the last one unless the task names another."""
    classes = task["classes"]
    return classes.index(task["positive"]) if task["positive"] else len(classes) - 1


def counted(names, counts) -> str:
    """Cases of each class, range or finding, as text."""
    return ", ".join(
        f"{name}: {n}" if " to " in name or name[-1:].isdigit() else f"{name} {n}"
        for name, n in zip(names, counts, strict=True)
    )


def strata(numbers: np.ndarray, most: int = 4) -> tuple[np.ndarray, list[str]]:
    """Cut numbers (n,) at their quantiles into at most `most` ranges of about equal count, by which
    folds are balanced: (number of the range (n,) int64, names such as "0 to 4"). Equal numbers
    are in one range."""
    cuts = np.unique(np.quantile(numbers, np.arange(1, most) / most, method="inverted_cdf"))
    ranges = np.searchsorted(cuts, numbers, side="left")
    kept, ranges = np.unique(ranges, return_inverse=True)
    names = []
    for k in range(len(kept)):
        low, high = numbers[ranges == k].min(), numbers[ranges == k].max()
        names.append(f"{low:g}" if low == high else f"{low:g} to {high:g}")
    if len(set(names)) < len(names):  # they differ in digits that are not shown
        names = [f"{name} ({k + 1})" for k, name in enumerate(names)]
    return ranges.reshape(-1).astype(np.int64), names
