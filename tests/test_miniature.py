"""benchmarks/miniature.py on the smallest part of the paper's study."""

from benchmarks import miniature


def test_a_part_of_the_study_trains(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(
        "sys.argv",
        ["miniature", "--jobs", "4", "--workers", "1", "--no-estimate", "--no-report",
         "--out", str(tmp_path)],
    )  # fmt: skip
    assert not miniature.main()
    said = capfd.readouterr()
    assert len(list((tmp_path / "study/runs").glob("*/result.json"))) == 4, said.err
    assert "4 trainings" in said.out + said.err
