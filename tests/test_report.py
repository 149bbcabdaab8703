"""The report: everything again from predictions.csv, and what it says of folders that are wrong."""

import csv
import html.parser
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import ttest_rel

from mdmt import analysis, cli, config, metrics, plots, report, stats, tables
from mdmt.analysis import describe
from mdmt.errors import BadInput
from mdmt.plots import curves, style
from mdmt.report import checklists, external, sections, words
from mdmt.report.page import STYLE
from tests import outfolder

compare = sys.modules["mdmt.analysis.compare"]  # of whose name the package has a function
BACKBONES = ["resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2"]
NAMES = ["STL-tau1", "STL-tau2", "FT", "MDMT", outfolder.CONTROL]


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """An out folder of five backbones with a control, and what its report returned."""
    out = tmp_path_factory.mktemp("study") / "out"
    outfolder.make(out, n=60, backbones=BACKBONES, configurations=NAMES, cv={"folds": 2},
                   validation=["cv", "loco"])  # fmt: skip
    return out, report.make(out, resamples=200)


@pytest.fixture
def small(tmp_path):
    """A small out folder of its own."""
    return outfolder.make(tmp_path / "out", n=40, cv={"folds": 2})


def rows(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_resampling_many_at_once_gives_the_paired_bootstrap():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 80)
    a, b = (np.clip(y * 0.2 + rng.random(80) * 0.8, 0, 1) for _ in range(2))
    groups, folds = rng.integers(0, 40, 80), rng.integers(0, 3, 80)
    wanted = [("auc", a), ("auc", b), ("gmean", a > 0.5), ("gmean", b > 0.5)]
    drawn = stats.resample(y, wanted, groups, 500, 3, folds=folds)
    for i, (metric, first, second) in {0: ("auc", a, b), 2: ("gmean", a > 0.5, b > 0.5)}.items():
        one = stats.paired_bootstrap(y, first, second, metric, groups, 500, 3, folds=folds)
        assert drawn.difference(i, i + 1) == pytest.approx(one, abs=1e-12)
        alone = stats.bootstrap_interval(y, first, metric, groups, 500, 3, folds=folds)
        assert drawn.interval(i) == pytest.approx(alone, abs=1e-12)
    many = stats.hierarchical_bootstrap(y, [a, b], [b, a], "auc", groups, 500, 3, folds=folds)
    again = drawn.mean_difference([(0, 1), (1, 0)], "random")
    assert again == pytest.approx(many, abs=1e-12)
    with pytest.raises(ValueError, match="pairs is empty"):
        drawn.mean_difference([])


def test_everything_is_written(study):
    out, made = study
    names = {p.name for p in out.iterdir()}
    for name in ("table1", "table2", "tableS1"):
        assert {f"{name}.csv", f"{name}.tex", f"{name}.html"} <= names
    assert {"results.csv", "comparisons.csv", "report.html", "figures"} <= names
    kinds = {p.name.split("_cv_")[0].split("_loco_")[0] for p in (out / "figures").glob("*.svg")}
    assert {k.removesuffix(".svg") for k in kinds} == {
        "learning_curves", "roc_pr", "reliability", "confusion", "forest", "slope", "folds",
        "critical_difference", "centers", "subgroups", "cases", "decision",
    }  # fmt: skip
    assert len(made["headlines"]) == 4
    pictures = list((out / "figures").glob("*.png"))
    assert all(p.with_suffix(".svg").stat().st_size > 1000 for p in pictures)


def test_results_are_the_metrics_of_the_predictions(study):
    out, _ = study
    predictions = rows(out / "predictions.csv")
    classes = {"prognosis": ["MILD", "SEVERE"], "severity": ["0", "1", "2", "3"]}
    results = rows(out / "results.csv")
    assert len(results) == 5 * (2 + 3) * 6  # backbones, folds, tested networks
    for result in results[::17]:
        mine = [p for p in predictions if all(p[k] == result[k] for k in list(result)[:7])]
        names = classes[result["task"]]
        y = np.array([names.index(p["label"]) for p in mine])
        p = np.array([[float(m[f"p_{c}"]) for c in names] for m in mine])
        for name, value in metrics.summary(y, p).items():
            assert float(result[name] or "nan") == pytest.approx(value, nan_ok=True)


def mean_of(results, **place):
    return [r for r in results if all(r[k] == v for k, v in place.items())]


