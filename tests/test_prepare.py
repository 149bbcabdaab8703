"""From a picture to the network's input, what a person decides, contact sheets, `mdmt prepare`."""

import csv
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mdmt import cli, config
from mdmt.data.levels import Levels
from mdmt.errors import BadConfig, BadData
from mdmt.preprocess import build, corrections, crop, normalise, picture, sheets
from mdmt.preprocess.crop import Box
from tests import replicas
from tests.realdata import COVID_CXR, needs_covid_cxr
from tests.test_store import make_cases

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser",
                                                "google-chrome"))), None)  # fmt: skip

# ---- grey values


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_percentiles_by_counting_are_numpys(data):
    bits = data.draw(st.sampled_from([8, 16]))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    top = data.draw(st.integers(1, (1 << bits) - 1))
    codes = rng.integers(0, top + 1, (data.draw(st.integers(1, 30)), 17)).astype(f"u{bits // 8}")
    table = rng.normal(0, 100, 1 << bits).astype(np.float32)  # neither sorted nor positive
    clip = sorted(data.draw(st.lists(st.floats(0, 100), min_size=2, max_size=2, unique=True)))
    low, high = np.percentile(table[codes].astype(np.float64), clip)
    found = normalise.normalise(Levels(codes, table), clip)
    if high > low:
        wanted = (np.clip(table[codes], low, high) - low) / (high - low) * 255
        np.testing.assert_allclose(found, wanted, atol=2e-3)
    else:
        assert found.min() == 0


def test_no_clip_is_the_full_range_and_minmax_spreads():
    grey = np.array([[10, 20], [30, 60]], np.uint8)
    assert normalise.normalise(grey, None).tolist() == [[0, 51], [102, 255]]
    assert normalise.stretched(np.array([[50, 100]], np.float32)).tolist() == [[0, 255]]
    assert normalise.stretched(np.array([[7, 7]], np.float32)).tolist() == [[7, 7]]


# ---- boxes


@settings(max_examples=500, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 60), st.data(), st.sampled_from(["pad", "crop"])
)  # fmt: skip
def test_a_square_takes_more_of_the_picture_and_pads_only_where_it_ends(height, width, data, how):
    left, right = sorted(data.draw(st.lists(st.integers(-9, 69), min_size=2, max_size=2)))
    top, bottom = sorted(data.draw(st.lists(st.integers(-9, 69), min_size=2, max_size=2)))
    box = Box(left, top, right + 1, bottom + 1)
    square = crop.squared(box, (height, width), how)
    side = max(box.width, box.height)
    assert square.width == square.height == (min(side, height, width) if how == "crop" else side)
    for start, length, limit in (
        (square.left, square.width, width), (square.top, square.height, height)
    ):  # fmt: skip
        if length <= limit:
            assert start >= 0 and start + length <= limit  # real pixels only
        else:
            assert start <= 0 and start + length >= limit  # all of the picture
            assert abs((-start) - (start + length - limit)) <= 1  # padded evenly
    grey = np.arange(1, height * width + 1, dtype=np.float32).reshape(height, width)
    padded = np.pad(grey, 80)
    wanted = padded[square.top + 80 : square.bottom + 80, square.left + 80 : square.right + 80]
    assert np.array_equal(crop.cut(grey, square), wanted)


def test_a_box_inside_keeps_its_center():
    assert crop.squared(Box(40, 30, 60, 40), (100, 100)) == Box(40, 25, 60, 45)
    assert crop.squared(Box(2, 30, 22, 90), (100, 100)) == Box(0, 30, 60, 90)
    assert crop.bordered(Box(10, 10, 30, 50), 0.1) == Box(8, 6, 32, 54)
    mask = np.zeros((9, 9), bool)
    assert crop.bounding_box(mask) is None
    mask[2, 3] = mask[5, 7] = True
    assert crop.bounding_box(mask) == Box(3, 2, 8, 6)


# ---- whole pictures


class Verdict(NamedTuple):
    ok: bool
    reason: str
    doubt: float


