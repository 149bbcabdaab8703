"""Runs the graph of jobs on an executor (local slots or Dask).

A finished job is skipped, a partial one goes on from its checkpoint, a failed one fails alone
(with those that need it). A training that died is tried again a bounded number of times; one that
says what is wrong with its data or settings is not. A signal is passed on to the trainings, which
write a checkpoint within one step.

An executor has `free()` (trainings that it can start now), `start(job, folder)`, `poll(seconds)`
-> [(job id, event)] with the events of `child.Child`, `stop()` (asks all trainings to save and
end) and `close()`.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import resource
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from .. import __version__
from ..errors import BadInput, Interrupted
from ..experiments import Job
from ..paths import read_json, write_json
from ..system import peak_memory
from .child import how_it_ended, prepare_folder
from .display import Display, expected_images
from .kept import RESULT, Kept, done_and_usable, finished, tidy

RETRIES = 2  # times that a training which died is tried again
SWEEPS = "sweeps.jsonl"
REQUEUES = 50  # times that a training which was asked to stop goes on again


@dataclass
class Outcome:
    """What became of a run: ids of finished jobs, {id: (sentence, exit code)} of failed ones."""

    done: list[str] = field(default_factory=list)
    failed: dict = field(default_factory=dict)


class Graph:
    """The jobs that wait, in order, and which of them can start; O(1) a job and edge."""

    def __init__(self, jobs: list[Job], done):
        done = set(done)
        self.jobs = {j.id: j for j in jobs if j.id not in done}
        self.order = {name: i for i, name in enumerate(self.jobs)}
        self.open = {j.id: {n for n in j.needs if n not in done} for j in self.jobs.values()}
        self.after: dict[str, list[str]] = {}
        for name, needs in self.open.items():
            for source in needs:
                self.after.setdefault(source, []).append(name)
        self.ready = [(0, self.order[n], n) for n, needs in self.open.items() if not needs]
        heapq.heapify(self.ready)
        self.left = len(self.jobs)
        self.lost: set[str] = set()

    def take(self) -> Job | None:
        """The next job that can start, or None."""
        return self.jobs[heapq.heappop(self.ready)[2]] if self.ready else None

    def put_back(self, name: str, attempt: int) -> None:
        """Let a job start again, after those of fewer attempts."""
        heapq.heappush(self.ready, (attempt, self.order[name], name))

    def finish(self, name: str) -> None:
        self.left -= 1
        for other in self.after.get(name, ()):
            self.open[other].discard(name)
            if not self.open[other] and other not in self.lost:
                self.put_back(other, 0)

    def fail(self, name: str) -> list[str]:
        """Take `name` and all that needs it out; return those that were not out yet."""
        lost, front = [], [name]
        self.left -= 1
        while front:
            for other in self.after.get(front.pop(), ()):
                if other not in self.lost:
                    self.lost.add(other)
                    lost.append(other)
                    front.append(other)
        self.left -= len(lost)
        return lost


class Sweep:
    """One run over the jobs: `Sweep(...).run()` -> Outcome."""

    def __init__(self, jobs, runs, inputs_of, executor, *, quiet=False, retries=RETRIES, keep=True):
        self.runs, self.inputs_of, self.executor = Path(runs), inputs_of, executor
        self.retries = retries
        self.jobs = {j.id: j for j in jobs}
        self.outcome = Outcome(done_and_usable(jobs, self.runs))
        with contextlib.suppress(OSError):
            for name in self.outcome.done:  # killed between its result and this
                tidy(self.runs / name)
        self.kept = Kept(jobs, self.runs, self.outcome.done, keep)
        self.graph = Graph(jobs, self.outcome.done)
        todo = list(self.graph.jobs.values())
        totals = expected_images(jobs)
        totals = {j.id: totals[j.id] for j in todo}
        self.display = Display(todo, totals, len(self.outcome.done), quiet)
        self.running: dict[str, dict | None] = {}  # id: the error that it has told of, if any
        self.deaths: dict[str, int] = {}
        self.requeued: dict[str, int] = {}
        self.stopping: list[int] = []
        self.clock = Clock()
        self.full: str | None = None  # the sentence of a full disk, after which nothing starts

    def run(self) -> Outcome:
        """Run everything. Raises Interrupted after SIGTERM, SIGINT or SIGUSR1, when every training
        has written its checkpoint."""
        old = self._catch()
        self.clock.begin()
        try:
            self._loop()
        finally:
            self.executor.close()
            self.clock.write(self)
            for number, handler in old.items():
                signal.signal(number, handler)
            self.display.close()
        if self.stopping:
            raise Interrupted(
                f"stopped by {signal.Signals(self.stopping[0]).name}; the trainings under way "
                "are saved, and the same command goes on from there"
            )
        return self.outcome

    def _catch(self) -> dict:
        """Let signals only note themselves; return the old handlers."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {
            number: signal.signal(number, lambda n, frame: self.stopping.append(n))
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        }

    def _loop(self) -> None:
        told = False
        while self.running or (self.graph.left and not self._halted()):
            while not self._halted() and self.executor.free() > 0:
                job = self.graph.take()
                if job is None:
                    break
                folder = prepare_folder(self.runs, job, self.inputs_of(job))
                self.running[job.id] = None
                self.display.started(job)
                self.clock.started(job.id)
                self.executor.start(job, folder)
            if self.stopping and not told:
                told = True
                self.executor.stop()
            for name, event in self.executor.poll(0.2):
                self._handle(name, event)
        if self.full and self.graph.left:
            rest = f"{self.full} ({self.graph.left} trainings are not run)"
            for job in self.graph.jobs.values():
                if job.id not in self.outcome.failed and not finished(self.runs / job.id):
                    self.outcome.failed[job.id] = (rest, 2)

    def _halted(self) -> bool:
        return bool(self.stopping or self.full)

    def _handle(self, name: str, event: dict) -> None:
        kind = event["event"]
        if kind == "note":
            self.display.say(event["message"])
        if name not in self.running:
            return
        job = self.jobs[name]
        if kind == "progress":
            self.display.progress(job, event)
        elif kind == "error":
            self.running[name] = event
        elif kind == "exit":
            self.clock.ended(name)
            self._ended(job, event, self.running.pop(name))

    def _ended(self, job: Job, event: dict, error: dict | None) -> None:
        folder = self.runs / job.id
        self.display.running.discard(job.id)
        if event["code"] == 0 and finished(folder):
            self.outcome.done.append(job.id)
            self.graph.finish(job.id)
            self.kept.finish(job.id)
            self.display.finish(job, read_json(folder / RESULT))
            return
        if self.stopping and not error:
            return  # Ctrl-C reaches a training, too, perhaps before it knows what to do
        if event["code"] == 75 or event.get("lost"):
            if self._halted():
                return
            self.requeued[job.id] = self.requeued.get(job.id, 0) + 1
            if self.requeued[job.id] <= REQUEUES:
                if event.get("lost"):
                    self.display.again(job, event["words"])
                self.graph.put_back(job.id, self.requeued[job.id])
                return
            error = {"message": f"stopped {REQUEUES + 1} times from outside", "exit_code": 1}
        deaths = self.deaths[job.id] = self.deaths.get(job.id, 0) + 1
        message = error["message"] if error else how_it_ended(event)
        code = error["exit_code"] if error else 1
        if error and error.get("full"):
            self.full = message
        elif code == 1 and deaths <= self.retries and not self._halted():
            self.display.again(job, message)
            self.graph.put_back(job.id, deaths)
            return
        elif deaths > 1:
            message = f"{message} (tried {deaths} times)"
        self._failed(job, message, code)

    def _failed(self, job: Job, message: str, code: int) -> None:
        self._note_failure(job, message, code)
        for other in self.graph.fail(job.id):
            if other not in self.outcome.failed:
                self._note_failure(self.jobs[other], f"not run, because {job.id} failed", code)

    def _note_failure(self, job: Job, message: str, code: int) -> None:
        self.outcome.failed[job.id] = (message, code)
        try:
            record = {"message": message, "exit_code": code}
            write_json(self.runs / job.id / "error.json", record, sync=False)
        except BadInput:
            pass  # a full disk: the sentence is in the outcome
        self.display.fail(job, message)