def test_table_1_is_the_mean_over_folds_and_backbones(study):
    out, _ = study
    results = rows(out / "results.csv")
    own = [r for r in rows(out / "table1.csv") if r["source"] == "this run"]
    assert [r["experiment"] for r in own if r["task"] == "prognosis"] == [
        "STL-tau1", "FT", "MDMT", outfolder.CONTROL,
    ]  # fmt: skip
    for record in own:
        for validation in ("cv", "loco"):
            means = []
            for backbone in BACKBONES:
                some = mean_of(results, backbone=backbone, validation=validation,
                               task=record["task"], configuration=record["experiment"])  # fmt: skip
                means.append(np.mean([float(r["f1"]) for r in some if r["f1"]]))
            assert float(record[f"{validation}_f1"]) == pytest.approx(
                100 * np.mean(means), abs=1e-3
            )
    best = [r["experiment"] for r in own if r["cv_accuracy_mark"] == "best"]
    for task, name in zip(("prognosis", "severity"), best, strict=True):
        values = {r["experiment"]: float(r["cv_accuracy"]) for r in own if r["task"] == task}
        assert values[name] == max(values.values())
    paper = [r for r in rows(out / "table1.csv") if r["source"] != "this run"]
    assert [(r["experiment"], r["loco_gmean"]) for r in paper] == [
        ("STL-tau1", "60.1"), ("FT", "63.8"), ("MDMT", "66.0"),
    ]  # fmt: skip
    assert {r["f1_average"] for r in own} == {"positive class", "macro"}


def test_table_2_has_the_papers_tests(study):
    out, _ = study
    results = rows(out / "results.csv")
    records = [r for r in rows(out / "table2.csv") if r["source"] == "this run"]
    pick = {"task": "prognosis", "statistic": "mu", "test": "MDMT vs FT"}
    record = next(r for r in records if all(r[k] == v for k, v in pick.items()))
    means = {
        c: [np.mean([float(r["gmean"]) for r in mean_of(
            results, backbone=b, validation="cv", task="prognosis", configuration=c)])
            for b in BACKBONES]
        for c in ("MDMT", "FT")
    }  # fmt: skip
    p = ttest_rel(means["MDMT"], means["FT"], alternative="greater").pvalue
    assert float(record["cv_gmean_p"]) == pytest.approx(p)
    assert record["cv_gmean"] == (stats.stars(p) or "ns")
    assert any(r["test"] == f"MDMT vs {outfolder.CONTROL}" for r in records)
    assert "far more often" in (out / "table2.html").read_text()


def test_comparisons_are_the_paired_bootstrap_by_patient(small):
    report.make(small, resamples=300, figures=False)
    outcome = analysis.read(small)
    found = {(r["task"], r["against"], r["metric"]): r for r in rows(small / "comparisons.csv")}
    a, b = ([p for p in outcome.parts if (p.configuration, p.task) == (c, "prognosis")]
            for c in ("MDMT", "FT"))  # fmt: skip
    y = np.concatenate([p.y for p in a])
    groups = np.concatenate([p.patient for p in a]).astype(str)
    folds = np.concatenate([np.full(len(p.y), p.fold) for p in a])
    scores = [np.concatenate([p.p[:, 1] for p in s]) for s in (a, b)]
    one = stats.paired_bootstrap(y, *scores, "auc", groups, 300, 0, folds=folds)
    row = found["prognosis", "FT", "auc"]
    values = [float(row[k]) for k in ("difference", "low", "high", "pvalue")]
    assert values == pytest.approx(list(one), abs=1e-9)
    family = [r for k, r in found.items() if k[0] == "prognosis"]
    assert len(family) == 10
    adjusted = stats.holm([float(r["pvalue"]) for r in family])
    assert [float(r["pvalue_holm"]) for r in family] == pytest.approx(adjusted)


def test_names_in_any_script_are_drawn_without_a_warning(recwarn):
    with style.drawing():
        made, axes = style.figure(3, 2)
        axes[0, 0].set_title("\u5317\u4eac, \u0141\u00f3d\u017a, \u0391\u03b8\u03ae\u03bd\u03b1")
        assert style.render(made)["png"][:4] == b"\x89PNG"
    assert not recwarn.list