def chest(number, height=120, width=100):
    """A drawn chest and its lungs: two ellipses."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), bool)
    for middle in (0.3, 0.68):
        mask |= ((x / width - middle) / 0.13) ** 2 + ((y / height - 0.42) / 0.27) ** 2 < 1
    grey = np.where(mask, 70, 190) + rng.normal(0, 12, mask.shape)
    return np.clip(grey, 0, 255).astype(np.uint8), mask


def fake_lungs(greys):
    """Finds the dark ellipses of `chest`; doubts by how dark the first pixel is."""
    from scipy import ndimage

    for grey in greys:
        spread = normalise.normalise(grey)
        mask = ndimage.binary_opening(ndimage.uniform_filter(spread, 5) < 110, iterations=2)
        if grey[0, 0] == 3:
            yield mask, Verdict(False, "the lungs would cover 80% of the picture", 1.0)
        elif grey[0, 0] == 4:
            yield np.zeros(grey.shape, bool), Verdict(False, "no lung was found", 1.0)
        else:
            yield mask, Verdict(True, "", 0.7 if grey[0, 0] == 5 else 0.1)


@pytest.fixture
def lungs(monkeypatch):
    monkeypatch.setattr(picture, "_lung_masks", fake_lungs)
    monkeypatch.setattr(picture, "_lungs_version", lambda: "fake")
    monkeypatch.setattr(picture, "_unusual", lambda v: "height 40%" if v.doubt > 0.5 else "")


def chest_settings(**data):
    found = config.load("demo", ["image_size=64"])
    found["data"].update(crop="box", minmax=True, **data)
    return picture.settings_of(found)


def by_hand(grey, mask, settings):
    """The steps of the paper, written down again with scikit-image and NumPy."""
    measure = pytest.importorskip("skimage.measure")
    low, high = np.percentile(grey, [2, 98])
    scaled = (np.clip(grey.astype(float), low, high) - low) / (high - low) * 255
    two = sorted(measure.regionprops(measure.label(mask)), key=lambda r: -r.area)[:2]
    top, left = np.min([r.bbox[:2] for r in two], 0)
    bottom, right = np.max([r.bbox[2:] for r in two], 0)
    dy, dx = round(0.05 * (bottom - top)), round(0.05 * (right - left))
    top, bottom, left, right = top - dy, bottom + dy, left - dx, right + dx
    side = max(bottom - top, right - left)
    if settings["crop"] == "masked":
        scaled = np.where(mask, scaled, 0)
    y = int(np.clip(top + (bottom - top - side) // 2, 0, grey.shape[0] - side))
    x = int(np.clip(left + (right - left - side) // 2, 0, grey.shape[1] - side))
    part = scaled[y : y + side, x : x + side].astype(np.float32)
    small = np.asarray(Image.fromarray(part).resize((64, 64), Image.Resampling.BILINEAR))
    return (small - small.min()) / (small.max() - small.min()) * 255


@pytest.mark.parametrize("how", ["box", "masked"])
def test_the_papers_steps(tmp_path, lungs, how):
    settings = {**chest_settings(), "crop": how}
    for number, size in enumerate([(120, 100), (100, 120), (101, 99)]):
        grey, _ = chest(number, *size)
        Image.fromarray(grey).save(tmp_path / "a.png")
        ((mask, _),) = fake_lungs([grey.astype(np.float32)])
        found = picture.preprocess(tmp_path / "a.png", settings)
        assert np.abs(found - by_hand(grey, mask, settings)).max() <= 0.5 + 1e-2
        assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize("how", ["box", "masked"])
def test_a_large_picture_is_cropped_as_a_small_one(tmp_path, lungs, how):
    """Lungs are looked for in means of blocks; box and mask still fit the large picture."""
    settings = {**chest_settings(), "crop": how}
    grey, mask = chest(0, 1301, 1103)
    assert picture._step(grey.shape) == 2
    Image.fromarray(grey).save(tmp_path / "a.png")
    (found,) = picture.prepare([picture.Task(tmp_path / "a.png")], settings)
    wanted = crop.squared(crop.bordered(crop.bounding_box(mask), 0.05), grey.shape)
    assert np.abs(np.subtract(found.facts["box"], wanted)).max() <= 8
    by = crop.cut(mask.astype(np.float32), crop.Box(*found.facts["box"]))
    inside = np.asarray(Image.fromarray(by).resize((64, 64), Image.Resampling.BILINEAR))
    lung, outer = found.pixels[inside > 0.9].mean(), found.pixels[inside < 0.1].mean()
    assert lung + 60 < outer if how == "box" else outer < 1 and lung > 100


def test_implausible_lungs_are_refused_and_never_the_whole_picture(tmp_path, lungs):
    grey, _ = chest(0)
    for mark, sentence in ((3, "cover 80% of the picture"), (4, "no lung was found")):
        grey[0, 0] = mark
        Image.fromarray(grey).save(tmp_path / "a.png")
        with pytest.raises(BadData, match=f"no plausible lungs .*{sentence}"):
            picture.preprocess(tmp_path / "a.png", chest_settings())
    with pytest.raises(BadData, match="none to accept; give a box"):
        picture.preprocess(tmp_path / "a.png", chest_settings(), ["accept"])
    with pytest.raises(BadData, match=r"100 x 120 pixels, and the box \[0, 0, 101, 20\]"):
        picture.preprocess(tmp_path / "a.png", chest_settings(), ["box", 0, 0, 101, 20])
    found = picture.preprocess(tmp_path / "a.png", chest_settings(), ["box", 10, 20, 50, 60])
    part = normalise.normalise(grey)[20:60, 10:50]
    wanted = normalise.stretched(np.asarray(Image.fromarray(part).resize((64, 64), 2)))
    assert np.abs(found - wanted).max() <= 0.51


# ---- a data set


@pytest.fixture
def study(tmp_path, lungs):
    """A configuration of 12 drawn chests: three doubted or refused, one no image."""
    folder = tmp_path / "data" / "images"
    folder.mkdir(parents=True)
    lines = ["image,patient,label"]
    for i in range(12):
        grey, _ = chest(i)
        grey[0, 0] = {2: 3, 5: 4, 7: 5}.get(i, 60)
        Image.fromarray(grey).save(folder / f"c{i:02d}.png")
        lines.append(f"c{i:02d},p{i},{'MILD' if i % 2 else 'SEVERE'}")
    (folder / "c09.png").write_bytes(b"no image")
    (tmp_path / "data" / "t.csv").write_text("\n".join(lines))
    text = f"""
