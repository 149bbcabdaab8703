"""The lungs in a chest radiograph: a mask by a U-Net, cleaned, and whether to believe it.

The network (weights beside this file; its model card is lungs.md) sees the picture at 256 x 256
pixels. Its probabilities are cut at 1/2; regions below 2 % of the picture go, of the others the
two largest stay, holes are filled (as in the code of Ruffini et al., MICCAI 2024; but what two
lungs that touch enclose is no hole). The verdict says whether what is left can be the lungs of a
frontal chest radiograph that stands upright: where the network is not quite sure, it looks at the
picture turned by 180 degrees as well, of which it is surer if that is the right way up.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import BadData

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

SIZE = 256  # side of what the network sees, pixels
CUT = 0.5  # probability from which a pixel belongs to the lungs
LEAST = 0.02  # of the picture, below which a region is left out
CLIP = (0.5, 99.5)  # percentiles that become black and white
WEIGHTS = Path(__file__).with_name("lungs.safetensors")
JOINED = 0.75  # solidity below which a single region is two lungs that touch
CERTAIN = 0.06  # of `undecided`, below which a picture is not looked at upside down
BATCH = 8
MOST = 1 << 28  # pixels of one picture

# What the masks of chest radiographs keep within (verdicts outside are refused); the lower end,
# where doubt begins, where it ends, the upper end. Shares of the picture; `ratio` smaller lung to
# larger; `doubtful` pixels of probability 0.1 to 0.9, to those above 1/2; `lost` probability
# outside the regions kept, to that inside; `offset` of the lungs' middle from the picture's; `step`
# of grey from the lungs to what surrounds them, of the picture's range: small in a projection,
# where tissue lies before and behind every lung, and large in a CT slice, where none does; for the
# same reason few pixels of a radiograph's middle are black and few white (`extremes`: the fewer);
# `turned`: `undecided` of the picture over that of the picture turned by 180 degrees, which of 557
# upright radiographs was 0.70 at most, and of 298 that would be believed upside down 1.42 at least.
LIMITS = {
    "area": (0.08, 0.13, 0.46, 0.62),
    "ratio": (0.10, 0.40, 1.0, 1.0),
    "doubtful": (0.0, 0.0, 0.35, 0.80),
    "lost": (0.0, 0.0, 0.05, 0.35),
    "height": (0.28, 0.45, 1.0, 1.0),
    "width": (0.30, 0.50, 1.0, 1.0),
    "offset": (0.0, 0.0, 0.12, 0.25),
    "solidity": (0.45, 0.75, 1.0, 1.0),
    "step": (0.0, 0.05, 0.43, 0.60),
    "extremes": (0.0, 0.0, 0.08, 0.14),
    "turned": (0.0, 0.0, 0.85, 1.15),
}
REASONS = {
    "area": "the lungs would cover {value:.0%} of the picture, outside {low:.0%} to {high:.0%}",
    "ratio": "one lung would be {value:.0%} of the other, below {low:.0%}",
    "doubtful": "the network is undecided about a border of {value:.0%} of the lungs' area, above "
    "{high:.0%}",
    "lost": "{value:.0%} of what looks like lung lies apart from the two largest regions, above "
    "{high:.0%}",
    "height": "the lungs would be {value:.0%} of the picture high, below {low:.0%}",
    "width": "the lungs would be {value:.0%} of the picture wide, below {low:.0%}",
    "offset": "the lungs would lie {value:.0%} of the picture off its middle, above {high:.0%}",
    "solidity": "the lungs' outline is too ragged (they fill {value:.0%} of their convex hulls, "
    "below {low:.0%})",
    "step": "the lungs differ from their surroundings by {value:.0%} of the grey range, outside "
    "{low:.0%} to {high:.0%} as in a slice of a CT or a drawing",
    "extremes": "{value:.0%} of the picture is black and as much is white, above {high:.0%}, as in "
    "a slice of a CT or a drawing",
    "turned": "the picture seems to be upside down: turned by 180 degrees its lungs are "
    "{value:.1f} times as certain, above {high:.2f}",
}
# What is named where no number alone is beyond its limit, but several together are.
WORDS = {
    "area": "area",
    "ratio": "smaller lung to larger",
    "doubtful": "undecided border",
    "lost": "lung-like parts elsewhere",
    "height": "height",
    "width": "width",
    "offset": "distance from the middle",
    "solidity": "share of the convex hulls",
    "step": "contrast to the surroundings",
    "extremes": "black and white",
    "turned": "doubt upright to doubt upside down",
}
TOGETHER = 0.9  # doubt from which several mild doubts refuse a picture


class LungVerdict(NamedTuple):
    """Whether a mask can be believed, and the numbers that say so.

    ok : False where it should not be used without a person's look
    reason : one sentence why, or ""
    doubt : 0 (as most radiographs) to 1 (refused): sorts pictures for a person
    regions : how many regions were kept, 0 to 2
    area, height, width : of the lungs, shares of the picture
    ratio : smaller lung to larger, by area
    doubtful : pixels of probability 0.1 to 0.9, over those in the mask
    lost : probability outside the kept regions, over that inside
    offset : distance of the lungs' middle from the picture's, share of its side
    solidity : area of the regions over that of their convex hulls
    step : median grey around the lungs less that inside, of the picture's range; negative where the
        lungs are the brighter (the picture is inverted)
    extremes : share of black or of white pixels, the smaller, in the picture without a tenth on
        each side
    turned : `undecided` of the picture over that of the picture turned by 180 degrees; 0 where the
        network is so certain that this was not looked at
    """

    ok: bool
    reason: str
    doubt: float
    regions: int
    area: float
    ratio: float
    doubtful: float
    lost: float
    height: float
    width: float
    offset: float
    solidity: float
    step: float
    extremes: float
    turned: float


def _grey(image) -> np.ndarray:
    """The picture as a two-dimensional float32 array; BadData in one sentence."""
    grey = np.asarray(image)
    if grey.ndim == 3 and grey.shape[2] == 1:
        grey = grey[:, :, 0]
    if grey.ndim != 2 or grey.size == 0:
        raise BadData(
            f"a picture for lung_mask is a grey array (H, W), not {grey.shape}; convert it to grey"
        )
    if grey.dtype.kind not in "buif":
        raise BadData(f"a picture for lung_mask holds numbers, not {grey.dtype}")
    if grey.size > MOST:
        raise BadData(
            f"a picture of {grey.shape[1]} x {grey.shape[0]} pixels is above {MOST} pixels; scale "
            "it down"
        )
    with np.errstate(over="ignore"):
        grey = grey.astype(np.float32)
    if not np.isfinite(grey).all():
        raise BadData("the picture holds NaN or infinity; replace those pixels")
    return grey


def network_input(image, size: int = SIZE) -> np.ndarray:
    """What the network sees of a grey array (H, W): uint8 (size, size), stretched to the square,
    the percentiles CLIP as black and white. BadData, in one sentence, for what is no picture."""
    from PIL import Image

    grey = _grey(image)
    low, high = float(grey.min()), float(grey.max())
    if high <= low:
        return np.zeros((size, size), np.uint8)
    grey = (grey - np.float32(low)) / np.float32(high - low) if high - low < 3e38 else grey / high
    small = np.asarray(Image.fromarray(grey).resize((size, size), Image.Resampling.BILINEAR))
    low, high = np.percentile(small, CLIP)
    if high <= low:
        low, high = float(small.min()), float(small.max())
    return np.uint8(np.clip(np.rint((small - low) * (255 / max(high - low, 1e-12))), 0, 255))


class Segmenter:
    """The network of a weight file, safe to be used from several threads."""

    def __init__(self, path=WEIGHTS):
        from ..model import Model

        self.model = Model.load(str(path))
        self.head = next(iter(self.model.heads))
        self.size = self.model.image_size[0]
        self.lock = threading.Lock()

    def probabilities(self, pictures: np.ndarray) -> np.ndarray:
        """(N, S, S) float32 of uint8 (N, S, S). A picture's bits do not depend on the others."""
        scaled = pictures.astype(np.float32) / np.float32(255)
        x = (scaled - np.float32(self.model.mean[0])) / np.float32(self.model.std[0])
        with self.lock:
            # One by one: a program for each batch size would cost more than batches save.
            parts = [self.model.forward(one[None, None])[self.head][:, 0] for one in x]
        z = np.concatenate(parts)
        small = np.exp(-np.abs(z))
        return np.where(z >= 0, np.float32(1), small) / (1 + small)


