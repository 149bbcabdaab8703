"""Near-duplicates: pictures of one radiograph, re-encoded, resized, brightened or cropped.

Chest radiographs resemble each other, so that a hash of a few bits says little. A thumbnail of 64
pixels is freed of what differs between copies (its slow shading is taken off, its local contrast
made equal). A hash of 256 numbers, the lowest frequencies of it, finds every picture's nearest
neighbours, among them also mirrored and zoomed ones, by matrix products. Each candidate is then
laid over its neighbour at the best shift and zoom, and the correlation there decides.

`THRESHOLD` comes from 559 public radiographs: two of different people reached 0.89 and two
exposures of one patient 0.95, eleven pairs that a person recognises as one radiograph 0.98 or more.
Of copies made on purpose it finds all that were re-encoded, resized, mirrored, turned by 2 degrees
or changed in brightness, 98 % of those cropped by 2 % on every side, and a third of those cropped
by 5 %, without a wrong pair (`python -m benchmarks.near_duplicates FOLDER` measures this).

Pictures in colour are compared by their luminance, at the same threshold, which was not measured on
any: drawn fundi of hardly any contrast, all with the same rim, reached 0.95.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np

from ..errors import MdmtError
from ..paths import digest, read_json, write_json
from .levels import luminance

SIDE = 64  # of the thumbnails, in pixels
SMALLEST = 64  # side of pictures below which near-duplicates are not looked for
LOW = 16  # frequencies of the hash in each direction
THRESHOLD = 0.94
ZOOMS = (1.0, 0.95, 0.9)  # how much of the other picture a candidate may show
NEIGHBOURS = 3  # candidates of every picture
CANDIDATE = 0.5  # correlation of the hashes below which nothing is a candidate
SHIFT = 8  # largest shift of a copy, in pixels of the thumbnail
NEAR, NEARER = 0.75, 0.85  # correlation below which no fit is begun, or gone on with
MARGIN = 4  # pixels at a border that are not compared
STEPS = (2, 4)  # of a fit
_BLOCK, _BATCH = 1024, 128  # rows, pairs at a time


class Pair(NamedTuple):
    """Pictures `a` < `b` (rows) that show the same; correlation of the thumbnails in -1..1."""

    a: int
    b: int
    correlation: float
    mirrored: bool


def thumbnails(images) -> np.ndarray:
    """Thumbnails (M, 64, 64) float32 of images (M, S, S) or (M, 3, S, S) uint8, averaged over
    areas; of those in colour of the luminance (ITU-R 601)."""
    from PIL import Image

    small = np.empty((len(images), SIDE, SIDE), np.float32)
    for i, image in enumerate(images):
        picture = Image.fromarray(luminance(np.asarray(image)))
        small[i] = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    return small


def flatten(small: np.ndarray) -> np.ndarray:
    """Take slow shading off and make the local contrast equal: (..., 64, 64) float32."""
    from scipy.ndimage import gaussian_filter

    sigma = (0,) * (small.ndim - 2) + (6, 6)
    detail = small - gaussian_filter(small, sigma)
    contrast = np.sqrt(np.maximum(gaussian_filter(detail * detail, sigma), 0)) + 4
    return detail / contrast


def _zoomed(flat: np.ndarray, zoom: float) -> np.ndarray:
    """The middle `zoom` of pictures (M, 64, 64), enlarged to the same size; bilinear."""
    if zoom == 1:
        return flat
    at = (np.arange(SIDE) + 0.5 - SIDE / 2) * zoom + SIDE / 2 - 0.5
    low = np.clip(np.floor(at).astype(int), 0, SIDE - 2)
    share = (at - low).clip(0, 1).astype(np.float32)
    matrix = np.zeros((SIDE, SIDE), np.float32)
    matrix[np.arange(SIDE), low] = 1 - share
    matrix[np.arange(SIDE), low + 1] += share
    return matrix @ flat @ matrix.T


def hashes(flat: np.ndarray) -> np.ndarray:
    """Unit vectors (M, 255) of the lowest frequencies without the mean."""
    grid = np.arange(SIDE) + 0.5
    basis = np.cos(np.pi / SIDE * np.outer(np.arange(LOW), grid)).astype(np.float32)  # DCT-II
    low = (basis @ flat @ basis.T).reshape(len(flat), -1)[:, 1:]
    return low / np.maximum(np.linalg.norm(low, axis=1, keepdims=True), 1e-6)


def _views(flat: np.ndarray) -> list[tuple]:
    """(zoom, mirrored, hashes) of what a copy of pictures (M, 64, 64) may show of them."""
    views = [(zoom, False, hashes(_zoomed(flat, zoom))) for zoom in ZOOMS]
    return [*views, (1.0, True, hashes(flat[:, :, ::-1]))]


def _closest(own: np.ndarray, views: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
    """Correlation (n, M) of hashes with the view that is most alike, at least CANDIDATE; which."""
    close = np.full((len(own), len(views[0][2])), CANDIDATE, np.float32)
    which = np.zeros(close.shape, np.int8)
    for k, (_, _, view) in enumerate(views):
        value = own @ view.T
        np.putmask(which, value > close, k)
        np.maximum(close, value, out=close)
    return close, which


def candidates(flat: np.ndarray) -> dict[tuple[int, int], tuple[float, float, bool]]:
    """{(i, j): (correlation of hashes, zoom of j, mirrored)}: the nearest neighbours of every i."""
    count = len(flat)
    own, views = hashes(flat), _views(flat)
    found: dict = {}
    take = min(NEIGHBOURS, count - 1)
    for begin in range(0, count if take else 0, _BLOCK):
        rows = np.arange(begin, min(begin + _BLOCK, count))
        close, which = _closest(own[rows], views)
        close[rows - begin, rows] = -1
        best = np.argpartition(-close, take - 1, axis=1)[:, :take]
        values = np.take_along_axis(close, best, axis=1)
        for r, c in zip(*np.nonzero(values > CANDIDATE), strict=True):
            i, j, value = begin + int(r), int(best[r, c]), float(values[r, c])
            zoom, mirrored, _ = views[which[r, best[r, c]]]
            if value > found.get((j, i), (-1,))[0]:
                found.pop((j, i), None)
                found[i, j] = (value, zoom, mirrored)
    return found


def _shifts(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shift (n, 2) of b that lays each b (n, 64, 64) best over its a, and the correlation (n,)."""
    from scipy import fft

    size = SIDE + SHIFT  # no wrapping round for shifts up to SHIFT
    spectrum = fft.rfft2(a, (size, size)) * np.conj(fft.rfft2(b, (size, size)))
    score = fft.irfft2(spectrum, (size, size))
    reach = np.r_[0 : SHIFT + 1, -SHIFT:0]
    score = score[:, reach][:, :, reach].reshape(len(a), -1)
    at = score.argmax(1)
    norm = np.sqrt((a * a).sum((1, 2)) * (b * b).sum((1, 2)))
    value = score[np.arange(len(a)), at] / np.maximum(norm, 1e-6)
    return np.stack([reach[at // len(reach)], reach[at % len(reach)]], 1), value


def _sample(images: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear values of images (n, 64, 64, c) at y, x (n, k): (n, k, c); outside the border's."""
    top = np.clip(np.floor(y), 0, SIDE - 2).astype(np.int64)
    left = np.clip(np.floor(x), 0, SIDE - 2).astype(np.int64)
    v = np.clip(y - top, 0, 1).astype(np.float32)[..., None]
    h = np.clip(x - left, 0, 1).astype(np.float32)[..., None]
    flat = images.reshape(-1, images.shape[-1])
    at = np.arange(len(images))[:, None] * SIDE * SIDE + top * SIDE + left
    upper = flat[at] * (1 - h) + flat[at + 1] * h
    lower = flat[at + SIDE] * (1 - h) + flat[at + SIDE + 1] * h
    return upper * (1 - v) + lower * v


class _Fit:
    """Affine maps that lay pictures b over pictures a, both (n, 64, 64).

    Gauss-Newton steps on the sum of squares from shifts (n, 2) on (Lucas & Kanade 1981). Compared
    where both lie at least MARGIN pixels inside: flattening sees what lies beyond a border.
    """

    def __init__(self, a: np.ndarray, b: np.ndarray, shift: np.ndarray):
        grid = np.mgrid[MARGIN : SIDE - MARGIN, MARGIN : SIDE - MARGIN].reshape(2, -1)
        y, x = (grid - SIDE / 2).astype(np.float32)
        self.terms = np.stack([y, x, np.ones_like(y)])  # of each coordinate's map: (3, k)
        self.target = a[:, grid[0], grid[1]]
        self.stack = np.stack([b, *np.gradient(b, axis=(1, 2))], -1).astype(np.float32)
        self.maps = np.zeros((len(a), 2, 3))
        self.maps[:, 0, 0] = self.maps[:, 1, 1] = 1
        self.maps[:, :, 2] = -shift

    def keep(self, rows: np.ndarray) -> None:
        """Go on with some pairs (ints) only."""
        self.target, self.stack, self.maps = self.target[rows], self.stack[rows], self.maps[rows]

    def _look(self) -> tuple[np.ndarray, np.ndarray]:
        y, x = np.moveaxis(self.maps @ self.terms.astype(np.float64), 1, 0) + SIDE / 2
        inside = (np.minimum(y, x) >= MARGIN) & (np.maximum(y, x) <= SIDE - 1 - MARGIN)
        return _sample(self.stack, y, x), inside

    def step(self) -> None:
        """One Gauss-Newton step of every pair."""
        found, inside = self._look()
        left = (self.target - found[..., 0]) * inside
        slopes = found[..., 1:] * inside[..., None]
        jacobian = (slopes[..., None] * self.terms.T[None, :, None, :]).reshape(*left.shape, 6)
        across = np.swapaxes(jacobian, 1, 2)
        square = (across @ jacobian).astype(np.float64) + 1e-3 * np.eye(6)
        change = np.linalg.solve(square, (across @ left[..., None]).astype(np.float64))
        self.maps += change.reshape(-1, 2, 3)

    def value(self) -> np.ndarray:
        """Correlations (n,); -1 where a map shrinks, stretches or shifts too far to be a copy."""
        found, inside = self._look()
        p, q = _centered(self.target, inside), _centered(found[..., 0], inside)
        norm = np.maximum(np.sqrt((p * p).sum(1) * (q * q).sum(1)), 1e-6)
        stretch = np.linalg.det(self.maps[:, :, :2])
        legal = (inside.mean(1) > 0.5) & (stretch > 0.7) & (stretch < 1.4)
        return np.where(legal, (p * q).sum(1) / norm, -1.0)


def _centered(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Values (n, k) minus their mean inside; 0 elsewhere."""
    mean = (values * inside).sum(1) / np.maximum(inside.sum(1), 1)
    return (values - mean[:, None]) * inside


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation (n,) of flattened thumbnails a and b (n, 64, 64), b laid over a as well as can
    be; pairs that are far off are not fitted to the end."""
    shift, value = _shifts(a, b)
    rows = np.flatnonzero(value >= NEAR)
    if len(rows) == 0:
        return value
    fit = _Fit(a[rows], b[rows], shift[rows])
    for steps in STEPS:
        for _ in range(steps):
            fit.step()
        now = fit.value()
        value[rows] = np.maximum(value[rows], now)
        good = np.flatnonzero(now >= NEARER)
        if len(good) == 0:
            break
        fit.keep(good)
        rows = rows[good]
    return value


def pairs(images, threshold: float = THRESHOLD) -> list[Pair]:
    """Pairs of images, (M, S, S) or (M, 3, S, S) uint8, that show the same picture, by row.

    Constant pictures are in no pair: they show nothing.
    """
    small = thumbnails(images)
    rows = np.flatnonzero(small.reshape(len(small), -1).std(1) > 1) if len(small) else []
    if len(rows) < 2:
        return []
    flat = flatten(small[rows])
    found = candidates(flat)
    keys, best = list(found), {}
    for begin in range(0, len(keys), _BATCH):
        some = keys[begin : begin + _BATCH]
        b = np.stack([_view(flat[j], *found[i, j][1:]) for i, j in some])
        values = correlations(flat[[i for i, _ in some]], b)
        for (i, j), value in zip(some, values.tolist(), strict=True):
            key = (int(rows[min(i, j)]), int(rows[max(i, j)]))
            if value >= threshold and (key not in best or value > best[key][0]):
                best[key] = (round(value, 4), found[i, j][2])
    return [Pair(*key, *best[key]) for key in sorted(best)]


def _view(flat: np.ndarray, zoom: float, mirrored: bool) -> np.ndarray:
    return _zoomed((flat[:, ::-1] if mirrored else flat)[None], zoom)[0]


def copies(images, known, threshold: float = THRESHOLD) -> list[Pair]:
    """Pairs of images, as of `pairs`, and known ones that show the same picture: `a`
    is the row of the image, `b` that of the known one.

    Of each image the NEIGHBOURS + 1 most alike known ones are looked at. Either may be a part of
    the other. Constant pictures are in no pair.
    """
    small = thumbnails(images)
    rows = np.flatnonzero(small.reshape(len(small), -1).std(1) > 1) if len(small) else []
    if len(rows) == 0 or len(known) == 0:
        return []
    flat = flatten(small[rows])
    own, views = hashes(flat), _views(flat)
    nearest: list[list] = [[] for _ in rows]  # (value, known row, zoom, mirrored, which is viewed)
    for begin in range(0, len(known), _BLOCK):
        block = flatten(thumbnails(known[begin : begin + _BLOCK]))
        theirs, views_of_theirs = hashes(block), _views(block)
        of_known, k = _closest(own, views_of_theirs)
        of_image, q = (matrix.T for matrix in _closest(theirs, views))
        value = np.maximum(of_known, of_image)
        most = min(NEIGHBOURS + 1, len(block))  # one of them may be the picture itself
        best = np.argpartition(-value, most - 1, axis=1)[:, :most]
        for i, c in zip(*np.nonzero(np.take_along_axis(value, best, 1) > CANDIDATE), strict=True):
            r = int(best[i, c])
            seen = bool(of_known[i, r] >= of_image[i, r])
            zoom, mirrored, _ = views_of_theirs[k[i, r]] if seen else views[q[i, r]]
            nearest[i].append((float(value[i, r]), begin + r, zoom, mirrored, seen))
        nearest = [sorted(some, reverse=True)[: NEIGHBOURS + 1] for some in nearest]
    found = []
    chosen = [(i, *one) for i, some in enumerate(nearest) for one in some]
    for begin in range(0, len(chosen), _BATCH):
        some = chosen[begin : begin + _BATCH]
        theirs = flatten(thumbnails([known[r] for _, _, r, *_ in some]))
        a = np.stack([flat[i] if of_known else t
                      for (i, *_, of_known), t in zip(some, theirs, strict=True)])  # fmt: skip
        b = np.stack([_view(t if of_known else flat[i], zoom, mirrored)
                      for (i, _, _, zoom, mirrored, of_known), t in zip(some, theirs, strict=True)
                      ])  # fmt: skip
        for (i, _, r, _, mirrored, _), value in zip(some, correlations(a, b).tolist(), strict=True):
            if value >= threshold:
                found.append(Pair(int(rows[i]), r, round(value, 4), mirrored))
    return sorted(found)


class Alike(NamedTuple):
    """Two cases that show the same radiograph: (number of the data set, row) of each, correlation,
    whether mirrored, whether the preprocessed pixels are equal."""

    one: tuple[int, int]
    two: tuple[int, int]
    correlation: float
    mirrored: bool
    exact: bool


def by_source(stores: list, cache=None) -> list[tuple]:
    """Near-duplicates of several stores: (source, source, correlation, mirrored, exact).

    stores: with `images` as of `pairs`, of equal S, `sources` (hash per image) and `key`; a source
    that is in several of them is looked at once. cache: folder that keeps what was found, or None.
    Below SMALLEST pixels only equal pictures are found: there is too little to see.
    """
    places: dict[str, tuple[int, int]] = {}
    for number, store in enumerate(stores):
        for row, source in enumerate(store.sources):
            places.setdefault(source, (number, row))
    names = list(places)
    path = None
    if cache is not None:
        key = digest([THRESHOLD, SIDE, LOW, ZOOMS, NEIGHBOURS, [s.key for s in stores], names], 24)
        path = cache / f"similar-{key}.json"
        with contextlib.suppress(MdmtError, ValueError, KeyError, TypeError):
            if path.is_file():
                return [tuple(p) for p in read_json(path)["pairs"]]
    rows = [r for _, r in places.values()]
    images = _Chosen([stores[n].images for n, _ in places.values()], rows)
    small = len(images) and images[0].shape[-1] < SMALLEST
    found = [
        (names[p.a], names[p.b], p.correlation, p.mirrored, equal(images[p.a], images[p.b]))
        for p in pairs(images, 0.9999 if small else THRESHOLD)
    ]
    if small:
        found = [f for f in found if f[4]]
    if path is not None:
        with contextlib.suppress(MdmtError):  # a read-only store: found again next time
            write_json(path, {"pairs": found})
    return found


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    """True for pictures with the same pixels."""
    return bool(np.array_equal(a, b))


def across(stores: list, found: list[tuple]) -> list[Alike]:
    """Near-duplicates within and between data sets, from what `by_source` found.

    stores: a store per data set. A picture that is there twice with the same bytes is exact.
    """
    places: dict[str, list[tuple[int, int]]] = {}
    for number, store in enumerate(stores):
        for row, source in enumerate(store.sources):
            places.setdefault(source, []).append((number, row))
    alike = []
    for place in places.values():
        alike += [Alike(place[0], other, 1.0, False, True) for other in place[1:]]
    for a, b, value, mirrored, exact in found:
        for one in places.get(a, []):
            for two in places.get(b, []):
                alike.append(Alike(*sorted((one, two)), value, mirrored, exact))
    return sorted(alike)


class _Chosen:
    """Rows of several stores as one sequence, read when asked for."""

    def __init__(self, images: list, rows: list[int]):
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.images[i][self.rows[i]]

    def __iter__(self):
        return (self[i] for i in range(len(self)))