name: drawn
image_size: 64
data:
  root: {tmp_path}/data
  store: {tmp_path}/store
  crop: box
  minmax: true
  datasets: [{{name: chests, table: t.csv, task: t, columns: {{center: null}}}}]
tasks: {{t: {{classes: [MILD, SEVERE]}}}}
"""
    path = tmp_path / "drawn.yaml"
    path.write_text(text)
    return path


def run(study, out, *options, capsys):
    status = cli.main(["prepare", str(study), "--out", str(out), *options])
    said = capsys.readouterr()
    return status, said.out, said.err


def table_of(out):
    with open(out / "chests" / "images.csv", newline="") as stream:
        return {r["image"]: r for r in csv.DictReader(stream)}


def test_prepare_refuses_lists_and_shows(study, tmp_path, capsys):
    out = tmp_path / "out"
    killed = out / "chests" / ".sheet-001.png.killed.tmp"  # of a preparation that was killed
    killed.parent.mkdir(parents=True)
    killed.touch()
    status, printed, error = run(study, out, capsys=capsys)
    assert status == 2 and not killed.exists()
    assert "c02.png: shows no plausible lungs (the lungs would cover 80%" in error
    assert "(and 2 more images refused)" in error
    assert f"look at {out / 'index.html'}" in error
    assert error.count("\n") == 1
    assert "12 images: 8 used, 1 used with doubt of 0.5 or more, 3 refused" in printed
    assert "% of what the decoder alone would do" in printed
    page = (out / "index.html").read_text()
    assert "c09" in page and "is not an image that can be read" in page
    assert page.count("<figure>") == 12 and page.count("url('chests/sheet-001.png')") == 1
    assert "<b>c07.png</b>doubt 0.70, " in page and "height 40%" in page
    found = table_of(out)
    assert list(found)[:3] == ["c02", "c05", "c09"]  # refused first
    assert list(found)[3] == "c07"  # then the doubted one
    assert found["c07"]["state"] == "doubted" and found["c07"]["doubt"] == "0.7"


def test_exclude_goes_on_and_lists(study, tmp_path, capsys):
    status, printed, _ = run(
        study, tmp_path / "out", "--set", "data.on_bad_image=exclude", capsys=capsys
    )
    assert status == 0
    assert printed.count("  refused ") == 3
    values = config.load(str(study), ["data.on_bad_image=exclude"])
    from mdmt import study as module

    (cases,) = module.read_cases(values)
    store, kept = build.build(cases, values, progress=False)
    assert (len(store.images), len(kept)) == (9, 9)
    excluded = [w for w in kept.warnings if w.startswith("excluded: ")]
    assert len(excluded) == 3 and "no lung was found" in excluded[1]
    from mdmt.analysis import cohort

    described = cohort._described(kept, store)
    assert described["rows"] == 12
    assert [e.split(": ")[0].split("/")[-1] for e in described["excluded"]] == [
        "c02.png", "c05.png", "c09.png"
    ]  # fmt: skip


def test_a_person_decides_and_only_that_is_made_again(study, tmp_path, capsys):
    """accept and boxes in the form of images.csv; nothing else is decoded again."""
    run(study, tmp_path / "one", capsys=capsys)
    before = table_of(tmp_path / "one")
    (tmp_path / "data" / "fixed.csv").write_text(
        "image,box,note\nc02,accept,seen\nc05,whole,\nc09.png,exclude,no picture\n"
        f"c03,{before['c03']['box']},as it was\nc04,,\n"
    )
    fixed = ["--set", "data.datasets.0.corrections=fixed.csv"]
    status, printed, _ = run(study, tmp_path / "two", *fixed, capsys=capsys)
    assert status == 0
    assert "11 images: 7 used, 1 used with doubt of 0.5 or more, 3 as decided" in printed
    assert "3 decoded, 8 copied from other stores" in printed
    assert "1 excluded by a person before" in printed
    after = table_of(tmp_path / "two")
    assert "c09" not in after
    assert after["c02"]["decision"] == "accept"
    assert after["c05"]["box"] == "0 0 100 120"  # padded to the square
    assert after["c03"]["box"] == before["c03"]["box"]
    values = config.load(str(study), [fixed[1]])
    from mdmt import study as module

    (cases,) = module.read_cases(values)
    found = build.inspect(cases, values, progress=False)
    plain = picture.settings_of(values)
    root = Path(values["data"]["root"]) / "images"
    assert np.array_equal(found.store.images[3], picture.preprocess(root / "c03.png", plain))


def test_a_persons_box_is_heeded_where_whole_pictures_are_used(study, tmp_path, capsys):
    """The others' pixels stay as they were; the store is another one."""
    from mdmt import study as module

    whole = ["data.crop=whole", "data.on_bad_image=exclude"]
    found = []
    (tmp_path / "data" / "fixed.csv").write_text("image,box\nc03,10 20 60 90\nc04,whole\n")
    for more in ([], ["data.datasets.0.corrections=fixed.csv"]):
        values = config.load(str(study), whole + more)
        (cases,) = module.read_cases(values)
        found.append(build.inspect(cases, values, progress=False).store)
    plain, fixed = found
    names = [Path(e["file"]).stem for e in plain.entries if "reason" not in e]
    same = [np.array_equal(a, b) for a, b in zip(plain.images, fixed.images, strict=True)]
    assert [n for n, s in zip(names, same, strict=True) if not s] == ["c03"]
    assert plain.folder != fixed.folder and plain.settings == fixed.settings
    path = Path(values["data"]["root"]) / "images" / "c03.png"
    expected = picture.preprocess(path, plain.settings, ["box", 10, 20, 60, 90])
    assert np.array_equal(fixed.images[names.index("c03")], expected)


