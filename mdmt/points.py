"""Operating points of two classes: thresholds on the probability of the positive class that are
chosen on other cases than those they are judged by."""

from __future__ import annotations

import numpy as np

LEAST = 0.9
#: What a threshold is chosen for: {name: words}.
POINTS = {
    "sensitivity": f"sensitivity of {100 * LEAST:.0f} %",
    "specificity": f"specificity of {100 * LEAST:.0f} %",
    "youden": "largest sensitivity + specificity",
}


def thresholds(positive, p) -> dict[str, float]:
    """{name of POINTS: threshold} from cases (n,): positive (n,) 0 or 1, p (n,) in 0..1 the
    probability of being so. A case is called positive where p is above the threshold.

    "sensitivity": the highest threshold at which at least LEAST of the positive cases are called
    so; "specificity": the lowest at which at least LEAST of the others are not; "youden": that of
    the largest sensitivity + specificity - 1 (Youden, Cancer 3, 1950), the lowest where several
    are. Thresholds lie half-way between two neighbouring probabilities, 0 and 1 being the last
    ones, or are just below 0 (everybody is called positive) or 1 (nobody). Empty where the cases
    are of one class. ValueError for another shape.
    """
    positive, p = np.asarray(positive, bool), np.asarray(p, np.float64)
    if p.ndim != 1 or positive.shape != p.shape or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(
            f"positive has shape {positive.shape} and p {p.shape}; both must be (n,), p in 0 to 1"
        )
    if not positive.any() or positive.all():
        return {}
    ends = np.unique(np.concatenate([[0.0, 1.0], p]))
    everybody, nobody = np.nextafter(0.0, -1.0), 1.0
    cuts = np.concatenate([[everybody], (ends[:-1] + ends[1:]) / 2, [nobody]])
    below = [
        np.searchsorted(np.sort(v), cuts, "right") / len(v) for v in (p[positive], p[~positive])
    ]
    sensitivity, specificity = 1 - below[0], below[1]
    enough = LEAST - 1e-12  # nine of ten are enough
    return {
        "sensitivity": float(cuts[sensitivity >= enough][-1]),
        "specificity": float(cuts[specificity >= enough][0]),
        "youden": float(cuts[np.argmax(np.round(sensitivity + specificity, 12))]),
    }
