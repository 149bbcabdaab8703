"""Engines of the convolution library chosen by measurement, and the file that keeps the choices:
with stand-ins for both libraries (tests/c), whose engines take the time that a test wants."""

import sys

import numpy as np
import pytest

from mdmt import _core, system
from tests import cudahost
from tests.test_cuda_library import fake, fresh
from tests.test_cuda_net import MODE, small_net

no_race = cudahost.no_race


@pytest.fixture
def module(tmp_path, monkeypatch):
    made = fresh(tmp_path)
    monkeypatch.setenv("MDMT_CUDNN", str(fake(tmp_path)))
    monkeypatch.setenv("MDMT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_CUDNN_IDLE", "1")
    monkeypatch.setattr(system, "_kept", {})
    monkeypatch.setitem(sys.modules, "mdmt._cuda", made)
    return made


def again(tmp_path, monkeypatch, number):
    """Another process: a module that knows nothing yet."""
    folder = tmp_path / f"again{number}"
    folder.mkdir()
    made = fresh(folder)
    monkeypatch.setattr(system, "_kept", {})
    monkeypatch.setitem(sys.modules, "mdmt._cuda", made)
    return made


def plan(module, mode=MODE):
    """Chooses the engines of a small network's training step."""
    on = system.open_device("cuda")
    net = _core.Network(small_net().graph, device=(*on, "fp32"))
    net.memory(mode)
    system.keep_tuning(module, 0)
    return module.tuning(0)


def engines(text):
    """{convolution: number of its engine}."""
    return {tuple(f[:-4]): int(f[-2]) for f in (line.split(" ") for line in text.splitlines())}


def test_the_fastest_engine_is_taken(module):
    identity, text, measured = plan(module)
    assert identity == "the processor in its place, capability 9.0, driver 13.0, cuDNN 91002"
    assert measured == len(engines(text)) > 5
    assert set(engines(text).values()) == {31}  # number 3; 0, 1, 4 and 5 are out
    assert all(line.endswith(" 2.000000") for line in text.splitlines())


@pytest.mark.parametrize("name, engine", [("2", 21), ("3", 31), ("4", 31)])
def test_time_alone_decides(module, monkeypatch, name, engine):
    """But an engine whose workspace is beyond all measure (4) is never taken."""
    monkeypatch.setenv("FAKE_CUDNN_FASTEST", name)
    assert set(engines(plan(module)[1]).values()) == {engine}


@pytest.mark.parametrize(
    "wrong, engine",
    [("", {41}), ("4", {31}), ("2", {41}), ("24", set())],
    ids=["none", "the fastest", "the first", "no two agree"],
)
def test_an_engine_that_others_contradict_is_not_taken(module, monkeypatch, wrong, engine):
    """However fast: what they make from noise is compared. Here 4 is fastest, then 3, then 2, and
    each makes a mistake of its own. Where no half of them agrees, the backend's kernels serve."""
    monkeypatch.delenv("FAKE_CUDNN_IDLE")
    monkeypatch.setenv("FAKE_CUDNN_SMALL", "1")
    monkeypatch.setenv("FAKE_CUDNN_WRONG", wrong)
    assert set(engines(plan(module, MODE | {"batch": 2})[1]).values()) == engine


def test_choices_are_kept_and_found_again(module, tmp_path, monkeypatch):
    identity, text, _ = plan(module)
    path = system.tuning_file(identity)
    assert path.read_text().startswith(f"{system.TUNING_FORMAT}\n{identity}\n")
    monkeypatch.setenv("FAKE_CUDNN_FASTEST", "2")  # would be taken if it were measured again
    before = path.stat().st_mtime_ns
    other = again(tmp_path, monkeypatch, 1)
    assert plan(other) == (identity, text, 0)
    assert path.stat().st_mtime_ns == before
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left


def test_another_driver_has_choices_of_its_own(module, tmp_path, monkeypatch):
    from tests import cudahost

    first = plan(module)
    other = again(tmp_path, monkeypatch, 1)
    cudahost.knobs(other)[0]("driver", 13010)
    second = plan(other)
    assert second[0] != first[0] and second[2] == first[2]
    assert len(list(system.tuning_file(first[0]).parent.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("mdmt engines", "mdmt motors"),
        lambda text: text.replace("driver 13.0", "driver 12.0"),
        lambda text: text.replace("\nend ", "\n1 2 three\nend "),
        lambda text: text.replace(" 31 ", " x "),
        lambda text: "\udcff",
    ],
    ids=["empty", "cut", "format", "identity", "line", "number", "bytes"],
)
def test_a_damaged_file_is_ignored_with_a_note(module, tmp_path, monkeypatch, damage):
    identity, text, measured = plan(module)
    path = system.tuning_file(identity)
    path.write_bytes(damage(path.read_text()).encode("utf-8", "surrogateescape"))
    other = again(tmp_path, monkeypatch, 1)
    with pytest.warns(UserWarning, match="engines are measured anew"):
        assert plan(other) == (identity, text, measured)
    assert engines(path.read_text().partition("\n")[2].partition("\n")[2].partition("\nend")[0])
    assert plan(again(tmp_path, monkeypatch, 2)) == (identity, text, 0)


def test_a_choice_that_the_library_no_longer_has_is_measured_anew(module, tmp_path, monkeypatch):
    identity, text, measured = plan(module)
    path = system.tuning_file(identity)
    path.write_text(path.read_text().replace(" 31 2.0", " 99 1.0"))
    assert plan(again(tmp_path, monkeypatch, 1)) == (identity, text, measured)


def test_two_processes_keep_both_choices(module, tmp_path, monkeypatch):
    identity, text, _ = plan(module)
    path = system.tuning_file(identity)
    lines = path.read_text().splitlines()
    theirs = lines[2].replace(lines[2].split(" ")[1], "77", 1)
    path.write_text("\n".join([*lines[:2], theirs, "end 1", ""]))
    system._kept.clear()
    system.keep_tuning(module, 0)
    kept = path.read_text().splitlines()
    assert theirs in kept and set(text.splitlines()) < set(kept)
    assert kept[-1] == f"end {len(kept) - 3}"


def test_a_folder_that_cannot_be_written_is_no_error(module, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MDMT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning):
        assert plan(module)[2] > 5


def test_off_takes_the_heuristics_first(module, monkeypatch):
    monkeypatch.setenv("MDMT_CUDA_TUNE", "off")
    assert plan(module)[1:] == ("", 0)


def test_no_memory_to_measure_in_takes_the_heuristics_first(module):
    from tests import cudahost

    system.open_device("cuda")
    put, _ = cudahost.knobs(module)
    net = _core.Network(small_net().graph, device=(module.module, 0, "fp32"))
    put("memory_left", 2000)
    assert net.memory(MODE)["activations"] > 0
    assert module.tuning(0)[2] == 0


def test_steps_with_the_library_are_recorded_too(module, monkeypatch):
    """The convolutions of the library are part of the recording: the same losses as without it."""
    from tests import cudahost
    from tests.test_cuda_series import network_on, series

    put, get = cudahost.knobs(module)
    monkeypatch.setenv("MDMT_CUDA_TUNE", "off")
    monkeypatch.delenv("FAKE_CUDNN_IDLE")
    on = system.open_device("cuda")
    found = []
    for order in (0, 1, 2):
        put("order", order)
        found.append(series(network_on((*on, "fp32")), 4)["loss"])
    assert get("captures") == 3 and get("graph_launches") == 9
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()
    own = series(network_on((*on, "fp32", False)), 4)["loss"]
    assert found[0] == pytest.approx(own, rel=1e-3) and len(np.unique(found[0])) == 4
