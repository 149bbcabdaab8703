"""Objects show themselves in a notebook, as tables that a browser and a screen reader can read."""

from html.parser import HTMLParser

import numpy as np
import pytest

import mdmt
from mdmt import splits, summary
from mdmt.shown import html_table
from mdmt.tables.grid import Cell, Row, Table
from tests import outfolder


class Reader(HTMLParser):
    """Collects the texts of cells, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.tags = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def shown(thing):
    return Reader(thing._repr_html_())


def test_a_model_shows_its_parts():
    model = mdmt.Model("shufflenet_v2_x0_5", heads={"a": 3}, image_size=64)
    found = shown(model)
    count = sum(
        v.size for k, v in model.state_dict().items()
        if not k.startswith("heads.") and "running" not in k and "tracked" not in k
    )  # fmt: skip
    assert found.cells[3:5] == ["backbone", f"{count:,}"] and "head a" in found.cells
    assert ("details", {}) in found.tags
    assert "layers" in summary.build("shufflenet_v2_x0_5")._repr_html_()


def test_folds_and_findings_show_themselves():
    labels, patients = np.arange(30) % 2, np.arange(30) // 3
    folds = splits.stratified_group_kfold(labels, patients, 3)
    found = shown(folds)
    for fold in folds:
        assert str(len(fold["test"])) in found.cells
    assert folds == list(folds)
    clean = splits.audit(folds, {"patient": patients})
    assert clean == [] and "found nothing" in clean._repr_html_()
    by_image = splits.stratified_group_kfold(labels, np.arange(30), 3)
    leak = shown(splits.audit(by_image, {"patient": patients}))
    assert "patient_overlap" in leak.cells
    loco = splits.leave_one_center_out(labels, patients, np.where(patients < 5, "A", "B"))
    assert shown(loco).cells[1] == "center left out"


def test_a_data_set_shows_its_counts():
    cases = outfolder.draw_cases("one", "prognosis", ["MILD", "SEVERE"], 30, 0)
    found = shown(cases)
    counts = np.bincount(cases.labels).tolist()
    at = found.cells.index("prognosis: SEVERE")
    assert found.cells[at + 1] == str(counts[1])


def test_a_table_shows_itself_without_the_words_for_ears():
    table = Table("t", "A & B", ["x"], [("g", 1)], ["c"], [Row(["r"], [Cell("1", "best")])])
    text = table._repr_html_()
    Reader(text)
    assert "<strong>1</strong>" in text and "(best)" not in text and "A &amp; B" in text


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", 'a"b', "ä & ö"])
def test_texts_are_escaped(text):
    found = Reader(html_table(text, [text], [[text]], text))
    assert found.cells == [text, text]
    assert not [t for t, _ in found.tags if t == "script"]
