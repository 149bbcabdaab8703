"""Executor on a Dask cluster: an existing scheduler, or SLURM through dask-jobqueue.

A Dask task only ever starts one child process and waits for it, so a training that dies takes
nothing else with it, and a worker that dies costs its own trainings their last minute: another
worker goes on from their checkpoints. The out folder must be on a file system that all share.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from pathlib import Path
from queue import Empty, Queue

from .. import __version__
from ..errors import BadConfig, BadInput, Interrupted

TOPIC = "mdmt"
EVERY = 1.0  # seconds between a training's progress events
PATIENCE = 60.0  # seconds without a worker before it is said


def training(folder: str, name: str, threads: int, more: dict, version: str) -> dict:
    """The Dask task: run the job of `folder` in a child process; return its exit event.

    Events on the way go to the topic of the scheduler. Asks the child to save and end when the
    task is cancelled, as it is when the coordinator has gone.
    """
    from distributed import get_worker

    from .child import Child

    worker = get_worker()
    if version != __version__:
        words = (
            f"worker {worker.address} has mdmt {__version__}, and the study is run by "
            f"{version}; it gets no training: install the same version on every machine"
        )
        return {"event": "exit", "code": 75, "refused": worker.address, "words": words}
    if not Path(folder).is_dir():
        words = (
            f"worker {worker.address} does not see {folder}; the out folder must be on a file "
            "system that all machines share"
        )
        return {"event": "exit", "code": 75, "refused": worker.address, "words": words}
    last, found = [0.0], {}

    def on_event(event):
        if event["event"] == "exit":
            found["exit"] = event
            return
        now = time.monotonic()
        if event["event"] == "progress":
            if now - last[0] < EVERY:
                return
            last[0] = now
        else:
            found[event["event"]] = event
        with contextlib.suppress(Exception):  # a lost event is only a view that is late
            worker.log_event(TOPIC, {"job": name, **event})

    key = worker.get_current_task()
    child = Child(folder, threads, on_event, more)
    while child.process.poll() is None:
        task = worker.state.tasks.get(key)
        if task is None or task.state in ("cancelled", "released"):
            child.stop()
        time.sleep(0.1)
    child.join()
    return {**found["exit"], "error": found.get("error"), "host": worker.address}


class Cluster:
    """Executor on the workers of a Dask scheduler, `workers` trainings on each at a time."""

    def __init__(self, address: str, workers: int, settings: dict, more: dict | None = None):
        try:
            from distributed import Client
        except ImportError as error:
            raise BadConfig(
                f'--dask needs the package distributed ({error}); install "mdmt[dask]"'
            ) from error
        self.workers, self.more, self.address = workers, more or {}, address
        self.cluster = _slurm(settings, workers) if address == "slurm" else None
        self.futures: dict[str, object] = {}
        self.events: Queue = Queue()
        self.refused: set[str] = set()
        self.attempts: dict[str, int] = {}
        self.alone_since, self.told = time.monotonic(), False
        try:
            if self.cluster is not None:
                self.client = Client(self.cluster, set_as_default=False)
            elif Path(address).is_file():
                self.client = Client(scheduler_file=address, set_as_default=False, timeout=15)
            else:
                self.client = Client(address, set_as_default=False, timeout=15)
        except (OSError, ValueError, TimeoutError) as error:
            raise BadInput(f"--dask {address}: no scheduler answers there ({error})") from error
        self.client.subscribe_topic(TOPIC, self._heard)

    def _heard(self, stamped) -> None:
        event = dict(stamped[1])
        self.events.put((event.pop("job"), event))

    def _usable(self) -> dict[str, int]:
        """{address: threads of one training} of the workers that get trainings; none while the
        scheduler does not answer. Raises Interrupted when it is given up."""
        if self.client.status in ("closing", "closed"):
            raise Interrupted(
                f"the Dask scheduler {self.address} has gone; what the trainings have saved is "
                "kept, and the same command goes on from there"
            )
        known = self.client.scheduler_info(n_workers=-1).get("workers", {})
        return {
            a: max(int(w["nthreads"]) // self.workers, 1)
            for a, w in known.items()
            if a not in self.refused
        }

    def free(self) -> int:
        usable = self._usable()
        if usable:
            self.alone_since, self.told = time.monotonic(), False
        elif not self.told and time.monotonic() - self.alone_since > PATIENCE:
            self.told = True
            text = "no worker has joined the scheduler yet; waiting for one"
            self.events.put(("", {"event": "note", "message": text}))
        return len(usable) * self.workers - len(self.futures)

    def start(self, job, folder) -> None:
        usable = self._usable()
        given = os.environ.get("MDMT_NUM_THREADS", "")
        least = min(usable.values(), default=1)  # none: the last has just gone
        threads = int(given) if given.isdigit() and int(given) > 0 else least
        self.attempts[job.id] = self.attempts.get(job.id, 0) + 1
        self.futures[job.id] = future = self.client.submit(
            training,
            str(Path(folder).resolve()),
            job.id,
            threads,
            self.more,
            __version__,
            key=f"{job.id}/{os.getpid()}-{self.attempts[job.id]}",
            pure=False,
            retries=0,
            workers=sorted(usable) if self.refused else None,
            resources=None,
        )
        future.add_done_callback(lambda done, name=job.id: self._done(name, done))

    def _done(self, name: str, future) -> None:
        if future.status == "finished":
            event = future.result()
            if event.get("refused"):
                self.refused.add(event["refused"])
                event["lost"] = True
            elif event.get("error"):
                self.events.put((name, event["error"]))
        else:
            try:
                reason = str(future.exception(timeout=1)) if future.status == "error" else ""
            except Exception as error:
                reason = str(error)
            first = reason.splitlines()[0] if reason else future.status
            event = {"event": "exit", "code": 75, "lost": True}
            event["words"] = f"its Dask worker was lost ({first})"
        self.events.put((name, event))

    def poll(self, seconds: float) -> list[tuple]:
        """Events that came within `seconds`; returns with the first."""
        found = []
        end = time.monotonic() + seconds
        while True:
            try:
                wait = 0 if found else max(end - time.monotonic(), 0)
                name, event = self.events.get(block=wait > 0, timeout=wait or None)
            except Empty:
                return found
            if event["event"] == "exit":
                self.futures.pop(name, None)
            found.append((name, event))

    def stop(self) -> None:
        for future in list(self.futures.values()):
            future.cancel()

    def close(self) -> None:
        self.stop()
        with contextlib.suppress(Exception):
            self.client.close()
        if self.cluster is not None:
            self.cluster.close()


def _slurm(settings: dict, workers: int):
    """Start a cluster of SLURM jobs, each a Dask worker."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise BadConfig(
            f'--dask slurm needs the package dask-jobqueue ({error}); install "mdmt[dask]"'
        ) from error
    from .child import search_path

    lines = list(settings["setup"])
    if "PYTHONPATH" in search_path():
        lines.append(f"export PYTHONPATH={shlex.quote(search_path()['PYTHONPATH'])}")
    cluster = SLURMCluster(
        queue=settings["partition"],
        account=settings["account"],
        cores=settings["cores"],
        processes=1,
        memory=settings["memory"],
        walltime=settings["walltime"],
        job_extra_directives=settings["directives"],
        job_script_prologue=lines,
    )
    cluster.scale(jobs=settings["jobs"])
    return cluster
