"""benchmarks/gpu_check.py, as far as it can be proven without a GPU."""

import pytest

import mdmt
from benchmarks import gpu_check
from tests import cudahost
from tests.optable import CASES


@pytest.fixture(autouse=True)
def results_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check.machine, "RESULTS", tmp_path)


def test_the_list_names_every_case(capsys):
    assert gpu_check.main(["--list"]) == 0
    lines = [line.split(" ", 1) for line in capsys.readouterr().out.splitlines()]
    assert {slice_ for slice_, _ in lines} == set(gpu_check.SLICES)
    assert [case for slice_, case in lines if slice_ == "table"] == [c.id for c in CASES]
    for part in ("nets", "speed"):
        assert [case for slice_, case in lines if slice_ == part] == list(mdmt.backbones())


def test_an_unknown_slice_is_refused(capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--only", "nothing"])
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--only", "table", "--stride", "60"], "table: "),
        (["--only", "nets", "--backbones", "shufflenet_v2_x0_5"], "nets: 2 of 2 right"),
        (["--only", "speed"], "speed: left out"),
    ],
)
def test_it_runs_on_the_processor(arguments, says, capsys, monkeypatch):
    cudahost.module()
    monkeypatch.setitem(gpu_check.sys.modules, "mdmt._cuda", None)
    monkeypatch.setenv("MDMT_CUDNN", "/dev/null")
    assert gpu_check.main([*arguments, "--emulate"]) == 0, capsys.readouterr().out
    assert says in capsys.readouterr().out


def test_without_a_gpu_it_fails_with_the_reason(capsys, monkeypatch):
    monkeypatch.setitem(gpu_check.sys.modules, "mdmt._cuda", None)
    assert gpu_check.main(["--only", "table", "--stride", "400"]) == 1
    assert "the device 'cuda:0' is not available here: not in this build" in capsys.readouterr().out