def test_many_stores_are_told(study, tmp_path, capsys, monkeypatch):
    from mdmt import prepare

    monkeypatch.setattr(prepare, "MANY", 1)
    more = ["--set", "data.on_bad_image=exclude"]
    assert "can be deleted" not in run(study, tmp_path / "o", *more, capsys=capsys)[1]
    _, printed, _ = run(study, tmp_path / "o", *more, "--set", "data.border=0.1", capsys=capsys)
    assert f"{tmp_path / 'store'}: holds 2 stores, 0.0 GiB" in printed


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("image,box\nc99,whole\n", "image 'c99'"),
        ("image,box\nc01,hole\n", "did you mean 'whole'"),
        ("image,box\nc01,5 5 5 9\n", "is empty"),
        ("image,box\nc01,whole\nc01.png,accept\n", "two rows"),
        ("image,part\nc01,whole\n", "no column 'box'"),
    ],
)
def test_corrections_that_cannot_be(study, tmp_path, capsys, content, sentence):
    (tmp_path / "data" / "fixed.csv").write_text(content)
    status, _, error = run(
        study, tmp_path / "o", "--set", "data.datasets.0.corrections=fixed.csv", capsys=capsys
    )
    assert status == 2
    assert sentence in error and "fixed.csv" in error and error.count("\n") == 1


