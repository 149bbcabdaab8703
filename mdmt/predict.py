"""`mdmt predict OUT IMAGE...`: what the networks of a finished run say of further pictures.

Pictures are prepared as the run prepared its own, and every task's probabilities are the mean over
the networks of all folds and seeds. A picture of the run's own data, or a near-duplicate of one,
counts only with the networks that neither learnt from it nor were selected on it, those that they
started from included.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import config, kinds, splits
from . import points as points_
from .data.table import EXTENSIONS
from .errors import BadData, BadInput, nearest
from .known import Known, Shown
from .paths import read_json
from .preprocess import build, picture
from .runner import kept
from .study import releases_of, stored_values

COLUMNS = ["image", "task", "predicted", "class", "sd", "networks", "seen", "known_as",
           "likeness", "refused"]  # fmt: skip
CHUNK = 1024  # images held at a time


@dataclass
class Network:
    """A finished training. folder: its own below runs/; tasks: {task: its entry in the
    description}; seen: SHA-256 of the files that it or what it started from was trained or
    selected on, None: not known; thresholds: {task of two classes: {name of `mdmt.points.POINTS`:
    threshold that its validation part chose}}."""

    folder: Path
    description: dict
    tasks: dict
    seen: set | None
    thresholds: dict = field(default_factory=dict)

    def knows(self, shown) -> bool:
        """Whether it was trained or selected on a picture that shows these `Shown` of the run."""
        return self.seen is not None and any(s.source in self.seen for s in shown)


def chosen_of(values: dict, configuration=None, backbone=None, release=None, validation=None):
    """{name: value} of what a run is asked for, with the defaults of `networks`. Raises BadInput
    for what the run does not have."""
    names = values["configurations"]
    return {
        "configuration": _choice(
            "configuration", configuration, names, "MDMT" if "MDMT" in names else names[-1]
        ),
        "backbone": _choice("backbone", backbone, values["backbones"], None),
        "release": _choice("release", release, releases_of(values), releases_of(values)[-1]),
        "validation": _choice(
            "validation", validation, values["validation"], values["validation"][0]
        ),
    }


def networks(out, values: dict, known: Known, *, configuration=None, backbone=None, release=None,
             validation=None, fold=None, seed=None) -> list[Network]:  # fmt: skip
    """The finished trainings of one configuration and backbone of the run in `out`; known: is told
    what they learnt from.

    configuration: default MDMT, or the last one of the run; backbone: may be left out where there
    is one; release: default the last; validation: default the first; fold, seed: default all.
    Raises BadInput where there is no such training, or its weights are not kept.
    """
    out = Path(out)
    wanted = chosen_of(values, configuration, backbone, release, validation)
    wanted |= {k: v for k, v in (("fold", fold), ("seed", seed)) if v is not None}
    found, deleted = [], 0
    current = kept.collected(out)
    for path in sorted(out.glob("runs/*/job.json")):
        if current is not None and path.parent.name not in current:
            continue
        job = read_json(path)
        place = {**job["description"], "configuration": wanted["configuration"]}
        if wanted["configuration"] not in job.get("configurations", []):
            continue
        if any(place[k] != v for k, v in wanted.items()) or not kept.finished(path.parent):
            continue
        if not (path.parent / kept.WEIGHTS).is_file():
            deleted += 1
            continue
        tasks = {t["name"]: t for t in job["description"]["tasks"]}
        seen = known.learnt_from(path.parent)
        chose = read_json(path.parent / kept.RESULT).get("thresholds", {})
        found.append(Network(path.parent, job["description"], tasks, seen, chose))
    if not found:
        what = ", ".join(f"{k} {v}" for k, v in wanted.items())
        why = (
            "the run kept no weights of it (keep_weights: false); choose another, or train it "
            "again in another folder, keeping them"
            if deleted
            else "the run has no finished training of it; choose another, or finish the run with "
            "--resume"
        )
        raise BadInput(f"{out}: {what}: {why}")
    return sorted(found, key=lambda n: (n.description["fold"], n.description["seed"]))


def _unfinished(out, values: dict, nets: list[Network], chosen: dict) -> list[str]:
    """A note where not all networks that were asked for are there."""
    if not (Path(out) / "splits.json").is_file():
        return []
    place, folds, seeds = nets[0].description, values["folds"], values["seeds"]
    if folds is None:
        made = splits.read(Path(out) / "splits.json")["validation"].get(place["validation"], [])
        folds = [f for f in made if f.get("release", place["release"]) == place["release"]]
    wanted = 1 if chosen.get("fold") is not None else len(folds)
    wanted *= 1 if chosen.get("seed") is not None else len(seeds)
    if len(nets) >= wanted:
        return []
    return [
        f"{len(nets)} of {wanted} networks are there: the run is not finished, or did not keep "
        "the weights of all"
    ]


def _choice(what: str, given, known: list, default):
    if given is None:
        if default is None and len(known) > 1:
            raise BadInput(f"--{what}: the run has {', '.join(known)}; choose one")
        return known[0] if default is None else default
    if given not in known:
        raise BadInput(f"--{what} {given}: the run has none{nearest(given, known)}")
    return given


def find_images(given) -> list[Path]:
    """Files, and the pictures in folders and what is below them, each once, in order."""
    found: list[Path] = []
    for one in map(Path, given):
        if one.is_dir():
            inside = sorted(
                Path(top) / name
                for top, _, files in os.walk(one)
                for name in files
                if name.lower().endswith(EXTENSIONS)
                and not name.startswith(".")
                and not (Path(top) / name).is_fifo()  # opening a pipe would wait for ever
            )
            if not inside:
                raise BadInput(f"{one}: holds no picture ({', '.join(EXTENSIONS)})")
            found += inside
        elif one.is_file():
            found.append(one)
        else:
            raise BadInput(f"{one}: no such file or folder; correct the name")
    return list(dict.fromkeys(found))


def text_of(path: Path) -> str:
    """The path as text that can be written: bytes of a name that are no UTF-8 as \\xNN."""
    return os.fsencode(path).decode(errors="backslashreplace")


@dataclass
class Opened:
    """The networks of a run and what they need. settings: of `mdmt.preprocess.picture`; known: the
    pictures that they learnt from; cuts: {task of a number: its entry in the configuration} where
    thresholds make classes of it; notes: what a user should know; what: one of the pictures in
    words."""

    nets: list[Network]
    settings: dict
    known: Known
    cuts: dict[str, dict]
    notes: list[str]
    what: str = "radiograph"


def opened(out, **chosen) -> Opened:
    """The run in `out`; chosen: as for `networks`. Raises BadInput."""
    values = stored_values(out)
    if values is None:
        raise BadInput(f"{out}: is no out folder of mdmt (it has no config.yaml)")
    if config.is_masks(values):
        raise BadInput(f"{out}: is a run of kind masks; use mdmt.lung_mask")
    if values["validation"] == ["external"]:
        raise BadInput(f"{out}: is an evaluation, which trained no network; give the run's folder")
    known = Known(equal_only=values["data"]["synthetic"] is not None)
    nets = networks(out, values, known, **chosen)
    notes = _unfinished(out, values, nets, chosen)
    if any(n.seen is None for n in nets):
        notes.append(
            "the run's prepared images are not here any more, so it is not known which of these "
            "pictures the networks learnt from"
        )
    if values["data"]["synthetic"] is not None:
        notes.append(
            "SYNTHETIC data trained these networks: they know nothing of patients; drawn pictures "
            "all look alike, so that one is taken for the run's own only where its pixels are equal"
        )
    cuts = {name: task for name, task in values["tasks"].items()
            if kinds.kind_of(task) == kinds.NUMBER and task["thresholds"]}  # fmt: skip
    what = config.pictured(values)
    return Opened(nets, picture.settings_of(values), known, cuts, notes, what)


def prepared(paths: list[Path], settings: dict):
    """A `mdmt.preprocess.picture.Prepared` for each path, in order."""
    return build.prepared([picture.Task(p) for p in paths], settings, 1)


def refusal(path: Path, one: picture.Prepared) -> str:
    """The sentence for a picture that cannot be used."""
    return f"{path}: {one.facts['reason']}; leave the picture out, or go on without it by --skip"


def predict(out, images, *, device: str = "cpu", skip: bool = False, quiet: bool = True,
            **chosen) -> tuple[list[dict], list[str]]:  # fmt: skip
    """Probabilities of every task for pictures, by the networks of the run in `out`.

    images: files or folders; skip: leave pictures that cannot be used without a prediction, instead
    of raising BadData for the first; chosen: as for `networks`.
    Returns (rows, notes). A row per image and task: `COLUMNS` and "p_<class>", None where a class
    is not the task's: the mean over networks; class: what the task's thresholds make of a number;
    sd: standard deviation over the networks of the predicted class's probability or of the number,
    None for findings; above_<point>: of two classes how many networks call the picture positive at
    the threshold that their validation part chose for the point (`mdmt.points.POINTS`), None where
    one of them could choose none; networks: how many that is; seen: how many were left out because
    they know the picture; known_as: the run's file that it is or shows; likeness: 1 for the same
    file or pixels, else the correlation that makes it a near-duplicate; refused: why there is no
    prediction. Raises BadInput.
    """
    run = opened(out, **chosen)
    paths = find_images(images)
    rows: list[dict] = []
    own: dict[Path, Shown] = {}
    with Progress(len(paths), quiet, "predicting") as progress:
        for start in range(0, len(paths), CHUNK):
            rows += _chunk(paths[start : start + CHUNK], run, device, skip, progress, own)
    run.notes += told_known(own, len(paths), run.what)
    return rows, run.notes


def told_known(own: dict[Path, Shown], total: int, what: str = "radiograph") -> list[str]:
    """Sentences about the pictures that networks know; own: what each of them shows; what: one of
    them in words."""
    files = [path for path, s in own.items() if s.same_file]
    copies = [(path, s) for path, s in own.items() if not s.same_file]
    notes, left_out = [], "networks that learnt from them were left out"
    if files:
        more = ", ..." if len(files) > 1 else ""
        notes.append(
            f"{len(files)} of {total} pictures are the run's own ({files[0]}{more}): {left_out}"
        )
    if copies:
        said = "; ".join(f"{p.name} = {s.name}, {s.likeness:.2f}" for p, s in copies[:3])
        notes.append(
            f"{len(copies)} of {total} pictures show a {what} of the run in another file "
            f"({said}{'; ...' if len(copies) > 3 else ''}): {left_out}"
        )
    return notes


class Progress:
    """A bar on a terminal."""

    def __init__(self, total: int, quiet: bool, what: str, unit: str = "image"):
        from tqdm import tqdm

        hidden = quiet or not sys.stderr.isatty()
        self.bar = tqdm(total=total, unit=unit, desc=what, file=sys.stderr,
                        leave=False, delay=1, disable=hidden)  # fmt: skip

    def __enter__(self):
        return self.bar.update

    def __exit__(self, *error):
        self.bar.close()


def _chunk(paths, run: Opened, device: str, skip: bool, progress, own: dict) -> list[dict]:
    """Rows of some pictures, all of them in memory; own: is given what known ones show."""
    nets, pixels, refused = run.nets, [], {}
    for path, one in zip(paths, prepared(paths, run.settings), strict=True):
        if one.pixels is None:
            if not skip:
                raise BadData(refusal(path, one))
            refused[path] = one.facts["reason"]
        else:
            pixels.append(one.pixels)
        progress()
    usable = [p for p in paths if p not in refused]
    shown = run.known.shown(usable, pixels)
    use = ~np.array([[n.knows(s) for s in shown] for n in nets], bool)
    own.update((p, s[0]) for p, s, mine in zip(usable, shown, use.T, strict=True) if not mine.all())
    given = probabilities(loaded(nets, device), np.stack(pixels)) if usable else {}
    at = {path: i for i, path in enumerate(usable)}
    classes = list(dict.fromkeys(c for task in nets[0].tasks.values() for c in task["classes"]))
    rows = []
    for path in paths:
        for task, spec in nets[0].tasks.items():
            row = {"image": text_of(path), "task": task, "networks": 0, "seen": 0}
            row |= {f"p_{c}": None for c in classes}
            if path in own:
                row |= {"known_as": own[path].name, "likeness": own[path].likeness}
            row["refused"] = refused.get(path)
            if path in at:
                mine = use[:, at[path]]
                row |= {"networks": int(mine.sum()), "seen": int((~mine).sum())}
                if mine.any():
                    p = given[task][mine, at[path]]
                    row |= _summed(p, spec, run.cuts.get(task))
                    row |= _votes(p, [n for n, m in zip(nets, mine, strict=True) if m], task)
            rows.append(row)
    return rows


def _summed(p: np.ndarray, task: dict, cut: dict | None) -> dict:
    """Cells of what networks give for a picture, (networks, C); cut: an entry of `Opened.cuts`."""
    mean, kind, names = p.mean(0), kinds.kind_of(task), task["classes"]
    predicted = kinds.texts(kind, names, kinds.called(kind, mean[None]))[0]
    cells = {f"p_{c}": float(v) for c, v in zip(names, mean, strict=False)}
    spread = None
    if len(p) > 1 and kind != kinds.FINDINGS:
        spread = float(p[:, int(mean.argmax())].std(ddof=1))
    if cut is not None:
        cells["class"] = cut["classes"][kinds.cut(mean, cut["thresholds"])[0]]
    return {"predicted": predicted, "sd": spread, **cells}


def _votes(p: np.ndarray, nets: list[Network], task: str) -> dict:
    """Cells "above_<point>" of what `nets` give for a picture, p (networks, C)."""
    each = [n.thresholds.get(task, {}) for n in nets]
    if not any(each):
        return {}
    positive = p[:, kinds.positive_of(nets[0].tasks[task])]
    return {
        f"above_{k}": int(np.sum(positive > [t[k] for t in each])) if all(each) else None
        for k in points_.POINTS
    }


def loaded(nets: list[Network], device: str):
    """(network, its Model), one at a time, since a study's do not fit into memory together."""
    from .model import Model

    for net in nets:
        yield net, Model.load(net.folder / kept.WEIGHTS, device=device)


