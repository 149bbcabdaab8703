"""Tables, images, the store, the synthetic data."""

import errno
import io
import json
import os
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mdmt import config
from mdmt.data import images, store, synthetic, table
from mdmt.errors import BadData, MdmtError, NoSpace
from mdmt.preprocess import build as building
from mdmt.preprocess import crop, normalise, picture
from tests.realdata import COVID_CXR, needs_covid_cxr

TASK = {"classes": ["MILD", "SEVERE"], "labels": None, "thresholds": None}
SCORE = {"classes": ["0", "1", "2", "3"], "labels": None, "thresholds": [5, 9, 14]}


def spec(**changes):
    columns = {"image": "image", "patient": "patient", "label": "label", "center": "center"}
    return {"name": "d", "table": "t.csv", "images": "images", "columns": columns, "task": "t",
            "delimiter": "auto", **changes}  # fmt: skip


def write(root, text, images=("a", "b"), encoding="utf-8"):
    (root / "images").mkdir(exist_ok=True)
    (root / "t.csv").write_bytes(text.encode(encoding))
    for i, name in enumerate(images):
        rng = np.random.default_rng(i)
        Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(
            root / "images" / f"{name}.png"
        )


def values(root, **data):
    plain = ["image_size=32", "data.crop=whole", "data.minmax=false", "data.on_bad_image=error"]
    found = config.load("covid_cxr", plain)
    found["data"].update(store=str(root / "store"), **data)
    return found


HEAD = "image,patient,label,center\n"


def test_reads_text_ids_labels_and_centers(tmp_path):
    write(tmp_path, HEAD + "00012,007,SEVERE,A\n18446744073709551616.png,1e5,MILD,\n",
          ("00012", "18446744073709551616"))  # fmt: skip
    cases = table.read_cases(spec(), TASK, tmp_path)
    assert cases.images == ["00012", "18446744073709551616"]
    assert cases.patients == ["007", "1e5"]
    assert cases.centers == ["A", ""]
    assert cases.labels.tolist() == [1, 0]
    assert cases.paths[1].name == "18446744073709551616.png"


@pytest.mark.parametrize("mark, encoding", [(";", "utf-8-sig"), ("\t", "utf-8"), (",", "utf-8")])
def test_delimiters_byte_order_mark_and_windows_lines(tmp_path, mark, encoding):
    text = (HEAD + "a,p,SEVERE,A\n\nb,q,MILD,B\n").replace(",", mark).replace("\n", "\r\n")
    write(tmp_path, text, encoding=encoding)
    assert table.read_cases(spec(), TASK, tmp_path).labels.tolist() == [1, 0]


def test_an_empty_label_is_missing_and_counted(tmp_path):
    write(tmp_path, HEAD + "a,p,,A\nb,q,MILD,B\n")
    cases = table.read_cases(spec(), TASK, tmp_path)
    assert cases.images == ["b"]
    assert cases.missing_labels == 1
    assert "1 of 2 rows have no label" in cases.warnings[0]


def test_a_missing_patient_is_a_warning(tmp_path):
    write(tmp_path, HEAD + "a,,SEVERE,A\nb,q,MILD,B\n")
    cases = table.read_cases(spec(), TASK, tmp_path)
    assert cases.patients == ["image:a", "q"]
    assert "no patient id" in cases.warnings[0]


def test_ids_that_may_mean_the_same_are_told(tmp_path):
    """One person under two spellings would be trained on and tested; ids stay as they are."""
    ids = ["P1", "p 01", "p1", "P10", "NaN", "", "é", "e\u0301"]
    names = [f"i{i}" for i in range(len(ids))]
    lines = [f"{n},{p},MILD,{c}\n" for n, p, c in zip(names, ids, "AaBBBBBB", strict=True)]
    write(tmp_path, HEAD + "".join(lines), names)
    cases = table.read_cases(spec(), TASK, tmp_path)
    assert cases.patients == [*ids[:5], "image:i5", *ids[6:]]
    two, missing, center = cases.warnings[1:]
    assert "2 patient ids are written in several ways ('P1' and 'p 01' and 'p1'; " in two
    assert "1 rows are of patient 'NaN', which counts as one patient" in missing
    assert "1 center ids are written in several ways ('A' and 'a')" in center
    write(tmp_path, HEAD + "".join(f"{n},p{n},MILD,A{n}\n" for n in names), names)
    assert table.read_cases(spec(), TASK, tmp_path).warnings == []


