"""Ranks, marks and intervals against SciPy and by hand; the table for a paper."""

from __future__ import annotations

import numpy as np
import pytest

from ddfm_fast.metrics.evaluation import CORE, Evaluation, MethodScores
from ddfm_fast.metrics.latex import escaped
from ddfm_fast.metrics.ranking import (
    CRITICAL,
    critical_difference,
    groups,
    interval,
    letters,
    marked,
    ranks,
    verdict,
)
from ddfm_fast.metrics.report import write_report
from ddfm_fast.metrics.tables import as_dict, render

stats = pytest.importorskip("scipy.stats")


def evaluation(scores, *, copies=(), names=None):
    """Make scores [methods, pairs] that are the same in every column."""
    scores = np.asarray(scores, np.float64)
    pairs = [f"p{n}" for n in range(scores.shape[1])]
    methods = [
        MethodScores(
            name=names[n] if names else f"m{n}",
            folder=None,
            values={column: row + 0.0 for column in CORE},
            near_copies=dict.fromkeys(pairs, "ir") if n in copies else {},
        )
        for n, row in enumerate(scores)
    ]
    return Evaluation("vifb", pairs, methods)


@pytest.mark.parametrize("decimals", [6, 1])
@pytest.mark.parametrize("methods, pairs", [(3, 2), (4, 12), (7, 30)])
def test_friedman_and_ranks_are_scipys(methods, pairs, decimals):
    scores = np.random.default_rng(methods).random((methods, pairs)).round(decimals)
    found = ranks(evaluation(scores), CORE[0])
    assert found.p == pytest.approx(stats.friedmanchisquare(*scores).pvalue, rel=1e-9)
    expected = np.mean([stats.rankdata(-scores[:, n]) for n in range(pairs)], axis=0)
    np.testing.assert_allclose(found.mean, expected)


def test_what_cannot_be_ranked():
    assert ranks(evaluation([[1, 2]]), CORE[0]) is None
    assert ranks(evaluation([[1], [2]]), CORE[0]) is None
    assert ranks(evaluation([[1, np.nan], [2, 3]]), CORE[0]) is None
    assert ranks(evaluation([[1, 2], [1, 2]]), CORE[0]) == ([1.5, 1.5], 1.0)
    assert verdict(evaluation([[1, 2]])) == []


def test_nemenyi():
    """Demšar 2006, section 3.2.2: the critical difference of 4 methods on 14 data sets is 1.25."""
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(1, 14) is critical_difference(40, 14) is None


@pytest.mark.parametrize("methods", CRITICAL)
def test_critical_values_are_scipys(methods):
    exact = stats.studentized_range.ppf(0.95, methods, 1e6) / np.sqrt(2)
    assert CRITICAL[methods] == pytest.approx(exact, abs=0.0015)


def test_groups_have_the_methods_that_nemenyi_does_not_tell_apart():
    """Mean ranks 1, 2, 3, 4 and 5 of 12 pairs; the critical difference is 1.76 by hand."""
    scores = np.array([np.full(12, 5.0 - n) for n in range(5)])
    found = evaluation(scores)
    assert critical_difference(5, 12) == pytest.approx(2.728 * np.sqrt(5 * 6 / (6 * 12)))
    expected = [["m0", "m1"], ["m1", "m2"], ["m2", "m3"], ["m3", "m4"]]
    assert groups(found, ranks(found, CORE[0])) == expected
    told = as_dict(found)
    assert told["ranks"][CORE[0]]["groups"] == expected
    assert told["ranks"][CORE[0]]["mean"] == {"m0": 1, "m1": 2, "m2": 3, "m3": 4, "m4": 5}
    assert told["ranks"][CORE[0]]["p"] == pytest.approx(stats.chi2.sf(48, 4))
    assert told["critical_difference"] == critical_difference(5, 12)
    even = evaluation([[1, 2, 3], [1, 2, 3]])
    assert groups(even, ranks(even, CORE[0])) == [["m0", "m1"]]
    assert as_dict(evaluation([[1, 2]]))["ranks"] == {}


def test_letters_are_the_groups_in_every_table_and_on_the_page(tmp_path):
    """The groups of the test above: neighbors share a letter, others do not."""
    found = evaluation(np.array([np.full(12, 5.0 - n) for n in range(5)]))
    assert letters(found, CORE[0]) == ["a", "ab", "bc", "cd", "d"]
    text, markdown = render(found, "table"), render(found, "markdown")
    assert "\nm1    2.00 ab  2.00 ab" in text and "\nm4    5.00 d   5.00 d" in text
    assert "| m1 | 2.00 ab | 2.00 ab |" in markdown
    assert "(Nemenyi, .05): those that share no letter" in text
    assert "(Nemenyi, .05): those that share no letter" in markdown
    latex = render(found, "latex")
    assert "\nm0 & \\textbf{5.000}$^{a}$ &" in latex and "\nm3 & 2.000$^{cd}$ &" in latex
    assert "those that share no letter" in latex.partition("\\caption{")[2]
    page = write_report(tmp_path / "page.html", found, [], [], max_pairs=0).read_text("utf-8")
    assert '<th scope="row">m2</th><td>3.00 bc</td>' in page
    assert "those that share no letter" in page


