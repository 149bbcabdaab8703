"""A study: a configuration with its data, splits and jobs, and the out folder it belongs to."""

from __future__ import annotations

import itertools
import platform
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import __version__, config, experiments, kinds, splits
from .errors import BadConfig, BadInput, nearest
from .paths import canonical, digest, read_json, write_json


@dataclass
class Release:
    """One data release: cases and stores per data set, splits as from `splits.make`.

    alike: near-duplicates as from `mdmt.data.similar.across`.
    """

    name: str
    cases: list
    stores: list
    splits: dict
    alike: list = field(default_factory=list)


@dataclass
class Study:
    """A configuration with its data and the jobs of all its releases."""

    values: dict
    releases: list[Release]
    jobs: list

    @property
    def cases(self) -> list:
        """Cases per data set, of the last release."""
        return self.releases[-1].cases

    @property
    def stores(self) -> list:
        """Stores per data set, of the last release."""
        return self.releases[-1].stores

    @property
    def splits(self) -> dict:
        """Splits of the last release."""
        return self.releases[-1].splits


def releases_of(values: dict) -> list[str]:
    """Names of the releases that a configuration goes through."""
    return values["data"]["releases"] or [values["data"]["release"]]


def read_cases(values: dict, out: Path | None = None, release: str | None = None) -> list:
    """Read (or, for the demo, draw) the data sets of a configuration."""
    from .data import readers, synthetic
    from .paths import cache_folder

    drawing = values["data"]["synthetic"]
    root = values["data"]["root"]
    if drawing is not None:
        root = synthetic.make(root or (out / "data" if out else cache_folder()), **drawing)
    elif root is None:
        raise BadConfig(
            f"{values['name']}: data.root is not set; give the data's folder with "
            "--set data.root=FOLDER"
        )
    elif not Path(root).is_dir():
        raise BadConfig(f"data.root: the folder {root} does not exist; correct it")
    release = release or values["data"]["release"]
    found = [
        readers.read_cases(spec, values["tasks"][spec["task"]], root, release)
        for spec in values["data"]["datasets"]
    ]
    _tell_apart(found, values["data"]["same_patients"])
    return found


def _tell_apart(cases: list, same_patients: bool) -> None:
    """Give names that two data sets of one task both have a prefix, the data set's name: in the
    files of a run, an image is known by its task and name, and a patient by the name alone.

    All data sets of the task have it then: a third one may have what is the prefixed name.
    """
    for task in dict.fromkeys(one.task for one in cases):
        own = [one for one in cases if one.task == task]
        pairs = list(itertools.combinations(own, 2))
        if any(not set(a.images).isdisjoint(b.images) for a, b in pairs):
            for one in own:
                one.image_prefix = f"{one.name}/"
        if not same_patients and any(not set(a.patients).isdisjoint(b.patients) for a, b in pairs):
            for one in own:
                one.patient_prefix = f"{one.name}/"


def _alike_in_all(releases: list[list]) -> None:
    """A name that needs its prefix in one release has it in all: it is the same image or patient.

    releases: the cases of each, in the same order of data sets.
    """
    for same in zip(*releases, strict=True):
        image = max(cases.image_prefix for cases in same)
        patient = max(cases.patient_prefix for cases in same)
        for cases in same:
            cases.image_prefix, cases.patient_prefix = image, patient


def manifest(cases, store) -> str:
    """Hash of what a data set is: every image's pixels and label, in order."""
    return digest([store.key, cases.images, cases.patients, cases.centers, cases.identity()], 24)