def test_accept_names_images(tmp_path):
    cases = make_cases(tmp_path, 3)
    values = {"data": {"root": None, "datasets": [{"name": "d", "accept": ["i0001.png"]}]}}
    assert corrections.decisions(cases, values) == [None, ["accept"], None]
    values["data"]["datasets"][0]["accept"] = ["i1"]
    with pytest.raises(BadConfig, match="accept names 'i1'"):
        corrections.decisions(cases, values)


def test_the_sheets_show_outline_square_and_state(study, tmp_path, capsys):
    values = config.load(str(study))
    from mdmt import study as module

    (cases,) = module.read_cases(values)
    survey = build.inspect(cases, values, progress=False)
    (page,) = sheets.pages(survey)
    assert page.shape == (2 * sheets.HEIGHT, sheets.COLUMNS * sheets.WIDTH, 3)

    def cell(k):
        y, x = divmod(k, sheets.COLUMNS)
        return page[
            y * sheets.HEIGHT : (y + 1) * sheets.HEIGHT, x * sheets.WIDTH : (x + 1) * sheets.WIDTH
        ]

    def has(part, colour):
        return int((part == np.array(colour)).all(-1).sum())

    assert [sheets.order(survey)[k] for k in range(4)] == [2, 5, 9, 7]
    for k, name in enumerate(["refused", "refused", "refused", "doubted", "used"]):
        assert has(cell(k)[: sheets.HEAD], sheets.STATES[name][0]) > sheets.WIDTH
    assert has(cell(0), sheets.OUTLINE) > 100 and has(cell(1), sheets.OUTLINE) == 0
    assert has(cell(4), sheets.SQUARE) > 200 and has(cell(2), sheets.SQUARE) == 0
    written = sheets.write(survey, tmp_path / "sheets")
    with Image.open(written[0]) as image:
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - page).mean() < 2
    assert survey.doubtful() == [(0.7, str(cases.paths[7]), "height 40%")]
    assert len(survey.listed()) == 3 and survey.listed()[0].startswith(str(cases.paths[2]))
    assert next(sheets.pages(survey, most=3)).shape[0] == sheets.HEIGHT


