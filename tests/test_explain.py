"""mdmt explain: maps that find what a function looks at, and pictures of a run's networks."""

import numpy as np
import pytest
from PIL import Image

from mdmt import Model, cli, predict
from mdmt import explain as explainer
from mdmt.explain import explain, occlusion
from tests.test_predict import finished  # noqa: F401  (a fixture)


def test_a_map_is_where_the_probability_comes_from():
    """A function of one square's mean: the map has its largest value there, the exact fall, and
    nothing far away."""
    pixels = np.zeros((64, 64), np.uint8)
    pixels[16:24, 40:48] = 255

    def mean(images):
        bright = images[:, 16:24, 40:48].mean((1, 2)) / 255
        return {"bright": bright, "dark": 1 - bright}

    maps = occlusion(pixels, mean)
    found = maps["bright"]
    y, x = np.unravel_index(found.argmax(), found.shape)
    assert 16 <= y < 24 and 40 <= x < 48
    assert found[:8].max() == found[40:].max() == found[:, :24].max() == 0
    grey = round(float(pixels.mean()))
    # A pixel at (20, 44) lies in four squares that cover 64, 32, 32 and 16 of the 64 bright pixels.
    fall = (255 - grey) / 255 * (64 + 32 + 32 + 16) / 64 / 4
    assert found[20, 44] == pytest.approx(fall)
    assert maps["dark"].min() == -found.max()


def test_drawings_of_a_run(finished, tmp_path, capsys):  # noqa: F811
    out, images, _ = finished
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "new.png")
    Image.fromarray(pixels[::-1]).save(tmp_path / "in" / "new.jpg")
    given = ["explain", str(out), str(tmp_path / "in"), "--fold", "0", "--out"]
    assert cli.main([*given, str(tmp_path / "drawn")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    names = sorted(p.name for p in (tmp_path / "drawn").iterdir())
    tasks = ("prognosis", "severity")
    assert names == sorted(f"new-{t}{n}.png" for t in tasks for n in ("", "-2"))
    assert Image.open(tmp_path / "drawn" / names[0]).size[0] > 800
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    assert cli.main([*given, str(tmp_path / "none")]) == 2
    assert "go on without it by --skip" in capsys.readouterr().err
    # A picture that the only network learnt from is not explained by it.
    rows, _ = predict.predict(out, [images], fold=0)
    known = next(r["image"] for r in rows if r["networks"] == 0)
    assert cli.main(["explain", str(out), known, "--fold", "0", "--out", str(tmp_path)]) == 0
    assert "every network learnt from it" in capsys.readouterr().err


def test_each_network_is_loaded_once_for_all_pictures(finished, tmp_path, monkeypatch):  # noqa: F811
    """And every map is that of the picture alone."""
    out, _, _ = finished
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (3, 40, 60), dtype=np.uint8)
    paths = [tmp_path / f"{k}.png" for k in range(3)]
    for path, one in zip(paths, pixels, strict=True):
        Image.fromarray(one).save(path)
    loads, load = [], Model.load

    def counted(path, *given, **more):
        loads.append(path)
        return load(path, *given, **more)

    monkeypatch.setattr(Model, "load", counted)
    written, notes = explain(out, paths, tmp_path / "all")
    assert len(loads) == len(set(loads)) == 2  # two folds
    assert len(written) == 6 and notes == []
    alone, _ = explain(out, paths[1:2], tmp_path / "one")
    for path in alone:
        assert path.read_bytes() == (tmp_path / "all" / path.name).read_bytes()
    monkeypatch.setattr(explainer, "CHUNK", 2)
    again, _ = explain(out, paths, tmp_path / "parts")
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in written]


def test_a_map_is_the_mean_over_the_networks(finished, tmp_path, monkeypatch):  # noqa: F811
    out, _, _ = finished
    Image.fromarray(np.random.default_rng(2).integers(0, 255, (50, 50), np.uint8)).save(
        tmp_path / "x.png"
    )
    drawn = []
    monkeypatch.setattr(explainer.drawing, "draw", lambda *given: drawn.append(given) or b"png")
    for chosen in ({}, {"fold": 0}, {"fold": 1}):
        explain(out, [tmp_path / "x.png"], tmp_path / "drawn", **chosen)
    (_, both, title, n, _), first, second = drawn[0], drawn[2], drawn[4]
    assert n == 2 and title.startswith("x.png\nprognosis: ")
    rows, _ = predict.predict(out, [tmp_path / "x.png"])
    assert f"{rows[0]['predicted']}, {100 * rows[0]['p_' + rows[0]['predicted']]:.1f} %" in title
    # Of two classes the fall of one is the rise of the other.
    called = [f[2].split("prognosis: ")[1].split(",")[0] for f in (first, second)]
    sign = [1 if c == rows[0]["predicted"] else -1 for c in called]
    want = (sign[0] * first[1] + sign[1] * second[1]) / 2
    assert both == pytest.approx(want, abs=1e-6)