@lru_cache(maxsize=4)
def segmenter(path=WEIGHTS) -> Segmenter:
    """The network of a weight file, loaded once."""
    return Segmenter(path)


@lru_cache(maxsize=1)
def version() -> str:
    """What masks and verdicts depend on besides the picture: weights and rules."""
    from ..paths import digest, digest_file

    rules = {"size": SIZE, "cut": CUT, "least": LEAST, "clip": CLIP, "joined": JOINED}
    rules |= {"limits": LIMITS, "together": TOGETHER, "certain": CERTAIN}
    return digest({"weights": digest_file(WEIGHTS), **rules}, 16)


def clean(probability: np.ndarray) -> tuple[np.ndarray, int]:
    """(mask (S, S) bool, number of regions) of probabilities (S, S): cut, small regions out, holes
    filled, the two largest kept."""
    from scipy import ndimage

    labels, count = ndimage.label(probability > CUT)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    kept = [k for k in np.argsort(-sizes, kind="stable")[:2] if sizes[k] >= LEAST * labels.size]
    chosen = np.zeros(count + 1, bool)
    chosen[np.array(kept, np.int64) + 1] = True
    mask = chosen[labels]
    # Holes are what the background does not reach from the edge; binary_fill_holes finds the same
    # by growing step by step, which takes ten times as long.
    ground, count = ndimage.label(~mask)
    outside = np.zeros(count + 1, bool)
    for edge in (ground[0], ground[-1], ground[:, 0], ground[:, -1]):
        outside[edge] = True
    # Lungs that touch above and below enclose the heart: that is no hole.
    outside |= np.bincount(ground.ravel(), minlength=count + 1) >= LEAST * labels.size
    outside[0] = False
    return ~outside[ground], len(kept)