def test_a_page_shows_each_cell_through_a_window_on_its_sheet(study):
    """A background's percent: of what the sheet is larger than the window by."""
    from mdmt import study as module

    (cases,) = module.read_cases(config.load(str(study)))
    survey = build.inspect(cases, config.load(str(study)), progress=False)
    found = sheets.html(survey, ["a b'.png"])
    assert len(found) == 1 and "--sheet:url('a b%27.png')" in found[0].replace("&#x27;", "'")
    places = re.findall(r"background-position:([\d.]+)% ([\d.]+)%", found[0])
    names = re.findall(r"<b>(.*?)</b>", found[0])
    assert names == [cases.paths[i].name for i in sheets.order(survey)] and len(places) == 12
    whole = sheets.COLUMNS * sheets.WIDTH, 2 * sheets.HEIGHT
    for k, (x, y) in enumerate(places):
        at = (float(x) / 100 * (whole[0] - sheets.WIDTH),
              float(y) / 100 * (whole[1] - sheets.WINDOW))  # fmt: skip
        row, column = divmod(k, sheets.COLUMNS)
        assert at == pytest.approx((column * sheets.WIDTH, row * sheets.HEIGHT), abs=0.01)
    assert found[0].count("</b>refused") == 3
    some = sheets.html(survey, ["x"], most=3)
    assert some[0].count("<figure>") == 3 and "% 0.0000%" in some[0]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "columns"), [(420, 2), (1280, 7)])
def test_the_page_on_narrow_and_wide_screens(study, tmp_path, width, columns, capsys):
    run(study, tmp_path / "out", capsys=capsys)
    path = tmp_path / "out" / "index.html"
    probe = """<script>addEventListener("load",()=>{const w=[...document.querySelectorAll(
    ".window")].map(x=>x.getBoundingClientRect()),d=document.documentElement;
    document.title=[d.scrollWidth-d.clientWidth,w.filter(x=>x.top==w[0].top).length,
    w[0].width,w[0].height].join()})</script>"""
    path.write_text(path.read_text().replace("</body>", probe + "</body>"))
    frame = tmp_path / "out" / "frame.html"  # Chromium's own window is at least 500 wide
    frame.write_text(
        f'<iframe src="index.html" style="width:{width}px;height:900px;border:0"></iframe>'
        "<script>addEventListener('load',()=>{document.title="
        "document.querySelector('iframe').contentDocument.title})</script>"
    )
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         "--virtual-time-budget=3000", "--dump-dom",
         f"--user-data-dir={tmp_path / 'profile'}", frame.as_uri()],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    over, side_by_side, wide, high = map(float, re.search("<title>(.*?)</title>", done.stdout)[1]
                                         .split(","))  # fmt: skip
    assert over == 0 and side_by_side == columns and wide > 150
    assert high / wide == pytest.approx(sheets.WINDOW / sheets.WIDTH, abs=0.02)


def test_long_names_keep_their_ends(study):
    from PIL import ImageDraw

    draw = ImageDraw.Draw(Image.new("RGB", (10, 10)))
    name = "a" * 40 + "12345678901234567890.dcm"
    short = sheets._shortened(draw, name, sheets._font(12), 150)
    assert draw.textlength(short, sheets._font(12)) <= 150
    assert short.endswith("90.dcm") and short.startswith("aaa")
    lines = sheets._wrapped(draw, "one two three " * 20, sheets._font(10), 150, 2)
    assert len(lines) == 2 and lines[1].endswith("…")


def test_ctrl_c_is_one_sentence_and_the_same_command_goes_on(tmp_path):
    (tmp_path / "images").mkdir()
    names = [f"i{k:03d}" for k in range(120)]
    for k, name in enumerate(names):  # large, so that work is left when the signal comes
        picture = np.zeros((1600, 1600), np.uint8)
        picture[100:1500, 100 + k : 1500] = np.arange(1400 - k) % 251
        Image.fromarray(picture).save(tmp_path / "images" / f"{name}.png", compress_level=1)
    rows = [f"{name},{name},{'MILD' if k % 2 else 'SEVERE'}" for k, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join(["image,patient,label", *rows]))
    (tmp_path / "c.yaml").write_text(f"""
name: many
image_size: 32
data:
  root: {tmp_path}
  store: {tmp_path}/store
  datasets: [{{name: d, table: t.csv, task: t}}]
tasks: {{t: {{classes: [MILD, SEVERE]}}}}
""")
    line = [sys.executable, "-m", "mdmt", "prepare", tmp_path / "c.yaml", "--out", tmp_path / "o"]
    options = {
        "text": True, "cwd": Path(__file__).parents[1], "stderr": subprocess.PIPE,
        "env": {**os.environ, "MDMT_NUM_THREADS": "2"}, "stdout": subprocess.PIPE,
    }  # fmt: skip
    # A shell's background jobs, and what they start, ignore Ctrl-C.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(line, preexec_fn=heed, **options)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        found = list((tmp_path / "store").glob(".building-*/entries.jsonl"))
        if found and found[0].stat().st_size:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 75
    assert error == "mdmt: interrupted; run the same command to go on\n"
    done = subprocess.run(line, check=True, timeout=300, **options)
    decoded, _, there = map(int, re.findall(r"(\d+) (?:decoded|copied|there)", done.stdout))
    assert decoded + there == len(names) and there >= 1


