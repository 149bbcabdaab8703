"""The study of a network for masks: `python -m mdmt.run lungs`.

Cross-validation by patient, then one network trained on every mask. The out folder holds

    splits.json            who is in which part of which fold
    data.json              a hash of the pictures and masks, which stay those of the first start
    results.csv            the Dice coefficient of every picture, by the network that never saw its
                           patient
    pictures.csv           the verdict on every picture of the image folder, likewise
    table.csv              mean and 5th percentile per fold and over all
    runs/<fold or final>/  weights, history, result of each training
    <name>.safetensors     the network trained on everything, in half precision
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import sys
import time
from glob import escape
from pathlib import Path

import numpy as np

from . import __version__, config, engine
from .data.images import read_grey
from .data.table import read_table
from .errors import BadConfig, BadData, BadInput, write_failure
from .paths import folder_lock, make_folder, read_json, write_atomic, write_csv, write_json
from .preprocess import lungs, negatives
from .splits import stratified_group_kfold

FINAL = "final"
RESULT = "result.json"
KINDS = (".jpg", ".jpeg", ".png")  # of pictures, in capitals too
DATA = "data.json"
VERDICT = list(lungs.LungVerdict._fields)


class Data:
    """Pictures (M, S, S) and masks (M, S, S; 255 inside), uint8, with their names and patients."""

    def __init__(self, values: dict, progress: bool):
        root = values["data"]["root"]
        if root is None:
            raise BadConfig("data.root is not set; give the data folder with --set data.root=...")
        self.root, self.where = Path(root), values["data"]
        if not self.root.is_dir():
            raise BadData(f"{root}: is not a folder; set data.root to the data folder")
        self.size = values["image_size"]
        self.names = self._column(self.where["table"], ("image",), "image")
        if len(set(self.names)) < len(self.names):
            twice = next(n for n in self.names if self.names.count(n) > 1)
            raise BadData(f"{self.root / self.where['table']}: names '{twice}' twice; keep one row")
        self.known: dict[str, str] = {}
        for table in self.where["patients"]:
            both = ("image", "patient")
            images = self._column(table, both, "image")
            self.known.update(zip(images, self._column(table, both, "patient")))
        self.patients = [self.patient(name) for name in self.names]
        pairs = [self._read(name) for name in _bar(self.names, "reading", progress)]
        self.pictures, self.masks = (np.stack(part) for part in zip(*pairs))

    def digest(self) -> str:
        """Hex SHA-256 of pictures and masks, as the network sees them."""
        value = hashlib.sha256(self.pictures)
        value.update(self.masks)
        return value.hexdigest()

    def patient(self, name: str) -> str:
        """The patient of a picture; one that no table names is a patient of its own."""
        return self.known.get(name) or f"picture:{name}"

    def _column(self, table: str, columns, name: str) -> list[str]:
        path = self.root / table
        header, rows = read_table(path)
        missing = [c for c in columns if c not in header]
        if missing:
            raise BadData(f"{path}: has no column '{missing[0]}'; it has {', '.join(header)}")
        return [row[name] for row in rows]

    def _read(self, name: str):
        from PIL import Image

        grey = read_grey(self.path(name))
        path = self.root / self.where["masks"] / f"{name}.png"
        mask = read_grey(path) > 0
        if mask.shape != grey.shape:
            raise BadData(
                f"{path}: is {mask.shape[1]} x {mask.shape[0]}, its picture {grey.shape[1]} x "
                f"{grey.shape[0]}; a mask has the size of its picture"
            )
        if not mask.any():
            raise BadData(f"{path}: is empty; remove its row or correct it")
        whole = Image.fromarray(np.uint8(mask) * np.uint8(255))
        small = whole.resize((self.size, self.size), Image.Resampling.BOX)
        return lungs.network_input(grey, self.size), np.asarray(small)

    def path(self, name: str) -> Path:
        """The file of a picture."""
        path = self.root / self.where["images"] / name
        for kind in KINDS:  # without reading the folder, which may hold thousands
            if (plain := path.parent / f"{path.name}{kind}").is_file():
                return plain
        found = [p for p in path.parent.glob(f"{escape(path.name)}.*")
                 if p.stem == path.name and p.suffix.lower() in KINDS]  # fmt: skip
        if not found:
            raise BadData(f"{path}.jpg: is missing; add the picture or remove its row")
        return min(found, key=lambda p: (KINDS.index(p.suffix.lower()), p.name))

    def all_pictures(self) -> list[str]:
        """Names of all pictures in the image folder, sorted."""
        folder = self.root / self.where["images"]
        return sorted(p.stem for p in folder.iterdir()
                      if p.suffix.lower() in KINDS and not p.name.startswith("."))  # fmt: skip


def _bar(items, text: str, progress: bool):
    from tqdm import tqdm

    return tqdm(
        items,
        desc=text,
        unit="image",
        file=sys.stderr,
        leave=False,
        disable=not (progress and sys.stderr.isatty()),
    )


@contextlib.contextmanager
def _stoppable():
    """A function that says whether SIGTERM, SIGINT or SIGUSR1 came, which end nothing by themselves
    meanwhile; one that nobody asked about ends the process as it does elsewhere."""
    asked = []
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    former = {}
    try:
        for number in numbers:
            former[number] = signal.signal(number, lambda *_: asked.append(1))
    except ValueError:  # not the main thread: signals are its business
        pass
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt


class Study:
    """One run: its configuration, data, folds and out folder."""

    def __init__(self, values: dict, out: Path, device: str, progress: bool):
        self.values, self.out, self.device, self.progress = values, out, device, progress
        self.data = Data(values, progress)
        cv = values["cv"]
        self.folds = stratified_group_kfold(
            np.zeros(len(self.data.names), np.int64),
            self.data.patients,
            cv["folds"],
            cv["seed"],
            cv["validation"],
        )

    def parts(self, key) -> dict:
        """{"train", "val", "test"} rows of a fold, or of the last training: everything, with the
        first fold's validation part to choose the epoch."""
        if key != FINAL:
            return self.folds[key]
        every = np.arange(len(self.data.names))
        return {"train": every, "val": self.folds[0]["val"], "test": every[:0]}

    def folder(self, key) -> Path:
        return self.out / "runs" / (FINAL if key == FINAL else f"fold-{key}")

    def model(self):
        from .model import Model

        values = self.values
        try:
            return Model(
                values["backbone"],
                heads={values["head"]: {"loss": "dice_ce"}},
                image_size=values["image_size"],
                channels=1,
                device=self.device,
                precision=values["precision"],
                seed=values["seed"],
            )
        except NotImplementedError as error:
            raise BadConfig(str(error)) from error
        except ValueError as error:
            raise BadConfig(f"backbone: {error}") from error

    def record(self) -> list[dict]:
        """What splits.json holds: the names of every part of every fold."""
        names = self.data.names
        return [
            {k: v if k == "fold" else [names[i] for i in v] for k, v in f.items()}
            for f in self.folds
        ]

    def train(self, key) -> dict:
        """Train a fold or the last network, unless that is done; return its result."""
        folder = make_folder(self.folder(key))
        if (folder / RESULT).is_file() and (folder / "model.safetensors").is_file():
            return read_json(folder / RESULT)
        begin, values, data, rows = time.monotonic(), self.values, self.data, self.parts(key)
        model = self.model()
        parts = [engine.Part(data.pictures, data.masks, 0, rows["train"], rows["val"])]
        count = round(values["negatives"] * len(rows["train"]))
        if count:
            seed = values["seed"] * 1000 + (999 if key == FINAL else key)
            drawn = negatives.draw(count, data.pictures[rows["train"]], seed)
            none = np.arange(0)
            parts.append(engine.Part(drawn, np.zeros_like(drawn), 0, np.arange(count), none))
        with _stoppable() as stop:
            fit = engine.Fit(
                model,
                parts,
                [values["head"]],
                values["train"],
                {"mode": "union", "ratio": None, "epoch": "union", "drop_last": True},
                seed=values["seed"],
                checkpoint=folder / "checkpoint.safetensors",
                seconds=values["train"]["checkpoint_seconds"],
                steps=values["train"]["checkpoint_steps"],
                stop=stop,
                progress=self._progress(key),
            )
            state = fit.run()
        engine.write_history(folder / "history.csv", state.history)
        save_half(model, folder / "model.safetensors")
        result = {"epochs": state.epoch, "best_epoch": state.best_epoch, "mdmt": __version__}
        result["device"] = self.device
        result["seconds"] = round(time.monotonic() - begin, 1)
        result["dice"] = self._test(lungs.Segmenter(folder / "model.safetensors"), rows["test"])
        write_json(folder / RESULT, result)
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return result

    def _test(self, network, rows) -> dict:
        """{name: Dice coefficient} of the cleaned masks at the network's size."""
        found = {}
        for row in rows:
            probability = network.probabilities(self.data.pictures[row : row + 1])[0]
            mask, truth = lungs.clean(probability)[0], self.data.masks[row] > 127
            both, all_ = int((mask & truth).sum()), int(mask.sum() + truth.sum())
            # A small mask can be nothing at this size; as in `engine.mask_scores`.
            found[self.data.names[row]] = 2 * both / all_ if all_ else 1.0
        return found

    def _progress(self, key):
        """What is called after every step: a line that is written over, on a terminal."""
        if not (self.progress and sys.stderr.isatty()):
            return None
        most, what = self.values["train"]["epochs"], self._name(key)
        dice = f"val_accuracy_{self.values['head']}"

        def show(state, loss):
            text = f"\r{what}: epoch {state.epoch + 1} of at most {most}, loss {loss:.3f} "
            if state.history:
                text += f"(validation: Dice {state.history[-1][dice]:.3f}) "
            sys.stderr.write(text)
            sys.stderr.flush()

        return show

    def _name(self, key) -> str:
        return "on all masks" if key == FINAL else f"fold {key + 1} of {len(self.folds)}"

    def say(self, key, result: dict) -> None:
        """One line per finished training."""
        if not self.progress:
            return
        dice = np.array(list(result["dice"].values()))
        figures = ""
        if len(dice):
            figures = f", Dice {dice.mean():.3f} (5th percentile {np.percentile(dice, 5):.3f})"
        end = "\r\033[K" if sys.stderr.isatty() else ""
        print(
            f"{end}  {self._name(key)}: epoch {result['best_epoch'] + 1} of {result['epochs']}"
            f"{figures}, {result['seconds']:.0f} s",
            file=sys.stderr,
        )

    def screen(self) -> list[dict]:
        """The verdict on every picture of the image folder, by the network whose training had no
        picture of its patient; by the last one where no training had."""
        tested = {
            self.data.patients[row]: key
            for key in range(len(self.folds))
            for row in self.folds[key]["test"]
        }
        rows = []
        for name in _bar(self.data.all_pictures(), "looking at every picture", self.progress):
            key = tested.get(self.data.patient(name), FINAL)
            network = lungs.segmenter(self.folder(key) / "model.safetensors")
            try:
                _, verdict = next(lungs.lung_masks([read_grey(self.data.path(name))], network))
            except BadData as error:
                rows.append({"image": name, "ok": False, "reason": str(error), "doubt": 1.0})
                continue
            numbers = _rounded(verdict._asdict())
            rows.append({"image": name, "network": self.folder(key).name, **numbers})
        return sorted(rows, key=lambda row: (-row["doubt"], row["image"]))