class Clock:
    """What a sweep cost; `write` adds a line to sweeps.jsonl beside the runs.

    busy_seconds: of all trainings, from start to end; training_cpu_seconds: processor time of those
    on this machine; coordinator_seconds: of this process; coordinator_bytes: its largest resident
    size.
    """

    def __init__(self):
        self.starts: dict[str, float] = {}
        self.begin()

    def begin(self) -> None:
        self.wall, self.own = time.monotonic(), time.process_time()
        self.busy, self.processes = 0.0, 0
        self.children = _of_children()

    def started(self, name: str) -> None:
        self.starts[name] = time.monotonic()
        self.processes += 1

    def ended(self, name: str) -> None:
        self.busy += time.monotonic() - self.starts.pop(name)

    def write(self, sweep: Sweep) -> None:
        """A full disk costs the line, nothing else."""
        if not self.processes:
            return
        record = {
            "mdmt": __version__,
            "host": os.uname().nodename,
            "slots": sweep.executor.workers,
            "jobs": len(sweep.jobs),
            "done": len(sweep.outcome.done),
            "failed": len(sweep.outcome.failed),
            "processes": self.processes,
            "images": sweep.display.images,
            "seconds": round(time.monotonic() - self.wall, 3),
            "busy_seconds": round(self.busy, 3),
            "training_cpu_seconds": round(_of_children() - self.children, 3),
            "coordinator_seconds": round(time.process_time() - self.own, 3),
            "coordinator_bytes": peak_memory(),
        }
        with contextlib.suppress(OSError), open(sweep.runs.parent / SWEEPS, "a") as stream:
            stream.write(json.dumps(record) + "\n")


def _of_children() -> float:
    """Processor time of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(jobs, runs, inputs_of, executor, quiet=False, retries=RETRIES, keep=True) -> Outcome:
    """Run `jobs` (each after those it needs) in folders below `runs`.

    inputs_of(job) -> what inputs.json holds; keep: whether weights that no job needs any more stay.
    """
    return Sweep(jobs, runs, inputs_of, executor, quiet=quiet, retries=retries, keep=keep).run()
