"""What a search looks for."""

from dataclasses import replace

import pandas as pd
import pytest

from editbench.errors import ConfigError
from editbench.metrics.probes import Accuracy, Success, TokenAccuracy
from editbench.testing import toy_cases
from editbench.tuning.facts import ValidationFacts
from editbench.tuning.objective import Objective

FACTS = ValidationFacts(toy_cases(4))


def table(*rows):
    names = [*Success.produces, *Accuracy.produces]
    return pd.DataFrame([[*row, *row] for row in rows], columns=names)


def objective(name=None, max_drop=None, metrics=None):
    return Objective.of(name, metrics or [Success(), Accuracy()], FACTS, max_drop)


def test_a_score_is_the_harmonic_mean_of_means():
    measured, unedited = table((100, 50, 100), (0, 50, 50)), table((0, 0, 100), (0, 0, 50))
    assert objective().value(measured, unedited) == pytest.approx(3 / (1 / 50 + 1 / 50 + 1 / 75))
    measured["efficacy_accuracy"] = 75.0
    s, sa, both = (objective(name).value(measured, unedited) for name in ("S", "SA", "both"))
    assert sa > s
    assert both == pytest.approx((s + sa) / 2)


def test_below_the_floor_it_is_negative_by_as_much():
    unedited = table((0, 0, 90))
    assert objective(max_drop=5).value(table((100, 100, 82)), unedited) == pytest.approx(-3)
    assert objective(max_drop=5).value(table((100, 100, 85)), unedited) > 90
    assert objective().value(table((100, 100, 10)), unedited) > 0
    accuracy_falls = table((100, 100, 90))
    accuracy_falls["neighborhood_accuracy"] = 70.0
    assert objective("S", 5).value(accuracy_falls, unedited) > 90
    assert objective("both", 5).value(accuracy_falls, unedited) == pytest.approx(-15)


def test_it_measures_what_it_takes():
    assert [metric.name for metric in objective("S").metrics] == ["success"]
    assert [metric.name for metric in objective("both").metrics] == ["success", "accuracy"]
    of_tokens = objective(metrics=(TokenAccuracy(),))
    assert (of_tokens.name, of_tokens.metrics[0].name) == ("SA", "token-accuracy")


def test_facts_must_have_what_it_takes():
    with pytest.raises(ConfigError, match="these facts have no S, got 'S'; expected SA"):
        objective("S", metrics=(TokenAccuracy(),))
    bare = [replace(case, probes=case.probes[:1]) for case in FACTS.cases()]
    with pytest.raises(ConfigError, match="without probes for neighborhood and paraphrase"):
        Objective.of(None, (Success(),), ValidationFacts(bare), None)
