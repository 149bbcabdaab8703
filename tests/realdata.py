"""Where the tests find real radiographs: $MDMT_DATA, or ../shared/data beside the repository."""

import os
from pathlib import Path

import pytest

_ROOT = Path(os.environ.get("MDMT_DATA") or Path(__file__).parents[2] / "shared" / "data")
COVID_CXR = _ROOT / "covid_cxr"
PUBLISHED = _ROOT / "published_folds"

needs_covid_cxr = pytest.mark.skipif(
    not (COVID_CXR / "prognosis.csv").is_file(),
    reason=f"no real radiographs in {COVID_CXR} (set MDMT_DATA)",
)


needs_published = pytest.mark.skipif(
    not (PUBLISHED / "BX" / "all.txt").is_file(),
    reason=f"no published fold files in {PUBLISHED} (set MDMT_DATA)",
)