def _rounded(row: dict) -> dict:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}


def save_half(model, path) -> None:
    """Write a model as `Model.save` does, its numbers in half precision (counters stay whole)."""
    import json

    from ._core import write_safetensors

    state = {
        key: value.astype(np.float16) if value.dtype == np.float32 else value
        for key, value in model.state_dict().items()
    }
    for key, value in state.items():
        if not np.isfinite(value).all():
            raise BadInput(f"{key} is too large for half precision; train with weight decay")
    try:
        metadata = {"format": "np", "mdmt": json.dumps(model.description())}
        write_safetensors(str(path), state, metadata)
    except OSError as error:
        raise write_failure(path, error) from error


def table(results: list[dict]) -> list[dict]:
    """Number, mean, 5th percentile, worst of the Dice coefficients: per fold, then over all."""
    rows = []
    keys = sorted({row["fold"] for row in results})
    for key in [*keys, "all"]:
        dice = np.array([r["dice"] for r in results if key in ("all", r["fold"])])
        numbers = {"mean": dice.mean(), "percentile_5": np.percentile(dice, 5), "worst": dice.min()}
        rows.append(
            {"fold": key, "n": len(dice), **{k: round(float(v), 4) for k, v in numbers.items()}}
        )
    return rows


def _claim(out: Path, values: dict) -> None:
    """The out folder is new, or of the same configuration."""
    stored = out / "config.yaml"
    if not stored.is_file():
        if out.is_dir() and any(p.name != ".lock" for p in out.iterdir()):
            raise BadInput(f"{out}: holds other files; choose another --out")
        return
    old = config.read_yaml(stored.read_text(encoding="utf-8"), str(stored))
    with contextlib.suppress(BadConfig):  # else keys of another version: compared as they stand
        old = config.resolve(old, str(stored))
    changed = config.differences(old, values)
    if changed:
        path, was, now = changed[0]
        raise BadInput(
            f"{out}: was begun with {path} = {was}, now it is {now}; choose another --out"
        )


