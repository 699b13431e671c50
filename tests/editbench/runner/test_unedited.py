"""The unedited model is asked once for a whole grid, and its answers are kept."""

import gzip
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tests.editbench.runner.toys import Length, RandomConfig, RandomUpdate, Toy, make_grid

from editbench.editors.base import Editor, EditorConfig, Resources
from editbench.edits.edit import Edit, NoEdit
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import ModelError, RequestError
from editbench.metrics.base import Metric
from editbench.metrics.portability import Portability
from editbench.metrics.probes import Success
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.portability import Hop, PortabilityProbe, Query
from editbench.questions import Answers, Before, Generate, Question
from editbench.requests import EditCase, EditRequest
from editbench.results.frame import load_rows
from editbench.runner import Trial, run_grid, unedited
from editbench.runner.prepare import prepare_run
from editbench.testing import tiny_model, toy_cases


class Idle(Editor):
    """Does nothing, with seed 1 not even that."""

    name: ClassVar[str] = "idle"
    fails: ClassVar[bool] = False

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        if resources.seed == 1 and self.fails:
            raise RequestError("not today")
        return NoEdit.of(model, requests)


def idle_grid(model: EditableModel) -> list[Trial]:
    idle, metrics = Idle(EditorConfig()), (Success(), Length())
    return make_grid(model, idle, n_edits=(2, 4), seeds=(0, 1), metrics=metrics)


def run(trials: Sequence[Trial], folder: Path, *, cache: Path | None, resume: bool = False) -> int:
    """Run a grid, and count what the model was asked on the way."""
    n_asked = 0

    def count(stage: str, done: int, total: int, note: str = "") -> None:
        nonlocal n_asked
        n_asked += total if stage == "answers" and done == total else 0

    run_grid(trials, folder, cache=cache, resume=resume, on_progress=count)
    return n_asked


def contents_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in ("rows.jsonl", "cases.jsonl.gz")
        for path in sorted(folder.glob(f"trials/*/{name}"))
    }


@pytest.fixture
def small_questionnaires(monkeypatch):
    monkeypatch.setattr(unedited, "_SIZE", 5)


def test_questionnaires_hold_each_question_of_a_grid_once(model, small_questionnaires):
    prepared = prepare_run(idle_grid(model)).prepared
    distinct = list({id(one): one for each in prepared for one in each.questionnaires}.values())
    asked = [(one.seed, question) for one in distinct for question in one.questions]
    assert len(asked) == len(set(asked)) == 4 * 6 + 2 * 4  # scores; texts of both seeds
    assert all((seed is None) != isinstance(question, Generate) for seed, question in asked)
    assert max(len(one.questions) for one in distinct) == 5
    for trial in prepared:
        held = {question for one in trial.questionnaires for question in one.questions}
        assert held >= set(trial.batches[0].questions)
        assert {one.seed for one in trial.questionnaires} == {None, trial.seed}
    # A small trial is not made to wait for all.
    assert len(prepared[0].questionnaires) < len(prepared[-1].questionnaires)


def test_the_order_of_the_trials_does_not_matter(model):
    def asked_of(trials: Sequence[Trial]) -> set[tuple[object, ...]]:
        prepared = prepare_run(trials).prepared
        return {(one.seed, one.questions) for each in prepared for one in each.questionnaires}

    trials = idle_grid(model)
    mixed = random.Random(0).sample(trials, len(trials))
    assert asked_of(mixed) == asked_of(trials)


def test_no_question_is_put_to_the_unedited_model_twice(model, tmp_path):
    assert run(idle_grid(model), tmp_path, cache=None) == 4 * 6 + 2 * 4


def test_answers_are_kept_for_other_runs(model, tmp_path, monkeypatch):
    cache, trials = tmp_path / "cache", idle_grid(model)
    run(trials, tmp_path / "asked", cache=cache)
    files = sorted(cache.rglob("*.json.gz"))
    assert len(files) == 3  # one of scores, and one of texts for each seed
    assert sorted(cache.rglob("*")) == [cache / "answers", *files]

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("was asked")

    with monkeypatch.context() as patch:
        patch.setattr(unedited, "answer_questions", refuse)
        run(trials, tmp_path / "read", cache=cache)
        assert contents_of(tmp_path / "read") == contents_of(tmp_path / "asked")
    # What is damaged, or half of something else, is asked anew.
    files[0].write_bytes(files[0].read_bytes()[:40])
    files[1].write_bytes(gzip.compress(b"[]"))
    files[2].write_bytes(gzip.compress(b'[{"words": 1}]'))
    summary = run_grid(trials, tmp_path / "again", cache=cache)
    told = [each for each in summary.warnings if "answers of the unedited model: " in each]
    assert [each.endswith("computed anew") for each in told] == [True] * 3
    assert contents_of(tmp_path / "again") == contents_of(tmp_path / "asked")
    assert sorted(cache.rglob("*.gz")) == files
    assert len(list(cache.rglob("*.damaged"))) == 3


def test_other_weights_have_other_answers(model, tmp_path):
    run(idle_grid(model), tmp_path / "one", cache=tmp_path / "cache")
    other = tiny_model(n_layers=2, seed=1)
    run(idle_grid(other), tmp_path / "with", cache=tmp_path / "cache")
    run(idle_grid(other), tmp_path / "without", cache=None)
    assert contents_of(tmp_path / "with") == contents_of(tmp_path / "without")


