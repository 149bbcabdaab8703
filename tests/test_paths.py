"""Files that a killed process left, and what a command does around its work."""

import errno
import fcntl
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mdmt import cli, config, paths, run, splits
from mdmt.errors import NoSpace, write_failure
from tests import writers


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_called_that_whoever_wrote(number):
    """Python's error has a number; the engine's only the system's words."""
    for error in (OSError(number, "x"), OSError(f"writing a failed: {os.strerror(number)}")):
        said = write_failure("a", error)
        assert str(said) == "a: the disk is full; free some space or choose another folder"
    assert "cannot be written (writing a failed" in str(
        write_failure("a", OSError("writing a failed"))
    )


def test_what_a_killed_writer_left_is_removed(tmp_path):
    """Of an interrupted write only the unfinished file is there, and it goes."""
    (tmp_path / "a.csv").write_text("old")
    (tmp_path / ".lock").touch()
    code = (
        "import os, signal, sys; from mdmt import paths\n"
        "with paths.atomic(sys.argv[1]) as stream:\n"
        "    stream.write(b'new'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.csv")])
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3
    paths.remove_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "a.csv"]
    assert (tmp_path / "a.csv").read_text() == "old"


def test_two_processes_write_one_file_at_once(tmp_path):
    path = tmp_path / "a.csv"
    code = (
        "import sys; from mdmt import paths\n" + writers.START + "for _ in range(100):\n"
        "    paths.write_atomic(sys.argv[1], sys.argv[2] * 50_000, sync=False)\n"
    )

    def look():
        assert path.read_text() in ("a" * 50_000, "b" * 50_000)

    writers.race(code, path, "ab", look)
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_end_a_command_as_an_interruption(number, capfd):
    """Before and after the trainings, too; then the old handlers are back."""
    old = signal.getsignal(number)
    assert run.guarded(lambda: os.kill(os.getpid(), number)) == 75
    assert capfd.readouterr().err == "mdmt: interrupted; run the same command to go on\n"
    assert signal.getsignal(number) == old


@pytest.mark.parametrize("first", ["KeyboardInterrupt", "errors.Interrupted"])
def test_a_second_signal_does_not_change_how_an_interrupted_program_ends(first):
    code = (
        "import os, signal, sys\nfrom mdmt import errors, run\n"
        f"def action(): raise {first}\n"
        "status = run.guarded(action, program=True)\n"
        "for one in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1): os.kill(os.getpid(), one)\n"
        "sys.exit(status)"
    )
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE).returncode == 75


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_show_a_letter_stops_nothing(encoding):
    """Minus signs and deviations are printed as what the terminal has."""
    code = "import sys; from mdmt import run; sys.exit(run.guarded(lambda: print('\u2212\u00b1')))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.strip() == "\u2212\u00b1".encode(encoding, "replace")


@pytest.mark.parametrize(
    "name, value, words",
    [("MDMT_NUM_THREADS", "abc", "use 1 to 1024"), ("MDMT_CPU", "sse", "use ref, avx2, avx512 or")],
)
def test_wrong_variables_are_told_before_anything_is_done(name, value, words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mdmt.run", "--out", str(tmp_path / "out")], capture_output=True,
        env={**os.environ, name: value}, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith(f"mdmt: the environment variable {name} is '{value}'")
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


def test_masks_are_no_study_to_prepare(capsys):
    assert cli.main(["prepare", "lungs"]) == 2
    said = capsys.readouterr().err
    assert said == ("mdmt: lungs: is a configuration of kind masks, which only `mdmt run` takes\n")


def test_a_terminal_breaks_lines_between_words(monkeypatch):
    """A file or a pipe gets one line, whatever its length."""

    class Screen(io.StringIO):
        def isatty(self):
            return True

    text = "For severity MDMT differed by -2.5 points (95 % interval -6.1 to +0.5) in all."
    monkeypatch.setenv("COLUMNS", "30")
    screen, pipe = Screen(), io.StringIO()
    run._say(text, screen, "  ")
    run._say(text, pipe)
    assert pipe.getvalue() == text + "\n"
    lines = screen.getvalue().splitlines()
    assert len(lines) > 2 and all(len(line) <= 30 for line in lines)
    assert " ".join(line.strip() for line in lines) == text


def test_a_file_system_without_locks_is_told_as_that(tmp_path, monkeypatch):
    def refuse(handle, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    words = r"\.lock: cannot be locked \(function not implemented\)"
    with pytest.raises(NoSpace, match=words), paths.folder_lock(tmp_path, "job", wait=60):
        pass


def test_a_file_is_replaced_by_one_of_its_kind_alone(tmp_path, capsys, monkeypatch):
    """`mdmt splits own.yaml --out own.yaml`, likewise of `check`; what was written before, or is
    empty, is written again."""
    monkeypatch.chdir(tmp_path)
    own = Path("own.yaml")
    own.write_text(config.dump(config.load("demo", ["image_size=64", "cv.folds=2"])))
    for command, kind in (("splits", "file of splits"), ("check", "page")):
        before = own.read_bytes()
        assert cli.main([command, "own.yaml", "--out", "own.yaml"]) == 2
        wanted = f"mdmt: --out own.yaml: is there already and is no {kind}; choose another name\n"
        assert capsys.readouterr().err == wanted and own.read_bytes() == before
    assert cli.main(["splits", "own.yaml", "--out", "."]) == 2
    assert "is a folder" in capsys.readouterr().err
    Path("s.json").touch()
    for _ in range(2):
        assert cli.main(["splits", "own.yaml", "--out", "s.json"]) == 0
    assert splits.read("s.json")["validation"]["cv"]
