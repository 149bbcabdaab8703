"""Runs the graph of jobs on this machine: one child process per training.

A finished job is skipped, a partial one goes on from its checkpoint, a failed one fails alone
(with those that start from it). A signal is passed on to the children, which write a checkpoint
within one step.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue

from ..errors import Interrupted
from ..experiments import Job, waves
from ..paths import read_json, write_json
from .job import RESULT, finished


@dataclass
class Outcome:
    """What became of a run: ids of finished jobs, {id: (sentence, exit code)} of failed ones."""

    done: list[str] = field(default_factory=list)
    failed: dict = field(default_factory=dict)


def default_threads(workers: int) -> int:
    """Threads for each of `workers` children: the cores this process may use, shared out."""
    given = os.environ.get("MDMT_NUM_THREADS")
    if given and given.isdigit() and int(given) > 0:
        return int(given)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // workers)


class _Child:
    """A job's process, and the thread that reads its events."""

    def __init__(self, job: Job, folder: Path, events: Queue, threads: int):
        self.job, self.folder = job, folder
        self.error: tuple[str, int] | None = None
        environment = dict(_search_path(), MDMT_NUM_THREADS=str(threads))
        self.log = open(folder / "log.txt", "ab")  # noqa: SIM115 (closed in `close`)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mdmt.runner.job", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
        )
        self.thread = threading.Thread(target=self._read, args=(events,), daemon=True)
        self.thread.start()

    def _read(self, events: Queue) -> None:
        for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            events.put((self, event))
        events.put((self, {"event": "exit", "code": self.process.wait()}))

    def close(self) -> None:
        self.process.stdout.close()
        self.log.close()

    def last_words(self) -> str:
        """The last line of the child's log, for a death without a sentence."""
        text = (self.folder / "log.txt").read_bytes()[-2000:].decode(errors="replace").strip()
        return text.splitlines()[-1] if text else ""


class _Display:
    """Progress: a bar on a terminal, otherwise a line per finished job; rate and time left."""

    def __init__(self, jobs: list[Job], totals: dict[str, int], skipped: int, quiet: bool):
        from tqdm import tqdm

        self.totals, self.count, self.ended = dict(totals), len(jobs) + skipped, skipped
        self.seen: dict[str, int] = dict.fromkeys(totals, 0)
        self.trained, self.start = 0, time.monotonic()
        self.quiet = quiet
        self.terminal = sys.stderr.isatty() and not quiet
        self.bar = tqdm(
            total=sum(totals.values()),
            unit="img",
            unit_scale=False,
            file=sys.stderr,
            disable=not self.terminal,
            dynamic_ncols=True,
            smoothing=0.05,
            leave=False,
            bar_format="{desc} |{bar}| {percentage:3.0f}% {rate_fmt}, {remaining} left{postfix}",
        )
        self.bar.set_description_str(f"{self.ended}/{self.count} jobs")

    def progress(self, job: Job, event: dict) -> None:
        self._resume(job, event["resumed"])
        self._advance(job, event["images"])
        self.bar.set_postfix_str(
            f"  {_short(job)} epoch {event['epoch']}/{event['epochs']} loss {event['loss']:.3f}",
            refresh=False,
        )

    def _resume(self, job: Job, images: int) -> None:
        """Images of an earlier process count as done, but not in the rate."""
        if self.seen[job.id] == 0 and images:
            self.seen[job.id] = images
            if self.terminal:
                self.bar.initial += images
                self.bar.n += images

    def _advance(self, job: Job, images: int) -> None:
        step = max(images - self.seen[job.id], 0)
        self.seen[job.id] += step
        self.trained += step
        self.bar.update(step)

    def finish(self, job: Job, result: dict) -> None:
        self.ended += 1
        self._resume(job, result["resumed"])
        self._advance(job, result["images"])
        trained = result["images"] - result["resumed"]
        self.totals[job.id] = self.seen[job.id]
        self._retotal()
        seconds = max(result["seconds"], 1e-9)
        elapsed = max(time.monotonic() - self.start, 1e-9)
        ahead = sum(self.totals.values()) - sum(self.seen.values())
        left = ahead * elapsed / max(self.trained, 1)
        self.say(
            f"[{self.ended:>{len(str(self.count))}}/{self.count}] {_short(job)}: "
            f"{result['epochs']} epochs, best {result['best_epoch'] + 1}, "
            f"{seconds:.0f} s, {trained / seconds:.0f} img/s; about {_clock(left)} left"
        )

    def fail(self, job: Job, message: str) -> None:
        self.ended += 1
        self.totals[job.id] = self.seen[job.id]
        self._retotal()
        self.say(f"[{self.ended}/{self.count}] {_short(job)}: FAILED: {message}")

    def _retotal(self) -> None:
        self.bar.total = sum(self.totals.values())
        self.bar.set_description_str(f"{self.ended}/{self.count} jobs")

    def say(self, text: str) -> None:
        if self.quiet:
            return
        self.bar.clear()
        print(text, file=sys.stderr, flush=True)
        self.bar.refresh()

    def close(self) -> None:
        self.bar.close()