def test_what_is_kept_is_what_the_model_says(model, tmp_path):
    (trial, *_) = prepare_run(idle_grid(model)).prepared
    for questionnaire in trial.questionnaires:
        for _ in ("asked", "read"):
            answers = questionnaire.ask(
                model, cache=tmp_path, token_budget=500, on_progress=lambda done, total: None
            )
            expected = answer_questions(
                model, questionnaire.questions, seed=questionnaire.seed or 0, token_budget=500
            )
            assert answers == expected


def test_a_resumed_run_asks_as_if_it_had_not_been_interrupted(model, tmp_path, monkeypatch):
    run(idle_grid(model), tmp_path / "whole", cache=None)
    monkeypatch.setattr(Idle, "fails", True)
    run(idle_grid(model), tmp_path / "run", cache=None)
    monkeypatch.setattr(Idle, "fails", False)
    run(idle_grid(model), tmp_path / "run", cache=None, resume=True)
    assert contents_of(tmp_path / "run") == contents_of(tmp_path / "whole")


def test_a_cache_that_cannot_be_written_costs_a_warning(model, tmp_path):
    blocked = tmp_path / "cache"
    blocked.write_text("a file, where the folder should be")
    summary = run_grid(idle_grid(model), tmp_path / "run", cache=blocked)
    assert summary.failures == ()
    assert all("answers of the unedited model: cannot be kept" in w for w in summary.warnings)
    assert len(summary.warnings) == 3


@pytest.fixture
def edit(model: EditableModel) -> WeightEdit:
    name = model.architecture.weight_name(model.architecture.mlp_projections[0])
    update = torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    requests = [case.request for case in toy_cases(1)]
    return WeightEdit.build(model, editor="x", config={}, requests=requests, updates={name: update})


@pytest.mark.parametrize("keeps", [False, True])
def test_answers_are_those_of_the_unedited_model_also_under_an_edit(model, edit, tmp_path, keeps):
    cache = tmp_path if keeps else None
    options = {"cache": cache, "token_budget": None, "on_progress": lambda done, total: None}
    prepared = prepare_run(idle_grid(model)).prepared
    for questionnaire in {one for each in prepared for one in each.questionnaires}:
        expected = questionnaire.ask(model, **{**options, "cache": None})
        with edit.applied(model):
            state = model.state
            assert questionnaire.ask(model, **options) == expected
            assert questionnaire.ask(model, **options) == expected
            assert model.state == state
        assert questionnaire.ask(model, **options) == expected


def test_a_run_on_an_edited_model_is_refused(model, edit, tmp_path):
    """Its rows would be named after the unedited one."""
    with edit.applied(model), pytest.raises(ModelError, match=r"^run: .* Take the edits off first"):
        run_grid(idle_grid(model), tmp_path)
    assert not list(tmp_path.iterdir())


class Shift(Metric):
    """How likely targets are, and how likely they were."""

    name: ClassVar[str] = "shift"
    produces: ClassVar[tuple[str, ...]] = ("now", "before")
    bounds: ClassVar[tuple[float, float]] = (-math.inf, 0.0)

    def questions(self, case: EditCase) -> tuple[Question, ...]:
        return case.request.question, Before(case.request.question)

    def values(self, case: EditCase, answers: Answers) -> dict[str, float]:
        now, before = (answers[each] for each in self.questions(case))
        return {"now": now.mean_log_prob, "before": before.mean_log_prob}


@pytest.mark.parametrize("cached", [True, False])
def test_metrics_compare_with_what_the_unedited_model_says(model, tmp_path, cached):
    editors = RandomUpdate(RandomConfig()), Idle(EditorConfig())
    trials = make_grid(model, *editors, metrics=(Shift(),))
    folder = tmp_path / "run"
    assert run(trials, folder, cache=tmp_path / "cache" if cached else None) == 4 + 4
    rows = load_rows([folder])
    frame = rows.pivot(index=["editor", "case_id"], columns="metric", values="value")
    unedited_now = frame.loc["unedited", "now"].tolist()
    for editor in ("unedited", "idle", "random"):
        assert frame.loc[editor, "before"].tolist() == unedited_now
    assert frame.loc["idle", "now"].tolist() == unedited_now
    assert not set(frame.loc["random", "now"]) & set(unedited_now)


def test_consequences_that_others_of_the_batch_change_do_not_count(model, tmp_path):
    """The second request writes another job than the one that the first one's question rests on."""
    first, second = toy_cases(2)
    asked = PortabilityProbe("multi_hop", (Query(first.request.text, (first.request.target,)),))
    job = Hop(second.request.subject, "job", second.target_true, is_edited=False)
    mine = replace(first, portability=(asked, replace(asked, hops=(job,))))
    toy = Toy([mine, second])
    trials = make_grid(model, dataset=toy, n_edits=(1, 2), metrics=(Portability(),))
    alone, together = prepare_run(trials).prepared
    assert [len(each.batches[0].cases[0].portability) for each in (alone, together)] == [2, 1]
    summary = run_grid(trials, tmp_path / "run")
    (told,) = (each for each in summary.warnings if "portability" in each)
    assert told.startswith("portability: 1 probes do not count")
