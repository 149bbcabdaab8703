"""Agreement of readers, and shares with intervals, against scikit-learn, SciPy, statsmodels and
published examples."""

import csv

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import cohen_kappa_score

from mdmt import config, stats, study
from mdmt.data import second
from mdmt.errors import BadData
from tests import realdata

# Shrout & Fleiss, Psychol. Bull. 86 (1979), table 2: six targets, four judges.
SHROUT_FLEISS = [
    [9, 2, 5, 8],
    [6, 1, 3, 2],
    [8, 4, 6, 8],
    [7, 1, 2, 6],
    [10, 5, 6, 9],
    [6, 2, 4, 7],
]


def draw(n=60, seed=0, classes=4):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, classes, n)
    return a, np.clip(a + rng.integers(-1, 2, n), 0, classes - 1)


@pytest.mark.parametrize("seed", range(4))
def test_agreement_is_that_of_the_libraries(seed):
    a, b = draw(seed=seed)
    found = stats.agreement(a, b)
    assert found.n == 60 and found.exact == np.mean(a == b)
    assert found.kappa == pytest.approx(cohen_kappa_score(a, b))
    assert found.weighted_kappa == pytest.approx(cohen_kappa_score(a, b, weights="quadratic"))
    assert found.mae == np.abs(a - b).mean() and found.bias == pytest.approx((b - a).mean())
    assert found.pearson == pytest.approx(scipy_stats.pearsonr(a, b).statistic)
    assert found.spearman == pytest.approx(scipy_stats.spearmanr(a, b).statistic)


def test_icc_is_shrout_and_fleisss():
    assert stats.icc(SHROUT_FLEISS) == pytest.approx(0.29, abs=0.005)


def test_icc_is_that_of_a_two_way_analysis_of_variance():
    pandas = pytest.importorskip("pandas")
    formula = pytest.importorskip("statsmodels.formula.api")
    anova = pytest.importorskip("statsmodels.stats.anova")
    a, b = draw(seed=5)
    table = pandas.DataFrame({
        "y": np.concatenate([a, b]),
        "case": np.tile(np.arange(60), 2),
        "reader": np.repeat([0, 1], 60),
    })  # fmt: skip
    fit = formula.ols("y ~ C(case) + C(reader)", table).fit()
    square = anova.anova_lm(fit)["mean_sq"]
    case, reader, error = square["C(case)"], square["C(reader)"], square["Residual"]
    expected = (case - error) / (case + error + 2 * (reader - error) / 60)
    assert stats.agreement(a, b).icc == pytest.approx(expected)


def test_cases_that_a_reader_lacks_are_left_out():
    a, b = (v.astype(float) for v in draw())
    with_holes = a.copy()
    with_holes[:7] = np.nan
    assert stats.agreement(with_holes, b) == pytest.approx(stats.agreement(a[7:], b[7:]))


def test_agreement_without_spread():
    found = stats.agreement(np.ones(5), np.ones(5))
    assert found.exact == 1 and found.mae == 0
    assert all(np.isnan(v) for v in (found.kappa, found.weighted_kappa, found.pearson, found.icc))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: stats.agreement([1, 2], [1]), "both must be"),
        (lambda: stats.agreement([np.nan], [1.0]), "no case in common"),
        (lambda: stats.icc([[1], [2]]), "at least two readers"),
        (lambda: stats.region_agreement([[1, 2]], [[1, 2]]), "a column per region"),
        (lambda: stats.wilson(3, 2), "k of n needs"),
        (lambda: stats.wilson(1, 2, 95), "between 0 and 1"),
    ],
)
def test_input_that_cannot_be_used(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_regions_lungs_and_sum():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (2, 40, 6))
    found = stats.region_agreement(a, b)
    assert found["B"] == stats.agreement(a[:, 1], b[:, 1])
    assert found["left"] == stats.agreement(a[:, 3:].sum(1), b[:, 3:].sum(1))
    assert found["global"] == stats.agreement(a.sum(1), b.sum(1))


@pytest.mark.parametrize(("k", "n"), [(0, 12), (1, 12), (7, 20), (20, 20), (480, 1000)])
def test_wilson_is_statsmodels(k, n):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for level in (0.9, 0.95):
        low, high = proportion.proportion_confint(k, n, 1 - level, method="wilson")
        assert stats.wilson(k, n, level) == pytest.approx((k / n, low, high), abs=1e-12)


def test_wilson_of_many_and_of_none():
    found = stats.wilson(np.array([0, 3, 0]), np.array([4, 4, 0]))
    assert found.low[1] == stats.wilson(3, 4).low and np.isnan(found.high[2])


def test_second_reader_of_a_table(tmp_path):
    rows = [{"image": "a", "r": "2", "x": "012301"}, {"image": "b", "r": "", "x": ""}]
    columns = {"image": "image", "second": "r", "regions": "x"}
    asked = []

    def label(some):
        asked.append([r["image"] for r in some])
        return np.array([1]), np.array([2.0])

    found = second.read(tmp_path / "t.csv", rows, columns, lambda r: r["r"] != "", label)
    assert asked == [["a"]] and found["labels"].tolist() == [1, -1]
    assert (
        found["regions"][0].tolist() == [0, 1, 2, 3, 0, 1] and np.isnan(found["regions"][1]).all()
    )
    rows[0]["x"] = "999999"
    with pytest.raises(BadData, match="image 'a', column 'x': '999999' is not a Brixia score"):
        second.read(tmp_path / "t.csv", rows, columns, lambda r: r["r"] != "", label)


@realdata.needs_covid_cxr
def test_two_radiologists_of_real_images():
    """The published scores of two readers: their agreement, counted from the table by hand."""
    folder = realdata.COVID_CXR
    values = config.load("covid_cxr", [f"data.root={folder}"])
    cases = study.read_cases(values)[1]
    with open(folder / "severity.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    a, b = ([int(r[k]) for r in rows] for k in ("brixia_global", "junior_global"))
    scores = stats.agreement(cases.scores, cases.second["scores"])
    assert scores.weighted_kappa == pytest.approx(cohen_kappa_score(a, b, weights="quadratic"))
    regions = stats.region_agreement(cases.second["regions"], cases.second["second_regions"])
    for k, letter in enumerate("ABCDEF"):
        pair = [[int(r[c].zfill(6)[k]) for r in rows] for c in ("brixia_score", "junior_score")]
        assert regions[letter].weighted_kappa == pytest.approx(
            cohen_kappa_score(*pair, weights="quadratic")
        )
    assert regions["global"] == pytest.approx(scores)
    assert 0.7 < scores.icc < 0.95
