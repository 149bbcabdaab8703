"""From predictions.csv to numbers: reading an out folder, metrics, comparisons, subgroups.

`read(OUT)` reads and checks an out folder (an `Outcome`); `results`, `compare` and `subgroups`
compute everything else from it. Nothing here draws, writes or trains.
"""

from __future__ import annotations

from .compare import Analysis, Comparison, Matrix, compare
from .describe import Calibration, Subgroup, calibration, operating, subgroups
from .external import together
from .folder import Outcome, Part, read, results
from .points import Point, operating_points
from .readers import Readers, readers
from .sensitivity import Sensitivity, sensitivity
from .trainings import Spread, spreads

__all__ = [
    "Analysis",
    "Calibration",
    "Comparison",
    "Matrix",
    "Outcome",
    "Part",
    "Point",
    "Readers",
    "Sensitivity",
    "Spread",
    "Subgroup",
    "calibration",
    "compare",
    "operating",
    "operating_points",
    "read",
    "readers",
    "results",
    "sensitivity",
    "spreads",
    "subgroups",
    "together",
]
