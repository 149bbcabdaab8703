"""Images in colour: files, preparation, stores, looks at them."""

import numpy as np
import pytest
from PIL import Image

from mdmt import config, explain
from mdmt.checks import pictures
from mdmt.data import images, similar
from mdmt.data.levels import of_integers, shown
from mdmt.data.store import Builder, Known, Store, open_store, picture_shape
from mdmt.errors import BadConfig, BadData
from mdmt.preprocess import build, picture
from mdmt.preprocess.normalise import normalised
from tests.dicomfiles import write_dicom
from tests.hues import GREENISH, REDDISH, texture, tinted, write_png16, write_tiff16

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (30, 44, 3), dtype=np.uint8)
WIDE = RNG.integers(0, 65536, (23, 31, 3), dtype=np.uint16)


def read(path, colour=True):
    return images.read_levels(path, colour=colour).codes


def settings(size=32, **data):
    values = config.load("demo", [f"image_size={size}"])
    values["data"].update(colour=True, **data)
    return picture.settings_of(values)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_colours_are_read_as_they_stand(tmp_path, name):
    Image.fromarray(RGB).save(tmp_path / name)
    assert np.array_equal(read(tmp_path / name), RGB)
    grey = read(tmp_path / name, colour=False)
    assert np.array_equal(grey, np.asarray(Image.fromarray(RGB).convert("L")))


