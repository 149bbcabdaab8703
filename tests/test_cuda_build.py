"""What setup.py finds to compile the CUDA backend with, and what it says: with programs that stand
in for nvcc."""

import os
import runpy
import sys
from pathlib import Path

import pytest
import setuptools
from setuptools.errors import CompileError

TOP = Path(__file__).parent.parent
KNOWN = {"11.8": "50 80 86 89 90", "12.4": "50 80 86 89 90", "13.0": "75 80 86 89 90 100 103 120"}


@pytest.fixture
def build(monkeypatch, tmp_path):
    """The names of setup.py, where no nvcc can be found yet."""
    monkeypatch.setattr(setuptools, "setup", lambda **how: None)
    for name in ("CUDA_HOME", "CUDA_PATH", "MDMT_CUDA", "MDMT_CUDA_ARCHS", "MDMT_SANITIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    elsewhere = [p for p in sys.path if not Path(p, "nvidia").exists()]
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *elsewhere])
    names = runpy.run_path(str(TOP / "setup.py"))
    names["find_nvcc"].__globals__["SYSTEM_CUDA"] = str(tmp_path / "nothing")
    if names["find_nvcc"]():
        pytest.skip("an nvcc lies where none can be hidden")
    return names


def nvcc(folder, release):
    """A program that says what nvcc of that release says."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    archs = " ".join(f"compute_{a}" for a in KNOWN[release].split())
    path.write_text(f"""#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release {release}, V{release}.99" ;;
--list-gpu-arch) printf '%s\\n' {archs} ;;
esac
""")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("place", ["CUDA_HOME", "PATH", "nvidia/cuda_nvcc", "nvidia/cu13"])
def test_where_nvcc_is_found(build, place, monkeypatch, tmp_path):
    folder = tmp_path / ("site" if "/" in place else "toolkit") / (place if "/" in place else "")
    made = nvcc(folder, "13.0")
    if "/" not in place:
        monkeypatch.setenv(place, str(folder if place == "CUDA_HOME" else folder / "bin"))
    if place == "PATH":
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    assert build["want_cuda"]() == made
    monkeypatch.setenv("MDMT_CUDA", "skip")
    assert build["want_cuda"]() is None


def test_without_nvcc_nothing_is_built_but_where_it_is_required(build, monkeypatch):
    assert build["want_cuda"]() is None
    monkeypatch.setenv("MDMT_CUDA", "require")
    with pytest.raises(CompileError, match="nvcc was not found: put it on PATH, or set CUDA_HOME"):
        build["want_cuda"]()
    monkeypatch.setenv("MDMT_CUDA", "please")
    with pytest.raises(CompileError, match="MDMT_CUDA is 'please'; use require or skip"):
        build["want_cuda"]()


def test_an_old_toolkit_is_named_and_left_out(build, monkeypatch, tmp_path, capsys):
    made = nvcc(tmp_path / "old", "11.8")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "old"))
    assert build["want_cuda"]() is None
    assert f"{made} is of CUDA 11.8, but 12.0 or newer is needed" in capsys.readouterr().err
    monkeypatch.setenv("MDMT_CUDA", "require")
    with pytest.raises(CompileError, match=r"CUDA 11\.8, but 12\.0 or newer"):
        build["want_cuda"]()


def test_a_toolkit_compiles_for_what_it_knows(build, monkeypatch, tmp_path):
    assert build["cuda_archs"](nvcc(tmp_path / "a", "12.4")) == ["80", "86", "89", "90"]
    newer = nvcc(tmp_path / "b", "13.0")
    assert build["cuda_archs"](newer) == ["80", "86", "89", "90", "100", "120"]
    monkeypatch.setenv("MDMT_CUDA_ARCHS", "90a,120")
    assert build["cuda_archs"](newer) == ["90a", "120"]
    monkeypatch.setenv("MDMT_CUDA_ARCHS", "sm_90")
    with pytest.raises(CompileError, match="MDMT_CUDA_ARCHS holds 'sm_90'; give numbers as 80"):
        build["cuda_archs"](newer)


def test_headers_and_libraries_of_packages(build, tmp_path):
    """One folder for all (CUDA 13's packages, a toolkit), or one for each part (CUDA 12's)."""
    whole = nvcc(tmp_path / "whole" / "cu13", "13.0")
    (tmp_path / "whole" / "cu13" / "include").mkdir()
    (tmp_path / "whole" / "cu13" / "include" / "cuda_runtime.h").touch()
    (tmp_path / "whole" / "cu13" / "lib").mkdir()
    home = tmp_path / "whole" / "cu13"
    assert build["wheel_flags"](whole) == [f"-I{home / 'include'}", f"-L{home / 'lib'}"]
    part = nvcc(tmp_path / "parts" / "cuda_nvcc", "12.4")
    for name in ("cuda_runtime/include", "cuda_runtime/lib", "cuda_cccl/include"):
        (tmp_path / "parts" / name).mkdir(parents=True)
    found = [f.replace(str(tmp_path / "parts") + os.sep, "") for f in build["wheel_flags"](part)]
    assert found == ["-Icuda_cccl/include", "-Icuda_runtime/include", "-Lcuda_runtime/lib"]