# ---- the published data sets, as downloaded


def prepare_replicas(root, *options):
    """`mdmt prepare paper` on replicas of both data sets, release 3; what it printed."""
    replicas.make_aiforcovid(root / "AIforCOVID", counts=(10, 4, 6), size=96)
    replicas.make_brixia(root / "BRIXIA", count=16, size=96)
    done = subprocess.run(
        [sys.executable, "-m", "mdmt", "prepare", "paper", "--out", root / "out", "--set",
         f"data.root={root}", "--set", f"data.store={root / 'store'}", "--set", "image_size=64",
         *(a for o in options for a in ("--set", o))],
        capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    for name in ("AIforCOVID", "BRIXIA"):
        assert (root / "out" / name / "sheet-001.png").stat().st_size > 5000
    with open(root / "out" / "AIforCOVID" / "images.csv", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 19  # one of 20 has no outcome
    return done.stdout


def test_replicas_are_prepared_with_one_command(tmp_path):
    printed = prepare_replicas(tmp_path, "data.crop=whole")
    assert "AIforCOVID: 19 images: 19 used" in printed
    assert "BRIXIA: 15 images: 15 used" in printed


@needs_covid_cxr
def test_lungs_of_replicas_are_found_with_one_command(tmp_path):
    printed = prepare_replicas(tmp_path, "data.on_bad_image=exclude")
    counted = re.findall(r"(\w+): (\d+) images: (\d+) used", printed)
    assert [c[0] for c in counted] == ["AIforCOVID", "BRIXIA"]
    assert all(int(used) >= int(total) - 5 for _, total, used in counted)


@needs_covid_cxr
@pytest.mark.parametrize("how", ["box", "masked"])
def test_real_radiographs_are_cropped_to_the_lungs(how):
    """The store's lungs against the pseudo-masks: what of them the square holds."""
    found = config.load("covid_cxr", [f"data.crop={how}", "image_size=96"])
    given = picture.settings_of(found)
    with open(COVID_CXR / "lung_masks.csv", newline="") as stream:
        names = [r["image"] for r in csv.DictReader(stream)][::8]
    held = []
    for name in names:
        (one,) = picture.prepare([picture.Task(COVID_CXR / "images" / f"{name}.jpg")], given)
        if one.pixels is None:
            continue
        with Image.open(COVID_CXR / "lung_masks" / f"{name}.png") as image:
            mask = np.asarray(image) > 0
        square = crop.Box(*one.facts["box"])
        held.append(crop.cut(mask.astype(np.float32), square).sum() / mask.sum())
        assert square.width == square.height
        assert one.pixels.shape == (96, 96) and one.pixels.max() == 255
        black = (one.pixels == 0).mean()
        assert black > 0.45 if how == "masked" else black < 0.45
    assert len(held) >= len(names) - 1
    assert np.median(held) > 0.99 and np.mean(np.array(held) > 0.9) >= 0.9


def test_a_narrow_picture_is_refused_before_its_square_is_made(tmp_path):
    Image.fromarray(np.zeros((4, 50_000), np.uint8)).save(tmp_path / "a.png")
    settings = {"size": 32, "crop": "whole", "square": "pad", "clip": None, "minmax": False}
    settings["voi"] = True
    (found,) = picture.prepare([picture.Task(tmp_path / "a.png")], settings)
    assert found.pixels is None
    assert "has 50000 x 4 pixels, of which a square" in found.facts["reason"]
    assert picture.preprocess(tmp_path / "a.png", {**settings, "square": "crop"}).shape == (32, 32)
