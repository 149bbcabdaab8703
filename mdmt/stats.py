"""Statistics on arrays, in SciPy's manner."""

from __future__ import annotations

from .metrics import accuracy, auc, f1, gmean

__all__ = ["accuracy", "auc", "f1", "gmean"]