def test_the_same_report_twice(small):
    from mdmt.plots import curves, style

    report.make(small, resamples=100, figures=False)
    kept = [*small.glob("table*"), small / "comparisons.csv", small / "results.csv"]
    before = {p: p.read_bytes() for p in kept}
    assert len(before) == 11
    (small / ".results.csv.killed.tmp").touch()  # of one that was killed
    report.make(small, resamples=100, figures=False)
    assert not list(small.glob(".*.tmp"))
    assert {p: p.read_bytes() for p in kept} == before
    m = analysis.compare(analysis.read(small), 100)[0].matrix
    with style.drawing():
        first, second = (style.render(curves.confusions(m)) for _ in range(2))
    assert first == second


def test_latex_is_balanced(study):
    out, _ = study
    for name in ("table1", "table2", "tableS1"):
        text = (out / f"{name}.tex").read_text()
        depth = 0
        for mark in re.findall(r"(?<!\\)[{}]", text):
            depth += 1 if mark == "{" else -1
            assert depth >= 0
        assert depth == 0
        for kind in ("table", "tabular"):
            opened = text.count(f"\\begin{{{kind}}}")
            assert opened == text.count(f"\\end{{{kind}}}") == 2
        for body in re.findall(r"\\begin\{tabular\}\{(l+r+)\}(.*?)\\end\{tabular\}", text, re.S):
            lines = [x for x in body[1].split("\\\\") if "&" in x and "multicolumn" not in x]
            assert {len(re.findall(r"(?<!\\)&", x)) + 1 for x in lines} == {len(body[0])}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_alone_and_as_input(study, tmp_path):
    out, _ = study
    names = ("table1", "table2", "tableS1")
    for name in names:
        shutil.copy(out / f"{name}.tex", tmp_path)
    whole = "".join(f"\\input{{{n}}}\n" for n in names)
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\begin{document}\n" + whole + "The end.\\end{document}\n"
    )
    for name in ("table1", "tableS1", "paper"):
        done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", name],
                              cwd=tmp_path, capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]
        assert (tmp_path / f"{name}.pdf").stat().st_size > 5000


class _Page(html.parser.HTMLParser):
    """What a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.headings, self.open = [], [], [], []
        self.void = {"meta", "img", "br", "link", "input", "hr"}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"


def test_report_is_one_accessible_file(study):
    text = (study[0] / "report.html").read_text()
    assert len(text.encode()) < 15e6
    found = _Page(text)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert found.headings.count(1) == 1 and found.headings[0] == 1
    assert all(b - a <= 1 for a, b in zip(found.headings, found.headings[1:], strict=False))
    names = [t for t, _ in found.tags]
    assert all(names.count(t) == 1 for t in ("main", "header", "footer", "nav", "title"))
    assert ("html", {"lang": "en"}) in found.tags
    for tag, attributes in found.tags:
        for key in ("src", "href"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), value
            if value and value.startswith("#"):
                assert value[1:] in found.ids
        if tag == "img":
            assert len(attributes["alt"]) > 20
        if tag == "th":
            assert attributes["scope"] in ("col", "row", "colgroup")
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in found.ids
    assert names.count("caption") == names.count("table")
    assert not re.search(r"<script|@import|url\(", text)
    assert names.count("img") == len(list((study[0] / "figures").glob("*.png")))


def test_report_says_what_it_must(study):
    text = (study[0] / "report.html").read_text()
    for wanted in (
        "Result.</strong> For prognosis in 2-fold cross-validation",
        "95 % interval",
        "(added)",
        "images excluded",
        "without a label: left out",
        "Paired bootstrap by patient",
        "false_positive_rate_of_paper_test(",
        "one-tailed t-tests paired over backbones",
        "calibration slope",
        "Nadeau",
        "longer training",
        "Findings in the splits",
        checklists.CLAIM_SOURCE,
        checklists.TRIPOD_SOURCE,
    ):
        assert wanted in text, wanted
    assert len(checklists.CLAIM) == 44 and len(checklists.TRIPOD) == 52
    outcome = analysis.read(study[0])
    known = checklists.answers(outcome, analysis.compare(outcome, 100))
    used = {key for _, _, key in checklists.CLAIM + checklists.TRIPOD if key}
    assert used == set(known)


def luminance(colour):
    value = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.dot([0.2126, 0.7152, 0.0722],
                  [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4
                   for v in value])  # fmt: skip


def test_colours_have_contrast():
    themes = re.findall(r":root\{(--ground.*?)\}", STYLE, re.S)
    assert len(themes) == 3  # light, dark, print
    for theme in themes:
        colours = {
            k: v if len(v) == 7 else "#" + "".join(2 * c for c in v[1:])
            for k, v in re.findall(r"--(\w+):(#[0-9a-f]+)", theme)
        }
        for ink in ("ink", "quiet", "link"):
            for ground in ("ground", "soft"):
                pair = sorted(luminance(colours[c]) + 0.05 for c in (ink, ground))
                assert pair[1] / pair[0] >= 4.5, (ink, ground)
        pair = sorted(luminance(colours[c]) + 0.05 for c in ("warn", "warnsoft"))
        assert pair[1] / pair[0] >= 4.5


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser",
                                                "google-chrome"))), None)  # fmt: skip
PROBE = """<script>addEventListener("load",()=>{const d=document.documentElement;
const i=[...document.images];document.body.setAttribute("data-probe",JSON.stringify({
wide:d.scrollWidth-d.clientWidth,images:i.length,loaded:i.filter(x=>x.naturalWidth>0).length,
tiny:[...document.querySelectorAll("p,td,th,li")].filter(
x=>x.offsetParent&&parseFloat(getComputedStyle(x).fontSize)<12).length}))})</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [390, 820, 1280])
def test_report_in_a_browser(study, tmp_path, width):
    import json
    from html import unescape

    copy = tmp_path / "report.html"
    copy.write_text((study[0] / "report.html").read_text().replace("</body>", PROBE + "</body>"))
    # Chromium's own window is at least 500 wide: narrower pages are laid out in a frame.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="report.html" style="width:{width}px;height:900px;border:0"></iframe>'
        "<script>addEventListener('load',()=>setTimeout(()=>document.body.setAttribute("
        "'data-found',frames[0].document.body.getAttribute('data-probe')),50))</script>"
    )
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000", "--dump-dom",
         f"--window-size={max(width, 500)},900", frame.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    told = json.loads(unescape(re.search(r'data-found="([^"]*)"', done.stdout)[1]))
    assert told["images"] == told["loaded"] > 20
    assert told["wide"] <= 0, "the page is wider than the window"
    assert told["tiny"] == 0


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_report_prints(study, tmp_path):
    target = tmp_path / "report.pdf"
    subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
         f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={target}",
         (study[0] / "report.html").as_uri()],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert target.read_bytes().startswith(b"%PDF")


