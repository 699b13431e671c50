"""The Python door: a model by name, facts into it, and how well that went."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import editbench as eb
from editbench.editors.base import Resources
from editbench.editors.memit import Memit
from editbench.errors import ConfigError, DataError, RequestError, UnknownNameError
from editbench.plugins.atlas import atlas_corpus
from editbench.requests import EditRequest

FACTS = [
    {"subject": "Lena Ort", "prompt": "{} was born in", "target": "Genoa"},
    {"subject": "Ivo Brandt", "prompt": "{} was born in", "target": "Lisbon", "case_id": "ivo"},
]
QUICK = {"second_moment_tokens": 2_000, "n_steps": 3, "n_context_prefixes": 0}
OPTIONS = {"config": QUICK, "cache": None}


@pytest.fixture(scope="module")
def model():
    return eb.load_model("atlas")


@pytest.fixture(scope="module")
def edit(model):
    return eb.edit(model, FACTS, **OPTIONS)


def test_importing_the_package_is_quick():
    script = "import sys, editbench; assert 'torch' not in sys.modules; print(dir(editbench))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "evaluate" in done.stdout
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        eb.evalute  # noqa: B018


def test_an_edit_is_what_the_editor_computes(model, edit):
    requests = [
        EditRequest("1", "Lena Ort", "{} was born in", "Genoa"),
        EditRequest("ivo", "Ivo Brandt", "{} was born in", "Lisbon"),
    ]
    config = Memit.default_config(model)[0].updated(QUICK, "test")
    expected = Memit(config).edit(model, requests, Resources(seed=0, corpus=atlas_corpus()))
    assert edit.card == expected.card
    assert edit.updates.keys() == expected.updates.keys()
    for name, update in expected.updates.items():
        assert torch.equal(edit.updates[name].dense(), update.dense())
    again = eb.edit(model, requests, **OPTIONS)
    assert again.card == expected.card


def test_facts_come_from_a_file_as_well(model, edit, tmp_path: Path):
    file = tmp_path / "facts.csv"
    file.write_text("subject;prompt;target;case_id\nLena Ort;{} was born in;Genoa;1\n"
                    "Ivo Brandt;{} was born in;Lisbon;ivo\n")  # fmt: skip
    assert eb.edit(model, str(file), **OPTIONS).card == edit.card


def test_an_evaluation_has_both_models_and_their_intervals(model, edit):
    table = eb.evaluate(model, edit, FACTS, metrics=["accuracy"], cache=None)
    assert list(table.columns) == ["editor", "metric", "value", "ci_low", "ci_high", "n"]
    values = table.set_index(["editor", "metric"])["value"]
    assert values["unedited", "efficacy_accuracy"] == 0
    assert values["memit", "efficacy_accuracy"] >= 0
    assert set(table["n"]) == {2}


def test_of_an_edit_in_batches_the_facts_that_stand_are_asked(model):
    facts = [*FACTS, {**FACTS[0], "target": "Oslo", "case_id": "later"}]
    edit = eb.edit(model, facts, batch_size=2, **OPTIONS)
    table = eb.evaluate(model, edit, facts, metrics=["accuracy"], cache=None)
    assert set(table["n"]) == {2}
    others = eb.evaluate(model, edit, "atlas", n_edits=5, metrics=["accuracy"], cache=None)
    assert set(others["n"]) == {5}  # more than the edit wrote
    with pytest.raises(ConfigError, match="too few cases"):
        eb.evaluate(model, edit, facts, n_edits=4, metrics=["accuracy"], cache=None)


def test_a_dataset_is_named_as_on_the_command_line(model, edit):
    table = eb.evaluate(model, edit, "atlas", n_edits=3, metrics=["success"], cache=None)
    assert set(table["editor"]) == {"unedited", "memit"}
    assert {"efficacy_success", "neighborhood_success", "score"} <= set(table["metric"])


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"facts": [{"subject": "A", "prompt": "B is", "target": "C"}]}, DataError, "record 1"),
        ({"facts": [{"subject": "A", "prompt": "{} is", "target": {1}}]}, DataError, "JSON"),
        ({"facts": "nowhere.jsonl"}, DataError, "nowhere.jsonl"),
        ({"facts": FACTS, "editor": "memt"}, UnknownNameError, "Did you mean 'memit'"),
        ({"facts": FACTS, "config": {"lamda": 1}}, ConfigError, "config: "),
        ({"facts": FACTS, "context_prefixes": [[]]}, ConfigError, "context_prefixes"),
        ({"facts": FACTS, "corpus": "nowhere.txt"}, DataError, "nowhere.txt"),
    ],
)
def test_what_cannot_be_used_is_one_clear_error(model, arguments, error, says):
    with pytest.raises(error, match=says):
        eb.edit(model, cache=None, **arguments)


def test_text_that_nobody_chose_is_warned_of(model, monkeypatch):
    monkeypatch.setattr(model, "spec", None)
    with pytest.warns(UserWarning, match="For results that count, give more text"):
        eb.edit(model, FACTS[:1], **OPTIONS)


def test_an_edit_is_made_again_with_other_facts(model, edit):
    again = eb.edit(model, [], base=edit, drop=["1"], cache=None)
    assert [request.case_id for request in again.recipe.requests] == ["ivo"]
    assert again.recipe.inputs == edit.recipe.inputs
    with pytest.raises(ConfigError, match="base was made with other second moments"):
        eb.edit(model, [], base=replaced_corpus(edit), cache=None)


def replaced_corpus(edit):
    """The same edit, as if it had been made with other text."""
    other = copy.copy(edit)
    inputs = {**edit.recipe.inputs, "corpus": {"name": "other", "fingerprint": "0"}}
    other.recipe = replace(edit.recipe, inputs=inputs)
    return other


def test_a_later_batch_supersedes_an_earlier_one(model):
    facts = [*FACTS, {**FACTS[0], "target": "Oslo", "case_id": "later"}]
    with pytest.raises(RequestError, match="conflicting requests: 1 group"):
        eb.edit(model, facts, **OPTIONS)
    edit = eb.edit(model, facts, batch_size=2, **OPTIONS)
    found = {fact["case_id"]: fact["status"] for fact in edit.card.extra["facts"]}
    assert found.pop("1") == "superseded"
    assert "superseded" not in found.values()
    again = eb.edit(model, [], base=edit, cache=None)
    assert again.identity == edit.identity
    requests = edit.recipe.requests
    assert [request.case_id for request in requests] == ["1", "ivo", "later"]
    kept = eb.edit(model, requests, on_conflict="keep-first", **OPTIONS)
    assert [request.case_id for request in kept.recipe.requests] == ["1", "ivo"]