def test_letters_stand_where_friedmans_test_tells_methods_apart():
    even = evaluation([[1, 2, 3], [1, 2, 3]])
    assert letters(even, CORE[0]) == ["", ""]
    assert "1.50 a" not in render(even, "table") and "$^" not in render(even, "latex")
    assert letters(evaluation([[1, 2]]), CORE[0]) == [""]


def test_the_best_and_the_second_are_marked_and_copies_are_not():
    found = evaluation([[1, 1], [3, 3], [2, 2], [9, 9]], copies=[3])
    assert set(marked(found).values()) == {(("m1",), ("m2",))}
    text = render(found, "markdown")
    assert "**3.000**" in text and "<u>2.000</u>" in text and "**9" not in text
    latex = render(found, "latex")
    assert "\\textbf{3.000}" in latex and "\\underline{2.000}" in latex and "{9" not in latex
    assert latex.count("\\\\\n") == 5 and "±" not in latex
    assert set(marked(evaluation([[1, 1]])).values()) == {((), ())}
    assert set(marked(evaluation([[1, 1], [1, 1]])).values()) == {((), ())}


def test_equal_means_share_their_mark():
    found = evaluation([[1, 2], [3, 4], [0, 1], [3, 4], [1, 2 + 1e-15]])
    for one in marked(found).values():
        assert (set(one.best), set(one.second)) == ({"m1", "m3"}, {"m0", "m4"})
    for form, best, second in (
        ("markdown", "**3.500**", "<u>1.500</u>"),
        ("latex", "\\textbf{3.500}", "\\underline{1.500}"),
    ):
        text = render(found, form)
        columns = len(found.columns) - 1  # all but SD, which has two digits
        assert text.count(best) == text.count(second) == 2 * columns


def test_where_less_is_better_the_least_is_best():
    pairs = ["a", "b"]
    methods = [MethodScores(f"m{n}", None, {"MSE": np.array([n, n + 0.5])}, {}) for n in range(3)]
    found = Evaluation("sane", pairs, methods)
    assert marked(found) == {"MSE": (("m0",), ("m1",))}
    assert ranks(found, "MSE").mean == [1, 2, 3]
    assert "MSE$\\downarrow$" in render(found, "latex") and "MSE↓" in render(found, "table")
    assert "\\textbf{0.250}" in render(found, "latex")


def test_latex_shows_names_as_they_are():
    latex = render(evaluation([[1, 2], [2, 3]], names=["a_b & c%", "\\x^~"]), "latex")
    assert "a\\_b \\& c\\%" in latex
    assert "\\textbackslash{}x\\textasciicircum{}\\textasciitilde{}" in latex
    assert escaped("$#{}") == "\\$\\#\\{\\}"
    latex = render(evaluation([[1, 2], [2, 3], [1, 1]], names=["[1] a", "*b", "<c>"]), "latex")
    assert "\n{[}1] a &" in latex and "\n{*}b &" in latex  # not arguments of \midrule and \\\\
    assert "\n\\textless{}c\\textgreater{} &" in latex


def test_markdown_shows_names_as_they_are():
    names = ["*a* _b_", "`c`|<d>", "[e](f)"]
    text = render(evaluation([[1, 2], [2, 3], [1, 1]], names=names), "markdown")
    assert "| \\*a\\* \\_b\\_ |" in text
    assert "| \\`c\\`\\|\\<d\\> |" in text and "| \\[e\\](f) |" in text


def test_the_interval_holds_the_mean_in_95_of_100_draws():
    rng = np.random.default_rng(1)
    held = [low <= 5 <= high for _ in range(400) for low, high in [interval(rng.normal(5, 2, 40))]]
    assert 0.9 < np.mean(held) < 0.98
    assert np.isnan(interval(np.array([1.0]))).all()
    values = np.arange(9.0)
    assert interval(values) == interval(values)
    assert as_dict(evaluation([values, values + 1]))["methods"][0]["interval95"][CORE[0]] == [
        *interval(values)
    ]


def test_markdown_and_csv_have_the_intervals():
    values = np.arange(9.0)
    low, high = interval(values)
    row = f"| m0 | {low:.3f} to {high:.3f} | {low:.2f} to {high:.2f} |"
    text = render(evaluation([values, values + 1]), "markdown")
    assert "| 95 % of the mean | EN | SD |" in text and row in text
    assert "95 %" not in render(evaluation([[1], [2]]), "markdown")
    rows = render(evaluation([values, values + 1]), "csv").splitlines()
    assert f"m0,low95,0,{low},{low}," in rows[3] and f"m0,high95,0,{high},{high}," in rows[4]


def test_the_verdict_names_the_columns_and_the_distance():
    better = np.arange(20.0)
    lines = verdict(evaluation([better, better + 1, better + 2]))
    assert f"differ in {', '.join(CORE)}" in lines[0] and "20 pairs" in lines[0]
    assert lines[1].startswith(f"two methods differ if their mean ranks differ by "
                               f"{critical_difference(3, 20):.2f}")  # fmt: skip
    noise = np.random.default_rng(0).random((3, 4))
    assert verdict(evaluation(noise))[0].endswith("no column tells them apart")
