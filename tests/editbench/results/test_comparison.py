"""Editors against one another on the same cases."""

import csv
import io
import json
import math

import numpy as np
import pytest
from scipy import stats

from editbench.errors import RunError, UnknownNameError
from editbench.results.comparison import (
    Difference,
    compare,
    write_comparison_csv,
    write_comparison_json,
)
from editbench.results.paired_bootstrap import estimate_differences
from editbench.results.report import summarize
from editbench.results.statistics import geometric_mean, harmonic_mean, take_mean
from editbench.results.tables.comparison_table import tabulate_comparison

MEAN = ((0,), take_mean)


def differ(ours, theirs, quantity=MEAN, seed=0):
    columns = [np.array(values, dtype=float).reshape(len(ours), -1) for values in (ours, theirs)]
    return estimate_differences(*columns, [quantity], seed=seed)[0]


class TestPairedBootstrap:
    def test_what_is_the_same_differs_by_exactly_nothing(self):
        values = np.random.default_rng(0).uniform(0, 100, size=(37, 3))
        quantities = [((0,), take_mean), ((0, 1, 2), harmonic_mean), ((1,), geometric_mean)]
        values[:, 1] /= 50
        for found in estimate_differences(values, values.copy(), quantities, seed=0):
            assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)
            assert found.ours == found.theirs
            assert found.n == 37

    def test_a_constant_difference_has_no_spread(self):
        found = differ([10, 40, 90], [5, 35, 85])
        assert (found.ours, found.theirs, found.value) == (140 / 3, 125 / 3, 5)
        assert (found.low, found.high) == (5, 5)
        assert found.p_value == pytest.approx(2 / 10_001)

    def test_p_is_the_probability_that_can_be_worked_out(self):
        """One of n cases differs: a resample shows it unless it misses that case n times."""
        n = 8
        found = differ([100] * n, [0] + [100] * (n - 1))
        missed = (1 - 1 / n) ** n
        assert found.value == pytest.approx(100 / n)
        assert found.low == 0
        assert found.p_value == pytest.approx(2 * missed, abs=0.03)
        # How often the case is drawn is binomial, and so are the ends of the interval.
        assert found.high == pytest.approx(stats.binom.ppf(0.975, n, 1 / n) * 100 / n)

    def test_the_interval_is_that_of_the_differences(self):
        generator = np.random.default_rng(3)
        hard = generator.uniform(0, 80, 200)
        ours, theirs = hard + generator.normal(12, 4, 200), hard + generator.normal(10, 4, 200)
        found = differ(ours, theirs)
        half = 1.96 * (ours - theirs).std(ddof=1) / math.sqrt(200)
        assert found.low == pytest.approx((ours - theirs).mean() - half, abs=0.1)
        assert found.high == pytest.approx((ours - theirs).mean() + half, abs=0.1)
        # The cases differ much more than the editors do: unpaired, nothing would be seen.
        assert found.high - found.low < (2 * 1.96 * hard.std() / math.sqrt(200)) / 3
        assert found.p_value == pytest.approx(
            2 * stats.norm.sf(found.value / (half / 1.96)), abs=0.001
        )

    def test_the_other_way_round_is_the_same_with_the_other_sign(self):
        generator = np.random.default_rng(1)
        one, other = generator.uniform(0, 100, size=(2, 30))
        there, back = differ(one, other), differ(other, one)
        assert there.value == -back.value
        assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
        assert there.p_value == back.p_value

    def test_a_value_that_one_of_them_lacks_does_not_count(self):
        found = differ([100, 0, math.nan, 50], [0, math.nan, 100, 50])
        assert (found.ours, found.theirs, found.n) == (75, 25, 2)

    def test_one_case_says_nothing_about_the_spread(self):
        found = differ([100], [0])
        assert found.value == 100
        assert all(math.isnan(number) for number in (found.low, found.high, found.p_value))

    def test_it_is_a_function_of_its_seed(self):
        generator = np.random.default_rng(2)
        one, other = generator.uniform(0, 100, size=(2, 20))
        assert differ(one, other) == differ(one, other)
        assert differ(one, other, seed=1) != differ(one, other)

    def test_scores_are_resampled_with_their_parts_together(self):
        """The parts are one another's opposite in both editors: apart, they would spread more."""
        generator = np.random.default_rng(4)
        kind = generator.choice([0.0, 100.0], size=80)
        ours = np.stack([kind, 100 - kind], axis=1)
        theirs = np.stack([kind, 90 - kind * 0.9], axis=1)
        found = differ(ours, theirs, ((0, 1), harmonic_mean))
        assert found.low < found.value < found.high
        resampled = stats.bootstrap(
            (ours[:, 0], ours[:, 1], theirs[:, 0], theirs[:, 1]),
            lambda a, b, c, d, axis: (
                2 / (1 / a.mean(axis=axis) + 1 / b.mean(axis=axis))
                - 2 / (1 / c.mean(axis=axis) + 1 / d.mean(axis=axis))
            ),
            paired=True,
            vectorized=True,
            n_resamples=4000,
            method="percentile",
            random_state=np.random.default_rng(5),
        ).confidence_interval
        assert found.low == pytest.approx(resampled.low, abs=0.2)
        assert found.high == pytest.approx(resampled.high, abs=0.2)


