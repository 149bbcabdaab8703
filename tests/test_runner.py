"""What the runner knows about jobs before they run."""

import numpy as np
import pytest

from mdmt import experiments
from mdmt.engine import make_sampler
from mdmt.runner import child, display


def job(sizes, batch, **sampler):
    settings = {"mode": "union", "ratio": None, "epoch": "union", "drop_last": False, **sampler}
    description = {"train": {"batch_size": batch}, "sampler": settings, "seed": 0}
    rows = {str(i): {"train": np.arange(n)} for i, n in enumerate(sizes)}
    return experiments.Job("id", "label", description, rows)


@pytest.mark.parametrize(
    "sampler",
    [
        {},
        {"drop_last": True},
        {"mode": "balanced", "epoch": "longest"},
        {"mode": "balanced", "epoch": "shortest"},
        {"mode": "ratio", "ratio": [3, 1], "epoch": "union"},
        {"epoch": 5},
    ],
)
@pytest.mark.parametrize("sizes, batch", [([13, 30], 8), ([3, 4], 8), ([16, 16], 16)])
def test_images_of_an_epoch_are_those_that_the_sampler_draws(sizes, batch, sampler):
    one = job(sizes, batch, **sampler)
    drawn = make_sampler(sizes, batch, one.description["sampler"], 0)
    assert display.images_per_epoch(one) == sum(len(index) for _, index in drawn) > 0


def test_threads_are_shared_out(monkeypatch):
    monkeypatch.setenv("MDMT_NUM_THREADS", "3")
    assert child.default_threads(2) == 3
    monkeypatch.delenv("MDMT_NUM_THREADS")
    assert child.default_threads(1) >= child.default_threads(2) >= 1
    assert child.default_threads(10_000) == 1


def test_images_of_an_earlier_process_are_done_but_not_in_the_rate(capsys):
    one = job([40], 8)
    one.description.update(backbone="b", validation="cv", fold=0, release="1")
    view = display.Display([one], {"id": 400}, 0, quiet=False)
    event = {"resumed": 160, "epoch": 5, "epochs": 10, "loss": 0.5}
    view.progress(one, {**event, "images": 168})
    view.progress(one, {**event, "images": 200})
    assert view.seen["id"] == 200
    assert view.images == 40
    result = {"images": 240, "resumed": 160, "epochs": 6, "best_epoch": 2, "seconds": 4.0}
    view.finish(one, result)
    view.close()
    line = capsys.readouterr().err
    assert "[1/1] b cv fold 0 label: 6 epochs (best 3), 4 s, 20 img/s" in line
    assert "about 0:00 left" in line
