"""One training in a process of its own: `python -m mdmt.runner.job FOLDER`.

FOLDER holds job.json (what the job is) and inputs.json (where things are on this machine). The
process prints one JSON line per event to stdout: {"event": "progress", ...}, {"event": "done"},
{"event": "error", "message", "exit_code"}. It leaves model.safetensors, history.csv,
predictions.csv, processes.jsonl (a line for each process that worked on it) and, last,
result.json, whose presence means that the job is finished. A job that has a twin takes over what
that one left instead.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

from .. import __version__, kinds, points
from ..errors import BadInput, Interrupted, MdmtError, NoSpace, debugging, write_failure
from ..paths import (
    atomic,
    folder_lock,
    read_json,
    remove_unfinished,
    write_atomic,
    write_csv,
    write_json,
)
from ..system import cpu_path
from .kept import PREDICTIONS, RESULT, WEIGHTS, check_mark, finished, marks_of, tidy

LOCK_SECONDS = 60.0  # that a training waits for another process to leave its folder
HISTORY, TENSORBOARD = "history.csv", "tensorboard"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Signals:
    """Remembers that a stop was asked for: by SIGTERM, SIGINT, SIGUSR1, or a parent that died."""

    def __init__(self):
        self.asked = False
        self.parent = os.getppid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._ask)

    def _ask(self, number, frame):
        self.asked = True

    def __call__(self) -> bool:
        return self.asked or os.getppid() != self.parent


def execute(folder, stop=None, emit=None) -> dict:
    """Run the job of `folder` (see the module's text); return what result.json holds."""
    folder = Path(folder)
    job = read_json(folder / "job.json")
    description = job["description"]
    inputs = read_json(folder / "inputs.json")
    wanted = job.get("mdmt", __version__)
    if wanted != __version__:
        raise BadInput(
            f"{folder}: the study is run by mdmt {wanted}, and this worker has {__version__}; "
            "install the same version on every machine"
        )
    begin = time.monotonic()
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(folder_lock(folder, "job", wait=LOCK_SECONDS))
        except NoSpace:
            raise
        except BadInput as error:  # a training of a coordinator that died is still saving
            raise Interrupted(str(error)) from error
        remove_unfinished(folder)
        if finished(folder):
            return read_json(folder / RESULT)
        if os.environ.get("MDMT_TENSORBOARD"):
            check_tensorboard()
        paths = _sign(folder)
        if inputs.get("twin"):
            result = _copied(folder, Path(inputs["runs"]) / inputs["twin"])
        else:
            result = _train(folder, description, inputs, stop, emit or (lambda **event: None))
            result["cpu"] = paths
        result["files"] = marks_of(folder)
        result["seconds"] = round(time.monotonic() - begin, 3)
        write_json(folder / RESULT, result)
        tidy(folder)
    return result


def _copied(folder: Path, source: Path) -> dict:
    """Take over what the training in `source`, which is the same in another place, left; return its
    result, with `copied_from`. The weights are the same file where the file system can."""
    if not finished(source) or not (source / WEIGHTS).is_file():
        raise BadInput(f"{source}: is not finished, and {folder.name} is a copy of it; run again")
    result = read_json(source / RESULT)
    for name in (WEIGHTS, PREDICTIONS):
        check_mark(source / name, result)
    weights = folder / WEIGHTS
    _forget(folder)
    try:
        weights.unlink(missing_ok=True)
        try:
            os.link(source / WEIGHTS, weights)
        except OSError:  # a file system without links
            with atomic(weights) as stream, open(source / WEIGHTS, "rb") as given:
                shutil.copyfileobj(given, stream)
        for name in (HISTORY, PREDICTIONS):
            write_atomic(folder / name, (source / name).read_bytes())
        if (source / TENSORBOARD).is_dir():
            shutil.copytree(source / TENSORBOARD, folder / TENSORBOARD, dirs_exist_ok=True)
    except OSError as error:
        raise write_failure(folder, error) from error
    return {**result, "resumed": result["images"], "copied_from": source.name}


def _forget(folder: Path) -> None:
    """Take away the result of an earlier training whose weights or predictions are gone, before new
    ones come to lie beside it: where this process dies before its own result, it would count again,
    and on another CPU path or by another version theirs are other bits."""
    try:
        (folder / RESULT).unlink(missing_ok=True)
    except OSError as error:
        raise write_failure(folder / RESULT, error) from error


def _sign(folder: Path) -> list[str]:
    """Add this process to processes.jsonl; return the CPU paths of all that worked on the job."""
    path = folder / "processes.jsonl"
    me = {"host": os.uname().nodename, "pid": os.getpid(), "mdmt": __version__, "cpu": cpu_path()}
    try:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(me) + "\n")
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise write_failure(path, error) from error
    found = {me["cpu"]}
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a line cut by a full disk
            found.add(json.loads(line)["cpu"])
    return sorted(found)