def gather(
    values: dict, out: Path | None = None, quiet: bool = False, surveys: dict | None = None
) -> list[tuple]:
    """Read the data and build the stores: [(release's name, [Cases], [Store])].

    surveys: filled with {(release, data set): `mdmt.preprocess.build.Survey`}; then images that
    cannot be used are left out instead of raising.
    """
    from .preprocess.build import build, inspect

    found = []
    built: dict[str, tuple] = {}  # data sets that several releases share are held once
    every = {name: read_cases(values, out, name) for name in releases_of(values)}
    _alike_in_all(list(every.values()))
    for name, read in every.items():
        cases, stores = [], []
        for one in read:
            names = [one.name, one.image_prefix, one.patient_prefix]
            key = digest([*names, [str(p) for p in one.paths], one.identity()])
            if key not in built:
                if surveys is None:
                    built[key] = build(one, values, progress=not quiet)
                else:
                    survey = inspect(one, values, progress=not quiet)
                    built[key] = (survey.store, survey.usable, survey)
            if surveys is not None:
                surveys[name, one.name] = built[key][2]
            stores.append(built[key][0])
            cases.append(built[key][1])
        found.append((name, cases, stores))
    return found


def prepare(values: dict, out: Path | None = None, quiet: bool = False) -> Study:
    """Read the data, build the stores, look for near-duplicates, make the splits, plan the jobs."""
    check_names(values)
    return plan(values, gather(values, out, quiet))


def plan(values: dict, gathered: list[tuple], found: list[list] | None = None) -> Study:
    """Make the splits and the jobs of what `gather` found.

    found: near-duplicates of each release (default: `find_alike` looks for them). Raises BadInput,
    also for leaks.
    """
    releases, jobs, memo = [], [], {}
    found = find_alike(values, gathered) if found is None else found
    for (name, cases, stores), alike in zip(gathered, found, strict=True):
        made = splits.make(cases, values, memo, alike, name)
        check_across(cases, stores, made)
        datasets = [(c, manifest(c, s)) for c, s in zip(cases, stores, strict=True)]
        releases.append(Release(name, cases, stores, made, alike))
        jobs += experiments.plan(values, datasets, made, name)
    experiments.share(jobs)
    return Study(values, releases, jobs)


def find_alike(values: dict, gathered: list[tuple]) -> list[list]:
    """Near-duplicates of each release, as from `mdmt.data.similar.across`.

    Drawn pictures all look alike: none are looked for.
    """
    from .data import similar, store

    if values["data"]["synthetic"] is not None:
        return [[] for _ in gathered]
    every = {s.key: s for _, _, stores in gathered for s in stores}
    found = similar.by_source(list(every.values()), store.store_folder(values))
    return [similar.across(stores, found) for _, _, stores in gathered]


def check_across(cases: list, stores: list, made: dict) -> None:
    """A picture in two data sets must not be tested in one and trained on in the other.

    Patient ids that occur in two data sets are noted where the folds would leak, were they the
    same people: only the user knows whether they are.
    """
    for a in range(len(cases)):
        for b in range(a + 1, len(cases)):
            one, two = cases[a], cases[b]
            shared = sorted(set(one.patients) & set(two.patients))
            note = (
                f"{len(shared)} patient ids ('{shared[0]}', ...) are in data set '{two.name}' "
                "too; if they are the same people, test cases of one are trained on in the other"
                if _trained_on(one, two, made, set(shared))
                else None
            )
            if note and note not in one.warnings:
                one.warnings.append(note)
            where = {s: i for i, s in enumerate(stores[b].sources)}
            both = [(i, where[s]) for i, s in enumerate(stores[a].sources) if s in where]
            for fold in itertools.chain.from_iterable(made.values()):
                mine, other = fold[one.name], fold[two.name]
                for i, j in both:
                    if _split_up(mine, i, other, j) or _split_up(other, j, mine, i):
                        raise BadInput(
                            f"{one.paths[i]}: is the same picture as {two.paths[j]}, and "
                            f"would be tested in data set '{one.name}' or '{two.name}' and "
                            "trained on in the other; keep one"
                        )


def _split_up(mine: dict, i: int, other: dict, j: int) -> bool:
    """Whether case i is tested and case j learnt from; it may be in no part of its fold."""
    return i in mine["test"] and (j in other["train"] or j in other["val"])


