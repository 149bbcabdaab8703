"""The live view of a sweep: jobs done, running, waiting and failed, images per second, time left,
the best so far. Two lines at the bottom of a terminal; elsewhere a line per finished training of a
small sweep and a line a minute of a large one."""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import time

from ..experiments import Job

MANY = 60  # trainings beyond which a finished one gets no line of its own
EVERY = 60.0  # seconds between lines of a large sweep
OFTEN = 0.1  # seconds between two drawings
EIGHTHS = " ▏▎▍▌▋▊▉█"


class Screen:
    """Lines that stay at the bottom of a terminal below what is said."""

    def __init__(self, stream, shown: bool):
        self.stream, self.shown = stream, shown
        self.lines: list[str] = []
        self.drawn, self.open = 0.0, False

    def width(self) -> int:
        """Columns that a line may take."""
        try:
            return max(os.get_terminal_size(self.stream.fileno()).columns - 1, 20)
        except (OSError, ValueError, AttributeError):
            return max(shutil.get_terminal_size().columns - 1, 20)

    def draw(self, make, at_once: bool = False) -> None:
        """Show the lines that make(width) gives, not too often."""
        now = time.monotonic()
        if self.shown and (at_once or now - self.drawn >= OFTEN):
            width = self.width()
            self.lines = [line[:width] for line in make(width)]
            self.drawn = now
            self._write()

    def say(self, text: str) -> None:
        """Print a line above."""
        self._clear()
        self.stream.write(f"{text}\n")
        if self.lines:
            self._write()
        self.stream.flush()

    def close(self) -> None:
        self._clear()
        self.lines = []
        self.stream.flush()

    def _clear(self) -> None:
        if self.open:
            self.stream.write("\r\x1b[J")
            self.open = False

    def _write(self) -> None:
        self._clear()
        up = f"\x1b[{len(self.lines) - 1}A" if len(self.lines) > 1 else ""
        self.stream.write("\n".join(self.lines) + "\r" + up)
        self.stream.flush()
        self.open = True


