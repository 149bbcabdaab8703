"""`mdmt check CONFIG`: everything that can be known before any training.

`examine` reads the tables, prepares what is not in the store yet, looks at the pictures, makes and
audits the splits and forecasts the plan. Findings are graded: an error means that training would
fail or mean nothing, a warning that a person should look, a note that something was done.
"""

from . import page, terminal
from .examine import before, examine
from .found import Item, Report

__all__ = ["Item", "Report", "before", "examine", "page", "terminal"]
