"""One thread at a time in an object."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import TypeVar

Method = TypeVar("Method", bound=Callable)


class Lock:
    """A reentrant lock that a forked child can take although a thread that only its parent has
    held it."""

    def __init__(self) -> None:
        self._lock, self._process = threading.RLock(), os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            self._lock, self._process = threading.RLock(), os.getpid()
        self._lock.acquire()

    def __exit__(self, *_) -> None:
        self._lock.release()


def alone(method: Method) -> Method:
    """A method during which no other thread is in the object; it needs a Lock as `_lock`."""

    @functools.wraps(method)
    def locked(self, *arguments, **named):
        with self._lock:
            return method(self, *arguments, **named)

    return locked
