"""What a sweep shows while it runs."""

import io
import types

import pytest

from mdmt.runner import display


def jobs(backbones=("resnet18", "densenet201"), count=4, releases=("1",)):
    made = []
    for backbone in backbones:
        for release in releases:
            for fold in range(count):
                place = {"backbone": backbone, "validation": "cv", "fold": fold}
                described = {**place, "release": release, "seed": 0, "select": "prognosis"}
                name = f"{backbone}-{release}-{fold}"
                job = types.SimpleNamespace(id=name, label="MDMT", description=described,
                                            twin=None)  # fmt: skip
                job.reported = ["MDMT"]
                made.append(job)
    return made


def result(seconds, images=100, loss=0.5):
    return {"images": images, "resumed": 0, "epochs": 2, "best_epoch": 0, "seconds": seconds,
            "val_loss": loss}  # fmt: skip


class Terminal(io.StringIO):
    """What a terminal of some width shows, with the few controls that a Screen writes."""

    def __init__(self, columns):
        super().__init__()
        self.columns = columns

    def isatty(self):
        return True

    def shown(self):
        rows, row, column = [""], 0, 0
        text = self.getvalue()
        i = 0
        while i < len(text):
            if text[i] == "\r":
                column = 0
            elif text[i] == "\n":
                row, column = row + 1, 0
            elif text.startswith("\x1b[J", i):
                rows[row] = rows[row][:column]
                del rows[row + 1 :]
                i += 2
            elif text.startswith("\x1b[", i):
                assert text[i + 3] == "A"
                row -= int(text[i + 2])
                i += 3
            else:
                assert column < self.columns, f"wider than the terminal: {rows[row]}"
                rows[row] = rows[row][:column] + text[i] + rows[row][column + 1 :]
                column += 1
            while row >= len(rows):
                rows.append("")
            i += 1
        return rows


@pytest.fixture
def view(monkeypatch):
    """Function that makes a Display on a terminal of some columns."""

    def make(columns, work):
        terminal = Terminal(columns)
        monkeypatch.setattr(display.sys, "stderr", terminal)
        monkeypatch.setattr(display.Screen, "width", lambda self: columns - 1)
        monkeypatch.setattr(display, "OFTEN", 0.0)
        monkeypatch.setenv("TERM", "xterm")
        totals = dict.fromkeys((j.id for j in work), 100)
        return display.Display(work, totals, 0, quiet=False), terminal

    return make


@pytest.mark.parametrize("columns", [70, 80, 120])
def test_two_lines_stay_below_what_is_said_and_fit(view, columns):
    work = jobs()
    shown, terminal = view(columns, work)
    assert "0/8 done, 0 running, 8 waiting" in terminal.shown()[1]
    assert "time left not known yet" in terminal.shown()[0]
    shown.started(work[0])
    event = {"images": 60, "resumed": 0, "epoch": 1, "epochs": 2, "loss": 0.7, "best": None}
    shown.progress(work[0], event)
    assert " img/s, about " in terminal.shown()[0]
    if columns == 120:
        assert "resnet18 cv fold 0 MDMT: epoch 1/2, loss 0.700" in terminal.shown()[0]
    shown.finish(work[0], result(1.0))
    shown.started(work[1])
    shown.fail(work[1], "a sentence")
    rows = terminal.shown()
    assert rows[0].startswith("[1/8] resnet18 cv fold 0 MDMT: 2 epochs (best 1), 1 s")
    assert rows[1] == "[2/8] resnet18 cv fold 1 MDMT: FAILED: a sentence"
    assert rows[2].startswith(" 14 % █")  # 1 of the 7 that are left
    assert rows[3].startswith("1/8 done, 0 running, 6 waiting, 1 failed")
    if columns >= 80:
        assert "best prognosis validation loss 0.500" in rows[3]
    shown.close()
    rows = terminal.shown()
    assert rows[2].startswith("1/8 done, 0 running, 6 waiting, 1 failed; ")
    assert rows[3] == "best prognosis validation loss 0.500 (resnet18 cv fold 0 MDMT)"
    assert rows[4:] in ([""], [])


def test_time_left_counts_what_a_backbone_costs(view, monkeypatch):
    work = jobs()
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    shown, _ = view(80, work)
    for job, seconds in ((work[0], 1.0), (work[4], 9.0)):
        now[0] += seconds
        shown.finish(job, result(seconds))
    assert shown.left() == pytest.approx(3 * 1.0 + 3 * 9.0)
    for job in work[1:4]:
        now[0] += 1.0
        shown.finish(job, result(1.0))
    assert shown.left() == pytest.approx(3 * 9.0)


def test_releases_are_told_apart_only_where_there_are_several(view):
    assert view(80, jobs())[0].name(jobs()[0]) == "resnet18 cv fold 0 MDMT"
    several = jobs(releases=("1", "3"))
    assert view(80, several)[0].name(several[-1]) == "densenet201 release 3 cv fold 3 MDMT"


def test_a_stop_is_no_failure_of_a_training_that_it_reached_first(tmp_path):
    """Ctrl-C goes to the trainings, too, and may end one before it can save."""
    import signal

    from mdmt.errors import Interrupted
    from mdmt.runner import sweep

    work = jobs(count=2)
    for job in work:
        job.needs, job.rows = [], {"one": {"train": range(100)}}
        job.description |= {"train": {"epochs": 1, "batch_size": 10}}
        job.description["sampler"] = {
            "mode": "union", "ratio": None, "epoch": "union", "drop_last": False,
        }  # fmt: skip

    class Stopped:
        workers = 1
        events = ()

        def free(self):
            return 1 - len(self.events)

        def start(self, job, folder):
            signal.raise_signal(signal.SIGINT)
            self.events = [(job.id, {"event": "exit", "code": -2, "words": ""})]

        def poll(self, seconds):
            found, self.events = self.events, ()
            return found

        def stop(self):
            pass

        close = stop

    swept = sweep.Sweep(work, tmp_path / "runs", lambda job: {}, Stopped(), quiet=True)
    with pytest.raises(Interrupted, match="stopped by SIGINT"):
        swept.run()
    assert swept.outcome.failed == {}
