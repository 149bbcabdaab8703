"""What a check found: graded findings, and what they are about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .. import study
from .pictures import Looks

GRADES = ("error", "warning", "note")


class Item(NamedTuple):
    """A finding: its grade, what it is about, one sentence with the remedy."""

    grade: str
    topic: str
    sentence: str


@dataclass
class Report:
    """What `examine` found.

    items: findings, errors first; study: None where the data could not be read or split; surveys:
    {(release, data set): Survey}; looks: what the pictures showed; costs: forecast of the plan, or
    None; seconds: of the check.
    """

    values: dict
    items: list[Item] = field(default_factory=list)
    study: study.Study | None = None
    gathered: list = field(default_factory=list)
    surveys: dict = field(default_factory=dict)
    looks: Looks | None = None
    costs: dict | None = None
    seconds: float = 0.0

    def add(self, grade: str, topic: str, sentence: str) -> None:
        """Add a finding, once."""
        item = Item(grade, topic, sentence)
        if item not in self.items:
            self.items.append(item)

    @property
    def said(self) -> list[str]:
        """What is to be known of pictures and patients when results are read, as sentences."""
        own = [f"{i.topic}: {i.sentence}" for i in self.items if "patient ids are in" in i.sentence]
        looks = self.looks.findings() if self.looks is not None else []
        return [*own, *(f"{topic}: {what}" for grade, topic, what in looks if grade != "note")]

    def count(self, grade: str) -> int:
        """How many findings there are of a grade."""
        return sum(i.grade == grade for i in self.items)

    @property
    def errors(self) -> list[Item]:
        """Findings with which training would fail."""
        return [i for i in self.items if i.grade == "error"]