def refused(out, match):
    """The report is refused with one sentence, and every file is as it was."""
    before = contents(out)
    with pytest.raises(BadInput, match=match) as caught:
        report.make(out, resamples=100)
    assert "\n" not in str(caught.value)
    assert contents(out) == before


def change(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


@pytest.mark.parametrize(
    "given, said",
    [
        ({"resamples": 99}, "--resamples 99: must be at least 100"),
        ({"resamples": 10**9}, "--resamples 1000000000: must be at most 1000000"),
        ({"seed": -1}, "--seed -1: must be 0 to"),
        ({"seed": 1 << 63}, "must be 0 to"),
    ],
)
def test_numbers_that_no_bootstrap_can_have(tmp_path, given, said):
    with pytest.raises(BadInput, match=said):
        report.make(tmp_path, **given)


def test_no_folder_and_no_out_folder(tmp_path):
    with pytest.raises(BadInput, match="there is no such folder"):
        report.make(tmp_path / "none")
    refused(tmp_path, "is no out folder of mdmt")


def test_deleted_predictions(small):
    (small / "predictions.csv").unlink()
    refused(small, r"predictions.csv: is missing.*mdmt run --resume")


def test_edited_predictions(small):
    path = small / "predictions.csv"
    text = path.read_text()
    lines = text.splitlines()
    cells = lines[1].split(",")
    for column, value, match in (
        (10, "SEVERE" if cells[10] == "MILD" else "MILD", "not those of the training"),
        (11, "SEVERE" if cells[11] == "MILD" else "MILD", "line 2 predicts another class"),
        (7, "nobody", f"do not agree on image '{cells[8]}'.*was changed after"),
        (9, "nowhere", f"do not agree on image '{cells[8]}'.*was changed after"),
        (12, "0.9999", "line 2 has probabilities that do not add up"),
        (12, "x", "near line 2 a probability is not a number"),
        (8, "two_1", "not the test part of that fold"),
        (10, "DEAD", "has the class 'DEAD'"),
        (2, "one", "fold 'one'"),
    ):
        changed = [*cells[:column], value, *cells[column + 1 :]]
        path.write_text("\n".join([lines[0], ",".join(changed), *lines[2:]]) + "\n")
        refused(small, match)
    for some, match in (
        (lines[:1] + lines[2:], "not the test part"),
        (lines[:1], "holds no prediction"),
        ([lines[0].replace("patient", "person"), *lines[1:]], "has no column 'patient'"),
        ([*lines, lines[1]], "not together or are there twice"),
        ([*lines, "a,b"], "has 2 cells"),
    ):
        path.write_text("\n".join(some) + "\n")
        refused(small, match)
    kept = [x for x in lines[1:] if x.split(",")[4] != "FT"]
    path.write_text("\n".join([lines[0], *kept]) + "\n")
    refused(small, "lacks the rows of 2 finished trainings")
    path.write_bytes(b"\xff\xfe")
    refused(small, "is not valid CSV")


BROKEN = {
    "cohort.json": [("[]", "is not the record of a cohort"),
                    ('{"format": 2, "datasets": []}', "(format 1)"),
                    ('{"format": 1, "datasets": [{"name": "one"}]}', "lacks a data set's cases"),
                    ('{"format": 1, "datasets": [{"name": "one", "task": "t", "releases": [],'
                     ' "store": "", "cases": {"image": ["a"], "patient": []}}]}', "unlike length"),
                    ("{", "is not valid JSON")],
    "job.json": [("{}", "describes no training"), ("[", "is not valid JSON")],
    "result.json": [("{", "is not valid JSON")],
    "environment.json": [("{", "is not valid JSON")],
    "splits.json": [("{}", "was changed after it was written")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "sentence"), [(n, t, s) for n, some in BROKEN.items() for t, s in some]
)
def test_damaged_files_are_one_sentence_each(small, name, text, sentence):
    path = small / name
    if not path.exists():
        path = sorted((small / "runs").iterdir())[0] / name
    path.write_text(text)
    before = contents(small)
    with pytest.raises(BadInput, match=re.escape(sentence)) as caught:
        report.make(small, resamples=100, figures=False)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert contents(small) == before  # nothing lost, nothing half-written


def test_predictions_of_another_release(small):
    path = small / "predictions.csv"
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *("7" + line[1:] for line in lines)]) + "\n")
    with pytest.raises(BadInput, match="line 2 has the release '7', which"):
        report.make(small, resamples=100, figures=False)