def undecided(probability: np.ndarray) -> float:
    """Sum of p (1 - p) over the pixels of probabilities (S, S), per pixel of lung (those above CUT,
    at least LEAST of the picture): 0 where the network is certain of all."""
    lung = max(int((probability > CUT).sum()), LEAST * probability.size)
    return float((probability * (1 - probability)).sum() / lung)


def turned(network: Segmenter, picture: np.ndarray, probability: np.ndarray) -> float:
    """`undecided` of a picture (S, S) uint8 over that of the picture turned by 180 degrees, 0 where
    the first is below CERTAIN; probability (S, S): what the network says of the first."""
    own = undecided(probability)
    if own < CERTAIN:
        return 0.0
    (other,) = network.probabilities(picture[None, ::-1, ::-1])
    return own / max(undecided(other), 1e-6)


def _hull_area(mask: np.ndarray) -> float:
    """Pixels in the convex hull of a region."""
    from scipy.spatial import ConvexHull, QhullError

    rows = np.flatnonzero(mask.any(1))
    left = mask[rows].argmax(1)
    right = mask.shape[1] - mask[rows, ::-1].argmax(1)
    corners = [(rows + down, side) for side in (left, right) for down in (0, 1)]
    points = np.concatenate([np.stack(corner, 1) for corner in corners])
    try:
        return float(ConvexHull(points.astype(np.float64)).volume)
    except (QhullError, ValueError):
        return float(mask.sum())


def _step(picture: np.ndarray, mask: np.ndarray, rim: np.ndarray) -> float:
    """Median grey of a rim around the lungs less that of the lungs, in 0..1."""
    if not rim.any():
        return 0.0
    return float(np.median(picture[rim]) - np.median(picture[mask])) / 255


def _extremes(picture: np.ndarray) -> float:
    """The smaller of the shares of black and of white pixels, without a tenth on each side."""
    rim = len(picture) // 10
    inner = picture[rim : len(picture) - rim, rim : len(picture) - rim]
    return float(min((inner < 18).mean(), (inner > 237).mean()))


def _measure(picture: np.ndarray, probability: np.ndarray, mask: np.ndarray) -> dict:
    """The numbers of a verdict."""
    from scipy import ndimage

    total, inside = mask.size, int(mask.sum())
    if inside == 0:
        return dict.fromkeys(set(LIMITS) - {"turned"}, 0.0)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    labels, count = ndimage.label(mask)
    sides = np.bincount(labels.ravel())[1:].astype(float)
    hulls = sum(_hull_area(labels == k + 1) for k in range(count))
    if count == 1 and inside > JOINED * hulls:
        sides = np.array([0.0, inside])  # one lung alone, or none
    elif count == 1:  # two that touch: cut at the middle column
        middle = (columns[0] + columns[-1] + 1) // 2
        sides = np.array([mask[:, :middle].sum(), mask[:, middle:].sum()], float)
    close = ndimage.binary_dilation(mask, iterations=2)
    near = ndimage.binary_dilation(close)
    rim = ndimage.binary_dilation(near, iterations=7) & ~close
    centre = (np.array([rows[0] + rows[-1], columns[0] + columns[-1]]) + 1) / (2 * len(mask))
    return {
        "area": inside / total,
        "ratio": float(sides.min() / max(sides.max(), 1)),
        "doubtful": float(((probability > 0.1) & (probability < 0.9)).sum() / inside),
        "lost": float(probability[~near].sum() / max(probability[mask].sum(), 1)),
        "height": float(rows[-1] - rows[0] + 1) / len(mask),
        "width": float(columns[-1] - columns[0] + 1) / len(mask),
        "offset": float(np.abs(centre - 0.5).max()),
        "solidity": inside / hulls,
        "step": _step(picture, mask, rim),
        "extremes": _extremes(picture),
    }