def _trained_on(one, two, made: dict, shared: set) -> bool:
    """Whether a patient id of `shared` is tested in one data set and learnt from in the other."""
    for fold in itertools.chain.from_iterable(made.values() if shared else ()):
        for a, b in ((one, two), (two, one)):
            tested = {a.patients[i] for i in fold[a.name]["test"]} & shared
            learnt = (i for part in ("train", "val") for i in fold[b.name][part])
            if any(b.patients[i] in tested for i in learnt):
                return True
    return False


def refuse_masks(values: dict) -> None:
    """A configuration of kind masks is no study."""
    if config.is_masks(values):
        raise BadConfig(
            f"{values['name']}: is a configuration of kind masks, which only `mdmt run` takes"
        )


def check_names(values: dict) -> None:
    """Unknown backbones and configurations, and tasks that no head can be named after, stop before
    any data is read."""
    from .nets import backbones, heads

    refuse_masks(values)
    if "external" in values["validation"]:
        raise BadConfig(
            f"{values['name']}: validation holds 'external', which trains nothing; `mdmt evaluate "
            "OUT CONFIG` makes it of a finished run"
        )
    known = list(backbones())
    for name in values["backbones"]:
        if name not in known:
            raise BadConfig(f"backbones: '{name}' is unknown{nearest(name, known)}")
    for name in values["weights"] if isinstance(values["weights"], dict) else ():
        if name not in known:
            raise BadConfig(f"weights: '{name}' is no backbone{nearest(name, known)}")
    for name, task in values["tasks"].items():
        try:
            heads.normalise({name: kinds.head_of(task)})
        except ValueError as error:
            raise BadConfig(f"tasks: {error}") from error
    for name in values["configurations"]:
        experiments.stages_of(values, name)


def stored_values(out: Path) -> dict | None:
    """The configuration that an out folder keeps, with the defaults of newer keys; None: none."""
    stored = Path(out) / "config.yaml"
    if not stored.is_file():
        return None
    raw = config.read_yaml(stored.read_text(encoding="utf-8"), str(stored))
    if not isinstance(raw, dict):
        raise BadInput(f"{stored}: holds no configuration; choose another --out")
    return config.resolve(raw, str(stored))


def claim(out: Path, values: dict, extend: bool = False, mix: bool = False) -> None:
    """Refuse an out folder that belongs to another configuration or version, or to nobody."""
    stored = out / "config.yaml"
    if not stored.exists():
        known = {"data", ".lock"}
        if out.is_dir() and any(
            p.name not in known and not p.name.startswith(".") for p in out.iterdir()
        ):
            raise BadInput(
                f"{out}: is not empty and not an out folder of mdmt; choose another --out"
            )
        return
    try:
        old = stored_values(out)
    except BadConfig:  # keys of another version: compared as they stand
        old = config.read_yaml(stored.read_text(encoding="utf-8"), str(stored))
    ignore = config.NEUTRAL + (config.SELECTING if extend else ())
    changed = config.differences(old if isinstance(old, dict) else {}, values, ignore)
    if changed:
        path, before, now = changed[0]
        more = f" and {len(changed) - 1} more keys differ" if len(changed) > 1 else ""
        selecting = any(path == s or path.startswith(f"{s}.") for s in config.SELECTING)
        hint = ", or --extend" if selecting and not extend else ""
        raise BadInput(
            f"{out}: belongs to another configuration ({path} is {before!r} there and "
            f"{now!r} here{more}); choose another --out{hint}"
        )
    written = out / "environment.json"
    version = read_json(written).get("mdmt") if written.is_file() else __version__
    if version != __version__ and not mix:
        raise BadInput(
            f"{out}: was begun with mdmt {version} and this is {__version__}, whose results may "
            "differ; go on with that version, choose another --out, or allow it with --mix-versions"
        )


