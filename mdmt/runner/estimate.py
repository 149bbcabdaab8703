"""What a study will take, before it runs: the graph's size, and time, memory and disk estimated
from one measured step of every backbone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from .. import kinds
from ..data.store import picture_shape
from ..engine import SMALLER, check_memory, in_parts
from ..errors import BadConfig
from ..paths import flush_to_disk
from .child import default_threads, search_path
from .display import clock, expected_images
from .kept import done_and_usable

LISTED = 200  # jobs beyond which they are counted, not listed
SURE = (  # what an estimated time presumes
    "where nothing else runs and every training takes all its epochs; early stopping ends sooner"
)
SAMPLES = 8  # images of a measured step, and a quarter of them in another one


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
                f" seed {d['seed']}"
                + (f"  {'copy of' if job.twin else 'after'} {after}" if after else "")
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
    copies = sum(j.twin is not None for j in jobs)
    same = f", {copies} the same training as another and copied" if copies else ""
    return f"{edges} dependencies, chains of at most {deep}{same}\n{len(jobs)} jobs"


def measure(
    values: dict, backbone: str, tasks: list[dict], place=None, device: str = "auto"
) -> dict:
    """Build `backbone` and train it for some steps on noise.

    A step costs something whatever its batch (Adam goes through every weight), so that two batch
    sizes are measured. Returns seconds: `start` (building, compiling, saving, what a training pays
    once), `step` and `image` (a step of n images takes step + n image), `evaluate` (an image);
    planned bytes of a full batch and bytes of the weights. place: folder to save the weights in, as
    an unnamed file.
    """
    from ..model import Model

    size, batch = values["image_size"], values["train"]["batch_size"]
    heads = {t["name"]: kinds.head_of(t) for t in tasks}
    begin = time.perf_counter()
    model = Model(backbone, heads=heads, image_size=size, **measured_on(values, device))
    start = time.perf_counter() - begin
    model.micro_batch = values["train"].get("micro_batch")
    try:
        planned = check_memory(model, batch)
    except MemoryError as error:
        raise BadConfig(f"{backbone}: {error}; {SMALLER}") from error
    count = min(SAMPLES, batch)
    rng = np.random.default_rng(0)
    shape = picture_shape({"size": size, "colour": values["data"]["colour"]})
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    columns = [kinds.outputs(t) if kinds.kind_of(t) == kinds.FINDINGS else 1 for t in tasks]
    target = np.zeros((count, max(columns)), np.float32)
    model.attach([{"images": images, "task": 0, "target": target}])

    def timed(action, n: int, repeats: int = 2) -> tuple[float, float]:
        """(the first call, the best of the later ones) on n images."""
        seen = []
        for _ in range(1 + repeats):
            begin = time.perf_counter()
            action(np.zeros(n, np.int64), np.arange(n))
            seen.append(time.perf_counter() - begin)
        return seen[0], min(seen[1:])

    compiling, many = timed(model.fit_step, count)
    few_images = max(count // 4, min(2, count))  # batch norm needs two
    few = timed(model.fit_step, few_images)[1] if few_images < count else 0.0
    image = max(many - few, 0.5 * many * (count - few_images) / count) / max(count - few_images, 1)
    first, evaluated = timed(lambda d, i: model.predict(d, i, batch_size=count), count, 1)
    return {
        "start": start + compiling - many + first - evaluated + _saving(model, place),
        "step": max(many - count * image, 0.0),
        "image": image,
        "evaluate": evaluated / count,
        "memory": planned,
        "weights": model.memory(1, training=False)["parameters"],
    }


def measured_on(values: dict, device: str = "auto") -> dict:
    """{"device", "precision"} for a Model with which a study is measured on this machine."""
    from ..system import device_to_measure

    found, precision = device_to_measure(device, values["precision"])
    return {"device": found, "precision": precision}


def _saving(model, place) -> float:
    """Seconds that the best weights take to be copied and saved."""
    begin = time.perf_counter()
    model.state_dict()
    state = model.state_dict()
    with tempfile.TemporaryFile(dir=place) as stream:
        for value in state.values():
            stream.write(np.ascontiguousarray(value))
        stream.flush()
        flush_to_disk(stream.fileno())
    return time.perf_counter() - begin


def _process_start() -> float:
    """Seconds that a training's process takes to start, import what it needs, and end."""
    code = "import mdmt.runner.job, mdmt.engine, mdmt.model, mdmt.data.store"
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env=search_path(), stdin=subprocess.DEVNULL)
    return time.perf_counter() - begin


