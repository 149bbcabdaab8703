"""Small replicas of AIforCOVID and BRIXIA as a user downloads them, quirk by quirk.

The pictures are real radiographs where tests/realdata.py finds some, else drawn ones. Ids, centers
and scores are the published ones where the fold files are there, else made up in their form.

AIforCOVID: three workbooks and folders; image names without extension (releases 1 and 3) and with
one (release 2); ids such as P_1, P_1_142, P_2_7, P_3_321; empty, misspelt and differently written
cells; numbers as numbers; columns and rows that are empty; a header with a blank.
BRIXIA: `;`, byte order mark, Windows line ends; ids of 16 to 20 digits, beyond 64 bits too; scores
without their leading zeros; eight spellings of manufacturers; a row without a score.
DICOM: eight transfer syntaxes, MONOCHROME1 and 2, 8, 12 and 16 bits, padding, windows.
"""

import random

import numpy as np
from PIL import Image

from tests.dicomfiles import SYNTAXES, write_dicom
from tests.realdata import COVID_CXR, PUBLISHED

MANUFACTURERS = (
    "SIEMENS", "CARESTREAM HEALTH", "AGFA", "SIEMENS", "CARESTREAM HEALTH", "AGFA-GEVAERT",
    "KODAK", "SIEMENS", "CARESTREAM HEALTH", "VILLA SISTEMI MEDICALI", "FUJIFILM CORPORATION",
    "DIGITEC",
)  # fmt: skip
CLINICAL = (
    "Death", "Age", "Sex", "PositivityAtAdmission", "Temp_C", "DaysFever", "Cough",
    "DifficultyInBreathing", "WBC", "RBC", "CRP", "Fibrinogen", "Glucose", "PCT", "LDH", "INR",
    "D_dimer", "Ox_percentage", "PaO2", "SaO2", "PaCO2", "pH", "CardiovascularDisease",
    "IschemicHeartDisease", "AtrialFibrillation", "HeartFailure", "Ictus", "HighBloodPressure",
    "Diabetes", "Dementia", "BPCO", "Cancer", "ChronicKidneyDisease", "RespiratoryFailure",
    "Obesity", "Position",
)  # fmt: skip


