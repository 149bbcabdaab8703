"""What the plan of a study will take: trainings, time, memory, disk; from a few measured steps."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from .. import kinds
from ..errors import BadConfig, BadInput
from ..runner import estimate
from ..runner.display import images_per_epoch
from ..runner.estimate import size_text

BUDGET = 20.0  # seconds after which further backbones are estimated from the measured ones


def forecast(report, out, quiet: bool = False) -> None:
    """Fill in `report.costs`; findings where the plan does not fit this machine.

    costs: as from `estimate.forecast`, with free (bytes), out, and guessed: names of backbones that
    were not measured.
    """
    values, jobs = report.values, report.study.jobs
    out = Path(out) if out is not None else Path("results") / values["name"]
    tasks = list({t["name"]: t for j in jobs for t in j.description["tasks"]}.values())
    figures, guessed = _measured(report, values, tasks, quiet)
    if not figures:
        return
    known = [j for j in jobs if j.description["backbone"] in figures]
    found = estimate.forecast(values, known, out, 1, figures)
    free = estimate.free(out)
    if found["disk"] > free:
        report.add(
            "error", "plan",
            f"the trainings need about {size_text(found['disk'])} in {out}, where "
            f"{size_text(free)} are free; free some space or choose another --out",
        )  # fmt: skip
    report.costs = {**found, "free": free, "out": str(out), "guessed": guessed}


def fits(report, quiet: bool = False) -> None:
    """Findings where a step of a backbone does not fit into this machine's memory."""
    values, names = report.values, report.values["backbones"]
    heads = {n: kinds.head_of(t) for n, t in values["tasks"].items()}
    for k, name in enumerate(names):
        _say(quiet, f"planning {k + 1}/{len(names)}: {name}")
        try:
            _planned(values, name, heads)
            _last_batches(report, name, heads)
        except BadInput as error:
            report.add("error", "plan", str(error))
    _say(quiet, "")


def _last_batches(report, name: str, heads: dict) -> None:
    """BadInput where trainings of a backbone end an epoch in a batch that cannot be trained on."""
    from ..engine import leaves_one, lonely, takes_one
    from ..model import Model

    def alone(job) -> int:
        """Images of an epoch whose last batch is of one, else 0."""
        d = job.description
        if d["backbone"] != name or d.get("freeze") or "steps_of" in d or not d["train"]["epochs"]:
            return 0
        images, train = images_per_epoch(job), d["train"]
        last = (images - 1) % train["batch_size"] + 1
        return images if leaves_one(last, train.get("micro_batch")) else 0

    found = [job for job in report.study.jobs if alone(job)]
    if not found:
        return
    how = estimate.measured_on(report.values)
    model = Model(name, heads=heads, image_size=report.values["image_size"], **how)
    if not takes_one(model):
        d = found[0].description
        model.micro_batch = d["train"].get("micro_batch")
        more = f" (and {len(found) - 1} more trainings)" if len(found) > 1 else ""
        sentence = lonely(model, alone(found[0]), d["train"]["batch_size"])
        raise BadInput(f"{d['validation']}, fold {d['fold']}: {sentence}{more}")


def _measured(report, values: dict, tasks: list, quiet: bool) -> tuple[dict, list[str]]:
    """{backbone: figures}, the names of those that were estimated from others."""
    begin, names = time.perf_counter(), values["backbones"]
    heads = {t["name"]: kinds.head_of(t) for t in tasks}
    figures, others, work = {}, {}, {}
    for k, name in enumerate(names):
        _say(quiet, f"planning {k + 1}/{len(names)}: {name}")
        try:
            known, work[name] = _planned(values, name, heads)
            _last_batches(report, name, heads)
            if time.perf_counter() - begin < BUDGET or not figures:
                figures[name] = estimate.measure(values, name, tasks)
            else:
                others[name] = known
        except BadInput as error:
            report.add("error", "plan", str(error))
    _say(quiet, "")
    for name, known in others.items():
        near = min(figures, key=lambda n: abs(work[n] / work[name] - 1))
        like, share = figures[near], work[name] / work[near]
        once = known["weights"] / like["weights"]
        figures[name] = {
            **known,
            **{k: like[k] * once for k in ("start", "step")},
            **{k: like[k] * share for k in ("image", "evaluate")},
        }
    return figures, list(others)


def _planned(values: dict, name: str, heads: dict) -> tuple[dict, float]:
    """Bytes of a step and of the weights, and multiply-adds of an image. Raises BadConfig."""
    from ..engine import SMALLER, check_memory
    from ..model import Model

    try:
        model = Model(
            name, heads=heads, image_size=values["image_size"], **estimate.measured_on(values)
        )
        model.micro_batch = values["train"].get("micro_batch")
        memory = check_memory(model, values["train"]["batch_size"])
    except BadInput:
        raise
    except MemoryError as error:
        raise BadConfig(f"{name}: {error}; {SMALLER}") from error
    except ValueError as error:
        raise BadConfig(f"{name}: {error}") from error
    weights = model.memory(1, training=False)["parameters"]
    return {"memory": memory, "weights": weights}, model.cost()["macs"]


def _say(quiet: bool, text: str) -> None:
    """A line of progress on a terminal, over the one before."""
    if not quiet and sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