def test_thresholds_are_equation_4(tmp_path):
    scores = [0, 4, 5, 8, 9, 13, 14, 18]
    names = [f"i{s}" for s in scores]
    write(tmp_path, HEAD + "".join(f"i{s},p{s},{s},\n" for s in scores), names)
    cases = table.read_cases(spec(), SCORE, tmp_path)
    assert cases.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert cases.scores.tolist() == scores


def test_label_mapping(tmp_path):
    write(tmp_path, HEAD + "a,p,yes,A\nb,q,no,B\n")
    task = {**TASK, "labels": {"yes": "SEVERE", "no": "MILD"}}
    assert table.read_cases(spec(), task, tmp_path).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "text, fragments",
    [
        (HEAD, ["'d' is empty"]),
        ("", ["is empty"]),
        ("image,patient,lable,center\na,p,MILD,A\n", ["no column 'label'", "mean 'lable'"]),
        (HEAD + "a,p,SEVER,A\nb,q,MILD,B\n", ["'a'", "unknown label 'SEVER'", "mean 'SEVERE'"]),
        (HEAD + "a,p,MILD,A\na.png,q,MILD,A\n", ["'a'", "two patients", "'p'", "'q'", "row 3"]),
        (HEAD + "a,p,MILD,A\na,p,MILD,A\n", ["'a'", "two rows, 2 and 3"]),
        (HEAD + "c,p,MILD,A\n", ["'c'", "is missing", "images"]),
        (HEAD + "a,p,MILD,A,x\n", ["row 2", "5 cells"]),
        (HEAD + ",p,MILD,A\n", ["row 2", "no image"]),
        (HEAD + "a,p,,A\n", ["'label'", "no labels"]),
        (HEAD + "../../etc/passwd.png,p,MILD,A\n", ["lies outside"]),
        ("image,image,label\na,a,MILD\n", ["two columns are called 'image'"]),
        (HEAD + 'a,"p,MILD,A\n', ["not a valid table"]),
        (HEAD + "a\0,p,MILD,A\n", ["zero bytes"]),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path, text, fragments):
    write(tmp_path, text)
    with pytest.raises(BadData) as caught:
        table.read_cases(spec(), TASK, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_bad_score_missing_table_folder_and_encoding(tmp_path):
    write(tmp_path, HEAD + "a,p,high,A\n")
    with pytest.raises(BadData, match="'high' is not a number"):
        table.read_cases(spec(), SCORE, tmp_path)
    with pytest.raises(BadData, match=r"no such table; did you mean 't.csv'"):
        table.read_cases(spec(table="tt.csv"), TASK, tmp_path)
    with pytest.raises(BadData, match="does not exist"):
        table.read_cases(spec(), TASK, tmp_path / "nowhere")
    write(tmp_path, HEAD + "a,p,5,A\n")
    with pytest.raises(MdmtError, match="no such image folder"):
        table.read_cases(spec(images="pictures"), SCORE, tmp_path)
    write(tmp_path, HEAD + "a,p,é,A\n", encoding="latin-1")
    with pytest.raises(BadData, match="not UTF-8"):
        table.read_cases(spec(), TASK, tmp_path)


def test_two_files_for_one_name(tmp_path):
    write(tmp_path, HEAD + "a,p,MILD,A\nb,q,MILD,A\n")
    Image.new("L", (5, 5)).save(tmp_path / "images" / "a.jpg")
    with pytest.raises(BadData, match=r"could be a.jpg or a.png"):
        table.read_cases(spec(), TASK, tmp_path)


def image_file(folder, mode):
    """A ramp of 8 x 16 in the given mode; returns its file and its values in 0..1."""
    ramp = np.linspace(0, 1, 128).reshape(8, 16)
    path = folder / f"{mode}.png"
    if mode == "I;16":
        Image.fromarray((ramp * 65535).astype(np.uint16)).save(path)
    elif mode == "L":
        Image.fromarray((ramp * 255).astype(np.uint8)).save(path)
    elif mode == "1":
        Image.fromarray(ramp > 0.5).save(path)
        ramp = (ramp > 0.5).astype(float)
    else:
        Image.fromarray((ramp * 255).astype(np.uint8)).convert(mode).save(path)
    return path, ramp


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "RGBA", "P", "LA", "1"])
def test_every_kind_of_image_gives_the_same_grey(tmp_path, mode):
    path, ramp = image_file(tmp_path, mode)
    grey = images.read_grey(path)
    assert grey.shape == (8, 16)
    scaled = normalise.normalise(grey, (0, 100)) / 255
    assert np.abs(scaled - ramp).max() <= 1 / 255


