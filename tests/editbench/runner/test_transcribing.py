"""What a run writes down of its cases: what was asked of them, and what the models said."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.editbench.runner.toys import RandomConfig, RandomUpdate, Toy, make_grid

from editbench.metrics.base import AnyMetric
from editbench.metrics.generation_match import contains, probe_text
from editbench.metrics.portability import Portability
from editbench.metrics.probes import Accuracy
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.portability import Hop, PortabilityProbe, Query
from editbench.questions import Write
from editbench.requests import EditCase
from editbench.results.store import transcripts_path
from editbench.results.transcript import CaseTranscript, read_transcripts
from editbench.runner import run_grid
from editbench.testing import tiny_model, toy_cases


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model(n_layers=2)


def say(model: EditableModel, prompt: str) -> str:
    """The first word that the unedited model writes, which is what it knows."""
    question = Write(prompt, 5, sentence=True)
    text = answer_questions(model, [question], seed=0, token_budget=4096)[question].text
    return text.split()[0].strip(".")


def cases_of(model: EditableModel) -> list[EditCase]:
    """Four cases; the first has portability probes of all sorts."""
    first, second, *others = toy_cases(4)
    known = Query("Elif Lund works as a", (say(model, "Elif Lund works as a"),))
    unknown = Query("Elif Lund lives in", ("Nowhere",))
    asked = Query(first.request.text, ("a stranger", first.request.target))
    other = Query("Who is it?", (first.request.subject,))
    moved = Hop(second.request.subject, "job", second.target_true or "", is_edited=False)
    probes = (
        PortabilityProbe("multi_hop", (asked,), hops=(moved,)),
        PortabilityProbe("reasoning", (asked, other), needs_all=True, conditions=(known,)),
        PortabilityProbe("reversal", (other,), conditions=(known, unknown)),
        PortabilityProbe("aliasing", (asked,)),
    )
    return [replace(first, portability=probes), second, *others]


def run(
    model: EditableModel, folder: Path, metrics: Sequence[AnyMetric], **options: object
) -> dict[str, list[CaseTranscript]]:
    editor = RandomUpdate(RandomConfig(scale=0.5))
    trials = make_grid(
        model, editor, dataset=Toy(cases_of(model)), n_edits=(4,), metrics=tuple(metrics), **options
    )
    run_grid(trials, folder)
    return {
        trial.editor.name: list(read_transcripts(transcripts_path(folder, trial.hash)))
        for trial in trials
    }


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}])
def test_portability_is_told_probe_by_probe(model, tmp_path: Path, options):
    told = run(model, tmp_path / "run", [Portability()], **options)
    for editor in ("unedited", "random"):
        first, *others = told[editor]
        assert [each.portability for each in others] == [()] * 3
        masked, reasoning, reversal, aliasing = first.portability
        assert [each.kind for each in first.portability] == [
            "multi_hop", "reasoning", "reversal", "aliasing",
        ]  # fmt: skip
        # Another request of the batch writes another job into the hop.
        assert masked.is_masked
        assert (masked.accuracy, masked.generation) == (None, None)
        assert masked.queries[0].answers == ("a stranger", first.target)
        assert masked.queries[0].text is None
        # What the unedited model says to a condition does not depend on the edit.
        assert reasoning.needs_all
        assert reasoning.conditions == told["unedited"][0].portability[1].conditions
        assert reasoning.conditions[0].is_written
        assert reversal.conditions[1].is_written is False
        assert not reversal.is_masked
        assert (reversal.accuracy, reversal.generation) == (None, None)
        for probe in (reasoning, aliasing):
            assert probe.generation == all(each.is_written for each in probe.queries)
            for query in probe.queries:
                assert query.log_prob < 0
                assert query.answer in query.answers
                assert query.is_written == any(contains(query.text, a) for a in query.answers)
        edited, unedited = (told[name][0].portability[3] for name in ("random", "unedited"))
        assert edited.queries[0].log_prob != unedited.queries[0].log_prob


def test_what_is_told_is_what_the_model_says(model, tmp_path: Path):
    case = cases_of(model)[0]
    told = run(model, tmp_path / "run", [Portability()])["unedited"][0].portability[3].queries[0]
    (query,) = case.portability[3].queries
    asked = (*query.questions, probe_text(query))
    answers = answer_questions(model, asked, seed=0, token_budget=4096)
    *scores, text = (answers[question] for question in asked)
    best = max(range(2), key=lambda place: scores[place].mean_log_prob)
    assert told.answer == query.answers[best]
    assert told.log_prob == pytest.approx(scores[best].mean_log_prob, abs=1e-4)
    assert told.is_likeliest == any(all(score.argmax) for score in scores)
    assert told.text == text.text


def test_what_no_metric_asks_about_is_left_out(model, tmp_path: Path):
    told = run(model, tmp_path / "run", [Accuracy()])
    assert all(each.portability == () for each in told["random"])