def _short(job: Job) -> str:
    d = job.description
    return f"{d['backbone']} {d['validation']} fold {d['fold']} seed {d['seed']} {job.label}"


def _clock(seconds: float) -> str:
    seconds = int(seconds + 0.5)
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def prepare_folder(runs: Path, job: Job, inputs: dict) -> Path:
    """Write job.json and inputs.json of `job` below `runs`; return its folder."""
    folder = Path(runs) / job.id
    write_json(
        folder / "job.json",
        {"id": job.id, "configurations": job.reported, "description": job.description},
    )
    write_json(folder / "inputs.json", inputs)
    return folder


def run(jobs: list[Job], runs, inputs_of, workers: int = 1, quiet: bool = False) -> Outcome:
    """Run `jobs` (each after those it needs) in folders below `runs`.

    inputs_of(job) -> what inputs.json holds. Raises Interrupted after SIGTERM, SIGINT or SIGUSR1,
    when every child has written its checkpoint.
    """
    runs = Path(runs)
    outcome = Outcome([j.id for j in jobs if finished(runs / j.id)])
    todo = [j for j in jobs if j.id not in outcome.done]
    totals = {j.id: j.description["train"]["epochs"] * images_per_epoch(j) for j in todo}
    stopping: list[int] = []
    old = _catch(stopping)
    display = _Display(todo, totals, len(outcome.done), quiet)
    running: dict[str, _Child] = {}
    try:
        _loop(todo, runs, inputs_of, workers, outcome, display, running, stopping)
    finally:
        for child in running.values():
            child.process.terminate()
        for child in running.values():
            child.process.wait()
            child.close()
        for number, handler in old.items():
            signal.signal(number, handler)
        display.close()
    if stopping:
        raise Interrupted(
            f"stopped by {signal.Signals(stopping[0]).name}; the trainings under way "
            "are saved, and the same command goes on from there"
        )
    return outcome


def _catch(stopping: list[int]) -> dict:
    """Let signals only note themselves; return the old handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    old = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        old[number] = signal.signal(number, lambda n, frame: stopping.append(n))
    return old


def _loop(todo, runs, inputs_of, workers, outcome, display, running, stopping) -> None:
    """Start children, handle their events, until nothing is left or a stop was asked for."""
    events: Queue = Queue()
    waiting = deque(todo)
    told = False
    threads = default_threads(workers)
    while running or (waiting and not stopping):
        while waiting and not stopping and len(running) < workers:
            job = next(iter(waves(list(waiting), outcome.done)), None)
            if job is None:
                break
            waiting.remove(job)
            folder = prepare_folder(runs, job, inputs_of(job))
            running[job.id] = _Child(job, folder, events, threads)
        _skip_dependents(waiting, outcome, display)
        if stopping and not told:
            told = True
            for child in running.values():
                child.process.send_signal(signal.SIGTERM)
        try:
            child, event = events.get(timeout=0.2)
        except Empty:
            continue
        _handle(child, event, outcome, display, running)


def _handle(child, event, outcome, display, running) -> None:
    kind, job = event["event"], child.job
    if kind == "progress":
        display.progress(job, event)
    elif kind == "error":
        child.error = (event["message"], event["exit_code"])
    elif kind == "exit":
        running.pop(job.id, None)
        child.close()
        if event["code"] == 0 and finished(child.folder):
            outcome.done.append(job.id)
            display.finish(job, read_json(child.folder / RESULT))
            return
        if event["code"] == 75:
            return
        if child.error is None:
            code = event["code"]
            how = (
                f"was ended by {signal.Signals(-code).name}"
                if code < 0
                else f"ended with status {code}"
            )
            child.error = (f"the training {how} ({child.last_words()})", 1)
        outcome.failed[job.id] = message, code = child.error
        write_json(child.folder / "error.json", {"message": message, "exit_code": code})
        display.fail(job, message)


def _skip_dependents(waiting, outcome, display) -> None:
    """Fail the jobs whose sources failed."""
    for job in list(waiting):
        lost = next((n for n in job.needs if n in outcome.failed), None)
        if lost is not None:
            waiting.remove(job)
            outcome.failed[job.id] = (f"not run, because {lost} failed", outcome.failed[lost][1])
            display.fail(job, outcome.failed[job.id][0])


def images_per_epoch(job: Job) -> int:
    """Training images of one epoch."""
    from ..engine import make_sampler

    d = job.description
    sizes = [len(rows["train"]) for rows in job.rows.values()]
    sampler = make_sampler(sizes, d["train"]["batch_size"], d["sampler"], d["seed"])
    steps = len(sampler)
    if steps == 0:
        return 0
    last, _ = sampler.batch(0, steps - 1)
    return (steps - 1) * d["train"]["batch_size"] + len(last)


def _search_path() -> dict:
    """Environment in which a child finds this package, wherever the parent found it."""
    root = str(Path(__file__).resolve().parents[2])
    if root in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        return dict(os.environ)  # installed: found anyway
    known = [p for p in [os.environ.get("PYTHONPATH")] if p]
    return dict(os.environ, PYTHONPATH=os.pathsep.join([root, *known]))