def _dataset(given: dict, whole: bool) -> tuple[np.ndarray, dict]:
    """Labels and {part: rows} of a data set, as inputs.json points to them; whole: the labels are
    class numbers."""
    labels = np.array(read_json(given["labels"]), np.int64 if whole else np.float64)
    rows = {p: np.array(r, np.int64) for p, r in read_json(given["rows"]).items()}
    return labels, rows


def _counted(description: dict, inputs: dict) -> int | None:
    """Steps to train when the job counts those of others: the sum of theirs."""
    if "steps_of" not in description:
        return None
    total = 0
    for name in description["steps_of"]:
        path = Path(inputs["runs"]) / name / RESULT
        result = read_json(path)
        if "steps" not in result:
            raise BadInput(
                f"{path}: does not say how many steps it took, so it is from another version; "
                "delete its folder and run again"
            )
        total += result["steps"]
    return total


def _train(folder: Path, description: dict, inputs: dict, stop, emit) -> dict:
    from .. import engine
    from ..data.store import Store

    tasks = [t["name"] for t in description["tasks"]]
    train = description["train"]
    parts = []
    for dataset in description["datasets"]:
        given = inputs["datasets"][dataset["name"]]
        task = tasks.index(dataset["task"])
        whole = kinds.kind_of(description["tasks"][task]) == kinds.CLASSES
        labels, rows = _dataset(given, whole)
        images = Store(given["store"]).images
        parts.append(engine.Part(images, labels, task, rows["train"], rows["val"], rows["test"]))
    model = _build(description, inputs)

    def progress(state, loss):
        emit(
            event="progress",
            images=state.images,
            resumed=fit.resumed,
            epoch=state.epoch + 1,
            epochs=fit.epochs,
            loss=float(loss),
            best=fit.best_loss(),
        )

    fit = engine.Fit(
        model,
        parts,
        tasks,
        train,
        description["sampler"],
        select=tasks.index(description["select"]),
        seed=description["seed"],
        checkpoint=folder / "checkpoint.safetensors",
        seconds=inputs["checkpoint_seconds"],
        steps=inputs["checkpoint_steps"],
        stop=stop,
        progress=progress,
        task_weights=description.get("task_weights", "equal"),
        freeze=description.get("freeze", False),
        max_steps=_counted(description, inputs),
        kept=_kept(description, inputs),
        class_weights=_class_weights(description),
    )
    state = fit.run()
    _forget(folder)
    model.save(str(folder / WEIGHTS))
    engine.write_history(folder / HISTORY, state.history)
    _write_predictions(folder, description, model, parts, tasks)
    _write_tensorboard(folder, state.history)
    result = {
        "version": __version__,
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "images": state.images,
        "resumed": fit.resumed,
        "steps": model.training_step,
        "val_loss": fit.best_loss(),
    }
    if found := _thresholds(description, model, parts, tasks):
        result["thresholds"] = found
    if fit.class_weights:
        classes = {t["name"]: t["classes"] for t in description["tasks"]}
        result["class_weights"] = {
            t: dict(zip(classes[t], w.tolist(), strict=True)) for t, w in fit.class_weights.items()
        }
    return result


