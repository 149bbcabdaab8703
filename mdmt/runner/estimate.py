"""What a study will take, before it runs: the graph's size, and time, memory and disk estimated
from one measured step of every backbone."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from ..errors import BadConfig
from .child import default_threads
from .display import clock, expected_images
from .kept import finished

LISTED = 200  # jobs beyond which they are counted, not listed
SAMPLES = 8  # images of the measured step
START = 1.5  # seconds that a process takes to start and to end


def listing(jobs: list) -> str:
    """The jobs, one line each, those they need by number; only counts of a large graph."""
    lines = []
    if len(jobs) <= LISTED:
        numbers = {job.id: i for i, job in enumerate(jobs, 1)}
        for job in jobs:
            d = job.description
            after = ", ".join(str(numbers[n]) for n in job.needs)
            sizes = "+".join(str(len(r["train"])) for r in job.rows.values())
            lines.append(
                f"{numbers[job.id]:>5}  {job.id:<44}{job.label:<14} train {sizes:<10}"
                f" seed {d['seed']}" + (f"  after {after}" if after else "")
            )
    else:
        for name, count in Counter(job.label for job in jobs).items():
            lines.append(f"{count:>5}  {name}")
    return "\n".join(lines)


def size(jobs: list) -> str:
    """The size of the graph; the last line is the number of jobs."""
    depth: dict[str, int] = {}
    for job in jobs:
        depth[job.id] = 1 + max((depth[n] for n in job.needs), default=0)
    edges = sum(len(j.needs) for j in jobs)
    deep = max(depth.values(), default=0)
    return f"{edges} dependencies, chains of at most {deep}\n{len(jobs)} jobs"


def measure(values: dict, backbone: str, tasks: list[dict], steps: int = 2) -> dict:
    """Train `backbone` for `steps` steps on noise.

    Returns images per second (training, evaluation), planned bytes of a full batch, bytes of the
    weights.
    """
    from ..engine import check_memory
    from ..model import Model

    size, batch = values["image_size"], values["train"]["batch_size"]
    heads = {t["name"]: {"classes": len(t["classes"]), **t["head"]} for t in tasks}
    model = Model(backbone, heads=heads, image_size=size, precision=values["precision"])
    try:
        planned = check_memory(model, batch)
    except MemoryError as error:
        raise BadConfig(f"{backbone}: {error}; lower train.batch_size or image_size") from error
    count = min(SAMPLES, batch)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size), dtype=np.uint8)
    model.attach([{"images": images, "task": 0, "target": np.zeros(count, np.float32)}])
    dataset, index = np.zeros(count, np.int64), np.arange(count)
    model.fit_step(dataset, index)
    begin = time.perf_counter()
    for _ in range(steps):
        model.fit_step(dataset, index)
    trained = time.perf_counter() - begin
    model.predict(dataset, index, batch_size=count)
    begin = time.perf_counter()
    model.predict(dataset, index, batch_size=count)
    evaluated = time.perf_counter() - begin
    return {
        "train": steps * count / max(trained, 1e-9),
        "evaluate": count / max(evaluated, 1e-9),
        "memory": planned,
        "weights": model.memory(1, training=False)["parameters"],
    }


def estimate(values: dict, jobs: list, out, workers: int, dask: str | None = None) -> str:
    """Time, memory and disk of the jobs that are not finished yet, as text."""
    from .. import _core

    todo = [j for j in jobs if not finished(Path(out) / "runs" / j.id)]
    tasks = list({t["name"]: t for j in jobs for t in j.description["tasks"]}.values())
    threads = default_threads(workers)
    before = _core.get_num_threads()
    _core.set_num_threads(threads)
    try:
        used = dict.fromkeys(j.description["backbone"] for j in todo)
        figures = {b: measure(values, b, tasks) for b in used}
    finally:
        _core.set_num_threads(before)
    images = expected_images(jobs)
    seconds = sum(_seconds(j, images[j.id], figures[j.description["backbone"]]) for j in todo)
    disk = sum(_bytes(j, figures[j.description["backbone"]]) for j in todo)
    lines = [
        f"  {b:<24}{f['train']:8.1f} img/s in training, a step of "
        f"{values['train']['batch_size']} images needs {_size(f['memory'])} as planned"
        for b, f in figures.items()
    ]
    if len(todo) < len(jobs):
        lines.append(f"finished already: {len(jobs) - len(todo)} jobs")
    if todo:
        where = "on each worker" if dask else "on this machine"
        most = max(f["memory"] for f in figures.values())
        lines += [
            f"time    at most {clock(seconds / workers)}, {workers} at a time with {threads} "
            f"threads {where} ({clock(seconds)} one after the other); early stopping ends sooner",
            f"memory  at most {_size(most * workers)} for {workers} at a time",
            f"disk    about {_size(disk)} in {out}, where {_size(_free(out))} are free",
        ]
    return "\n".join(lines)


def _seconds(job, images: int, figures: dict) -> float:
    d = job.description
    epochs = max(d["train"]["epochs"], 1)
    tested = sum(len(r["val"]) * epochs + len(r["test"]) for r in job.rows.values())
    return START + images / figures["train"] + tested / figures["evaluate"]


def _bytes(job, figures: dict) -> float:
    """Weights, predictions, histories, logs."""
    tests = sum(len(r["test"]) for r in job.rows.values())
    return figures["weights"] + 250 * tests + 120 * job.description["train"]["epochs"] + 8192


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _free(out) -> int:
    place = Path(out).resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place if place.is_dir() else tempfile.gettempdir()).free
