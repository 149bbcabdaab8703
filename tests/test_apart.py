"""Work in another process: answers, errors and deaths come back as they should."""

import os
import signal

import pytest

from mdmt import apart
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
    with pytest.raises(BadInput, match="ended with signal 9; free some memory"):
        apart.call("tests.test_apart:die", signal.SIGKILL.value)


def test_an_interruption_is_the_callers():
    with pytest.raises(KeyboardInterrupt):
        apart.call("tests.test_apart:interrupted")
