"""Metrics whose mean over units is the geometric one: perplexity."""

import math

import numpy as np
import pytest
from scipy import stats

from editbench.results.comparison import compare
from editbench.results.manifest import MetricDescription
from editbench.results.report import summarize
from editbench.results.statistics import bootstrap, geometric_mean
from editbench.results.store import RunStore

PERPLEXITY = MetricDescription(
    name="perplexity",
    version=1,
    produces=("perplexity",),
    mean="geometric",
    bounds=(1.0, None),
    higher_is_better=False,
)


def test_worked_by_hand():
    estimate = bootstrap(np.log([2.0, 8.0, 4.0])[:, None], geometric_mean, seed=0)
    assert estimate.value == pytest.approx(4)
    assert 2 <= estimate.low < 4 < estimate.high <= 8
    assert estimate.n == 3


def test_one_text_says_nothing_about_the_spread():
    estimate = bootstrap(np.log([7.0])[:, None], geometric_mean, seed=0)
    assert (estimate.value, estimate.n) == (pytest.approx(7), 1)
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


def test_the_interval_is_a_bootstrap_over_texts():
    values = np.random.default_rng(0).lognormal(1, 0.5, size=80)
    ours = bootstrap(np.log(values)[:, None], geometric_mean, seed=1)
    theirs = stats.bootstrap(
        (values,),
        stats.gmean,
        vectorized=True,
        n_resamples=4000,
        method="percentile",
        random_state=np.random.default_rng(2),
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, rel=0.02)
    assert ours.high == pytest.approx(theirs.high, rel=0.02)
    assert bootstrap(np.log(values)[:, None], geometric_mean, seed=1) == ours


def test_a_huge_value_counts_by_its_logarithm():
    estimate = bootstrap(np.log([1e304, 1.0])[:, None], geometric_mean, seed=0)
    assert estimate.value == pytest.approx(1e152)
    assert math.isfinite(estimate.high)


@pytest.fixture
def run(tmp_path, plan, describe, record, rows):
    trials = [describe(editor="unedited", config={}), describe()]
    manifest = plan(*trials).model_copy(update={"metrics": (PERPLEXITY,)})
    with RunStore.open(tmp_path / "run", manifest, resume=False) as store:
        for trial, values in zip(trials, ([2, 8, 4], [4, 16, 8]), strict=True):
            store.write(record(trial), rows(trial, {"perplexity": values}))
    return tmp_path / "run"


def test_reports_show_it(run):
    lines = {line.editor: line for line in summarize([run]).lines}
    assert lines["unedited"].value == pytest.approx(4)
    assert lines["memit"].value == pytest.approx(8)
    for line in lines.values():
        assert 1 <= line.ci_low < line.value < line.ci_high
        assert line.n == 3


def test_comparisons_show_it(run):
    (difference,) = compare([run], "unedited").differences
    assert difference.value == pytest.approx(8)
    assert difference.baseline_value == pytest.approx(4)
    assert difference.difference == pytest.approx(4)
    assert difference.ci_low > 0
    assert difference.better == "unedited"
