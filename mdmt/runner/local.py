"""Slots on this machine: at most so many trainings at a time, each in a process of its own."""

from __future__ import annotations

import time
from queue import Empty, Queue

from .child import Child, default_threads


class Slots:
    """Executor of `workers` processes with `threads` threads each (default: the cores shared)."""

    def __init__(self, workers: int = 1, threads: int | None = None, more: dict | None = None):
        self.workers, self.more = workers, more
        self.threads = threads or default_threads(workers)
        self.children: dict[str, Child] = {}
        self.slots: dict[str, int] = {}  # of the children; of several GPUs each has its own
        self.events: Queue = Queue()

    def free(self) -> int:
        return self.workers - len(self.children)

    def start(self, job, folder) -> None:
        def on_event(event, name=job.id):
            self.events.put((name, event))

        slot = min(set(range(self.workers)) - set(self.slots.values()))
        more = {**(self.more or {}), "MDMT_SLOT": str(slot)}
        self.children[job.id] = Child(folder, self.threads, on_event, more)
        self.slots[job.id] = slot

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
                self.children.pop(name).join()
                del self.slots[name]
            found.append((name, event))

    def stop(self) -> None:
        for child in self.children.values():
            child.stop()

    def close(self) -> None:
        self.stop()
        for child in self.children.values():
            child.join()
        self.children.clear()
        self.slots.clear()
