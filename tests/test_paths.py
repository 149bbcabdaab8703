"""Files that a killed process left, and what ends a process."""

import os
import signal
import subprocess
import sys

import pytest

from mdmt import paths, run


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_end_a_command_as_an_interruption(number, capfd):
    """Before and after the trainings, too; then the old handlers are back."""
    old = signal.getsignal(number)
    assert run.guarded(lambda: os.kill(os.getpid(), number)) == 75
    assert capfd.readouterr().err == "mdmt: interrupted; run the same command to go on\n"
    assert signal.getsignal(number) == old
