"""The demo's SYNTHETIC chest radiographs: schematic pictures with a known hidden severity.

Each patient has a hidden severity s in 0..18, spread over six lung zones (0-3 each, upper to
lower, right and left, as the Brixia score does). The pictures show opacities that grow with the
zones' scores. Two data sets share that hidden severity and differ in their label:

* `prognosis.csv`: MILD or SEVERE, from the patient's s plus noise;
* `severity.csv`: `score`, the sum of the six zones of that image, cut into four classes by the
  thresholds of the configuration (equation 4 of the paper).

Patients have one to three pictures; five centers have their own look (exposure, contrast, field
of view, blur, noise). Nothing here comes from, or says anything about, real patients.
"""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np

from ..errors import write_failure
from ..paths import digest, make_folder, write_atomic

VERSION = 1
CENTERS = ("North", "South", "East", "West", "Island")
# Per center: gamma, contrast, field of view, blur (pixels at 128), noise, share of all patients.
_LOOK = {
    "North": (1.00, 1.00, 1.00, 0.6, 0.012, 0.30),
    "South": (0.80, 0.90, 0.94, 0.9, 0.020, 0.25),
    "East": (1.25, 1.05, 1.06, 0.5, 0.015, 0.20),
    "West": (0.95, 0.80, 1.00, 1.2, 0.030, 0.15),
    "Island": (1.10, 0.95, 0.90, 0.7, 0.025, 0.10),
}
# Zone centres in picture coordinates (x to the right, y down, both 0..1), radii.
_ZONES = ((0.30, 0.30), (0.27, 0.48), (0.26, 0.66), (0.70, 0.30), (0.73, 0.48), (0.75, 0.66))


def _soft(distance, width):
    """Smooth step: 1 where distance < 0, 0 where it is large, over about `width`."""
    return 1.0 / (1.0 + np.exp(np.clip(distance / width, -30, 30)))


