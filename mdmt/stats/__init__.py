"""Statistics on arrays, in SciPy's manner: results are named tuples, wrong input is a ValueError.

Which one for what: a difference of two models on the same cases: `paired_bootstrap` by patient
(any metric), `delong` (AUC), `mcnemar` (right or wrong); over the folds of one backbone:
`nadeau_bengio`, `wilcoxon`; over backbones: `hierarchical_bootstrap`, and as description
`friedman` and `nemenyi`; several tests at once: `holm`; many metrics of
many networks on the same resamples, of repeated trainings, too: `resample`. `paper_t_tests` repeats
the paper's
Table 2, `false_positive_rate_of_paper_test` says what to think of it.

SciPy is imported when a function needs it.
"""

from __future__ import annotations

from ..metrics import (
    accuracy,
    auc,
    balanced_accuracy,
    ccc,
    f1,
    gmean,
    mae,
    mcc,
    npv,
    pearson,
    ppv,
    quadratic_weighted_kappa,
    r2,
    recalls,
    rmse,
    sensitivity,
    spearman,
    specificity,
)
from ._weighted import OF_ALL_CLASSES
from .agreement import agreement, icc, kappa, region_agreement
from .bootstrap import (
    BootstrapInterval,
    PairedBootstrap,
    bca_interval,
    bootstrap_interval,
    hierarchical_bootstrap,
    missing_class,
    paired_bootstrap,
)
from .calibration import (
    brier,
    calibration_intercept,
    calibration_slope,
    ece,
    grouped_recalibration,
    recalibration,
    reliability_curve,
)
from .paired import holm, mcnemar, nadeau_bengio, paired_t, wilcoxon
from .paper import PAPER_TEST_WARNING, false_positive_rate_of_paper_test, paper_t_tests, stars
from .proportion import wilson
from .ranks import critical_difference, friedman, mean_ranks, nemenyi
from .roc import auc_interval, delong
from .shared import Repeated, resample
from .utility import DecisionCurve, decision_curve

__all__ = [
    "OF_ALL_CLASSES",
    "PAPER_TEST_WARNING",
    "BootstrapInterval",
    "DecisionCurve",
    "PairedBootstrap",
    "Repeated",
    "accuracy",
    "agreement",
    "auc",
    "auc_interval",
    "balanced_accuracy",
    "bca_interval",
    "bootstrap_interval",
    "brier",
    "calibration_intercept",
    "calibration_slope",
    "ccc",
    "critical_difference",
    "decision_curve",
    "delong",
    "ece",
    "f1",
    "false_positive_rate_of_paper_test",
    "friedman",
    "gmean",
    "grouped_recalibration",
    "hierarchical_bootstrap",
    "holm",
    "icc",
    "kappa",
    "mae",
    "mcc",
    "mcnemar",
    "mean_ranks",
    "missing_class",
    "nadeau_bengio",
    "nemenyi",
    "npv",
    "paired_bootstrap",
    "paired_t",
    "paper_t_tests",
    "pearson",
    "ppv",
    "quadratic_weighted_kappa",
    "r2",
    "recalibration",
    "recalls",
    "region_agreement",
    "reliability_curve",
    "resample",
    "rmse",
    "sensitivity",
    "spearman",
    "specificity",
    "stars",
    "wilcoxon",
    "wilson",
]
