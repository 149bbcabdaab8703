"""Decoding in another process: a damaged file can kill or hang a decoder, never the run.

The compiled JPEG decoders end the process on some damaged streams (GDCM throws through its C
interface). So compressed files are read by helper processes, started when the first one is needed
and kept; each has a limit of memory and of time per file. The protocol: a JSON line in; out, the
length of a JSON text (8 bytes), the text, then the codes and the table of `Levels`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import subprocess
import sys
import threading
import time

import numpy as np

from ..system import limit_memory
from .levels import Levels

SECONDS = 120.0  # for one file
MEMORY = 4 * 2**30  # of a helper
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from mdmt.data.isolated import serve; serve()"
)
_idle: list[_Helper] = []
_owner = 0
_lock = threading.Lock()


class Failed(Exception):
    """The helper refused the file, died or ran out of time; the text says why."""


class _Helper:
    """One helper process."""

    def __init__(self):
        one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **one},
            start_new_session=True,  # Ctrl-C is the run's; a helper ends when its input closes
        )

    def ask(self, request: dict) -> Levels:
        """Send a request; return the picture. Raises Failed."""
        deadline = time.monotonic() + SECONDS
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            size = int.from_bytes(self._take(8, deadline), "little")
            answer = json.loads(self._take(size, deadline))
            if "refused" in answer:
                raise Failed(answer["refused"])
            shape, kind = answer["shape"], np.dtype(answer["kind"])
            raw = self._take(kind.itemsize * math.prod(shape), deadline)
            codes = np.frombuffer(raw, kind).reshape(shape)
            if not answer["table"]:
                return Levels(codes)
            raw = self._take(4 * answer["table"], deadline)
            return Levels(codes, np.frombuffer(raw, np.float32))
        except (BrokenPipeError, EOFError):
            self.close()
            raise Failed("crashes its decoder; replace the file") from None
        except TimeoutError:
            self.close()
            raise Failed(f"takes its decoder more than {SECONDS:.0f} s; replace the file") from None

    def _take(self, size: int, deadline: float) -> bytearray:
        handle = self.process.stdout.fileno()
        out = bytearray(size)
        view, got = memoryview(out), 0
        while got < size:
            ready, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            count = os.readv(handle, [view[got:]])
            if count == 0:
                raise EOFError
            got += count
        return out

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()

    def alive(self) -> bool:
        return self.process.poll() is None


def read(path, voi: bool, frame: int | None, colour: bool = False) -> Levels:
    """`mdmt.data.dicom.read_levels` in a helper. Raises Failed."""
    global _owner
    with _lock:
        if _owner != os.getpid():  # helpers of a process that forked this one are not ours
            _idle.clear()
            _owner = os.getpid()
        helper = _idle.pop() if _idle else None
    if helper is None or not helper.alive():
        helper = _Helper()
    try:
        return helper.ask({"path": os.fspath(path), "voi": voi, "frame": frame, "colour": colour})
    except BaseException as error:
        if not isinstance(error, Failed):  # interrupted between question and answer
            helper.close()
        raise
    finally:
        if helper.alive():
            with _lock:
                _idle.append(helper)


def close() -> None:
    """End the idle helpers of this process; the next compressed file starts one again."""
    with _lock:
        helpers = _idle[:] if _owner == os.getpid() else []
        _idle.clear()
    for helper in helpers:
        helper.close()


def serve() -> None:
    """Answer requests from standard input until it closes (in the helper)."""
    from . import dicom

    answers = os.dup(1)
    os.dup2(2, 1)  # whatever a decoder prints is no answer
    limit_memory(MEMORY)
    with os.fdopen(answers, "wb") as out:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            found, answer = None, {}
            try:
                found = dicom.read_here(
                    request["path"], request["voi"], request["frame"], colour=request["colour"]
                )
                answer["shape"], answer["kind"] = found.codes.shape, found.codes.dtype.str
                answer["table"] = 0 if found.table is None else len(found.table)
            except dicom.Refused as reason:
                answer["refused"] = str(reason)
            text = json.dumps(answer).encode()
            out.write(len(text).to_bytes(8, "little") + text)
            if found is not None:
                out.write(np.ascontiguousarray(found.codes).tobytes())
            if answer.get("table"):
                out.write(found.table.tobytes())
            out.flush()
