"""Builds the store of a data set: what is new is prepared, what is known is copied."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from ..data import hashes, isolated
from ..data.store import (
    Builder,
    Known,
    Store,
    entry_name,
    key_of,
    needs_package,
    open_store,
    picture_shape,
    remove_old,
    retire,
    store_folder,
)
from ..data.table import Cases
from ..errors import BadData
from . import corrections, crew, picture
from .picture import BATCH, Prepared, Task

LOG_SECONDS = 60.0  # between lines of progress where there is no terminal
FEW = 3 * BATCH  # images below which workers would cost more time than they save


@dataclass
class Survey:
    """A data set's store and what was found on the way.

    store: with an entry for every image of `cases`, in their order; cases: all but those that a
    person excluded; usable: the cases whose images are in the store, in its order; refused: a
    sentence for each of the others, {row of cases: reason}. decoded, copied, found: images that
    were decoded now, taken from other stores, and in the store already. seconds: for all of it;
    decoder_seconds: of one process, for the decoded ones; workers: processes.
    """

    store: Store
    cases: Cases
    usable: Cases
    refused: dict[int, str] = field(default_factory=dict)
    decoded: int = 0
    copied: int = 0
    found: int = 0
    seconds: float = 0.0
    decoder_seconds: float = 0.0
    workers: int = 1

    def listed(self) -> list[str]:
        """Refused images as sentences that name file and reason."""
        return [f"{self.cases.paths[i]}: {reason}" for i, reason in self.refused.items()]

    def doubtful(self, least: float = 0.5) -> list[tuple[float, str, str]]:
        """(doubt, file, finding) of the images in use whose doubt is `least` or more, or that only
        a person's decision keeps in use; most doubtful first."""
        found = []
        for path, entry in zip(self.cases.paths, self.store.entries, strict=True):
            doubt = entry.get("doubt", 0.0)
            if "reason" not in entry and doubt >= least:
                found.append((doubt, str(path), entry.get("finding", "")))
        return sorted(found, key=lambda f: (-f[0], f[1]))


def build(cases: Cases, values: dict, progress: bool = True, workers: int | None = None):
    """Return the store of `cases` and the cases in it, building the store unless it exists.

    With `data.on_bad_image: exclude`, images that cannot be used are left out and named in the
    cases' warnings; otherwise BadData names the first of them and says how many there are.
    """
    survey = inspect(cases, values, progress, workers)
    if survey.refused and values["data"]["on_bad_image"] == "error":
        raise BadData(refusal(survey))
    if not len(survey.usable):
        raise BadData(f"data set '{cases.name}' is empty: no image of it can be used")
    survey.usable.warnings += [f"excluded: {text}" for text in survey.listed()]
    return survey.store, survey.usable


def refusal(survey: Survey, page=None) -> str:
    """One sentence on the refused images of a data set; page: the contact sheets' page."""
    text = survey.listed()[0]
    more = len(survey.refused) - 1
    if more:
        text += f" (and {more} more image{'s' * (more > 1)} refused)"
    if page is not None or more or "no plausible lungs" in text:
        text += (
            f"; look at {page or 'the contact sheets of `mdmt prepare`'} and decide in `accept` or "
            "`corrections`, or set data.on_bad_image to exclude"
        )
    return text


def inspect(
    cases: Cases, values: dict, progress: bool = True, workers: int | None = None
) -> Survey:
    """Build the store of `cases` as `build` does, but raise nothing for images that are refused.

    workers: processes; default: as many as the engine has threads. Raises BadData for a picture
    under two patients, NoSpace for a store that cannot be written.
    """
    begin = time.perf_counter()
    root = store_folder(values)
    workers = _workers() if workers is None else workers
    decided = corrections.decisions(cases, values)
    settings = picture.settings_of(values)
    cases, decided = _without_excluded(cases, decided)
    with _Bar(cases, "reading", progress) as bar:
        sources = hashes.hashes(cases.paths, root, workers, bar)
    unreadable = {i: s for i, s in enumerate(sources) if isinstance(s, OSError)}
    named = [f"unreadable {cases.images[i]}" if i in unreadable else s
             for i, s in enumerate(sources)]  # fmt: skip
    _check_duplicates(cases, named)
    wanted = []
    for name, path, decision in zip(named, cases.paths, decided, strict=True):
        wanted.append({"source": name, "file": path.name})
        if decision is not None:
            wanted[-1]["decision"] = decision
    key = key_of(settings, [entry_name(w) for w in wanted])
    store = open_store(root / key)
    if store is not None and (not store.whole() or _curable(store, cases, settings)):
        store = retire(store)
    figures = {"decoded": 0, "copied": 0, "found": len(cases), "decoder_seconds": 0.0}
    if store is None:
        with Builder(root / key, settings, len(wanted)) as builder:
            if not builder.done:
                figures = _fill(builder, cases, wanted, unreadable, settings, workers, progress)
        remove_old(root)
        store = Store(root / key)
    refused = {i: e["reason"] for i, e in enumerate(store.entries) if "reason" in e}
    usable = cases.take([i for i in range(len(cases)) if i not in refused])
    seconds = time.perf_counter() - begin
    return Survey(store, cases, usable, refused, seconds=seconds, workers=workers, **figures)


