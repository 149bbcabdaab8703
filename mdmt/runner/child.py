"""Starts a training in a process of its own and reads its events; every runner uses it."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

from .. import __version__, _core
from ..experiments import Job
from ..paths import write_json


def default_threads(workers: int) -> int:
    """Threads for each of `workers` children: the cores this process may use, shared out."""
    given = os.environ.get("MDMT_NUM_THREADS")
    if given and given.isdigit() and int(given) > 0:
        return int(given)
    return max(1, _core.cpu_info()["cores"] // workers)


def prepare_folder(runs: Path, job: Job, inputs: dict) -> Path:
    """Write job.json and inputs.json of `job` below `runs`; return its folder.

    Not flushed to the disk: every start writes them anew.
    """
    folder = Path(runs) / job.id
    record = {
        "id": job.id,
        "mdmt": __version__,
        "configurations": job.reported,
        "description": job.description,
    }
    write_json(folder / "job.json", record, sync=False)
    write_json(folder / "inputs.json", inputs, sync=False)
    return folder


class Child:
    """A job's process, and the thread that reads its events.

    on_event(event) is called in that thread: {"event": "progress", ...}, {"event": "error",
    "message", "exit_code"}, and last {"event": "exit", "code"}.
    """

    def __init__(self, folder, threads: int, on_event, more: dict | None = None):
        self.folder, self.on_event = Path(folder), on_event
        environment = {**search_path(), "MDMT_NUM_THREADS": str(threads), **(more or {})}
        with open(self.folder / "log.txt", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mdmt.runner.job", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        with self.process.stdout as stream:
            for line in stream:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                self.on_event(event)
        code = self.process.wait()
        self.on_event({"event": "exit", "code": code, "words": self._last_words()})

    def _last_words(self) -> str:
        """The last line of the child's log, for a death without a sentence."""
        try:
            text = (self.folder / "log.txt").read_bytes()[-2000:].decode(errors="replace").strip()
        except OSError:
            return ""
        return text.splitlines()[-1] if text else ""

    def stop(self) -> None:
        """Ask for a checkpoint and an end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def join(self) -> None:
        """Wait for the end of the process and of its events."""
        self.process.wait()
        self.thread.join()


def how_it_ended(event: dict) -> str:
    """A sentence for a child that ended without one."""
    code = event["code"]
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        how = f"was ended by {name}"
        if -code == signal.SIGKILL:
            how += ", as the system does when memory runs out"
    else:
        how = f"ended with status {code}"
    words = f" ({event['words']})" if event.get("words") else ""
    return f"the training {how}{words}"


def search_path() -> dict:
    """Environment in which a child finds this package, wherever the parent found it."""
    root = _root()
    if root is None:
        return dict(os.environ)  # installed: found anyway
    known = [p for p in [os.environ.get("PYTHONPATH")] if p]
    return dict(os.environ, PYTHONPATH=os.pathsep.join([root, *known]))


@functools.cache
def _root() -> str | None:
    """The folder of this package where it is not installed, else None."""
    root = str(Path(__file__).resolve().parents[2])
    return None if root in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")} else root