def _thresholds(description: dict, model, parts, tasks) -> dict:
    """{task of two classes: its operating points}, chosen on its validation part."""
    from ..engine import at_once, decoded, predict

    seen: dict = {}
    for d, part in enumerate(parts):
        spec = description["tasks"][part.task]
        if kinds.kind_of(spec) == kinds.CLASSES and len(spec["classes"]) == 2 and len(part.val):
            positive = kinds.positive_of(spec)
            logits = predict(model, d, part.val, at_once(description["train"]))
            p = decoded(kinds.CLASSES, logits[tasks[part.task]])[:, positive]
            seen.setdefault(tasks[part.task], []).append((part.labels[part.val] == positive, p))
    found = {t: points.thresholds(*map(np.concatenate, zip(*each))) for t, each in seen.items()}
    return {task: values for task, values in found.items() if values}


def _class_weights(description: dict) -> dict:
    """{task: "balanced" or the weights of its classes in their order}."""
    found = {}
    for task in description["tasks"]:
        given = task.get("class_weights")
        if given is not None:
            fixed = not isinstance(given, str)
            found[task["name"]] = [given.get(c, 1.0) for c in task["classes"]] if fixed else given
    return found


def _build(description: dict, inputs: dict):
    """Return the Model with its initial weights."""
    from ..model import Model
    from ..system import device_for

    heads = {t["name"]: kinds.head_of(t) for t in description["tasks"]}
    sources = description["init"].get("jobs")
    try:
        return Model(
            description["backbone"],
            heads=heads,
            image_size=description["image_size"],
            device=device_for(inputs["device"], description["precision"]),
            precision=description["precision"],
            seed=description["seed"],
            weights=inputs["weights"] if sources is None else _start(description, inputs, heads),
        )
    except FloatingPointError:
        raise
    except (ValueError, OSError, NotImplementedError) as error:
        raise BadInput(str(error)) from error


def _kept(description: dict, inputs: dict) -> list[str]:
    """The tasks whose heads are those of the jobs that this one starts from."""
    if description["heads"] != "keep":
        return []
    jobs = [Path(inputs["runs"]) / n / "job.json" for n, _ in description["init"].get("jobs", [])]
    before = {t["name"] for path in jobs for t in read_json(path)["description"]["tasks"]}
    return [t["name"] for t in description["tasks"] if t["name"] in before]


def _start(description: dict, inputs: dict, heads: dict) -> dict:
    """The backbone (and, with heads "keep", the heads) of the jobs that this one starts from."""
    from ..weights import average_weights, load_weights

    sources = description["init"]["jobs"]
    runs = Path(inputs["runs"])
    for job, _ in sources:
        check_mark(runs / job / WEIGHTS, read_json(runs / job / RESULT))
    states = [load_weights(runs / job / WEIGHTS) for job, _ in sources]
    backbones = [{k: v for k, v in s.items() if not k.startswith("heads.")} for s in states]
    start, share = backbones[0], sources[0][1]
    for state, (_, more) in zip(backbones[1:], sources[1:], strict=True):
        total = share + more
        start = average_weights(start, state, share / total if total else 0.5)
        share = total
    if description["heads"] == "keep":
        kept = tuple(f"heads.{task}." for task in heads)
        for state in states:
            start |= {k: v for k, v in state.items() if k.startswith(kept)}
    return start