def _curable(store: Store, cases: Cases, settings: dict) -> bool:
    """True if an image that was refused for want of a package can be decoded now."""
    tasks = [
        Task(path, entry.get("decision"))
        for path, entry in zip(cases.paths, store.entries, strict=True)
        if needs_package(entry)
    ]
    return any(not needs_package(p.facts) for p in prepared(tasks, settings, 1))


def _workers() -> int:
    from .. import _core

    return _core.get_num_threads()


def _without_excluded(cases: Cases, decided: list) -> tuple[Cases, list]:
    """Leave out what a person excluded, with a note for each."""
    kept = [i for i, d in enumerate(decided) if d != corrections.EXCLUDE]
    if len(kept) == len(cases):
        return cases, decided
    left = cases.take(kept)
    for i, decision in enumerate(decided):
        if decision == corrections.EXCLUDE:
            left.warnings.append(f"excluded: {cases.paths[i]}: by a person, in the corrections")
    return left, [decided[i] for i in kept]


def _check_duplicates(cases: Cases, sources: list[str]) -> None:
    """The same picture under two patients leaks from training to test; under one it is noted."""
    seen: dict[str, int] = {}
    for i, source in enumerate(sources):
        j = seen.setdefault(source, i)
        if j == i:
            continue
        if cases.patients[i] != cases.patients[j]:
            raise BadData(
                f"{cases.paths[i]}: is the same picture as {cases.paths[j].name}, but one is of "
                f"patient '{cases.patients[i]}' and the other of '{cases.patients[j]}'; keep one"
            )
        note = f"{cases.paths[i]}: is the same picture as {cases.paths[j].name}"
        if note not in cases.warnings:
            cases.warnings.append(note)


def _fill(builder, cases, wanted, unreadable, settings, workers, progress) -> dict:
    """Append an entry for every image to a store; return what was done."""
    done = len(builder.entries)
    figures = {"decoded": 0, "copied": 0, "found": done, "decoder_seconds": 0.0}
    known = Known(builder.folder, picture_shape(settings))
    tasks, ready = [], {}
    for i in range(done, len(wanted)):
        if i in unreadable:
            reason = (unreadable[i].strerror or str(unreadable[i])).lower()
            ready[i] = ({"reason": f"image cannot be read ({reason}); correct the file"},)
        elif known.has(wanted[i]):
            ready[i] = ()
        else:
            tasks.append(Task(cases.paths[i], wanted[i].get("decision")))
            continue
    coming = prepared(tasks, settings, workers)
    try:
        with _Bar(cases, "preparing", progress, done) as bar:
            block: list[tuple] = []
            for i in range(done, len(wanted)):
                found = None
                if i in ready:
                    if ready[i]:
                        found = ({**wanted[i], **ready[i][0]}, None, None)
                    else:
                        found = known.find(wanted[i])
                        figures["copied"] += found is not None
                        if found is None:  # it was removed meanwhile
                            task = Task(cases.paths[i], wanted[i].get("decision"))
                            found = _entry(picture.prepare([task], settings)[0], wanted[i], figures)
                else:
                    found = _entry(next(coming), wanted[i], figures)
                block.append(found)
                if len(block) == BATCH:
                    builder.add(block)
                    block = []
                bar()
            builder.add(block)
            builder.finish()
    finally:
        coming.close()
        isolated.close()
    return figures


def _entry(one: Prepared, wanted: dict, figures: dict) -> tuple:
    figures["decoded"] += 1
    figures["decoder_seconds"] += one.seconds
    return {**wanted, **one.facts}, one.pixels, one.look


def prepared(tasks: list[Task], settings: dict, workers: int):
    """A `Prepared` for each task, in their order."""
    if workers > 1 and len(tasks) >= FEW:
        yield from crew.run(tasks, settings, min(workers, len(tasks) // BATCH))
        return
    for start in range(0, len(tasks), BATCH):
        yield from picture.prepare(tasks[start : start + BATCH], settings)


class _Bar:
    """Progress: a bar on a terminal, a line a minute in a log; called once per image."""

    def __init__(self, cases: Cases, what: str, progress: bool, done: int = 0):
        from tqdm import tqdm

        self._name, self._done, self._total = f"{what} {cases.name}", done, len(cases)
        self._logs = progress and not sys.stderr.isatty()
        self._last = time.monotonic()
        self._bar = tqdm(
            total=len(cases),
            initial=done,
            unit="image",
            desc=self._name,
            file=sys.stderr,
            leave=False,
            delay=1,
            disable=not progress or self._logs,
        )

    def __call__(self) -> None:
        self._bar.update()
        self._done += 1
        if self._logs and time.monotonic() - self._last >= LOG_SECONDS:
            self._last = time.monotonic()
            text = f"{self._name}: {self._done} of {self._total} images"
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()