def pictures(count, size, start=0):
    """`count` grey uint8 pictures from number `start` on, shortest side `size`, not stretched."""
    found = sorted((COVID_CXR / "images").glob("*.jpg"))
    for i in range(start, start + count):
        rng = np.random.default_rng(i)
        if i < len(found):
            with Image.open(found[i]) as image:
                share = size / min(image.size)
                sides = [max(size, round(share * side)) for side in image.size]
                yield np.asarray(image.convert("L").resize(sides, Image.Resampling.BILINEAR))
            continue
        y, x = np.mgrid[0:size, 0 : size * 5 // 4] / size
        lungs = sum(np.exp(-(((x - c) / 0.15) ** 2 + ((y - 0.4) / 0.28) ** 2)) for c in (0.3, 0.7))
        noise = rng.normal(0, 4, x.shape)
        yield np.clip(200 - 130 * lungs + 20 * rng.random() + noise, 0, 255).astype(np.uint8)


def store_picture(path, grey, i):
    """Write one picture in the i-th manner; every manner shows the same picture."""
    syntax = SYNTAXES[i % len(SYNTAXES)]
    bits = (8, 12, 12, 16)[i // len(SYNTAXES) % 4]
    photometric = ("MONOCHROME2", "MONOCHROME1")[i % 2]
    # Powers of two, so that not one bit of the normalised picture changes.
    values = grey.astype(np.uint16) << (bits - 8) if bits > 8 else grey
    top = (1 << bits) - 1
    elements = {}
    if photometric == "MONOCHROME1":
        values = (top - values).astype(values.dtype)
        elements["PresentationLUTShape"] = "INVERSE"
    if i % 3 == 0:  # as many archives write it: a window over the whole range
        elements |= {"WindowCenter": [1 << (bits - 1), 40], "WindowWidth": [1 << bits, 400]}
    write_dicom(path, values, syntax=syntax, bits=bits, photometric=photometric, **elements)


def _published(folder, limit):
    """`limit` rows spread over a published fold file: [[cell]], or nothing."""
    path = PUBLISHED / folder / "all.txt"
    if not path.is_file():
        return []
    lines = path.read_text().splitlines()[1:]
    return [line.split(" ") for line in lines[:: len(lines) // limit][:limit]]


def small_published(root, name, every=1):
    """Write every so-many-th image of every published test part of data set `name` into `root`, in
    all the parts of all the folds that it is in; return {image: (label, center, score)}."""
    folder = PUBLISHED / name
    files = sorted(folder.glob("*/*/*.txt"))
    lines = {p: p.read_text().splitlines() for p in files}
    kept = {}
    for path in files:
        if path.name == "test.txt":
            for line in lines[path][1::every]:
                kept[line.split(" ")[0]] = None
    for path, text in lines.items():
        rows = [line for line in text[1:] if line.split(" ")[0] in kept]
        for line in rows:
            cells = dict(zip(text[0].split(" "), line.split(" ")))
            facts = cells.get("label", ""), cells.get("center", ""), cells.get("scores", "")
            kept[cells["img"]] = kept[cells["img"]] or facts
        copy = root / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("".join(f"{line}\n" for line in [text[0], *rows]))
    return kept


def make_aiforcovid(root, counts=(24, 10, 14), size=96, patients=None):
    """Write the replica into `root`; return the truth: a dictionary per patient.

    patients: {id: (label, center, ...)} to use instead of made up ones, as from `small_published`.
    """
    import openpyxl

    rng = random.Random(0)
    names = [
        [f"P_{i}" for i in range(1, counts[0] + 1)],
        [f"P_{1 + i % 2}_{7 * i + 2}" for i in range(counts[1])],
        [f"P_3_{3 * i + 1}" for i in range(counts[2])],
    ]
    if patients:
        later = [i for i in patients if i.count("_") > 1]
        third = [i for i in later if i.startswith("P_3_")]
        names = [[i for i in patients if i not in later], sorted(set(later) - set(third)), third]
        counts = [len(n) for n in names]
    grey = pictures(sum(counts), size)
    truth, number = [], 0
    for release, ids in enumerate(names, start=1):
        suffix = "" if release == 1 else f"_r{release}"
        folder = root / f"imgs{suffix}"
        folder.mkdir(parents=True)
        book = openpyxl.Workbook()
        sheet = book.active
        sheet.append(["ImageFile", "Hospital " if release == 3 else "Hospital", "Prognosis",
                      *CLINICAL, None])  # fmt: skip
        for k, name in enumerate(ids):
            # Every center has both outcomes as soon as it has two patients.
            case = {"image": name, "release": release, "center": "ABCDEF"[k % 6],
                    "label": ("MILD", "SEVERE")[k // 6 % 2]}  # fmt: skip
            if patients:
                case["label"], case["center"] = patients[name][:2]
            spellings = {
                "MILD": {1: "mild", 3: "MLID", 5: " Mild"},
                "SEVERE": {7: "Severe", 8: "severe ", 10: "SEVRE"},
            }
            written = spellings[case["label"]].get(k % 12, case["label"])
            if release == 3 and k == 4 and not patients:
                case["label"], written = None, None
            hospital = {7: f"{case['center'].lower()} ", 9: f"Hospital {case['center']}"}.get(
                k, case["center"]
            )
            if k == 11 and release == 1 and not patients:
                case["center"], hospital = "", None
            values = [rng.choice([None, round(rng.uniform(1, 90), 1), rng.randrange(2)])
                      for _ in CLINICAL]  # fmt: skip
            values[0] = 0 if case["label"] != "SEVERE" else rng.choice([0, 1, None])
            values[1] = 30 + k
            values[-1] = rng.choice(["supine", "standing", None])
            sheet.append([f"{name}.dcm" if release == 2 else name, hospital, written, *values])
            store_picture(folder / f"{name}.dcm", next(grey), number)
            truth.append(case)
            number += 1
        sheet.append([None] * 5)
        book.save(root / f"AIforCOVID{suffix}.xlsx")
    return truth


def make_brixia(root, count=48, size=96, images=None):
    """Write the replica into `root`; return the truth: a dictionary per image.

    images: {id: (label, center, score)} to use, as from `small_published`.
    """
    if images:
        count = len(images)
    rows = [[i, f[0], f[2]] for i, f in images.items()] if images else _published("BX", count)
    rng = random.Random(1)
    while len(rows) < count:
        six = "".join(rng.choices("0123", [(4, 2, 1, 1), (1, 1, 2, 4)][len(rows) % 2], k=6))
        digits = str(rng.randrange(10**19, 10**20))[: rng.choice([16, 19, 20])]
        rows.append([digits, "", f"[{int(six)}]"])
    folder = root / "dicom_clean"
    folder.mkdir(parents=True)
    lines = ["Filename;StudyDate;Modality;Manufacturer;PhotometricInterpretation;Age;Sex;"
             "BrixiaScore;BrixiaScoreGlobal;ConsensusTestset"]  # fmt: skip
    truth = []
    for i, (row, grey) in enumerate(zip(rows, pictures(count, size, 250), strict=True)):
        lost = row[2].strip("[]")
        six = [int(d) for d in lost.zfill(6)]
        case = {"image": row[0], "regions": six, "manufacturer": MANUFACTURERS[i % 12],
                "consensus": int(i % 8 == 5)}  # fmt: skip
        total = str(sum(six))
        if i == count - 1 and not images:
            case["regions"], lost, total = None, "", ""
        lines.append(
            f"{row[0]}.dcm;2020{3 + i % 4:02d}{1 + i % 28:02d};{('CR', 'DX')[i % 2]};"
            f"{case['manufacturer']};{('MONOCHROME2', 'MONOCHROME1')[i % 2]};{40 + i % 50};"
            f"{('M', 'F', '')[i % 3]};{lost};{total};{case['consensus']}"
        )
        store_picture(folder / f"{row[0]}.dcm", grey, i)
        truth.append(case)
    text = "\r\n".join(lines) + "\r\n"
    (root / "metadata_global_v2.csv").write_bytes(text.encode("utf-8-sig"))
    return truth
