"""The live view of a sweep: jobs done, running, waiting and failed, images per second, time left,
the best so far. A bar on a terminal; elsewhere a line per finished training of a small sweep and a
line a minute of a large one."""

from __future__ import annotations

import functools
import json
import sys
import time

from ..experiments import Job

MANY = 60  # trainings beyond which a finished one gets no line of its own
EVERY = 60.0  # seconds between lines of a large sweep


class Display:
    """What a sweep shows. totals: expected training images of the jobs that are to run."""

    def __init__(self, jobs: list[Job], totals: dict[str, int], skipped: int, quiet: bool):
        from tqdm import tqdm

        self.totals, self.count, self.done = dict(totals), len(jobs) + skipped, skipped
        self.failed, self.running = 0, set()
        self.ahead = sum(totals.values())  # images that are still to be trained on
        self.seen: dict[str, int] = {}
        self.trained, self.start, self.said = 0, time.monotonic(), time.monotonic()
        self.best: tuple[float, str] | None = None
        self.quiet, self.many = quiet, len(jobs) > MANY
        self.terminal = sys.stderr.isatty() and not quiet
        self.bar = tqdm(
            total=max(self.ahead, 1),
            file=sys.stderr,
            disable=not self.terminal,
            dynamic_ncols=True,
            leave=False,
            bar_format="{desc} |{bar}| {percentage:3.0f}%{postfix}",
        )
        self._refresh()

    def started(self, job: Job) -> None:
        self.running.add(job.id)
        self._refresh()

    def progress(self, job: Job, event: dict) -> None:
        """Take over how far a running job is."""
        self._resume(job, event["resumed"])
        self._advance(job, event["images"])
        if self.terminal:
            loss = f"{short(job)} epoch {event['epoch']}/{event['epochs']} loss {event['loss']:.3f}"
            if event.get("best") is not None:
                loss += f" (best {event['best']:.3f})"
            self._refresh(loss)
        else:
            self._now_and_then()

    def _resume(self, job: Job, images: int) -> None:
        """Images of an earlier process count as done, but not in the rate."""
        before = self.seen.setdefault(job.id, 0)
        if images > before:
            self.seen[job.id] = images
            self.ahead -= images - before

    def _advance(self, job: Job, images: int) -> None:
        step = max(images - self.seen.setdefault(job.id, 0), 0)
        self.seen[job.id] += step
        self.trained += step
        self.ahead -= step

    def _close(self, job: Job) -> None:
        """Take what the job did not need (early stopping) or could not do off the images ahead."""
        self.running.discard(job.id)
        seen = self.seen.get(job.id, 0)
        self.ahead -= self.totals[job.id] - seen
        self.totals[job.id] = seen

    def finish(self, job: Job, result: dict) -> None:
        self.done += 1
        self._resume(job, result["resumed"])
        self._advance(job, result["images"])
        self._close(job)
        loss = result.get("val_loss")
        selects = job.description.get("select")
        if job.reported and loss is not None and selects:
            found = (loss, f"{selects} validation loss {loss:.3f} ({short(job)})")
            self.best = min(self.best, found) if self.best else found
        if not self.many:
            trained = result["images"] - result["resumed"]
            seconds = max(result["seconds"], 1e-9)
            best = f"best {result['best_epoch'] + 1}, " if result["best_epoch"] >= 0 else ""
            self.say(
                f"[{self.done + self.failed:>{len(str(self.count))}}/{self.count}] {short(job)}: "
                f"{result['epochs']} epochs, {best}{seconds:.0f} s, {trained / seconds:.0f} img/s; "
                f"about {clock(self.left())} left"
            )
        self._now_and_then()
        self._refresh()

    def fail(self, job: Job, message: str) -> None:
        self.failed += 1
        self._close(job)
        head = f"[{self.done + self.failed}/{self.count}]"
        self.say(f"{head} {short(job)}: FAILED: {message}")
        self._refresh()

    def again(self, job: Job, message: str) -> None:
        """A job that failed and is tried once more."""
        self.running.discard(job.id)
        self.say(f"{short(job)}: {message}; it is tried again")
        self._refresh()

    def rate(self) -> float:
        """Training images a second, over all jobs, since the start."""
        return self.trained / max(time.monotonic() - self.start, 1e-9)

    def left(self) -> float:
        """Seconds left at that rate; NaN before the first image."""
        return self.ahead / self.rate() if self.trained else float("nan")

    def status(self) -> str:
        """Everything in one line."""
        waiting = self.count - self.done - self.failed - len(self.running)
        parts = [f"{self.done}/{self.count} done", f"{len(self.running)} running"]
        parts += [f"{waiting} waiting"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        text = ", ".join(parts) + f"; {self.rate():.0f} img/s, about {clock(self.left())} left"
        return text + (f"; best {self.best[1]}" if self.best else "")

    def _now_and_then(self) -> None:
        if self.many and not self.terminal and time.monotonic() - self.said >= EVERY:
            self.said = time.monotonic()
            self.say(self.status())

    def _refresh(self, postfix: str = "") -> None:
        if not self.terminal:
            return
        self.bar.total = max(self.ahead + sum(self.seen.values()), 1)
        self.bar.n = self.bar.total - max(self.ahead, 0)
        self.bar.set_description_str(self.status(), refresh=False)
        self.bar.set_postfix_str(f"  {postfix}" if postfix else "", refresh=False)
        self.bar.update(0)

    def say(self, text: str) -> None:
        if self.quiet:
            return
        self.bar.clear()
        print(text, file=sys.stderr, flush=True)
        self.bar.refresh()

    def close(self) -> None:
        if self.many and not self.quiet:
            self.say(self.status())
        self.bar.close()


def short(job: Job) -> str:
    """A job in a few words."""
    d = job.description
    label = job.label or "+".join(t["name"] for t in d["tasks"])
    return f"{d['backbone']} {d['validation']} fold {d['fold']} seed {d['seed']} {label}"


def clock(seconds: float) -> str:
    """Seconds as m:ss, h:mm:ss or days."""
    if seconds != seconds:
        return "?"
    seconds = int(seconds + 0.5)
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def expected_images(jobs: list[Job]) -> dict[str, int]:
    """Training images of every job at most: {job id: images}."""
    found: dict[str, int] = {}
    for job in jobs:
        d = job.description
        if "steps_of" in d:
            known = [found.get(n, 0) for n in d["steps_of"]]
            found[job.id] = sum(known)
        else:
            found[job.id] = d["train"]["epochs"] * images_per_epoch(job)
    return found


def images_per_epoch(job: Job) -> int:
    """Training images of one epoch."""
    d = job.description
    sizes = tuple(len(rows["train"]) for rows in job.rows.values())
    return _drawn(sizes, d["train"]["batch_size"], json.dumps(d["sampler"]), d["seed"])


@functools.lru_cache(maxsize=4096)
def _drawn(sizes: tuple, batch_size: int, sampler: str, seed: int) -> int:
    from ..engine import make_sampler

    sampler = make_sampler(list(sizes), batch_size, json.loads(sampler), seed)
    steps = len(sampler)
    if steps == 0:
        return 0
    last, _ = sampler.batch(0, steps - 1)
    return (steps - 1) * batch_size + len(last)
