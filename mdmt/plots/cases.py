"""The sample sheet: the cases that were predicted best and worst, as the network saw them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .. import kinds
from ..analysis.compare import METHOD, Matrix
from ..analysis.describe import mean_truth
from ..data.levels import shown
from . import style


def find_images(cohort: dict | None, task: str) -> dict:
    """{image: (memory map of a store, row)} of the task's image stores that are here."""
    from ..data.store import Store

    found: dict = {}
    for source in (cohort or {}).get("datasets", []):
        if source["task"] != task or not Path(source["store"]).is_dir():
            continue
        try:
            store = Store(source["store"])
        except (OSError, ValueError, KeyError):
            continue
        names = source["cases"]["image"]
        if len(names) == len(store.images):
            found.update({name: (store.images, row) for row, name in enumerate(names)})
    return found


def sheet(m: Matrix, images: dict, each: int = 6):
    """The `each` best and worst predicted cases of MDMT (or the last configuration); None when
    the images are not here. One image per patient."""
    name = METHOD if METHOD in m.configurations else m.configurations[-1]
    truth = mean_truth(m, name)
    order = np.argsort(-truth, kind="stable")
    rows = []
    for ranked in (order, order[::-1]):
        chosen, patients = [], set()
        for i in ranked:
            if m.patient[i] not in patients and m.image[i] in images and len(chosen) < each:
                chosen.append(i)
                patients.add(m.patient[i])
        rows.append(chosen)
    if not rows[0]:
        return None
    fig, axes = style.figure(1.55 * each, 4.5, 2, each)
    for line, chosen, what in zip(axes, rows, ("best", "worst"), strict=True):
        for ax in line:
            ax.set_axis_off()
        for ax, i in zip(line, chosen, strict=False):
            pixels, row = images[m.image[i]]
            ax.imshow(shown(pixels[row]), cmap="gray", vmin=0, vmax=255)
            told = _told(m, name, truth, i)
            apart = "\n" if told.count("\n") > 1 else " "  # a long name has lines of its own
            ax.set_title(f"{what}:{apart}{told}", fontsize=8)
    return fig


def _told(m: Matrix, name: str, truth: np.ndarray, i: int) -> str:
    """The label of a case and how well it was predicted."""
    label = kinds.texts(m.kind, m.classes, m.y[i : i + 1])[0]
    if m.kind == kinds.NUMBER:
        p = np.mean([m.p[(*net, name)][i, 0] for net in m.nets])
        return f"{float(label):.4g}\npredicted {p:.4g}"
    if m.kind == kinds.FINDINGS:
        there = label.split(kinds.SEPARATOR) if label else [kinds.NO_FINDING]
        some = [c for c in there if not c.startswith(kinds.UNKNOWN)] or [kinds.NO_FINDING]
        label = some[0] + (f" + {len(some) - 1}" if len(some) > 1 else "")
    return f"{style.folded(label, 20)}\np(true) = {truth[i]:.2f}"