def test_predictions_of_another_study(small, tmp_path):
    other = outfolder.make(tmp_path / "other", n=40, seed=5, cv={"folds": 2})
    shutil.copy(other / "predictions.csv", small)
    refused(small, "not the test part of that fold")
    far = outfolder.make(tmp_path / "far", n=40, backbones=["resnet34"], cv={"folds": 2})
    shutil.copy(far / "predictions.csv", small)
    refused(small, "backbone 'resnet34'.*another study")


def test_edited_splits(small):
    change(small / "splits.json", '"one_0"', '"one_1"')
    refused(small, "was changed after it was written")


def test_edited_results_are_kept_and_computed_again(small):
    report.make(small, resamples=100, figures=False)
    good = (small / "results.csv").read_bytes()
    line = good.decode().splitlines()[1].split(",")
    line[8] = "0.999"
    changed = good.decode().splitlines()
    changed[1] = ",".join(line)
    (small / "results.csv").write_text("\n".join(changed) + "\n")
    made = report.make(small, resamples=100, figures=False)
    assert any("results.changed.csv" in n for n in made["notes"])
    assert (small / "results.csv").read_bytes() == good
    assert "0.999" in (small / "results.changed.csv").read_text()


def test_predictions_alone_give_a_report(small):
    for name in ("runs", "store"):
        shutil.rmtree(small / name)
    for name in ("splits.json", "cohort.json", "environment.json"):
        (small / name).unlink()
    made = report.make(small, resamples=100, figures=False)
    text = (small / "report.html").read_text()
    assert any("could not be compared" in n for n in made["notes"])
    assert "splits.json is missing" in text and "No learning curves" in text


def test_unfinished_run(small):
    for number in list((small / "runs").iterdir()):
        if "-cv1-" in number.name and number.name.endswith(f"{outfolder.hash_of('FT'):012x}"):
            shutil.rmtree(number)
    path = small / "predictions.csv"
    lines = path.read_text().splitlines()
    kept = [x for x in lines if not (x.split(",")[4] == "FT" and x.split(",")[2] == "1")]
    path.write_text("\n".join(kept) + "\n")
    made = report.make(small, resamples=100, figures=False)
    assert any(n.startswith("INCOMPLETE: 1 of 8") for n in made["notes"])
    assert any("only 1 of 2 folds" in n for n in made["notes"])
    assert 'class="banner"' in (small / "report.html").read_text()