def _noise(rng, size: int, sigma: float) -> np.ndarray:
    """Smooth noise (size, size) of zero mean and unit deviation, correlation `sigma` pixels."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.standard_normal((size, size)), sigma, mode="wrap")
    return field / (field.std() + 1e-12)


def _lung(x, y, side: int, shape: dict):
    """Soft mask (S, S) of the lung on `side` (-1: left in the picture, 1: right)."""
    # u is the distance from the spine, growing outwards; t runs from apex (0) to base (1).
    u = (x - shape["middle"]) * side
    top, base = shape["top"], shape["base"] + (0.015 if side > 0 else -0.01)
    t = (y - top) / (base - top)
    bulge = np.clip(1.0 - np.clip((0.62 - t) / 0.66, 0, 1) ** 2.4, 0, 1) ** 0.5
    outer = 0.085 + shape["width"] * bulge - 0.015 * np.clip(t - 0.8, 0, 1)
    inner = 0.055 + 0.035 * np.clip(t - 0.35, 0, 1)
    if side > 0:  # the heart's side
        inner = inner + 0.05 * np.exp(-(((t - 0.85) / 0.3) ** 2))
    middle = (outer + inner) / 2
    dome = (
        base
        - 0.075 * np.exp(-(((u - middle * 0.85) / 0.13) ** 2))
        + 0.06 * np.clip(u - middle, 0, 1) * 3
    )
    apex = top + 1.6 * (u - 0.12) ** 2
    distance = np.maximum.reduce([u - outer, inner - u, y - dome, apex - y])
    return _soft(distance, 0.009)


def _anatomy(rng, size: int, zoom: float):
    """Return the picture without disease (S, S) in 0..1 (bright = dense) and the lungs' mask."""
    grid = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(grid, grid)
    x = 0.5 + (x - 0.5) / zoom + rng.normal(0, 0.012)
    y = 0.5 + (y - 0.5) / zoom + rng.normal(0, 0.015)
    tilt = rng.normal(0, 0.03)
    x, y = x + tilt * (y - 0.5), y - tilt * (x - 0.5)
    shape = {
        "middle": 0.5 + rng.normal(0, 0.008),
        "top": 0.125 + rng.normal(0, 0.012),
        "base": 0.80 + rng.normal(0, 0.022),
        "width": 0.245 + rng.normal(0, 0.012),
    }
    dx = x - shape["middle"]
    shoulder = 0.06 + 1.2 * np.clip(np.abs(dx) - 0.13, 0, 1) ** 1.6
    flank = 0.43 + 0.03 * y + 0.08 * np.clip(0.32 - y, 0, 1)
    neck = 0.10 - 0.1 * np.clip(y - 0.02, 0, 0.3)
    body = _soft(np.minimum(np.maximum(np.abs(dx) - flank, shoulder - y), np.abs(dx) - neck), 0.012)
    picture = body * (0.60 + 0.10 * np.clip(y - 0.75, 0, 1) * 4)
    lungs = np.maximum(_lung(x, y, -1, shape), _lung(x, y, 1, shape)) * body
    picture = picture * (1 - lungs) + lungs * (0.17 + 0.05 * y)
    below = _soft(0.80 - y, 0.02) * (1 - lungs) * body
    picture += 0.10 * below
    spine = np.exp(-((dx / 0.040) ** 2)) * (0.85 + 0.15 * np.cos(2 * np.pi * y / 0.062))
    mediastinum = _soft(np.abs(dx + 0.005) - 0.062, 0.016) * _soft(0.10 - y, 0.03)
    picture += body * (0.13 * spine + 0.07 * mediastinum)
    hx, hy = dx - 0.055, y - 0.655
    angle = 0.62 + rng.normal(0, 0.05)
    a = hx * np.cos(angle) + hy * np.sin(angle)
    b = -hx * np.sin(angle) + hy * np.cos(angle)
    grow = 1 + rng.normal(0, 0.06)
    heart = _soft(np.sqrt((a / (0.165 * grow)) ** 2 + (b / (0.118 * grow)) ** 2) - 1, 0.07)
    picture += heart * lungs * 0.40 + heart * (1 - lungs) * 0.05
    arch = _soft(np.hypot(dx - 0.055, y - 0.315) / 0.052 - 1, 0.15)
    picture += 0.16 * arch * lungs
    picture += _bones(rng, dx, y, lungs, body) + _vessels(rng, dx, y, lungs, size)
    bubble = _soft(np.hypot((dx - 0.17) / 1.5, y - 0.885) / 0.035 - 1, 0.2)
    return picture - 0.22 * bubble * body, lungs, (x, y)


def _bones(rng, dx, y, lungs, body):
    """Brightness of ribs and clavicles."""
    bones = np.zeros_like(dx)
    u = np.abs(dx)
    spacing, start = 0.073 + rng.normal(0, 0.002), 0.125 + rng.normal(0, 0.008)
    inside = 0.35 * body * _soft(u - 0.40, 0.02) + 0.65 * lungs
    for k in range(10):
        # back parts fall slightly outwards, then turn down along the chest wall
        line = start + k * spacing + 0.10 * u + 2.2 * np.clip(u - 0.20, 0, 1) ** 2 - 0.02
        bones += 0.085 * np.exp(-(((y - line) / 0.0125) ** 2)) * inside
        # front parts run obliquely the other way, fainter
        front = start + 0.07 + k * spacing + 0.30 * (0.40 - u)
        bones += 0.035 * np.exp(-(((y - front) / 0.014) ** 2)) * lungs * _soft(0.14 - u, 0.02)
    lift = rng.normal(0, 0.01)
    clavicle = 0.150 + lift - 0.16 * (u - 0.05) + 0.25 * np.clip(u - 0.2, 0, 1) ** 2
    bones += (
        0.17
        * np.exp(-(((y - clavicle) / 0.0125) ** 2))
        * _soft(u - 0.33, 0.02)
        * _soft(0.035 - u, 0.01)
        * body
    )
    return bones