def test_sixteen_bits_are_kept_until_the_clip(tmp_path):
    deep = (30000 + np.arange(100).reshape(10, 10)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    out = normalise.normalise(images.read_grey(tmp_path / "deep.png"), (0, 100))
    assert len(np.unique(out)) == 100


def test_percentile_clip():
    grey = np.arange(1000, dtype=np.float32).reshape(20, 50)
    out = normalise.normalise(grey, (2, 98))
    low, high = np.percentile(grey, [2, 98])
    expected = (np.clip(grey, low, high) - low) / (high - low) * 255
    np.testing.assert_allclose(out, expected, atol=1e-3)
    assert normalise.normalise(np.full((4, 4), 7.0, np.float32)).max() == 0


def test_square_keeps_the_aspect():
    grey = np.ones((10, 20), np.float32)
    padded = crop.cut(grey, crop.squared(crop.whole(grey.shape), grey.shape, "pad"))
    assert padded.shape == (20, 20)
    assert padded[5:15].min() == 1
    assert padded[:5].max() == padded[15:].max() == 0
    middle = crop.squared(crop.whole((10, 20)), (10, 20), "crop")
    assert crop.cut(np.arange(200.0).reshape(10, 20), middle)[0, 0] == 5


def build(root, text=HEAD + "a,p,MILD,A\nb,q,SEVERE,B\n", **data):
    write(root, text)
    cases = table.read_cases(spec(), TASK, root)
    return building.build(cases, values(root, **data), progress=False)


def test_store_is_made_once_and_named_by_its_content(tmp_path, monkeypatch):
    first, _ = build(tmp_path)
    assert first.images.shape == (2, 32, 32)
    assert first.images.dtype == np.uint8
    monkeypatch.setattr(picture, "prepare", lambda *a: pytest.fail("built again"))
    second, _ = build(tmp_path)
    assert second.folder == first.folder
    monkeypatch.undo()
    third, _ = build(tmp_path, square="crop")
    assert third.folder != first.folder
    assert sorted(p.name for p in (tmp_path / "store").iterdir() if p.is_dir()) == sorted(
        [first.key, third.key]
    )  # nothing temporary is left


def test_store_equals_the_images_one_by_one(tmp_path):
    made, cases = build(tmp_path)
    for i, path in enumerate(cases.paths):
        one = picture.preprocess(path, picture.settings_of(values(tmp_path)))
        np.testing.assert_array_equal(made.images[i], one)


def test_damaged_store_is_built_again(tmp_path):
    made, _ = build(tmp_path)
    want = np.array(made.images)
    (made.folder / "images.u8").write_bytes(b"short")
    again, _ = build(tmp_path)
    np.testing.assert_array_equal(again.images, want)


def spoil(path, how):
    raw = path.read_bytes()
    if how == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif how == "text":
        path.write_bytes(b"this is no image")
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["truncated", "text", "empty"])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_unreadable_image_is_one_sentence_and_leaves_nothing(tmp_path, how, kind):
    write(tmp_path, HEAD + "a,p,MILD,A\nb,q,SEVERE,B\n", ("a",))
    path = tmp_path / "images" / f"b.{kind}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(path)
    spoil(path, how)
    cases = table.read_cases(spec(), TASK, tmp_path)
    with pytest.raises(BadData) as caught:
        building.build(cases, values(tmp_path), progress=False)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    (made,) = (tmp_path / "store").glob("[!.]*")  # whole: a repeat decodes nothing
    assert [(e["file"], len(store.Store(made).images)) for e in store.Store(made).bad] == [
        (path.name, 1)
    ]


