"""Work in another process: answers, errors and deaths come back as they should."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mdmt import apart, paths
from mdmt.errors import BadConfig, BadInput


def answer(text, number):
    print("this is no answer")
    return {"said": text, "parent": os.getppid(), "number": number}


def refuse(text):
    raise BadConfig(text)


def die(number):
    os.kill(os.getpid(), number)


def interrupted():
    raise KeyboardInterrupt


def test_the_answer_comes_back_and_prints_do_not():
    found = apart.call("tests.test_apart:answer", "ä", 3)
    assert found == {"said": "ä", "parent": os.getpid(), "number": 3}


def test_an_error_comes_back_as_it_was_raised():
    with pytest.raises(BadConfig, match=r"^data\.root: a sentence$"):
        apart.call("tests.test_apart:refuse", "data.root: a sentence")


def test_a_death_is_a_sentence():
    with pytest.raises(BadInput, match=r"ended with signal 9 .SIGKILL.*: free some"):
        apart.call("tests.test_apart:die", signal.SIGKILL.value)


def test_an_interruption_is_the_callers():
    with pytest.raises(KeyboardInterrupt):
        apart.call("tests.test_apart:interrupted")


def linger(folder):
    (Path(folder) / "began").write_text(str(os.getpid()))
    time.sleep(4)
    (Path(folder) / "config.yaml").write_text("of a run that was killed")


def test_a_stop_before_the_question_is_no_traceback():
    line = [sys.executable, "-c", apart._START, json.dumps(sys.path)]
    done = subprocess.run(line, input=b"", capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_it_ends_with_the_process_that_asked(tmp_path):
    """Whoever comes into the folder after a killed run finds nobody who still writes there."""
    code = (
        "import sys; from mdmt import apart, paths\n"
        "with paths.folder_lock(sys.argv[1], 'out folder') as lock:\n"
        "    apart.call('tests.test_apart:linger', sys.argv[1], holding=(lock,))"
    )
    root = str(Path(__file__).parents[1])
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root)
    began = tmp_path / "began"
    while not (began.exists() and began.read_text()):
        assert run.poll() is None
        time.sleep(0.02)
    other = int(began.read_text())
    os.kill(other, signal.SIGSTOP)
    run.kill()
    run.wait()
    with pytest.raises(BadInput, match="another process"), paths.folder_lock(tmp_path, "folder"):
        pass
    os.kill(other, signal.SIGCONT)
    with paths.folder_lock(tmp_path, "folder", wait=3):
        assert not (tmp_path / "config.yaml").exists()
