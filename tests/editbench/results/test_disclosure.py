"""What every table says of how its numbers came about."""

import pandas as pd
import pytest

from editbench.results.collection import Collection
from editbench.results.disclosure import disclose


@pytest.fixture
def collection(describe, record) -> Collection:
    given = {"context_prefixes": [[""], ["Well. "]]}
    trials = {
        "a": describe(editor="unedited", facts="unknown", metrics={"accuracy": 1}),
        "b": describe(facts="unknown", on_conflict="keep-first", inputs=given, n_edits=1200),
        "c": describe(editor="rome"),  # not run yet
    }
    numbers = {"n_known": (3, 15), "n_shared_subjects": 4}
    return Collection(
        trials=trials,
        metrics={},
        records={
            "a": record(trials["a"], **numbers),
            "b": record(trials["b"], n_conflicts=2, **numbers),
        },
        values={
            "a": pd.DataFrame({"efficacy_accuracy": [0.0, 100.0, 0.0, 0.0]}),
            "b": pd.DataFrame({"efficacy_success": [100.0]}),
        },
        experiments={},
        tokenizers={"f1": "0123456789abcdef"},
    )


def test_all_that_numbers_depend_on_is_said(collection):
    said = disclose(collection)
    for part in (
        "batches of 2, 1,200, each written into the unedited model",
        "facts: the first that are unknown to the unedited model, which knew 3 of 15 (20.0 %);",
        "the unedited model says the new object already in 25.0 % of the cases",
        "conflicts: none, keep-first (2)",
        "cases that share their subject with another: 4",
        "tokenizer: 01234567;",
        "scorers: accuracy 1, success 1.",
    ):
        assert part in said
    (prefixes,) = (part for part in said.split("; ") if part.startswith("context prefixes"))
    assert len(prefixes.removeprefix("context prefixes: ")) == 8


def test_only_those_of_a_table_are_spoken_of(collection):
    said = disclose(collection, {"a"})
    assert "1,200" not in said
    assert "scorers: accuracy 1." in said
    assert "context prefixes: sampled with seed 0" in said
    assert disclose(collection, set()) == ""