class Display:
    """What a sweep shows. totals: expected training images of the jobs that are to run."""

    def __init__(self, jobs: list[Job], totals: dict[str, int], skipped: int, quiet: bool):
        self.totals, self.count, self.done = dict(totals), len(jobs) + skipped, skipped
        self.failed, self.running = 0, set()
        self.ahead: dict[str, int] = {}  # images that are still to be trained on, by backbone
        for job in jobs:
            self._more(job, totals[job.id])
        self.whole = sum(totals.values())
        self.seen: dict[str, int] = {}
        self.trained: dict[str, int] = {}  # images, by backbone
        self.spent: dict[str, list] = {}  # [seconds, images] of finished jobs, by backbone
        self.start, self.said = time.monotonic(), time.monotonic()
        self.best: dict[str, tuple[float, str]] = {}  # by the task that selects
        self.tasks = dict.fromkeys(j.description.get("select") for j in jobs)
        self.now = ""
        places = {k: {j.description[k] for j in jobs} for k in ("release", "seed")}
        self.several = {k for k, values in places.items() if len(values) > 1}
        self.quiet, self.many = quiet, len(jobs) > MANY
        plain = os.environ.get("TERM") in (None, "", "dumb")
        self.terminal = sys.stderr.isatty() and not quiet and not plain
        self.screen = Screen(sys.stderr, self.terminal)
        self._refresh(at_once=True)

    @property
    def images(self) -> int:
        """Trained on since the start."""
        return sum(self.trained.values())

    def started(self, job: Job) -> None:
        self.running.add(job.id)
        self._refresh()

    def progress(self, job: Job, event: dict) -> None:
        """Take over how far a running job is."""
        self._resume(job, event["resumed"])
        self._advance(job, event["images"])
        if self.terminal:
            self.now = (
                f"{self.name(job)}: epoch {event['epoch']}/{event['epochs']}, loss "
                f"{event['loss']:.3f}"
            )
            if event.get("best") is not None:
                self.now += f", best {event['best']:.3f}"
            self._refresh()
        else:
            self._now_and_then()

    def _more(self, job: Job, images: int) -> None:
        backbone = job.description["backbone"]
        self.ahead[backbone] = self.ahead.get(backbone, 0) + images

    def _resume(self, job: Job, images: int) -> None:
        """Images of an earlier process count as done, but not in the rate."""
        before = self.seen.setdefault(job.id, 0)
        if images > before:
            self.seen[job.id] = images
            self._more(job, before - images)

    def _advance(self, job: Job, images: int) -> None:
        step = max(images - self.seen.setdefault(job.id, 0), 0)
        self.seen[job.id] += step
        backbone = job.description["backbone"]
        self.trained[backbone] = self.trained.get(backbone, 0) + step
        self._more(job, -step)

    def _close(self, job: Job) -> None:
        """Take what the job did not need (early stopping) or could not do off the images ahead."""
        self.running.discard(job.id)
        seen = self.seen.get(job.id, 0)
        self._more(job, seen - self.totals[job.id])
        self.whole += seen - self.totals[job.id]
        self.totals[job.id] = seen

    def finish(self, job: Job, result: dict) -> None:
        self.done += 1
        self._resume(job, result["resumed"])
        self._advance(job, result["images"])
        self._close(job)
        trained, seconds = result["images"] - result["resumed"], max(result["seconds"], 1e-9)
        if not job.twin:
            spent = self.spent.setdefault(job.description["backbone"], [0.0, 0])
            spent[0] += seconds
            spent[1] += trained
        loss, task = result.get("val_loss"), job.description.get("select")
        if job.reported and loss is not None and task:
            found = (loss, self.name(job))
            self.best[task] = min(self.best.get(task, found), found)
        if not self.many:
            best = f" (best {result['best_epoch'] + 1})" if result["best_epoch"] >= 0 else ""
            plural = "" if result["epochs"] == 1 else "s"
            text = (
                f"{self._number()} {self.name(job)}: {result['epochs']} epoch{plural}{best}, "
                f"{seconds:.0f} s"
            )
            speed = ", the same training" if job.twin else f", {trained / seconds:.0f} img/s"
            if not self.terminal:
                text += f"{speed}; {left_text(self.left())}"
            elif len(text + speed) <= self.screen.width():
                text += speed
            self.say(text)
        self._now_and_then()
        self._refresh()

    def fail(self, job: Job, message: str) -> None:
        self.failed += 1
        self._close(job)
        self.say(f"{self._number()} {self.name(job)}: FAILED: {message}")
        self._refresh()

    def _number(self) -> str:
        return f"[{self.done + self.failed:>{len(str(self.count))}}/{self.count}]"

    def again(self, job: Job, message: str) -> None:
        """A job that failed and is tried once more."""
        self.running.discard(job.id)
        self.say(f"{self.name(job)}: {message}; it is tried again")
        self._refresh()

    def rate(self) -> float:
        """Training images a second, over all jobs, since the start."""
        return self.images / max(time.monotonic() - self.start, 1e-9)

    def left(self) -> float:
        """Seconds left; NaN before the first image.

        Images of a backbone count by the seconds that its finished jobs took for one, those of a
        backbone that none has finished of by the mean: what was worked and what is to be worked
        stand in the same ratio as the time that has passed and the time that is left.
        """
        known = {b: seconds / n for b, (seconds, n) in self.spent.items() if n}
        seconds = sum(s for s, n in self.spent.values() if n)
        usual = seconds / max(sum(n for _, n in self.spent.values()), 1) if known else 1.0
        worked = sum(n * known.get(b, usual) for b, n in self.trained.items())
        if not worked:
            return float("nan")
        ahead = sum(max(n, 0) * known.get(b, usual) for b, n in self.ahead.items())
        return (time.monotonic() - self.start) * ahead / worked

    def counts(self) -> str:
        waiting = self.count - self.done - self.failed - len(self.running)
        parts = [f"{self.done}/{self.count} done", f"{len(self.running)} running"]
        parts += [f"{waiting} waiting"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        return ", ".join(parts)

    def speed(self) -> str:
        return f"{self.rate():.0f} img/s, {left_text(self.left())}"

    def best_text(self, where: bool = True) -> str:
        """The smallest validation loss so far, of the first task that has one."""
        if not self.best:
            return ""
        task = next((t for t in self.tasks if t in self.best), next(iter(self.best)))
        loss, name = self.best[task]
        return f"best {task} validation loss {loss:.3f}" + (f" ({name})" if where else "")

    def status(self) -> str:
        """Everything in one line."""
        best = self.best_text()
        return f"{self.counts()}; {self.speed()}" + (f"; {best}" if best else "")

    def lines(self, width: int) -> list[str]:
        """The two lines of the terminal, each with as much as fits into `width` columns."""
        share = 1 - sum(max(n, 0) for n in self.ahead.values()) / max(self.whole, 1)
        head, tail = f"{100 * min(max(share, 0.0), 1.0):3.0f} % ", f" {self.speed()}"
        room = width - len(head) - len(tail)
        now = f"; {self.now}" if self.now else ""
        if room - len(now) >= 20:
            tail, room = tail + now, room - len(now)
        first = head + bar(share, min(max(room, 0), 40)) + tail
        counts = self.counts()
        short_one = self.best_text(where=False)
        for best in (self.best_text(), short_one, short_one.replace("validation ", ""), ""):
            second = f"{counts}; {best}" if best else counts
            if len(second) <= width:
                break
        return [first, second]

    def name(self, job: Job) -> str:
        """A job in a few words: what differs between the jobs of this sweep."""
        return short(job, self.several)

    def _now_and_then(self) -> None:
        if self.many and not self.terminal and time.monotonic() - self.said >= EVERY:
            self.said = time.monotonic()
            self.say(self.status())

    def _refresh(self, at_once: bool = False) -> None:
        self.screen.draw(self.lines, at_once)

    def say(self, text: str) -> None:
        if not self.quiet:
            self.screen.say(text)

    def close(self) -> None:
        self.screen.close()
        if (self.many or self.terminal) and not self.quiet:
            self.say(f"{self.counts()}; {self.rate():.0f} img/s")
            if self.best:
                self.say(self.best_text())


def bar(share: float, width: int) -> str:
    """A bar of `width` columns, filled to `share`."""
    if width < 1:
        return ""
    eighths = round(8 * width * min(max(share, 0.0), 1.0))
    full, part = divmod(eighths, 8)
    text = EIGHTHS[8] * full + (EIGHTHS[part] if part else "")
    return text.ljust(width, "·")


def short(job: Job, several=()) -> str:
    """A job in a few words; several: which of release and seed must be told."""
    d = job.description
    words = [d["backbone"]]
    words += [f"release {d['release']}"] if "release" in several else []
    words += [d["validation"], f"fold {d['fold']}"]
    words += [f"seed {d['seed']}"] if "seed" in several else []
    return " ".join([*words, job.label or "+".join(t["name"] for t in d["tasks"])])


def left_text(seconds: float) -> str:
    """Time left in words."""
    return f"about {clock(seconds)} left" if seconds == seconds else "time left not known yet"


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
    """Training images of every job at most: {job id: images}; none of one that is copied."""
    found: dict[str, int] = {}
    for job in jobs:
        d = job.description
        if "steps_of" in d:
            known = [found.get(n, 0) for n in d["steps_of"]]
            found[job.id] = sum(known)
        else:
            found[job.id] = d["train"]["epochs"] * images_per_epoch(job)
    return found | dict.fromkeys([j.id for j in jobs if j.twin], 0)


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
