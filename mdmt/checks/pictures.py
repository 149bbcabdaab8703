"""What the preprocessed pictures of a study show: near-duplicates, and pictures that look wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .. import config
from ..data import similar

TINY = 200  # shorter side of a picture, in pixels, below which there is little to see
UPSIDE = -0.12  # likeness to the median picture below which one is taken to be inverted: among 546
# radiographs the least was -0.09, and 99 of 100 turned over would lie below it
MEDIAN = 20  # pictures that make a median
ALIKE = 0.3  # likeness to it that half of them must have, to say anything about the others
SAME = 0.97  # two exposures of one patient in one pose reach 0.96


@dataclass
class Looks:
    """Pictures that a person should see, of the last release that holds them.

    cases, stores: per data set; alike: near-duplicates (`similar.Alike`); odd: {kind: [(number of
    the data set, row)]} with the kinds constant, tiny and inverted; together: whether
    near-duplicates count as one patient; side: of the pictures, in pixels, where that is too little
    to look for near-duplicates, else 0;
    shared: pairs that are one file in two data sets, under one patient id; what, tone: a picture
    and what one consists of, in words.
    """

    cases: list
    stores: list
    alike: list = field(default_factory=list)
    odd: dict = field(default_factory=dict)
    together: bool = True
    side: int = 0
    shared: list = field(default_factory=list)
    what: str = "radiograph"
    tone: str = "grey value"

    def kind(self, pair) -> str:
        """What the cases of a pair have in common: same file, same patient, patients, data sets."""
        (n, i), (m, j) = pair.one, pair.two
        same = self.cases[n].patients[i] == self.cases[m].patients[j]
        if n != m:
            path = self.cases[n].paths[i]
            one_file = same and path is not None and str(path) == str(self.cases[m].paths[j])
            return "same file" if one_file else "data sets"
        if same:
            return "same patient"
        return "patients"

    def name(self, place: tuple[int, int]) -> str:
        """Image and patient of a case."""
        cases = self.cases[place[0]]
        image, patient = cases.images[place[1]], cases.patients[place[1]]
        shown, person = cases.image_prefix + image, cases.patient_prefix + patient
        return shown if patient in (image, f"image:{image}") else f"{shown} of patient {person}"

    def findings(self) -> list[tuple[str, str, str]]:
        """(grade, topic, sentence) of what was seen."""
        return [
            *self._too_small(),
            *self._shared_files(),
            *self._alike_findings(),
            *self._untried(),
            *self._odd_findings(),
        ]

    def _shared_files(self):
        for n, m in sorted({(p.one[0], p.two[0]) for p in self.shared}):
            some = [p for p in self.shared if (p.one[0], p.two[0]) == (n, m)]
            yield (
                "note", f"{self.cases[n].name} and {self.cases[m].name}",
                f"{_counted(some, 'picture')} in both, under the same patient ids: no patient is "
                "tested in one and learnt from in the other",
            )  # fmt: skip

    def _too_small(self):
        if self.side:
            yield (
                "warning", "pictures",
                f"image_size {self.side} is too small to look for near-duplicates (from "
                f"{similar.SMALLEST} on): but for equal pictures, one person under two patient ids "
                "would be trained on and tested; `mdmt check` with a larger image_size finds them",
            )  # fmt: skip

    def _alike_findings(self):
        groups: dict[tuple, list] = {}
        for pair in self.alike:
            groups.setdefault((self.kind(pair), pair.one[0], pair.two[0]), []).append(pair)
        for (kind, n, m), pairs in groups.items():
            shown = "; ".join(f"{self.name(p.one)} = {self.name(p.two)}" for p in pairs[:3])
            shown += "; ..." if len(pairs) > 3 else ""
            count, show = _counted(pairs, "pair"), "shows" if len(pairs) == 1 else "show"
            if kind == "same patient":
                yield (
                    "note", self.cases[n].name,
                    f"{count} of pictures of one patient {show} the same {self.what} ({shown}): it "
                    "counts more than once; name one of each in leave_out if that is not wanted",
                )  # fmt: skip
                continue
            done = (
                "they are kept in one part of every fold"
                if self.together and kind == "patients"
                else "one is not trained on where the other is tested"
                if self.together
                else "they leak between the parts of a fold; set data.near_duplicates: together"
            )
            same = {self._patients(p) for p in pairs}
            who = f"{_counted(same, 'pair')} of patients"
            topic = self.cases[n].name
            if kind == "data sets":
                who, topic = f"{who} of two data sets", f"{topic} and {self.cases[m].name}"
            yield (
                "warning", topic,
                f"{count} of pictures {show} the same {self.what} under {who} ({shown}): correct "
                f"the patient ids, or name one of each in leave_out; {done}",
            )  # fmt: skip

    def _untried(self):
        """What is not known of likeness in colour."""
        if self.alike and self.what != "radiograph":
            yield (
                "note", "pictures",
                "likeness is judged by the luminance, at a threshold found on radiographs: "
                "pictures with little in them and one frame (a fundus on black) may be taken for "
                "one; look at the pairs, and where they are not one set data.near_duplicates: "
                "report",
            )  # fmt: skip

    def _patients(self, pair) -> frozenset:
        return frozenset((n, self.cases[n].patients[i]) for n, i in (pair.one, pair.two))

    def _odd_findings(self):
        sentences = {
            "constant": ("warning", f"one {self.tone} only; name them in leave_out"),
            "tiny": ("warning", f"fewer than {TINY} pixels on a side; give larger files"),
            "inverted": (
                "warning",
                "perhaps inverted (bones dark, lungs bright); look at them in the page, correct "
                "the files or their PhotometricInterpretation",
            ),
        }
        for kind, places in self.odd.items():
            grade, sentence = sentences[kind]
            for n, cases in enumerate(self.cases):
                own = [i for m, i in places if m == n]
                if own:
                    names = ", ".join(cases.images[i] for i in own[:5])
                    names += ", ..." if len(own) > 5 else ""
                    yield grade, cases.name, f"{_counted(own, 'picture')} ({names}): {sentence}"


def _counted(items, name: str) -> str:
    return f"{len(items)} {name}{'' if len(items) == 1 else 's'}"


def look(values: dict, gathered: list[tuple], alike: list[list]) -> Looks:
    """Look at the pictures that `study.gather` found, each once; alike: near-duplicates of each
    release."""
    cases, stores = [], []
    places: dict[tuple[int, int], tuple[int, int]] = {}
    seen: dict[tuple, int] = {}
    for r, (_, of_release, its_stores) in enumerate(gathered):
        for n, (one, store) in enumerate(zip(of_release, its_stores, strict=True)):
            key = (one.name, store.key)
            if key not in seen:
                seen[key] = len(cases)
                cases.append(one)
                stores.append(store)
            places[r, n] = (seen[key], 0)
    last = _largest(cases)
    keep = [k for k in range(len(cases)) if k in last]
    number = {k: i for i, k in enumerate(keep)}
    found = {}
    for r, pairs in enumerate(alike):
        for p in pairs:
            n, m = places[r, p.one[0]][0], places[r, p.two[0]][0]
            if n in number and m in number:
                found[(number[n], p.one[1]), (number[m], p.two[1])] = p
    looks = Looks([cases[k] for k in keep], [stores[k] for k in keep])
    every = [p._replace(one=a, two=b) for (a, b), p in sorted(found.items())]
    looks.shared = [p for p in every if looks.kind(p) == "same file"]
    every = [p for p in every if looks.kind(p) != "same file"]
    looks.alike = [p for p in every if p.correlation >= SAME or looks.kind(p) != "same patient"]
    looks.what = config.pictured(values)
    looks.tone = "colour" if values["data"]["colour"] else looks.tone
    looks.together = values["data"]["near_duplicates"] == "together"
    if values["data"]["synthetic"] is None:
        looks.odd = _odd(looks.stores)
        looks.side = values["image_size"] if values["image_size"] < similar.SMALLEST else 0
    return looks


def _largest(cases: list) -> set[int]:
    """Of each data set the release with the most images."""
    best: dict[str, int] = {}
    for k, one in enumerate(cases):
        if one.name not in best or len(one) >= len(cases[best[one.name]]):
            best[one.name] = k
    return set(best.values())


def _odd(stores: list) -> dict:
    """{kind: places} of pictures that look wrong."""
    odd: dict[str, list] = {"constant": [], "tiny": [], "inverted": []}
    for n, store in enumerate(stores):
        usable = [e for e in store.entries if "reason" not in e]
        for i, entry in enumerate(usable):
            if min(entry.get("shape") or [TINY]) < TINY:
                odd["tiny"].append((n, i))
        if len(store.images) == 0:
            continue
        small = similar.thumbnails(store.images)
        flat = small.reshape(len(small), -1).std(1) <= 1
        if store.images.ndim == 4:  # one luminance may be many hues
            for i in np.flatnonzero(flat):
                planes = similar.thumbnails(store.images[i])
                flat[i] = (planes.reshape(len(planes), -1).std(1) <= 1).all()
        odd["constant"] += [(n, int(i)) for i in np.flatnonzero(flat)]
        rows = np.flatnonzero(~flat)
        if len(rows) < MEDIAN or store.images.ndim == 4:  # only X-rays can be inverted
            continue
        detail = similar.flatten(small[rows]).reshape(len(rows), -1)
        detail = detail - detail.mean(1, keepdims=True)
        middle = np.median(detail[:: max(len(detail) // 1000, 1)], 0)
        norm = np.linalg.norm(detail, axis=1) * np.linalg.norm(middle)
        likeness = detail @ middle / np.maximum(norm, 1e-6)
        if np.median(likeness) < ALIKE:
            continue
        for i in rows[likeness < UPSIDE].tolist():
            if _bright_lungs(store, usable[i]):
                odd["inverted"].append((n, i))
    return {kind: places for kind, places in odd.items() if places}


def _bright_lungs(store, entry: dict) -> bool:
    """False where a lung mask shows that the lungs are darker than what lies around them."""
    from scipy.ndimage import binary_dilation

    if "look" not in entry:
        return True
    picture, mask = store.look(entry)
    if picture is None or mask is None or not mask.any():
        return True
    ring = binary_dilation(mask, iterations=8) & ~mask
    return bool(picture[mask].mean() > picture[ring].mean()) if ring.any() else True