def test_without_matplotlib_all_but_the_figures_is_there(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    sentence = plots.available()
    assert sentence.startswith("figures: Matplotlib") and "\n" not in sentence
    made = report.make(small, resamples=100)
    assert sentence in made["notes"]
    assert (small / "report.html").is_file() and (small / "table1.tex").is_file()
    assert not (small / "figures").exists()


def test_command_line(small, capsys):
    assert cli.main(["report", str(small), "--resamples", "100", "--no-figures"]) == 0
    said = capsys.readouterr()
    assert "report.html" in said.out and "95 % interval" in said.out
    assert cli.main(["report", str(small / "none")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert cli.main(["report", str(small), "--resamples", "5"]) == 2


def test_marks_and_numbers():
    assert tables.grid.marks([1.04, 3, 1.0, None, 2]) == ["", "best", "", "", "second"]
    assert tables.grid.marks([2.01, 2.04, 1]) == ["best", "best", "second"]
    assert tables.grid.marks([5, None]) == ["", ""]
    assert tables.grid.number(-0.04) == "0.0" and tables.grid.number(-1.25, 1, True) == "−1.2"
    shown = {0.05: "0.050", 0.0496: "0.0496", 0.04997: "0.04997", 0.0503: "0.050", 0.0494: "0.049"}
    assert {p: tables.grid.pvalue(p) for p in shown} == shown
    assert tables.grid.pvalue(0.0004) == "< 0.001" and tables.grid.pvalue(np.nan) == "–"
    assert tables.grid.tex("a_b 5 % ± <τ") == r"a\_b 5 \% $\pm$ $<$$\tau$".replace("$$", "")
    assert words.joined(["a", "b", "c"]) == "a, b and c"


def test_age_bands():
    from mdmt.analysis.cohort import age_band

    assert [age_band(a) for a in ("49.9", "50", "80", "", "x", "-1")] == [
        "under 50", "50 to 64", "80 and over", "not recorded", "not recorded", "not recorded",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """Two releases of one study, with a second reader of the severity."""
    out = tmp_path_factory.mktemp("releases") / "out"
    outfolder.make(out, n=60, cv={"folds": 2}, data={"releases": ["1", "2"]})
    return out, report.make(out, resamples=200, samples=False)


def test_releases_stand_side_by_side(releases):
    out, made = releases
    page = (out / "report.html").read_text()
    tested = {
        ("1", "prognosis"): 0,
        ("2", "prognosis"): 0,
        ("1", "severity"): 0,
        ("2", "severity"): 0,
    }
    for r in rows(out / "results.csv"):
        if r["configuration"] == "MDMT":
            tested[r["release"], r["task"]] += int(r["n"])
    assert list(tested.values()) == [30, 60, 40, 80]
    assert "For prognosis, release 1 in" in made["headlines"][0]
    answer = re.search(r'class="answer">.*?</p>', page, re.S)[0]
    assert "prognosis, release 2 in 2-fold" in answer  # the last one is the result
    for task in ("prognosis", "severity"):
        assert f"{task}, 2-fold cross-validation: the releases side by side" in page
        assert (out / "figures" / f"releases_cv_{task}.svg").is_file()
    assert page.index("the releases side by side") < page.index("Differences (primary analysis)")
    assert ">Release 1</h3>" in page and ">Release 2</h3>" in page
    assert "forest_1_cv_prognosis" in {p.stem for p in (out / "figures").glob("*.png")}


def test_second_reader_is_the_human_reference(releases):
    from sklearn.metrics import cohen_kappa_score

    out, _ = releases
    outcome = analysis.read(out)
    a = next(a for a in analysis.compare(outcome, 100) if a.matrix.place == ("2", "cv", "severity"))
    found = analysis.readers(a.matrix, outcome.cohort, 200)
    source = outcome.cohort["datasets"][-1]["cases"]
    both = [i for i, s in enumerate(source["second"]) if s]
    labels, second = ([source[k][i] for i in both] for k in ("label", "second"))
    assert found.n == len(both) == len(source["image"]) - 2
    people = found.readings[0]
    kappa = cohen_kappa_score(labels, second, weights="quadratic")
    assert people.kappa.estimate == pytest.approx(kappa)
    assert people.kappa.low < kappa < people.kappa.high
    ours = next(r for r in found.readings if r.name == "MDMT")
    called = {}
    for part in outcome.select(release="2", task="severity", configuration="MDMT"):
        called.update(zip(part.image, part.predicted, strict=True))
    calls = [str(called[source["image"][i]]) for i in both]
    assert ours.kappa.estimate == pytest.approx(
        cohen_kappa_score(labels, calls, weights="quadratic")
    )
    assert ours.other == pytest.approx(cohen_kappa_score(second, calls, weights="quadratic"))
    assert ours.beyond.difference == pytest.approx(ours.kappa.estimate - kappa)
    assert list(found.regions) == [*"ABCDEF", "right", "left", "global"]
    page = (out / "report.html").read_text()
    assert "The human reference" in page and "Two people scored" in page
    assert "Two readers of severity on" in page  # CLAIM, item 18
    assert analysis.readers(a.matrix, None, 200) is None


def test_nested_and_all_pairs_are_named_as_what_they_are(tmp_path):
    outfolder.make(tmp_path / "out", n=80, cv={"folds": 2, "inner": 2},
                   validation=["nested", "loco-all"])  # fmt: skip
    made = report.make(tmp_path / "out", resamples=100, samples=False, figures=False)
    assert "in nested cross-validation (4 folds)" in made["headlines"][0]
    assert "leave one center out, all pairs of centers" in made["headlines"][1]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Each test part belongs to several networks" in page
    assert "nested CV" in page and "LOCO, all pairs" in page


def test_an_image_counts_once_in_a_subgroup_however_often_it_is_tested(tmp_path):
    outfolder.make(tmp_path / "out", n=80, cv={"folds": 2, "inner": 3}, validation=["nested"],
                   jobs=False)  # fmt: skip
    outcome = analysis.read(tmp_path / "out")
    m = next(a.matrix for a in analysis.compare(outcome, 100) if a.matrix.task == "prognosis")
    assert len(m.y) == 3 * 80
    groups = [g for g in analysis.subgroups(m, outcome.cohort, 100) if g.variable == "center"]
    assert sum(g.n for g in groups) == 80
    assert sum(g.positive for g in groups) == np.sum(m.target()) / 3
    table = describe.confusion(m, "MDMT")
    assert table.sum() == 80
    assert table.sum(1)[m.positive] == np.sum(m.target()) / 3


def test_the_checklists_speak_of_the_run_at_hand(releases, tmp_path):
    """Counts of each release by itself; nested folds' own validation parts; no paper's rows, joint
    training or subgroups where there are none."""
    out, _ = releases
    page = (out / "report.html").read_text()
    assert page.count("Release 1: 6 rows without a label left out, 2 images excluded; release 2: "
                      "6 rows without a label left out, 2 images excluded;") == 4  # fmt: skip
    assert "one (release 1): 30 images" in page and "one (release 2): 60 images" in page
    outfolder.make(tmp_path / "out", n=80, cv={"folds": 2, "inner": 2}, validation=["nested"],
                   configurations=["STL-tau1"], jobs=False)  # fmt: skip
    record = json.loads((tmp_path / "out" / "cohort.json").read_text())
    for d in record["datasets"]:
        for name in ("center", "Sex", "sex", "age"):
            if name in d["cases"]:
                d["cases"][name] = [""] * len(d["cases"][name])
    (tmp_path / "out" / "cohort.json").write_text(json.dumps(record))
    path = tmp_path / "out" / "predictions.csv"
    path.write_text(re.sub("Center [012]", "", path.read_text()))
    report.make(tmp_path / "out", resamples=100, figures=False)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "20 % of each training part" not in page and "a part of each training part" in page
    assert "multi-task learning" not in page and "Rows &#x27;paper&#x27;" not in page
    assert "The tables record no center, sex or age." in page
    assert "Spread over folds." in page and "Centers are not recorded." in page


def test_correlation_is_of_the_expected_class(releases):
    from scipy.stats import pearsonr

    outcome = analysis.read(releases[0])
    a = next(a for a in analysis.compare(outcome, 100) if a.matrix.place == ("2", "cv", "severity"))
    parts = outcome.select(release="2", task="severity", configuration="MDMT")
    each = [pearsonr(p.y, p.p @ [0, 1, 2, 3]).statistic for p in parts]
    assert analysis.operating(a.matrix, "MDMT")["correlation"] == pytest.approx(np.mean(each))


def test_labels_and_axes_that_would_fall_together():
    assert style.apart([1.0, 5.0], 1) == [1.0, 5.0]
    assert style.apart([3.0, 3.0, 3.0], 1) == [2.0, 3.0, 4.0]
    assert style.apart([2.0, 0.0, 2.0], 1) == pytest.approx([5 / 3, -1 / 3, 8 / 3])
    assert style.apart([], 1) == []
    _, axes = style.figure(2, 2)
    axes[0, 0].plot([0, 1], [0, 0])
    style.least_range(axes[0, 0])
    assert axes[0, 0].get_ylim() == pytest.approx((-1, 1))


def test_the_recipe_is_told():
    """What a configuration does otherwise than plainly, of all trainings and of single stages."""
    from mdmt.report import recipe

    values = config.load("demo", ["sampler.drop_last=false"])
    assert recipe.joint(values) == recipe.arithmetic(values) == recipe.stages(values) == ""
    stages = [
        {"tasks": ["tau1"]},
        {"tasks": ["tau1", "tau2"], "init": 0, "freeze": True, "task_weights": {"tau1": 2},
         "train": {"lr": 0.1, "clip_norm": 1}, "sampler": {"mode": "balanced"}},
    ]  # fmt: skip
    changes = {
        "precision": "bf16",
        "mdmt": {"task_weights": "uncertainty"},
        "sampler": {"mode": "ratio", "ratio": [1, 2], "epoch": 30, "drop_last": True},
        "experiments": {"E": stages, "NOT-RUN": stages},
        "configurations": ["STL-tau1", "MDMT", "E"],
    }
    values = config.load("demo", [f"{k}={json.dumps(v)}" for k, v in changes.items()])
    assert recipe.arithmetic(values) == ", computed in bfloat16, mixed with float32"
    assert recipe.joint(values) == (
        ", samples of the data sets as 1 : 2 in a batch, 30 steps an epoch, last batches that are "
        "not full left out, losses of the tasks over their means in the epoch before (MDMT)"
    )
    assert recipe.stages(values) == (
        " Stage 1 of E: the backbone frozen, lr 0.1, equally many samples of each data set in a "
        "batch, losses of the tasks weighed (tau1 x 2; scaled to a mean of 1)."
    )


def test_the_checklist_has_the_recipe(tmp_path):
    train = {"decoupled": True}
    out = outfolder.make(tmp_path / "out", n=40, cv={"folds": 2}, train=train, precision="bf16",
                         mdmt={"task_weights": {"prognosis": 3}})  # fmt: skip
    report.make(out, resamples=100, figures=False, samples=False)
    page = (out / "report.html").read_text()
    assert (
        "weight decay 0.0001 (decoupled, AdamW), losses of the tasks weighed (prognosis x 3; "
        in page
    )
    assert "scaled to a mean of 1) (MDMT), computed in bfloat16, mixed with float32, aug" in page


def test_a_finding_of_an_image_tested_twice_is_one_case():
    """Nested folds test an image several times; tables and figures count images."""
    spec = config.resolve({
        "name": "x", "data": {"root": ".", "datasets": [{"name": "d", "table": "t.csv",
                                                         "task": "f"}]},
        "tasks": {"f": {"classes": ["Edema", "Mass"], "head": {"loss": "bce"}}},
    }, "x")["tasks"]["f"]  # fmt: skip
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (40, 2)).astype(float)
    y[:5, 1] = np.nan
    twice, names = np.tile(np.arange(40), 2), np.array([f"i{i}" for i in range(40)])
    m = compare.Matrix(
        "1", "nested", "f", spec, ["MDMT"], [("resnet18", 0)], y[twice], np.repeat([0, 1], 40),
        names[twice], names[twice], np.full(80, ""), {("resnet18", 0, "MDMT"): rng.random((80, 2))},
    )  # fmt: skip
    table = sections.finding_table(SimpleNamespace(matrix=m))
    assert [r.cells[0].text for r in table.rows] == [
        f"{int(y[:, 0].sum())} of 40", f"{int(np.nansum(y[:, 1]))} of 35",
    ]  # fmt: skip
    with style.drawing():
        fig = curves.findings(m)
    assert fig.axes[1].get_title().endswith(f"{int(np.nansum(y[:, 1]))} of 35")


def test_one_network_is_no_mean_over_networks(small):
    a = analysis.compare(analysis.read(small), 100)[0]
    a.matrix.validation = "external"
    joint = analysis.together(a.matrix, 100)
    said = " ".join(external.table(a, joint).notes)
    assert "One: the network, which is taken as given." in said and "resampled" not in said
