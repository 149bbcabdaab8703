"""Launches for maps that no test can hold: which thread has what, up to the largest sizes that are
not refused, and the tiles of depthwise convolutions."""

from tests import cudahost


def test_indices_hold_at_the_largest_sizes(tmp_path):
    assert cudahost.said_by(tmp_path, cudahost.TOP / "tests" / "c" / "launch_sizes.cpp") == ""
