"""What a Mac has otherwise, played on any system: its compiler's flags, limits of memory, flushes,
names of files; and that the package calls nothing that only Linux has. (No Mac runs these tests as
a rule: .ci/run compiles and links the engine for both kinds of Mac.)"""

import ast
import fcntl
import os
import platform
import runpy
import subprocess
import sys
import sysconfig
import types
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import setuptools

from mdmt import _core, engine, paths, system
from mdmt.data import dicom, isolated, table
from mdmt.preprocess import crew, picture
from tests.dicomfiles import write_dicom
from tests.test_crew import SETTINGS, tasks

TOP = Path(__file__).parent.parent

# ---- setup.py


@pytest.fixture
def build(monkeypatch, tmp_path):
    """The names of setup.py on a Mac, whose compiler is a program that takes anything."""
    monkeypatch.setattr(setuptools, "setup", lambda **how: None)
    for name in ("ARCHFLAGS", "MACOSX_DEPLOYMENT_TARGET", "CFLAGS", "CPPFLAGS", "MDMT_WERROR"):
        monkeypatch.delenv(name, raising=False)
    names = runpy.run_path(str(TOP / "setup.py"))
    monkeypatch.setattr(sys, "platform", "darwin")

    def play(cflags, machine, compiler="clang", oldest="11.0"):
        known = {"CFLAGS": cflags, "MACOSX_DEPLOYMENT_TARGET": oldest}
        monkeypatch.setattr(sysconfig, "get_config_var", known.get)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        program = tmp_path / "cc"
        program.write_text(f"#!/bin/sh\necho 'Some {compiler} version 15'\n")
        program.chmod(0o755)
        return types.SimpleNamespace(
            flags=names["mac_flags"]([str(program)]), units=names["BuildEngine"].units,
            program=str(program),
        )  # fmt: skip

    return play


BOTH = "-Wall -arch arm64 -arch x86_64 -g"  # as python.org's Python was built


@pytest.mark.parametrize(
    "cflags, machine, compiler, archs",
    [
        (BOTH, "arm64", "clang", ["arm64", "x86_64"]),
        (BOTH, "arm64", "gcc", ["arm64"]),
        ("-Wall", "arm64", "clang", ["arm64"]),
        (None, "x86_64", "gcc", ["x86_64"]),
        ("-arch x86_64", "x86_64", "clang", ["x86_64"]),
    ],
)
def test_a_mac_builds_for_what_its_python_was_built_for(build, cflags, machine, compiler, archs):
    want = [word for arch in archs for word in ("-arch", arch)]
    assert build(cflags, machine, compiler).flags == [*want, "-mmacosx-version-min=11.0"]


def test_what_the_environment_asks_of_a_mac_comes_first(build, monkeypatch):
    monkeypatch.setenv("ARCHFLAGS", "-arch x86_64")
    monkeypatch.setenv("MACOSX_DEPLOYMENT_TARGET", "13.0")
    assert build(BOTH, "arm64").flags == ["-arch", "x86_64", "-mmacosx-version-min=13.0"]