def test_a_jpeg_lies_on_its_side(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = np.asarray(Image.open(tmp_path / "a.jpg"))
    assert np.array_equal(read(tmp_path / "a.jpg"), np.rot90(upright, -1))


def test_what_is_transparent_lies_over_black(tmp_path):
    opaque = RNG.integers(0, 256, RGB.shape[:2] + (1,), dtype=np.uint8)
    Image.fromarray(np.concatenate([RGB, opaque], 2)).save(tmp_path / "a.png")
    want = RGB * (opaque / 255)
    assert np.abs(read(tmp_path / "a.png") - want).max() <= 1
    palette = Image.fromarray(RGB).quantize(16)
    palette.save(tmp_path / "b.png")
    assert np.array_equal(read(tmp_path / "b.png"), np.asarray(palette.convert("RGB")))
    palette.save(tmp_path / "c.png", transparency=3)
    clear = np.asarray(palette)[..., None] == 3
    assert np.array_equal(read(tmp_path / "c.png"), np.where(clear, 0, palette.convert("RGB")))


def test_inks_become_red_green_blue(tmp_path):
    """Without a profile: what the inks leave of white, times what black leaves of that."""
    inks = RNG.integers(0, 256, (30, 44, 4), dtype=np.uint8)
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.tif")
    want = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    assert np.abs(read(tmp_path / "a.tif") - want).max() <= 1
    Image.merge("LAB", Image.fromarray(RGB).split()).save(tmp_path / "b.tif")
    with pytest.raises(BadData, match="has colours of the kind LAB; save it as RGB"):
        read(tmp_path / "b.tif")


def test_sixteen_bits_of_each_channel_are_kept(tmp_path):
    assert np.array_equal(read(write_png16(tmp_path / "a.png", WIDE)), WIDE)
    opaque = RNG.integers(0, 65536, WIDE.shape[:2] + (1,), dtype=np.uint16)
    path = write_png16(tmp_path / "b.png", np.concatenate([WIDE, opaque], 2))
    assert np.abs(read(path) - WIDE * (opaque / 65535)).max() <= 0.5
    for order in "<>":
        assert np.array_equal(read(write_tiff16(tmp_path / "a.tif", WIDE, order)), WIDE)


def test_sixteen_bits_in_planes_are_refused_and_not_misread(tmp_path):
    path = write_tiff16(tmp_path / "a.tif", WIDE, planar=True)
    for colour in (False, True):
        with pytest.raises(BadData, match="separate planes of 16 bits, which are not read; save"):
            read(path, colour)


def test_grey_files_stay_grey(tmp_path):
    grey = RGB[..., 0]
    for mode in ("L", "LA", "1", "I;16"):
        source = Image.fromarray(grey.astype(np.uint16) * 200 if mode == "I;16" else grey)
        source = source if mode == "I;16" else source.convert(mode)
        source.save(tmp_path / "a.png")
        for_grey = read(tmp_path / "a.png", colour=False)
        assert np.array_equal(read(tmp_path / "a.png"), for_grey) and for_grey.ndim == 2


@pytest.mark.parametrize("syntax", ["explicit", "big", "rle", "jpeg2000"])
def test_colours_of_dicom(tmp_path, syntax):
    """jpeg2000 is decoded by a helper process."""
    rgb = np.tile(RGB, (3, 3, 1))
    path = write_dicom(tmp_path / "a.dcm", rgb, syntax=syntax, bits=8, photometric="RGB")
    assert np.array_equal(read(path), rgb)


def test_ybr_and_planes_of_dicom(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RGB, bits=8, photometric="RGB", planar=1)
    assert np.array_equal(read(path), RGB)
    path = write_dicom(tmp_path / "b.dcm", RGB, bits=8, photometric="YBR_FULL")
    y, b, r = np.moveaxis(RGB - np.array([0.0, 128, 128]), -1, 0)  # PS3.3 C.7.6.3.1.2
    green = y - 0.114 * 1.772 / 0.587 * b - 0.299 * 1.402 / 0.587 * r
    want = np.stack([y + 1.402 * r, green, y + 1.772 * b], -1).clip(0, 255)
    assert np.abs(read(path) - want).max() <= 1
    path = write_dicom(tmp_path / "c.dcm", RGB[..., 0], bits=8)
    assert np.array_equal(read(path), RGB[..., 0])


def test_a_palette_of_dicom(tmp_path):
    codes = RGB[..., 0]
    tables = RNG.integers(0, 65536, (3, 256), dtype=np.uint16)
    elements = {}
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        elements[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    path = write_dicom(tmp_path / "a.dcm", codes, bits=8, photometric="PALETTE COLOR", **elements)
    assert np.array_equal(read(path), tables.T[codes])


def by_hand(rgb, size, clip=(2, 98), minmax=False):
    """The preparation in float64: percentiles of all values, each channel resized by itself."""
    values = rgb.astype(np.float64)
    low, high = np.percentile(values, clip)
    values = (np.clip(values, low, high) - low) / (high - low) * 255
    side, (height, width) = max(rgb.shape[:2]), rgb.shape[:2]
    square = np.zeros((side, side, 3))
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = values
    planes = [
        np.asarray(Image.fromarray(np.float32(square[..., c])).resize((size, size), 2))
        for c in range(3)
    ]
    stack = np.stack(planes).astype(np.float64)
    if minmax:
        stack = (stack - stack.min()) / (stack.max() - stack.min()) * 255
    return stack


@pytest.mark.parametrize("minmax", [False, True])
@pytest.mark.parametrize("source", [RGB, WIDE])
def test_channels_are_scaled_together(tmp_path, source, minmax):
    path = tmp_path / "a.png"
    if source.dtype == np.uint8:
        Image.fromarray(source).save(path)
    else:
        write_png16(path, source)
    found = picture.preprocess(path, settings(minmax=minmax))
    assert found.shape == (3, 32, 32) and found.dtype == np.uint8 and found.flags.c_contiguous
    assert np.abs(found - by_hand(source, 32, minmax=minmax)).max() <= 0.51


def test_hue_is_kept():
    """Equal numbers for all channels: differences of channels keep their ratios."""
    rgb = RGB.astype(np.int64)
    found = normalised(of_integers(RGB), None).grey
    assert found.shape == RGB.shape
    ratio = (rgb[..., 0] - rgb[..., 1]) * (found[..., 1] - found[..., 2]).astype(np.float64)
    other = (rgb[..., 1] - rgb[..., 2]) * (found[..., 0] - found[..., 1]).astype(np.float64)
    assert np.abs(ratio - other).max() < 0.1


def test_a_grey_picture_in_colour_is_its_grey_one_three_times(tmp_path):
    Image.fromarray(RGB[..., 0]).save(tmp_path / "a.png")
    grey = {k: v for k, v in settings().items() if k != "colour"}
    want = picture.preprocess(tmp_path / "a.png", grey)
    assert np.array_equal(picture.preprocess(tmp_path / "a.png", settings()), [want] * 3)


def test_workers_give_the_same(tmp_path):
    tasks = []
    for i in range(build.FEW):
        Image.fromarray(np.roll(RGB, i, 0)).save(tmp_path / f"{i}.png")
        tasks.append(picture.Task(tmp_path / f"{i}.png"))
    alone = list(build.prepared(tasks, settings(), 1))
    crew = list(build.prepared(tasks, settings(), 2))
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(alone, crew, strict=True))
    assert [a.look for a in alone] == [b.look for b in crew]


def test_names_of_grey_stores_are_what_they_were():
    values = config.load("demo", ["image_size=64"])
    assert values["data"]["colour"] is False
    assert list(picture.settings_of(values)) == [
        "format", "size", "crop", "square", "clip", "minmax", "voi",
    ]  # fmt: skip
    assert settings(64) == {**picture.settings_of(values), "colour": True}


def test_stores_in_colour(tmp_path):
    """Written, interrupted and gone on with, copied from another, damaged and built again."""
    made = settings()
    assert picture_shape(made) == (3, 32, 32)
    pixels = RNG.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    entries = [({"source": str(i), "file": f"{i}.png"}, pixels[i], None) for i in range(5)]
    with pytest.raises(KeyboardInterrupt), Builder(tmp_path / "s-1", made, 5) as builder:
        builder.add(entries[:3])
        raise KeyboardInterrupt
    known = Known(tmp_path / "s-2", picture_shape(made))
    assert np.array_equal(known.find({"source": "2"})[1], pixels[2])
    with Builder(tmp_path / "s-1", made, 5) as builder:
        assert len(builder.entries) == 3
        builder.add(entries[3:])
        builder.finish()
    store = Store(tmp_path / "s-1")
    assert store.images.shape == (5, 3, 32, 32) and np.array_equal(store.images, pixels)
    with open(tmp_path / "s-1" / "images.u8", "r+b") as stream:
        stream.truncate(5 * 32 * 32)  # as long as a grey one
    assert open_store(tmp_path / "s-1") is None


def test_what_has_no_colour_is_refused(tmp_path):
    with pytest.raises(BadConfig, match=r"crop is 'box' and data.colour true, but lungs are found"):
        config.load("demo", ["data.colour=true", "data.crop=box"])
    with pytest.raises(BadConfig, match=r"data.colour is given, but a configuration of kind masks"):
        config.load("lungs", ["data.colour=true"])


def test_copies_are_found_by_their_luminance():
    """A copy in other colours, smaller and saved as JPEG is one; another picture is not."""
    rng = np.random.default_rng(1)
    greys = [texture(rng, 96) + rng.integers(-9, 10, (96, 96)) for _ in range(4)]
    several = [tinted(g.clip(60, 195), REDDISH) for g in greys]
    copy = (
        Image.fromarray(tinted(greys[0].clip(60, 195), GREENISH)).resize((90, 90)).resize((96, 96))
    )
    stack = np.stack([np.moveaxis(np.asarray(p), -1, 0) for p in (*several, copy)])
    luminance = np.stack([np.asarray(Image.fromarray(shown(p)).convert("L")) for p in stack])
    assert np.array_equal(similar.thumbnails(stack), similar.thumbnails(luminance))
    found = similar.pairs(stack)
    assert [(p.a, p.b) for p in found] == [(0, 4)]
    assert [(p.a, p.b) for p in similar.copies(stack[4:], stack[:4])] == [(0, 0)]
    pair = similar.Alike((0, 0), (0, 4), 0.99, False, False)
    told = pictures.Looks([], [], [pair], what="photograph")._untried()
    assert [grade for grade, _, sentence in told if "found on radiographs" in sentence] == ["note"]
    assert not list(pictures.Looks([], [], [pair])._untried())


def test_one_luminance_of_many_hues_is_not_constant():
    class Drawn:
        entries = [{}] * 2
        images = np.zeros((2, 3, 64, 64), np.uint8)

    halves = np.where(np.arange(64)[:, None, None] < 32, REDDISH, GREENISH) + 120
    Drawn.images[0] = np.moveaxis(np.broadcast_to(halves, (64, 64, 3)), -1, 0)
    Drawn.images[1] = np.array(REDDISH)[:, None, None] + 120
    assert similar.thumbnails(Drawn.images).std((1, 2)).max() == 0
    assert pictures._odd([Drawn]) == {"constant": [(0, 1)]}


def test_a_square_is_hidden_in_the_mean_colour():
    pixels = np.zeros((3, 64, 64), np.uint8)
    pixels[0] = 200
    pixels[1, 16:24, 40:48] = 255
    seen = []

    def green(several):
        seen.append(several)
        return {"green": several[:, 1, 16:24, 40:48].mean((1, 2)) / 255}

    found = explain.occlusion(pixels, green)["green"]
    assert found.shape == (64, 64)
    y, x = np.unravel_index(found.argmax(), found.shape)
    assert 16 <= y < 24 and 40 <= x < 48
    hidden = seen[0][1][:, :8, :8]
    mean = [200, round(float(pixels[1].mean())), 0]
    assert np.array_equal(hidden, np.broadcast_to(np.reshape(mean, (3, 1, 1)), (3, 8, 8)))


def test_a_person_gives_the_part_of_a_picture(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    whole = settings(clip=None)
    low, high = RGB.min(), RGB.max()
    found = picture.preprocess(tmp_path / "a.png", whole, ["box", 10, 4, 30, 24])
    part = (RGB[4:24, 10:30].astype(np.float64) - low) / (float(high) - low) * 255
    want = [
        np.asarray(Image.fromarray(np.float32(part[..., c])).resize((32, 32), 2)) for c in range(3)
    ]
    assert np.abs(found - np.stack(want)).max() <= 0.51
    with pytest.raises(BadData, match="does not lie in it; correct the box"):
        picture.preprocess(tmp_path / "a.png", whole, ["box", 10, 4, 90, 24])