@pytest.fixture
def runs(write_run, describe):
    """Editors on the same cases, at two numbers of edits; one has failed, one is to come."""
    trials, values = {}, {}
    generator = np.random.default_rng(0)
    for n in (2, 3):
        for editor in ("unedited", "memit", "twin", "rome", "broken", "slow"):
            name = f"{editor} {n}"
            trials[name] = describe(editor=editor, config={}, n_edits=n)
        for editor, rate in (("unedited", 0.1), ("memit", 0.9), ("rome", 0.5)):
            values[f"{editor} {n}"] = {
                "efficacy_success": list(100.0 * (generator.random(40) < rate)),
                "neighborhood_success": list(100.0 * (generator.random(40) < 0.8)),
                "perplexity": list(20 * np.exp(generator.random(40) * (2 - rate))),
            }
        values[f"twin {n}"] = values[f"memit {n}"]
    failed = [name for name in trials if name.startswith("broken")]
    return write_run(trials, values, failed=failed)


def test_every_other_editor_is_compared_on_the_same_cases(runs):
    comparison = compare([runs], "memit")
    compared = {(each.editor, each.n_edits, each.metric) for each in comparison.differences}
    metrics = ("efficacy_success", "neighborhood_success", "score", "perplexity")
    assert compared == {
        (editor, n, metric)
        for editor in ("unedited", "twin", "rome")
        for n in (2, 3)
        for metric in metrics
    }
    summarized = {
        (line.editor, line.n_edits, line.metric): line.value for line in summarize([runs]).lines
    }
    for each in comparison.differences:
        place = (each.n_edits, each.metric)
        assert each.value == pytest.approx(summarized[each.editor, *place])
        assert each.baseline_value == pytest.approx(summarized["memit", *place])
        assert each.difference == pytest.approx(each.value - each.baseline_value)
        assert each.ci_low <= each.difference <= each.ci_high
        assert each.n == 40


def test_a_twin_is_not_told_apart(runs):
    for each in compare([runs], "memit").differences:
        if each.editor == "twin":
            assert (each.difference, each.ci_low, each.ci_high, each.p_value) == (0, 0, 0, 1)
            assert each.better is None


def test_better_is_lower_where_lower_is_better(runs):
    found = {
        (each.editor, each.metric): each
        for each in compare([runs], "memit").differences
        if each.n_edits == 2
    }
    assert found["rome", "efficacy_success"].better == "memit"
    unedited = found["unedited", "perplexity"]
    assert unedited.difference > 0
    assert unedited.better == "memit"


def test_an_unknown_editor_is_refused_with_the_ones_there_are(runs):
    with pytest.raises(UnknownNameError, match="Did you mean 'memit'") as caught:
        compare([runs], "memitt")
    for editor in ("broken", "memit", "rome", "slow", "twin", "unedited"):
        assert editor in str(caught.value).split("Available:")[1]


@pytest.mark.parametrize("editor", ["broken", "slow"])
def test_a_baseline_without_numbers_is_refused(runs, editor):
    with pytest.raises(RunError, match=f"no numbers of the baseline, got '{editor}'"):
        compare([runs], editor)


def test_other_cases_are_not_compared(write_run, describe):
    trials = {
        "memit": describe(seed=0),
        "other seed": describe(editor="rome", seed=1),
        "other sample": describe(editor="rome", sample="shuffled"),
        "other relations": describe(editor="rome", relations=("sport",)),
        "other data": describe(editor="rome", dataset_fingerprint="d2"),
    }
    values = {name: {"efficacy_success": [0.0, 100.0]} for name in trials}
    comparison = compare([write_run(trials, values)], "memit")
    assert comparison.differences == ()
    table = tabulate_comparison(comparison)
    assert table.is_empty
    assert table.warnings == ("No other editor has numbers on the same cases as memit.",)


def test_variants_of_the_baseline_are_each_compared_to(write_run, describe):
    trials = {
        "strong": describe(config={"n_steps": 20}),
        "weak": describe(config={"n_steps": 5}),
        "rome": describe(editor="rome", config={}),
    }
    values = {name: {"efficacy_success": [0.0, 100.0, 100.0]} for name in trials}
    comparison = compare([write_run(trials, values)], "memit")
    assert [each.baseline_variant for each in comparison.differences] == ["n_steps=20", "n_steps=5"]
    table = tabulate_comparison(comparison)
    assert [column.heading for column in table.columns][:2] == ["editor", "baseline"]
    assert [row[1].remark for section in table.sections for row in section] == [
        "(n_steps=20)",
        "(n_steps=5)",
    ]


def test_json_and_csv_hold_the_same(runs):
    comparison = compare([runs], "memit")
    objects = json.loads(write_comparison_json(comparison))
    rows = list(csv.DictReader(io.StringIO(write_comparison_csv(comparison))))
    assert [Difference(**found) for found in objects] == list(comparison.differences)
    assert [float(row["difference"]) for row in rows] == [found["difference"] for found in objects]


def test_the_table_says_what_it_shows(runs):
    table = tabulate_comparison(compare([runs], "memit"))
    headings = [column.heading for column in table.columns]
    assert headings == [
        "edits", "editor", "metric", "value", "memit", "difference", "95 % interval", "p", "n",
        "better",
    ]  # fmt: skip
    assert table.title == "Differences to memit, model gpt2, dataset toy, seed 0"
    rows = [dict(zip(headings, row, strict=True)) for section in table.sections for row in section]
    assert [row["editor"].text for row in rows[:12:4]] == ["unedited", "rome", "twin"]
    for row in rows:
        assert row["difference"].bold == (row["better"].text != "–")
    first = rows[1]
    assert first["metric"].text == "ES ↑"
    assert first["difference"].text.startswith("−")
    assert first["p"].text == "< 0.001"
    assert "paired bootstrap" in table.notes[0]