def _vessels(rng, dx, y, lungs, size: int):
    """Brightness of hila and vessels: branches that fade outwards."""
    out = np.zeros_like(dx)
    for side in (-1, 1):
        u = dx * side
        hilum_u, hilum_y = 0.095, 0.455 - 0.012 * side
        out += 0.16 * np.exp(-(((u - hilum_u) / 0.028) ** 2 + ((y - hilum_y) / 0.06) ** 2))
        for angle in np.linspace(-1.15, 1.25, 8) + rng.normal(0, 0.08, 8):
            a = (u - hilum_u) * np.cos(angle) + (y - hilum_y) * np.sin(angle)
            b = -(u - hilum_u) * np.sin(angle) + (y - hilum_y) * np.cos(angle)
            b = b + 0.25 * a * a * rng.normal(0, 1)
            width = 0.004 + 0.008 * np.clip(0.16 - a, 0, 1) / 0.16
            out += (
                0.085
                * np.exp(-((b / width) ** 2))
                * np.clip(a / 0.05, 0, 1)
                * np.clip(1 - a / 0.21, 0, 1)
            )
    return (out + 0.010 * _noise(rng, size, size / 50)) * lungs


def _opacities(rng, grid, lungs, zones, size: int):
    """Added density (S, S) of the disease: patches in every zone that grow with its score."""
    x, y = grid
    total = np.zeros_like(x)
    texture = 0.62 + 0.30 * _noise(rng, size, size / 22) + 0.16 * _noise(rng, size, size / 60)
    for score, (cx, cy) in zip(zones, _ZONES, strict=True):
        if score == 0:
            continue
        side = -1 if cx < 0.5 else 1
        for _ in range(1 + int(score)):
            px = cx + side * rng.normal(0.02, 0.03)
            py = cy + rng.normal(0, 0.035)
            rx, ry = (0.045 + 0.017 * score) * rng.uniform(0.8, 1.25, 2)
            bump = np.exp(-((((x - px) / rx) ** 2 + ((y - py) / ry) ** 2) ** 1.2))
            total += (0.07 + 0.065 * score) * bump
    return np.minimum(total, 0.46) * np.clip(texture, 0.12, 1.25) * lungs


