"""Pictures without lungs, drawn from a seed: a network for masks learns from them to find nothing.

None shows a real thing: pieces of radiographs put together wrongly, noise, gradients, writing,
shapes. What is to be refused in earnest - photographs, other organs - is never among them.
"""

from __future__ import annotations

import numpy as np


def _grey(values: np.ndarray) -> np.ndarray:
    """Stretched to 0..255, uint8."""
    low, high = float(values.min()), float(values.max())
    return np.uint8(np.rint((values - low) * (255 / max(high - low, 1e-9))))


def _shuffled(rng, picture):
    """Tiles of a radiograph in another order, some turned."""
    size, n = len(picture), int(rng.integers(3, 9))
    edge = size // n
    tiles = [
        picture[r * edge : (r + 1) * edge, c * edge : (c + 1) * edge]
        for r in range(n)
        for c in range(n)
    ]
    tiles = [np.rot90(tiles[k], int(rng.integers(4))) for k in rng.permutation(n * n)]
    whole = np.concatenate([np.concatenate(tiles[r * n : (r + 1) * n], 1) for r in range(n)])
    return np.pad(whole, ((0, size - len(whole)), (0, size - len(whole))), mode="edge")


def _scrambled(rng, picture):
    """A radiograph's spectrum with the phases of noise."""
    size = len(picture)
    phase = np.angle(np.fft.rfft2(rng.standard_normal((size, size))))
    return _grey(np.fft.irfft2(np.abs(np.fft.rfft2(picture)) * np.exp(1j * phase), (size, size)))


def _piece(rng, picture):
    """A small part of a radiograph, enlarged."""
    size = len(picture)
    side = int(rng.integers(size // 10, size // 5))
    top, left = (int(v) for v in rng.integers(0, size - side, 2))
    rows = np.arange(size) * side // size
    return picture[top + rows][:, left + rows]


def _smooth(rng, picture):
    """Noise of some smoothness, from grain to clouds."""
    from scipy import ndimage

    size = len(picture)
    noise = rng.standard_normal((size, size))
    return _grey(ndimage.gaussian_filter(noise, float(np.exp(rng.uniform(-1, np.log(size / 6))))))


def _gradient(rng, picture):
    """One grey, or a gradient, with little noise."""
    size = len(picture)
    y, x = np.mgrid[:size, :size] / size
    a, b, c = rng.uniform(-1, 1, 3) * (rng.random() > 0.3)
    values = a * x + b * y + c * np.hypot(x - rng.random(), y - rng.random())
    grey = 255 * rng.random() if not np.ptp(values) else _grey(values).astype(float)
    return np.uint8(np.clip(grey + rng.normal(0, rng.uniform(0, 12), (size, size)), 0, 255))


def _shapes(rng, picture):
    """Overlapping ellipses, boxes and lines in greys of their own, somewhat blurred."""
    from PIL import Image, ImageDraw, ImageFilter

    size = len(picture)
    image = Image.new("L", (size, size), int(rng.integers(256)))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 40))):
        x, y = rng.integers(-size // 4, size, 2)
        w, h = rng.integers(2, size // 2, 2)
        box = tuple(int(v) for v in (x, y, x + w, y + h))
        kind = rng.choice(["ellipse", "rectangle", "line"])
        getattr(draw, kind)(box, fill=int(rng.integers(256)))
    blurred = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 5))))
    noise = rng.normal(0, rng.uniform(0, 15), (size, size))
    return np.uint8(np.clip(np.asarray(blurred) + noise, 0, 255))


def _writing(rng, picture):
    """A page of letters, dark on light or light on dark."""
    from PIL import Image, ImageDraw, ImageFont

    size = len(picture)
    paper, ink = (245, 10) if rng.random() < 0.6 else (5, 235)
    image = Image.new("L", (size, size), paper)
    draw, y, step = ImageDraw.Draw(image), 4, int(rng.integers(9, 30))
    font = ImageFont.load_default()
    while y < size - step:
        letters = rng.integers(97, 123, 60)
        letters[rng.random(60) < 0.2] = 32
        draw.text((6, y), "".join(map(chr, letters)), fill=ink, font=font)
        y += step
    if rng.random() < 0.5:
        zoom = int(rng.integers(2, 6))
        part = image.crop((0, 0, size // zoom, size // zoom))
        image = part.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


_KINDS = (_shuffled, _scrambled, _piece, _smooth, _gradient, _shapes, _writing)


def draw(count: int, pictures: np.ndarray, seed: int) -> np.ndarray:
    """count pictures without lungs, uint8 (count, S, S), of every kind in turn. pictures (M, S, S):
    the radiographs, of the training part alone, that some are made from."""
    made = []
    for i in range(count):
        rng = np.random.Generator(np.random.Philox(key=[seed, i]))
        made.append(_KINDS[i % len(_KINDS)](rng, pictures[int(rng.integers(len(pictures)))]))
    return np.stack(made) if made else np.zeros((0, *pictures.shape[1:]), np.uint8)
