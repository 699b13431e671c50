"""Only facts that the unedited model knows, or only those that it does not."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from tests.editbench.runner.toys import Toy, make_grid, random_update

from editbench.errors import ConfigError
from editbench.metrics.probes import Success
from editbench.models.answering import answer_questions
from editbench.results.report import summarize
from editbench.runner import run_grid
from editbench.runner.knowledge import KnowledgeFilter
from editbench.testing import toy_cases


@pytest.fixture
def cases(model):
    """Every third case asks for what the model says anyway."""
    cases = []
    for index, case in enumerate(toy_cases(12)):
        ids = model.tokens.encode(case.request.text)
        with torch.no_grad():
            token = int(model.model(torch.tensor([ids])).logits[0, -1].argmax())
        said = model.tokens.decode([*ids, token])[len(model.tokens.decode(ids)) :]
        cases.append(replace(case, target_true=said if index % 3 == 0 else case.target_true))
    return cases


def knows(model, case) -> bool:
    question = replace(case.request, target=case.target_true or case.request.target).question
    (answer,) = answer_questions(model, [question], seed=0, token_budget=100).values()
    return all(answer.argmax)


def test_filter_leaves_what_is_wanted_in_order_and_counts(model, cases):
    known = [case for case in cases if knows(model, case)]
    assert 0 < len(known) < len(cases)
    sieve = KnowledgeFilter(model, True, None)
    assert sieve.choose(cases, 100) == known
    assert (sieve.n_known, sieve.n_asked) == (len(known), len(cases))
    assert KnowledgeFilter(model, False, None).choose(cases, 100) == [
        case for case in cases if case not in known
    ]


def test_no_more_is_counted_than_was_needed(model, cases):
    sieve = KnowledgeFilter(model, False, None)
    chosen = sieve.choose(cases, 2)
    assert len(chosen) == 2
    assert sieve.n_asked - sieve.n_known == 2 <= sieve.n_asked < len(cases)


def test_run_edits_known_facts_alone_and_its_report_says_the_share(model, cases, tmp_path):
    known = [case.request.case_id for case in cases if knows(model, case)]
    trials = make_grid(
        model, random_update(1.0), metrics=[Success()], dataset=Toy(cases), n_edits=(2,),
        facts="known",
    )  # fmt: skip
    assert "known facts" in trials[0].label
    run_grid(trials, tmp_path)
    summary = summarize([tmp_path])
    assert {line.n for line in summary.lines if line.metric == "efficacy_success"} == {2}
    asked = cases.index(next(c for c in cases if c.request.case_id == known[1])) + 1
    assert f"known to the unedited model, which knew 2 of {asked} " in summary.disclosure
    with pytest.raises(
        ConfigError, match=f"at most {len(known)} that the model's knowledge leaves"
    ):
        run_grid([replace(trial, n_edits=12) for trial in trials], tmp_path / "more")


def test_all_facts_have_the_address_that_they_had_before(model):
    trial, *_ = make_grid(model, random_update(1.0), metrics=[Success()])
    later = {"facts", "batch_size", "checkpoints", "stop_when", "metric_settings"}
    content = trial.description.model_dump(mode="json", exclude={"model", *later})
    expected = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    assert trial.hash == expected
    assert replace(trial, facts="known").hash != expected
