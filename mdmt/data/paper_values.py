"""Values printed in the paper, to stand beside one's own: Ruffini et al., "Multi-Dataset Multi-Task
Learning for COVID-19 Prognosis", MICCAI 2024.

All are for the task `prognosis` (tau1) on the third and final release of AIforCOVID; the paper
prints no others ("for brevity, we presented results only from the final release"). It does not say
which F1 average it used.
"""

from __future__ import annotations

SOURCE = "Ruffini et al., MICCAI 2024"
TASK = "prognosis"
RELEASE = "3"
CASES = 1586  # of the final release: 820 + 284 + 482
BACKBONES = 18

# Table 1: percent, mean over the test folds and then over the 18 backbones.
TABLE1 = {
    "cv": {
        "STL-tau1": {"accuracy": 66.0, "f1": 63.9, "gmean": 65.9},
        "FT": {"accuracy": 67.3, "f1": 63.1, "gmean": 66.9},
        "MDMT": {"accuracy": 68.6, "f1": 66.6, "gmean": 68.5},
    },
    "loco": {
        "STL-tau1": {"accuracy": 61.2, "f1": 57.3, "gmean": 60.1},
        "FT": {"accuracy": 64.8, "f1": 58.9, "gmean": 63.8},
        "MDMT": {"accuracy": 65.7, "f1": 64.3, "gmean": 66.0},
    },
}


def table1(validation: str, configuration: str, metric: str) -> float | None:
    """The paper's percentage, or None where it prints none (other tasks, metrics or releases)."""
    return TABLE1.get(validation, {}).get(configuration, {}).get(metric)


# Table 2: stars of the one-tailed t-tests of mu (MDMT higher) and sigma (MDMT lower), for the cells
# that are legible in the text of the paper that this was taken from; "" is not significant.
# Section 4 adds: in CV mu beats STL in every metric, and sigma is not significant against FT.
TABLE2 = {
    ("cv", "mu", "FT"): {"accuracy": "**", "f1": "***", "gmean": "**"},
    ("cv", "sigma", "STL-tau1"): {"accuracy": "*", "f1": "*", "gmean": "*"},
    ("cv", "sigma", "FT"): {"accuracy": "", "f1": "", "gmean": ""},
}


def table2(validation: str, quantity: str, against: str, metric: str) -> str | None:
    """The paper's stars, or None where it has no such test or the cell is not legible."""
    return TABLE2.get((validation, quantity, against), {}).get(metric)