def _doubt(value: float, limits) -> float:
    """0 inside the usual range, rising to 1 at the limit, above it beyond."""
    low, usual_low, usual_high, high = limits
    if value < usual_low:
        return (usual_low - value) / max(usual_low - low, 1e-9)
    if value > usual_high:
        return (value - usual_high) / max(high - usual_high, 1e-9)
    return 0.0


def judge(picture, probability, mask, regions: int, turned: float = 0.0) -> LungVerdict:
    """The verdict on a cleaned mask (S, S) bool, the probabilities (S, S) it comes from and the
    picture (S, S) uint8 as the network saw it; turned: as of the function."""
    numbers = _measure(picture, probability, mask) | {"turned": turned}
    if regions == 0:
        return LungVerdict(False, "no lung was found", 1.0, 0, **numbers)
    doubts = {name: _doubt(abs(numbers[name]), limits) for name, limits in LIMITS.items()}
    worst = max(doubts, key=doubts.get)
    refused = doubts[worst] > 1
    low, _, _, high = LIMITS[worst]
    # Several mild doubts together are worse than one of them.
    doubt = 1.0 if refused else float(1 - np.prod([1 - 0.9 * min(d, 1) for d in doubts.values()]))
    reason = REASONS[worst].format(value=abs(numbers[worst]), low=low, high=high) if refused else ""
    if refused and regions == 1 and numbers["ratio"] == 0:
        reason = "one region was found where two lungs should be"
    if not refused and doubt > TOGETHER:
        first, second = sorted(doubts, key=doubts.get)[:-3:-1]
        reason = "several numbers are unusual at once: " + ", ".join(
            f"{WORDS[name]} {abs(numbers[name]):.0%}" for name in (first, second)
        )
        refused, doubt = True, 1.0
    return LungVerdict(not refused, reason, doubt, regions, **numbers)


def unusual(verdict: LungVerdict) -> str:
    """The number of a verdict that is farthest from the usual, in words; "" where none is."""
    doubts = {name: _doubt(abs(getattr(verdict, name)), LIMITS[name]) for name in LIMITS}
    worst = max(doubts, key=doubts.get)
    if doubts[worst] <= 0:
        return ""
    _, low, high, _ = LIMITS[worst]
    value = abs(getattr(verdict, worst))
    side = f"usual from {low:.0%}" if value < low else f"usual to {high:.0%}"
    return f"{WORDS[worst]} {value:.0%}, {side}"


def _full_size(probability: np.ndarray, mask: np.ndarray, shape) -> np.ndarray:
    """The cleaned mask at the picture's own size: the probabilities, kept above the cut inside the
    mask and below it outside, interpolated and cut."""
    from PIL import Image

    edge = np.float32(1e-3)
    held = np.where(
        mask, np.maximum(probability, CUT + edge), np.minimum(probability, CUT - edge)
    ).astype(np.float32)
    size = (shape[1], shape[0])
    return np.asarray(Image.fromarray(held).resize(size, Image.Resampling.BILINEAR)) > CUT


def lung_masks(
    images: Iterable[ArrayLike], network: Segmenter | None = None
) -> Iterator[tuple[np.ndarray, LungVerdict]]:
    """For each of `images`, an iterable of grey arrays (H, W): (mask (H, W) bool, LungVerdict).

    A generator that holds at most eight pictures. network: another one than the shipped. Raises
    BadData, in one sentence, for what is no picture.
    """
    network = network or segmenter()
    batch = []

    def flush():
        found = network.probabilities(np.stack([small for _, small in batch]))
        for (shape, small), probability in zip(batch, found):
            mask, regions = clean(probability)
            upside = turned(network, small, probability) if regions else 0.0
            verdict = judge(small, probability, mask, regions, upside)
            yield _full_size(probability, mask, shape), verdict
        batch.clear()

    for image in images:
        small = network_input(image, network.size)
        batch.append((np.shape(image)[:2], small))
        if len(batch) == BATCH:
            yield from flush()
    if batch:
        yield from flush()


def lung_mask(image: ArrayLike) -> tuple[np.ndarray, LungVerdict]:
    """The lungs in a chest radiograph.

    image : grey array (H, W) of any size and type of number, dark or bright lungs.

    Returns (mask (H, W) bool, LungVerdict); the mask is empty where no lung was found. The same
    picture gives the same bits whatever the number of threads. Raises BadData, in one sentence, for
    an array that is no picture (not two-dimensional, NaN, no numbers).
    """
    return next(lung_masks([image]))
