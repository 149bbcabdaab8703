"""Worker processes that prepare images: one per core, each with a decoder and a network of its own.

A worker takes a chunk of tasks, decodes, finds the lungs of the chunk in one batch, crops and gives
back a few hundred kilobytes, so that decoding and network of all cores overlap and no large picture
passes between processes. A file that ends its worker or takes longer than SECONDS costs that file
alone: the worker says what it begins, the others of the chunk are given to a new one.

The protocol is pickled frames with their length (8 bytes) before them, over pipes of our own child.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import selectors
import subprocess
import sys
import time
from collections import deque

from ..system import limit_memory
from .picture import BATCH, Prepared, Task, prepare

SECONDS = 120.0  # for one file, and for the lungs of one batch
MEMORY = 6 * 2**30  # of a worker
AHEAD = 6  # chunks per worker that may wait for an earlier one
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from mdmt.preprocess.crew import serve; serve()"
)


class _Worker:
    """One worker process and the chunk it has."""

    def __init__(self, settings: dict):
        one = dict.fromkeys(
            ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MDMT_NUM_THREADS"), "1"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("MDMT_DEBUG") else subprocess.DEVNULL,
            env={**os.environ, **one},
            start_new_session=True,  # Ctrl-C is the run's; a worker ends when its input closes
        )
        os.set_blocking(self.process.stdout.fileno(), False)
        self.chunk: list[tuple] = []  # (position, Task) still without a result
        self.current: int | None = None  # position in the chunk of the file being decoded
        self.since = time.monotonic()
        self.inbox = bytearray()
        self.ready = False
        self.send(settings)

    def send(self, value) -> None:
        raw = pickle.dumps(value)
        with contextlib.suppress(BrokenPipeError):  # its end is seen on the other pipe
            self.process.stdin.write(len(raw).to_bytes(8, "little") + raw)
            self.process.stdin.flush()

    def give(self, chunk: list[tuple]) -> None:
        self.chunk, self.current, self.since = chunk, None, time.monotonic()
        self.send([task for _, task in chunk])

    def receive(self) -> tuple[list, bool]:
        """(messages, still there)."""
        alive = True
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.process.stdout.fileno(), 1 << 20):
                self.inbox += part
            alive = False
        messages = []
        while len(self.inbox) >= 8:
            size = 8 + int.from_bytes(self.inbox[:8], "little")
            if len(self.inbox) < size:
                break
            messages.append(pickle.loads(self.inbox[8:size]))
            del self.inbox[:size]
        return messages, alive

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def run(tasks: list[Task], settings: dict, workers: int):
    """Prepare `tasks` on `workers` processes; yields a `Prepared` for each, in their order."""
    waiting = deque(
        [(i, tasks[i]) for i in range(start, min(start + BATCH, len(tasks)))]
        for start in range(0, len(tasks), BATCH)
    )
    results: dict[int, Prepared] = {}
    crew: list[_Worker] = []
    next_one = 0
    try:
        for _ in range(min(workers, len(waiting))):
            crew.append(_started(settings))
        with selectors.DefaultSelector() as selector:
            for worker in crew:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            while next_one < len(tasks):
                limit = next_one + AHEAD * BATCH * len(crew)
                for worker in crew:
                    if not worker.chunk and waiting and waiting[0][0][0] < limit:
                        worker.give(waiting.popleft())
                ready = {k.data for k, _ in selector.select(0.5)}
                for worker in list(crew):
                    if not _served(worker, worker in ready, results, waiting):
                        selector.unregister(worker.process.stdout)
                        crew.remove(worker)
                        worker.close()
                        crew.append(_started(settings))
                        selector.register(crew[-1].process.stdout, selectors.EVENT_READ, crew[-1])
                while next_one in results:
                    yield results.pop(next_one)
                    next_one += 1
    finally:
        for worker in crew:
            worker.close()


def _started(settings: dict) -> _Worker:
    try:
        return _Worker(settings)
    except OSError as error:  # no file of the user's is to blame
        raise RuntimeError(f"no worker process can be started ({error})") from error


def _served(worker: _Worker, ready: bool, results: dict, waiting: deque) -> bool:
    """Take what a worker sent; False when it must be replaced."""
    alive = True
    if ready:
        messages, alive = worker.receive()
        for kind, value in messages:
            worker.since = time.monotonic()
            worker.ready = True
            if kind == "begin":
                worker.current = value
            elif kind == "failed":
                raise RuntimeError(f"a worker failed:\n{value}")
            elif kind == "done":
                results.update(zip((p for p, _ in worker.chunk), value, strict=True))
                worker.chunk = []
    if not worker.chunk:
        return alive
    if not alive and not worker.ready:
        raise RuntimeError("a worker process ends at once; MDMT_DEBUG=1 shows what it says")
    late = time.monotonic() - worker.since > SECONDS
    if alive and not late:
        return True
    reason = (
        f"takes its decoder more than {SECONDS:.0f} s; replace the file"
        if late
        else "crashes its decoder; replace the file"
    )
    _blame(worker, reason, results, waiting)
    return False


def _blame(worker: _Worker, reason: str, results: dict, waiting: deque) -> None:
    """The file that a lost worker was decoding is refused; the others are tried again.

    Where no file can be named (the worker died between two), all are tried alone.
    """
    chunk, current = worker.chunk, worker.current
    if current is None and len(chunk) == 1:
        current = 0
    if current is None:
        waiting.extendleft([one] for one in reversed(chunk))
        return
    position, _ = chunk[current]
    results[position] = Prepared(None, {"reason": reason}, None, 0.0)
    rest = chunk[:current] + chunk[current + 1 :]
    if rest:
        waiting.appendleft(rest)


def serve() -> None:
    """Prepare the chunks that come on standard input until it closes (in the worker)."""
    import traceback

    answers = os.dup(1)
    os.dup2(2, 1)  # whatever a decoder prints is no answer
    limit_memory(MEMORY)
    source = sys.stdin.buffer

    def received():
        head = source.read(8)
        return pickle.loads(source.read(int.from_bytes(head, "little"))) if len(head) == 8 else None

    with os.fdopen(answers, "wb") as out:

        def send(*message):
            raw = pickle.dumps(message)
            out.write(len(raw).to_bytes(8, "little") + raw)
            out.flush()

        settings = received()
        send("ready", None)
        while (tasks := received()) is not None:
            try:
                found = prepare(tasks, settings, lambda position: send("begin", position), True)
                send("done", found)
            except Exception:
                send("failed", traceback.format_exc())