def draw(zones, center: str, rng, size: int = 128) -> np.ndarray:
    """Draw one synthetic radiograph.

    zones: six scores 0..3; center: a name of CENTERS; rng: numpy Generator.
    Returns float32 (size, size) in 0..1, bright = dense.
    """
    from scipy.ndimage import gaussian_filter

    gamma, contrast, view, blur, grain, _ = _LOOK[center]
    picture, lungs, grid = _anatomy(rng, size, view * (1 + rng.normal(0, 0.025)))
    picture = picture + _opacities(rng, grid, lungs, zones, size)
    picture = gaussian_filter(picture, blur * size / 128)
    picture = np.clip(picture * (1 + rng.normal(0, 0.05)), 0, 1) ** (
        gamma * np.exp(rng.normal(0, 0.08))
    )
    picture = 0.5 + contrast * (picture - 0.5) + rng.normal(0, 0.02)
    picture += grain * rng.standard_normal(picture.shape)
    if center in ("South", "Island"):  # collimated: black frame
        edge = int(size * (0.02 + 0.02 * rng.random()))
        frame = np.zeros((size, size), bool)
        frame[edge : size - edge, edge // 2 : size - edge // 2] = True
        picture = np.where(frame, picture, 0.02)
    if center in ("North", "West"):  # a lead letter L beside the left shoulder
        s = max(1, size // 64)
        top, left = int(0.06 * size), int(0.91 * size)
        picture[top : top + 5 * s, left : left + s] = 0.97
        picture[top + 4 * s : top + 5 * s, left : left + 3 * s] = 0.97
    return np.clip(picture, 0, 1).astype(np.float32)


def _zones(rng, severity: float) -> np.ndarray:
    """Spread a severity 0..18 over six zones 0..3, lower zones first: int64 (6,)."""
    weight = np.array([0.7, 1.0, 1.35, 0.7, 1.0, 1.35]) * np.exp(rng.normal(0, 0.22, 6))
    zones = np.zeros(6)
    for _ in range(int(np.rint(np.clip(severity, 0, 18)))):
        share = weight * (3 - zones) * (1 + 0.5 * zones)
        zones[int(np.argmax(share * rng.uniform(0.5, 1.0, 6)))] += 1
    return zones.astype(np.int64)


def cohort(
    name: str,
    patients: int,
    noise: float,
    seed: int,
    *,
    severity: tuple[float, float] = (1.15, 1.25),
    limit: float = 8.5,
    pictures: tuple[float, ...] = (0.5, 0.35, 0.15),
):
    """Draw one data set's patients: list of dictionaries, one per image.

    noise: standard deviation of what blurs the prognosis, in severity classes (4.5 points);
    severity: the two shapes of the beta distribution, times 18, that severities come from; limit:
    blurred severity above which the prognosis is SEVERE; pictures: probabilities of a patient
    having 1, 2, ... of them.
    """
    rng = np.random.default_rng([seed, sum(name.encode()), VERSION])
    shares = np.array([look[-1] for look in _LOOK.values()])
    rows = []
    for p in range(patients):
        hidden = 18 * rng.beta(*severity)
        center = CENTERS[int(rng.choice(len(CENTERS), p=shares / shares.sum()))]
        severe = hidden + rng.normal(0, 4.5 * noise) > limit
        for i in range(int(rng.choice(np.arange(1, len(pictures) + 1), p=pictures))):
            zones = _zones(rng, hidden + rng.normal(0, 0.8))
            rows.append(
                {
                    "image": f"{name}_{p:04d}_{i}",
                    "patient": f"{name}-{p:04d}",
                    "center": center,
                    "prognosis": "SEVERE" if severe else "MILD",
                    "score": int(zones.sum()),
                    "zones": "".join(str(z) for z in zones),
                    "hidden_severity": round(hidden, 3),
                    "seed": [seed, p, i, len(name)],
                }
            )
    return rows


_NOTE = """These radiographs are SYNTHETIC. They were drawn by mdmt (mdmt/data/synthetic.py) for
its demo, from a hidden severity between 0 and 18. They come from no patient and say nothing about
any. truth.csv holds the hidden severity and the six zones' scores of every picture.
"""


def make(folder, patients: int = 120, size: int = 128, noise: float = 1.0, seed: int = 0) -> Path:
    """Write the two synthetic data sets below `folder`; return the folder that holds them.

    Holds prognosis.csv, severity.csv, truth.csv, images/*.png (8 bits for one data set, 16 for
    the other) and a note. A folder that exists for the same settings is used as it is.
    """
    from PIL import Image

    settings = {
        "version": VERSION,
        "patients": patients,
        "size": size,
        "noise": noise,
        "seed": seed,
    }
    target = Path(folder) / f"synthetic-{digest(settings, 12)}"
    if (target / "truth.csv").is_file():
        return target
    make_folder(target.parent)
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=".drawing-", dir=target.parent))
        (temporary / "images").mkdir()
        truth = []
        for name, label, depth in (("prognosis", "prognosis", 8), ("severity", "score", 16)):
            rows = cohort(name, patients, noise, seed)
            for row in rows:
                rng = np.random.default_rng(row["seed"])
                zones = [int(z) for z in row["zones"]]
                picture = draw(zones, row["center"], rng, size)
                scaled = np.rint(picture * (2**depth - 1))
                kind = np.uint8 if depth == 8 else np.uint16
                Image.fromarray(scaled.astype(kind)).save(
                    temporary / "images" / f"{row['image']}.png"
                )
            _table(temporary / f"{name}.csv", ["image", "patient", "center", label], rows)
            truth += rows
        write_atomic(temporary / "NOTE.txt", _NOTE)
        _table(
            temporary / "truth.csv",
            ["image", "patient", "center", "prognosis", "score", "zones", "hidden_severity"],
            truth,
        )
        temporary.chmod(0o755)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    except OSError as error:
        raise write_failure(target, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _table(path: Path, columns: list[str], rows: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def contact_sheet(count: int = 8, size: int = 128, seed: int = 0) -> np.ndarray:
    """A sheet of synthetic radiographs: a row per center, severity growing to the right."""
    rows = []
    for c, center in enumerate(CENTERS):
        row = []
        for k in range(count):
            rng = np.random.default_rng([seed, c, k])
            row.append(draw(_zones(rng, 18 * k / (count - 1)), center, rng, size))
        rows.append(np.concatenate(row, 1))
    return (np.concatenate(rows) * 255).astype(np.uint8)