def forecast(
    values: dict,
    jobs: list,
    out,
    workers: int,
    figures: dict | None = None,
    device: str = "auto",
) -> dict:
    """Figures of the jobs that are not finished yet: `todo`, their number; `seconds` one after the
    other; `disk`, bytes; `memory`, bytes of the largest; `backbones`, {name: `measure`'s figures};
    `threads` of each. figures: the backbones', where they are known."""
    from .. import _core

    out = Path(out)
    done = set(done_and_usable(jobs, out / "runs"))
    todo = [j for j in jobs if j.id not in done]
    tasks = list({t["name"]: t for j in jobs for t in j.description["tasks"]}.values())
    threads = default_threads(workers)
    before = _core.get_num_threads()
    _core.set_num_threads(threads)
    try:
        used = dict.fromkeys(j.description["backbone"] for j in todo)
        if figures is None:
            figures = {b: measure(values, b, tasks, _existing(out), device) for b in used}
    finally:
        _core.set_num_threads(before)
    images = expected_images(jobs)
    start = _process_start() if todo else 0.0
    made = [j for j in todo if not j.twin]
    weights = [figures[j.description["backbone"]]["weights"] for j in made]
    if not values["keep_weights"]:  # those of the places under way
        weights = sorted(weights)[-4 * workers :]
    return {
        "todo": len(todo),
        "seconds": start * len(todo)
        + sum(_seconds(j, images[j.id], figures[j.description["backbone"]]) for j in made),
        "disk": sum(weights) + sum(_bytes(j) for j in todo),
        "memory": max((f["memory"] for f in figures.values()), default=0),
        "backbones": figures,
        "threads": threads,
    }


def estimate(
    values: dict,
    jobs: list,
    out,
    workers: int,
    dask: str | None = None,
    device: str = "auto",
) -> str:
    """Time, memory and disk of the jobs that are not finished yet, as text."""
    found = forecast(values, jobs, out, workers, device=device)
    batch, lines = values["train"]["batch_size"], []
    parted = in_parts(batch, values["train"].get("micro_batch"))
    used = measured_on(values, device)["precision"]
    if used != values["precision"]:
        lines.append(
            f"measured in {used} on this processor, which does not have precision "
            f"{values['precision']}"
        )
    for name, f in found["backbones"].items():
        rate = batch / (f["step"] + batch * f["image"])
        lines.append(
            f"  {name:<24}{rate:8.1f} img/s in training, {f['start']:5.1f} s to start and end, a "
            f"step of {batch} images{parted} needs {size_text(f['memory'])} as planned"
        )
    if found["todo"] < len(jobs):
        lines.append(f"finished already: {len(jobs) - found['todo']} jobs")
    if found["todo"]:
        where = "on each worker" if dask else "on this machine"
        seconds = found["seconds"]
        threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
        lines += [
            f"time    about {clock(seconds / workers)}, {workers} at a time with "
            f"{threads} {where} ({clock(seconds)} one after the other), {SURE}",
            f"memory  {size_text(found['memory'] * workers)} for the steps of {workers} at a time, "
            "and what Python needs for each (about 100 MiB)",
            f"disk    about {size_text(found['disk'])} in {out}, where {size_text(free(out))} "
            "are free",
        ]
    return "\n".join(lines)


def _seconds(job, images: int, figures: dict) -> float:
    """Of a training, without its process's start."""
    d = job.description
    epochs = max(d["train"]["epochs"], 1)
    steps = images / d["train"]["batch_size"]
    steps = epochs * -(-steps // epochs)  # the last batch of an epoch may be a small one
    tested = sum(len(r["val"]) * epochs + len(r["test"]) for r in job.rows.values())
    trained = steps * figures["step"] + images * figures["image"]
    return figures["start"] + trained + tested * figures["evaluate"]


def _bytes(job) -> float:
    """Predictions, histories, logs."""
    tests = sum(len(r["test"]) for r in job.rows.values())
    return 250 * tests + 120 * job.description["train"]["epochs"] + 8192


def size_text(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _existing(out) -> Path:
    """The folder nearest to `out` that exists."""
    place = Path(out).resolve()
    while not place.exists():
        place = place.parent
    return place if place.is_dir() else Path(tempfile.gettempdir())


def free(out) -> int:
    return shutil.disk_usage(_existing(out)).free