def environment() -> dict:
    """What the run ran on."""
    import numpy
    import scipy

    from .system import cpu_path

    return {
        "mdmt": __version__,
        "cpu": cpu_path(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
    }


def split_record(study: Study) -> dict:
    """What splits.json holds; with several releases, every fold names its own."""
    records = [splits.as_record(r.splits, r.cases) for r in study.releases]
    if len(records) == 1:
        return records[0]
    merged: dict[str, list] = {}
    for release, record in zip(study.releases, records, strict=True):
        for validation, folds in record["validation"].items():
            named = [{"release": release.name, **fold} for fold in folds]
            merged.setdefault(validation, []).extend(named)
    return {"format": 1, "hash": digest(merged), "validation": merged}


def check_same_data(out: Path, record: dict) -> None:
    """Refuse when the out folder's splits.json was made from other data."""
    path = out / "splits.json"
    if not path.exists():
        return
    old = splits.read(path)

    def folds(found, validation):
        return {(f.get("release"), f["fold"]): f["datasets"] for f in found[validation]}

    for validation in set(old["validation"]) & set(record["validation"]):
        before = folds(old["validation"], validation)
        now = folds(record["validation"], validation)
        one_release = {k[0] for k in (*before, *now)} == {None}
        shared = set(before) & set(now)
        if any(before[k] != now[k] for k in shared) or (one_release and len(before) != len(now)):
            raise BadInput(f"{out}: its splits.json was made from other data; choose another --out")


def _listed(target) -> list:
    """Labels as JSON has them; null where there is none."""
    if target.dtype.kind == "i" or not np.isnan(target).any():
        return target.tolist()
    return [[None if v != v else v for v in row] for row in target.tolist()]


class Inputs:
    """Writes what jobs need to know of the machine; what many jobs share is written once.

    Below `out`/inputs: labels-<hash>.json per data set, rows-<hash>.json per data set and fold.
    """

    def __init__(self, study: Study, out: Path, device: str):
        self.study, self.out, self.device = study, Path(out), device
        self.by_name = {
            (r.name, c.name): (c, s)
            for r in study.releases
            for c, s in zip(r.cases, r.stores, strict=True)
        }
        self.written: dict[str, str] = {}
        self.weights: dict[str, str | None] = {}

    def __call__(self, job) -> dict:
        """What inputs.json of `job` holds."""
        d = job.description
        train = self.study.values["train"]
        backbone = d["backbone"]
        if backbone not in self.weights:
            source = experiments.weights_source(self.study.values, backbone)
            self.weights[backbone] = source.get("path")
        datasets = {}
        for part in d["datasets"]:
            name = part["name"]
            cases, store = self.by_name[d["release"], name]
            rows = job.rows[name]
            datasets[name] = {
                "store": str(store.folder.resolve()),
                "labels": self._shared(
                    "labels", part["manifest"], lambda cases=cases: _listed(cases.target)
                ),
                "rows": self._shared(
                    "rows",
                    f"{part['manifest'][:12]}-{part['split']}",
                    lambda rows=rows: {p: [int(r) for r in rows[p]] for p in rows},
                ),
            }
        return {
            "datasets": datasets,
            "runs": str((self.out / "runs").resolve()),
            "twin": job.twin,
            "device": self.device,
            "weights": self.weights[backbone],
            "checkpoint_seconds": train["checkpoint_seconds"],
            "checkpoint_steps": train["checkpoint_steps"],
        }

    def _shared(self, kind: str, number: str, content) -> str:
        name = f"{kind}-{number}.json"
        if name not in self.written:
            path = self.out / "inputs" / name
            value = content()
            if not path.is_file() or canonical(read_json(path)) != canonical(value):
                write_json(path, value)
            self.written[name] = str(path.resolve())
        return self.written[name]


def stored_form(values: dict) -> dict:
    """The configuration as the out folder keeps it: its data are found from any folder."""
    if values["data"]["root"] is None:
        return values
    root = str(Path(values["data"]["root"]).resolve())
    return {**values, "data": {**values["data"], "root": root}}