def probabilities(models, images: np.ndarray) -> dict:
    """{task: (networks, images, C) float64} of images (n, S, S) or (n, 3, S, S) uint8, as from
    `mdmt.engine.decoded`: probabilities of classes or findings, or the number (C = 1); models: as
    `loaded` gives them."""
    from . import engine

    found: dict[str, list] = {}
    rows = np.arange(len(images))
    for net, model in models:
        width = max(map(kinds.outputs, net.tasks.values()))
        unknown = np.full((len(images), width), np.nan, np.float32)
        model.attach([{"images": images, "task": 0, "target": unknown}])
        logits = engine.predict(model, 0, rows, net.description["train"]["batch_size"])
        for name, task in net.tasks.items():
            given = engine.decoded(kinds.kind_of(task), logits[name])
            found.setdefault(name, []).append(given.astype(np.float64))
    return {task: np.stack(p) for task, p in found.items()}


def columns_of(rows: list[dict]) -> list[str]:
    """Columns of the CSV: `COLUMNS`, then the classes' probabilities, then the votes at operating
    points where a row has them."""
    above = [f"above_{k}" for k in points_.POINTS]
    votes = [k for k in above if any(k in row for row in rows)]
    return COLUMNS + [k for k in rows[0] if k.startswith("p_")] + votes


