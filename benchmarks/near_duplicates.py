"""How many copies the search for near-duplicates finds, and how alike different radiographs are.

    python -m benchmarks.near_duplicates FOLDER [--images 100]

FOLDER holds images (JPEG, PNG, DICOM). Copies of some of them are made in several ways; of each way
it says how many are found at the threshold, and how alike the worst are. Then the most alike pairs
of the images themselves, for a person to look at.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mdmt.data import similar
from mdmt.data.images import read_levels
from mdmt.preprocess.normalise import normalise
from tests.test_similar import COPIES, back, cropped

SIDE = 224
MORE = {
    "cropped by 5 %": lambda im: cropped(im, 0.05, 0.05, 0.05, 0.05),
    "cropped below by 10 %": lambda im: cropped(im, 0, 0, 0, 0.1),
    "black border": lambda im: Image.fromarray(np.pad(np.asarray(im), ((20, 20), (30, 30)))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100, help="of which copies are made")
    arguments = parser.parse_args()
    paths = sorted(p for p in arguments.folder.iterdir() if p.is_file())
    whole = [Image.fromarray(_grey(p)) for p in paths]
    images = np.stack([back(w, SIDE) for w in whole])
    begin = time.process_time()
    found = similar.pairs(images, 0.85)
    seconds = time.process_time() - begin
    print(f"{len(images)} images, {seconds:.1f} s of processor time")
    known = {(p.a, p.b) for p in found if p.correlation >= similar.THRESHOLD}
    chosen = np.random.default_rng(0).permutation(len(images))[: arguments.images]
    print(f"{'copy':<24}{'found':>8}{'worst':>8}{'5th of 100':>12}{'median':>8}{'wrong':>7}")
    for name, change in {**COPIES, **MORE}.items():
        copies = np.stack([back(change(whole[i]), SIDE) for i in chosen])
        pairs = similar.pairs(np.concatenate([images, copies]), 0.5)
        of = {p.b - len(images): p for p in pairs
              if p.b >= len(images) and p.a == chosen[p.b - len(images)]}  # fmt: skip
        values = np.array([of[k].correlation if k in of else 0 for k in range(len(chosen))])
        rate = float((values >= similar.THRESHOLD).mean())
        same = {tuple(sorted(p)) for p in known}
        row = [*range(len(images)), *chosen.tolist()]
        wrong = sum(
            p.correlation >= similar.THRESHOLD
            and row[p.a] != row[p.b]
            and tuple(sorted((row[p.a], row[p.b]))) not in same
            for p in pairs
        )
        worst, low, middle = values.min(), np.quantile(values, 0.05), np.median(values)
        print(f"{name:<24}{rate:>8.0%}{worst:>8.3f}{low:>12.3f}{middle:>8.3f}{wrong:>7}")
    print("most alike:")
    for p in sorted(found, key=lambda p: -p.correlation)[:25]:
        print(f"  {p.correlation:.3f}  {paths[p.a].name}  {paths[p.b].name}")


def _grey(path: Path) -> np.ndarray:
    grey = normalise(read_levels(path), [2, 98])
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