def test_only_a_mac_is_told_of_architectures(build, monkeypatch):
    made = build(BOTH, "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    assert made.flags and build(BOTH, "x86_64").flags == []


@pytest.mark.parametrize(
    "cflags, machine, given",
    [
        (BOTH, "arm64", ["-Xarch_x86_64", "-mavx2", "-Xarch_x86_64", "-mfma"]),
        (None, "x86_64", ["-mavx2", "-mfma"]),
        (None, "arm64", []),
    ],
)
def test_no_arm_code_is_compiled_for_avx(build, tmp_path, cflags, machine, given):
    mac = build(cflags, machine)
    made = types.SimpleNamespace(binding_flags=list)
    found = {u.source: u.command for u in mac.units(made, tmp_path, [mac.program, *mac.flags], [])}
    command = found["csrc/cpu/act_avx2.c"]
    assert [w for w in command if w.startswith(("-Xarch", "-mavx", "-mfma"))] == given
    assert not [w for w in found["csrc/base/pool.c"] if w.startswith(("-Xarch", "-mavx"))]


# ---- the system

MAC = """
import resource, types
import mdmt.system
mdmt.system.sys = types.SimpleNamespace(platform="darwin")
def _refuse(what, limits, real=resource.setrlimit):
    if what == resource.RLIMIT_AS:
        raise ValueError("current limit exceeds maximum limit")
    real(what, limits)
resource.setrlimit = _refuse
"""


def on_a_mac(start):
    assert start.endswith("serve()")
    return f"{start.removesuffix('serve()')}\n{MAC}\nserve()"


@pytest.mark.parametrize("before, code, said", [("", 0, "refused\n"), (MAC, 1, "")])
def test_a_process_takes_no_more_memory_than_it_may(before, code, said):
    hog = f"""{before}
import time
from mdmt.system import limit_memory, peak_memory
limit_memory(peak_memory() + (300 << 20))
held = []
try:
    for i in range(64):
        held.append(b"x" * (16 << 20))
        time.sleep(0.05)
    print("took all")
except MemoryError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", hog], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, said, "")


def test_workers_prepare_images_where_no_memory_can_be_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "_START", on_a_mac(crew._START))
    wanted = tasks(tmp_path, 10)
    alone = picture.prepare(wanted, SETTINGS)
    for a, b in zip(alone, crew.run(wanted, SETTINGS, 1), strict=True):
        assert a.facts == b.facts and np.array_equal(a.pixels, b.pixels)


def test_compressed_files_are_read_where_no_memory_can_be_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "_START", on_a_mac(isolated._START))
    isolated.close()
    values = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    path = write_dicom(tmp_path / "a.dcm", values, bits=8, syntax="jpeg-lossless")
    found = isolated.read(path, voi=False, frame=None)
    isolated.close()
    assert np.array_equal(found.codes, dicom.read_here(path, False, None).codes)


def test_the_peak_of_memory_is_in_bytes_everywhere(monkeypatch):
    real = open

    def no_proc(path, *more, **how):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(path)
        return real(path, *more, **how)

    told = system.peak_memory()
    monkeypatch.setattr("builtins.open", no_proc)
    used = types.SimpleNamespace(ru_maxrss=7 << 20)
    monkeypatch.setattr("resource.getrusage", lambda who: used)
    assert 16 << 20 < told < 1 << 36
    monkeypatch.setattr(sys, "platform", "linux")
    assert system.peak_memory() == 7 << 30
    monkeypatch.setattr(sys, "platform", "darwin")
    assert system.peak_memory() == 7 << 20


def test_memory_that_is_left_is_less_than_there_is():
    left = engine.available_memory()
    assert left is None or 0 < left <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert _core.cpu_info()["cores"] <= (os.cpu_count() or 1)


@pytest.mark.parametrize("works", [True, False])
def test_a_mac_flushes_the_disk_itself(tmp_path, monkeypatch, works):
    """fcntl.F_FULLFSYNC, and fsync where the file system has no such thing."""
    asked = []

    def control(handle, command):
        asked.append(command)
        if not works:
            raise OSError("not supported")

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", lambda handle: asked.append("fsync"))
    paths.write_atomic(tmp_path / "a.txt", "text")
    one = [51] if works else [51, "fsync"]
    assert asked == one * 2  # the file, and the folder that names it


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("wanted", ["NFC", "NFD"])
@pytest.mark.parametrize("place", ["", "sub/"])
def test_accents_of_names_are_written_in_two_ways(tmp_path, form, wanted, place):
    name = unicodedata.normalize(form, "Zoé-Köln")
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / f"{place}{name}.PNG").write_bytes(b"")
    files = table._Files(tmp_path)
    asked = unicodedata.normalize(wanted, "Zoé-Köln")
    for ending in ("", ".png"):
        found = files.find(asked + ending, Path("table.csv"))
        assert [f.resolve() for f in found] == [(tmp_path / f"{place}{name}.PNG").resolve()]


# ---- what only Linux has (the documentation of Python's modules says so of each)

ABSENT = {
    "os": "sched_getaffinity sched_setaffinity sched_getparam sched_setscheduler memfd_create "
    "eventfd pidfd_open posix_fadvise posix_fallocate copy_file_range splice fdatasync getrandom "
    "getxattr setxattr listxattr setns unshare getresuid getresgid pipe2 O_TMPFILE O_DIRECT O_PATH "
    "O_NOATIME P_PIDFD process_cpu_count",
    "signal": "sigtimedwait sigwaitinfo pidfd_send_signal SIGPWR SIGSTKFLT SIGRTMIN SIGRTMAX",
    "resource": "prlimit RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_RTPRIO RLIMIT_RTTIME RLIMIT_SIGPENDING "
    "RLIMIT_OFILE RUSAGE_THREAD",
    "select": "epoll",
    "time": "CLOCK_BOOTTIME CLOCK_TAI pthread_getcpuclockid",
    "mmap": "MAP_POPULATE MAP_STACK MADV_HUGEPAGE",
    "fcntl": "F_OFD_SETLK F_ADD_SEALS F_SETPIPE_SZ",
    "threading": "",
}


def test_nothing_is_called_that_only_linux_has():
    files = [*sorted((TOP / "mdmt").rglob("*.py")), TOP / "setup.py"]
    found, calls = [], 0
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                calls += node.value.id in ABSENT
                if node.attr in ABSENT.get(node.value.id, "").split():
                    found.append(f"{path.relative_to(TOP)}:{node.lineno} {ast.unparse(node)}")
            if isinstance(node, ast.Import):
                names = {a.name for a in node.names}
                found += [f"{path}: {n}" for n in names & {"multiprocessing", "spwd", "crypt"}]
    assert calls > 100 and not found