def text(rows: list[dict], most: int = 40) -> str:
    """The rows as a table for a terminal: image, task, then the predicted class and the
    probabilities, or the number."""
    lines = []
    names = [Path(r["image"]).name for r in rows[:most]]
    width = max([5, *map(len, names)])
    task = max([4, *(len(r["task"]) for r in rows)])
    given = any(v is not None for r in rows for k, v in r.items() if k.startswith("p_"))
    what = "percent (most probable first)" if given else "predicted"
    lines.append(f"{'image':<{width}}  {'task':<{task}}  networks  {what}")
    for name, r in zip(names, rows[:most], strict=True):
        said = _said(r) or r["refused"] or "every network learnt from it"
        if r.get("known_as"):
            said += f" (known as {r['known_as']})"
        lines.append(f"{name:<{width}}  {r['task']:<{task}}  {r['networks']:>8}  {said}")
    if len(rows) > most:
        lines.append(f"... and {len(rows) - most} more rows")
    return "\n".join(lines)


def _said(row: dict) -> str:
    """What the networks say of a picture, "" where there is no prediction."""
    given = {k[2:]: v for k, v in row.items() if k.startswith("p_") and v is not None}
    if given:
        order = sorted(given, key=lambda c: -given[c])
        cells = [f"{c} {100 * given[c]:.1f}" for c in order]
        if row.get("sd") is not None:
            cells[0] += f" ± {100 * row['sd']:.1f}"
        return ", ".join(cells)
    if row.get("predicted") is None:
        return ""
    spread = "" if row.get("sd") is None else f" ± {row['sd']:.2f}"
    called = f", class {row['class']}" if row.get("class") else ""
    return f"{float(row['predicted']):.2f}{spread}{called}"