def _check_same_data(out: Path, record: list[dict], data: dict) -> None:
    """Refuse when what `out` holds was trained on other pictures, masks or folds: a network would
    be tested on what it has learnt from."""
    for name, now in (("splits.json", record), (DATA, data)):
        if (out / name).is_file() and read_json(out / name) != now:
            raise BadInput(
                f"{out}: was begun with other pictures, masks or patients; choose another --out"
            )


def run(
    values: dict, out=None, device: str = "cpu", quiet: bool = False, where: str = ""
) -> list[dict]:
    """Run a resolved configuration of kind masks; return the rows of table.csv. where: what its
    introduction says of the device.

    Raises BadInput for what cannot be used, and Interrupted after a signal: the same command goes
    on from the checkpoint.
    """
    out = Path(out) if out is not None else Path("results") / values["name"]
    _claim(out, values)
    with folder_lock(make_folder(out), "out folder"):
        study = Study(values, out, device, not quiet)
        model = study.model()  # whatever is wrong with it shows before the folder is claimed
        record, data = study.record(), {"sha256": study.data.digest()}
        _check_same_data(out, record, data)
        write_atomic(out / "config.yaml", config.dump(values))
        write_json(out / "splits.json", record)
        write_json(out / DATA, data)
        if not quiet:
            people, masks = len(set(study.data.patients)), len(study.data.names)
            print(
                f"mdmt {__version__}: {values['name']} -> {out}\n  {masks} masks of {people} "
                f"patients; {model}" + (f"\n  {where}" if where else ""),
                file=sys.stderr,
            )
        results = []
        for key in [*range(len(study.folds)), FINAL]:
            result = study.train(key)
            study.say(key, result)
            for name, dice in result["dice"].items():
                patient = study.data.patient(name)
                results.append(
                    {"fold": key, "image": name, "patient": patient, "dice": round(dice, 4)}
                )
        write_csv(out / "results.csv", ["fold", "image", "patient", "dice"], results)
        found = table(results)
        write_csv(out / "table.csv", list(found[0]), found)
        write_csv(out / "pictures.csv", ["image", "network", *VERDICT], study.screen())
        kept = study.folder(FINAL) / "model.safetensors"
        write_atomic(out / f"{values['name']}.safetensors", kept.read_bytes())
    if not quiet:
        _conclude(results, out, values)
    return found


def text(results: list[dict]) -> str:
    """The table of `results` (fold, dice) in percent, as lines."""
    lines = [f"{'fold':>6}{'pictures':>10}{'Dice':>8}{'5th percentile':>16}{'worst':>8}"]
    for row in table(results):
        figures = (100 * row[k] for k in ("mean", "percentile_5", "worst"))
        mean, low, worst = figures
        name = row["fold"] if row["fold"] == "all" else row["fold"] + 1
        lines.append(f"{name:>6}{row['n']:>10}{mean:>8.1f}{low:>16.1f}{worst:>8.1f}")
    return "\n".join(lines)


def _conclude(results: list[dict], out: Path, values: dict) -> None:
    print(text(results))
    print(f"results   {out / 'results.csv'}\npictures  {out / 'pictures.csv'}")
    print(f"network   {out / values['name']}.safetensors", flush=True)