def _write_predictions(folder, description, model, parts, tasks) -> None:
    """Write the test part's predictions of every task: one row per case; of numbers without
    probabilities."""
    from ..engine import at_once, decoded, predict

    rows, columns = [], ["dataset", "task", "row", "label", "predicted"]
    for d, dataset in enumerate(description["datasets"]):
        part = parts[d]
        test, labels = part.test, part.labels
        task = tasks[part.task]
        if len(test) == 0:
            continue
        logits = predict(model, d, test, at_once(description["train"]))[task]
        if not np.isfinite(logits).all():
            raise BadInput(f"task '{task}': the network's outputs are not finite; lower train.lr")
        spec = description["tasks"][part.task]
        kind, classes = kinds.kind_of(spec), spec["classes"]
        given = decoded(kind, logits)
        said = (
            kinds.texts(kind, classes, labels[test]),
            kinds.texts(kind, classes, kinds.called(kind, given)),
        )
        for r, label, predicted, p in zip(test.tolist(), *said, given, strict=True):
            cells = {f"p{k}": str(v) for k, v in enumerate(p[: len(classes)])}
            rows.append(
                {
                    "dataset": dataset["name"],
                    "task": task,
                    "row": r,
                    "label": label,
                    "predicted": predicted,
                    **cells,
                }
            )
    most = max(len(t["classes"]) for t in description["tasks"])
    write_csv(Path(folder) / PREDICTIONS, columns + [f"p{k}" for k in range(most)], rows)


def check_tensorboard() -> None:
    """Raises BadInput where what --tensorboard needs is not installed."""
    try:
        import tensorboard.summary.writer.event_file_writer  # noqa: F401
    except ImportError as error:
        raise BadInput(
            f'--tensorboard needs the package tensorboard ({error}); install "mdmt[tensorboard]"'
        ) from error


def _write_tensorboard(folder: Path, history: list[dict]) -> None:
    """The history as TensorBoard scalars, where MDMT_TENSORBOARD asks for them."""
    if not os.environ.get("MDMT_TENSORBOARD"):
        return
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder / TENSORBOARD))
    for row in history:
        values = [
            Summary.Value(tag=name, simple_value=float(value))
            for name, value in row.items()
            if name not in ("epoch", "best") and value is not None
        ]
        writer.add_event(Event(step=row["epoch"], summary=Summary(value=values)))
    writer.close()


def _sentence(error: BaseException) -> tuple[str, int]:
    """Return the sentence and the exit code for an error of a training."""
    if isinstance(error, MdmtError):
        return str(error), error.exit_code
    if isinstance(error, FloatingPointError):
        return f"{error}; lower train.lr or look at the images", 2
    if isinstance(error, MemoryError):
        from ..engine import SMALLER

        return f"{error or 'not enough memory'}; {SMALLER}", 2
    if isinstance(error, OSError):
        sentence = str(error) if error.filename is None else f"{error.filename}: {error.strerror}"
        return f"{sentence}; free some space or choose another --out", 2
    return f"{type(error).__name__}: {error}", 1


def _is_full(error: BaseException) -> bool:
    """Whether an error says that a file could not grow; the engine's OSError has no number."""
    if not isinstance(error, OSError):
        return False
    return error.errno in FULL or any(os.strerror(n) in str(error) for n in FULL)


def main(arguments=None) -> int:
    """Entry of the child process."""
    folder = Path((arguments or sys.argv[1:])[0])
    stop = _Signals()
    last = 0.0

    def emit(**event):
        nonlocal last
        now = time.monotonic()
        if event["event"] == "progress" and now - last < 0.2:
            return
        last = now
        try:
            print(json.dumps(event), flush=True)
        except BrokenPipeError:
            stop.asked = True

    try:
        execute(folder, stop, emit)
    except Interrupted as error:
        emit(event="interrupted", message=str(error))
        return 75
    except Exception as error:
        if debugging():
            import traceback

            traceback.print_exc()
        message, code = _sentence(error)
        full = isinstance(error, NoSpace) or _is_full(error)
        emit(event="error", message=message, exit_code=code, full=full)
        return code
    emit(event="done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