def test_unreadable_image_can_be_excluded_and_is_listed(tmp_path):
    write(tmp_path, HEAD + "a,p,MILD,A\nb,q,SEVERE,B\n")
    spoil(tmp_path / "images" / "a.png", "truncated")
    cases = table.read_cases(spec(), TASK, tmp_path)
    for _ in range(2):  # built, then reused
        made, kept = building.build(cases, values(tmp_path, on_bad_image="exclude"), progress=False)
        assert kept.images == ["b"]
        assert len(made.images) == 1
        assert "excluded" in kept.warnings[-1]
        assert "a.png" in kept.warnings[-1]
    with pytest.raises(BadData, match=r"a\.png"):
        building.build(cases, values(tmp_path, on_bad_image="error"), progress=False)


def test_huge_image_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    write(tmp_path, HEAD + "a,p,MILD,A\nb,q,SEVERE,B\n")
    with pytest.raises(BadData, match="30 x 20 pixels"):
        images.read_grey(tmp_path / "images" / "a.png")


@pytest.mark.filterwarnings("error")
def test_huge_images_beyond_the_limit_of_pillow(tmp_path, monkeypatch):
    """Neither a warning of its own nor damage where there is none."""
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    assert images.read_grey(path).shape == (30, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(BadData, match=r"a\.png: has more than 0 million pixels; scale"):
        images.read_grey(path)


def test_a_picture_of_a_kind_that_is_not_read_is_named(tmp_path):
    write(tmp_path, HEAD + "a,p,MILD,A\nb,q,SEVERE,B\n")
    (tmp_path / "images" / "b.png").rename(tmp_path / "images" / "b.webp")
    with pytest.raises(BadData, match=r"image 'b' .* is missing \(b\.webp is of no kind that is"):
        table.read_cases(spec(), TASK, tmp_path)


def test_same_picture_under_two_patients(tmp_path):
    write(tmp_path, HEAD + "a,p,MILD,A\nb,q,SEVERE,B\n")
    (tmp_path / "images" / "b.png").write_bytes((tmp_path / "images" / "a.png").read_bytes())
    cases = table.read_cases(spec(), TASK, tmp_path)
    with pytest.raises(BadData, match="same picture"):
        building.build(cases, values(tmp_path), progress=False)


def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write(tmp_path, HEAD + "a,p,MILD,A\nb,q,SEVERE,B\n")
    cases = table.read_cases(spec(), TASK, tmp_path)
    monkeypatch.setattr(store, "flush_to_disk", full)
    with pytest.raises(NoSpace, match="disk is full") as caught:
        building.build(cases, values(tmp_path), progress=False)
    assert caught.value.exit_code == 2
    assert not [p for p in (tmp_path / "store").iterdir() if p.name != ".hashes.json"]


def test_synthetic_data_are_the_same_every_time_and_called_synthetic(tmp_path):
    a = synthetic.make(tmp_path / "a", patients=12, size=48, seed=3)
    b = synthetic.make(tmp_path / "b", patients=12, size=48, seed=3)
    files = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert len(files) > 24
    for name in files:
        assert (a / name).read_bytes() == (b / name).read_bytes()
    assert "SYNTHETIC" in (a / "NOTE.txt").read_text()
    c = synthetic.make(tmp_path / "c", patients=12, size=48, seed=4)
    assert (a / "truth.csv").read_bytes() != (c / "truth.csv").read_bytes()


def test_synthetic_cohort_has_what_the_demo_needs():
    rows = synthetic.cohort("prognosis", 200, 0.5, 0)
    assert {r["center"] for r in rows} == set(synthetic.CENTERS)
    images = {}
    for r in rows:
        images.setdefault(r["patient"], []).append(r)
    assert any(len(v) > 1 for v in images.values())
    assert all(len({r["prognosis"] for r in v}) == 1 for v in images.values())
    severity = np.array([r["hidden_severity"] for r in rows])
    severe = np.array([r["prognosis"] == "SEVERE" for r in rows])
    assert severity[severe].mean() > severity[~severe].mean() + 3
    assert all(sum(map(int, r["zones"])) == r["score"] for r in rows)


def test_synthetic_lungs_whiten_with_severity():
    def brightness(score):
        pictures = [
            synthetic.draw([score] * 6, "North", np.random.default_rng(i), 64) for i in range(8)
        ]
        return np.mean(pictures, 0)[20:45, 14:50].mean()

    levels = [brightness(s) for s in range(4)]
    assert levels == sorted(levels)
    assert levels[3] > levels[0] + 0.05


def test_read_table_takes_quoted_cells(tmp_path):
    text = io.StringIO('image,patient\n"a, b","p ""x"""\n').getvalue()
    (tmp_path / "t.csv").write_text(text)
    _, rows = table.read_table(tmp_path / "t.csv")
    assert rows == [{"image": "a, b", "patient": 'p "x"'}]


def test_rows_are_numbered_as_a_spreadsheet_does(tmp_path):
    """Empty rows count, also those before the header."""
    (tmp_path / "t.csv").write_text("\nimage,patient\na,p\n\n,,\nb,q\na,p\n")
    _, rows = table.read_table(tmp_path / "t.csv")
    assert [r.number for r in rows] == [3, 6, 7]
    with pytest.raises(BadData, match="image 'a' has two rows, 3 and 7"):
        table._check_rows("t", rows, {"image": "image", "patient": "patient"})
    (tmp_path / "t.csv").write_text("image,patient\n\na,p,x\n")
    with pytest.raises(BadData, match="row 3 has 3 cells"):
        table.read_table(tmp_path / "t.csv")


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text(alphabet='ab,;"\n\t', max_size=60)))
def test_any_bytes_are_a_table_or_a_sentence(content):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "t.csv")
        with open(path, "wb") as stream:
            stream.write(content if isinstance(content, bytes) else content.encode())
        try:
            header, rows = table.read_table(path)
        except BadData as error:
            assert str(error).startswith(path)
        else:
            assert all(set(row) == set(header) for row in rows)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_to_an_image_is_a_picture_or_a_sentence(data):
    kind = data.draw(st.sampled_from(["PNG", "JPEG"]))
    stream = io.BytesIO()
    Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).save(stream, kind)
    raw = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "i.bin")
        with open(path, "wb") as out:
            out.write(raw)
        try:
            grey = images.read_grey(path)
        except BadData as error:
            assert str(error).startswith(path)
        else:
            assert grey.ndim == 2


@needs_covid_cxr
def test_real_radiographs(tmp_path):
    found = config.load("covid_cxr", ["image_size=64", "data.crop=whole"])
    found["data"]["store"] = str(tmp_path)
    sizes = []
    for one in found["data"]["datasets"]:
        cases = table.read_cases(one, found["tasks"][one["task"]], COVID_CXR)
        made, kept = building.build(cases, found, progress=False)
        sizes.append((len(kept), len(set(kept.patients)), np.bincount(kept.labels).tolist()))
        assert made.images.shape == (len(kept), 64, 64)
        assert made.images.max() == 255
        index = json.loads((made.folder / "index.json").read_text())
        assert len(index["entries"]) == len(kept)
    assert sizes == [(364, 136, [98, 266]), (183, 132, [58, 56, 52, 17])]
