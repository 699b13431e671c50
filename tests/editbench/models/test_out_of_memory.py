"""Work goes on in smaller parts when memory runs out, and says the same."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from editbench.editors.base import report_nothing
from editbench.editors.parts.targets.cache import TargetCache
from editbench.editors.parts.targets.settings import TargetSettings
from editbench.editors.parts.targets.target_hidden import TargetHidden, optimize_target_hidden
from editbench.errors import DeviceMemoryError
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import Halving
from editbench.questions import Generate, GenerateAnswer, Question, Read, Score, ScoreAnswer
from editbench.testing import tiny_model, toy_cases

REQUESTS = [case.request for case in toy_cases(6)]
QUESTIONS: list[Question] = [
    *(Score(request.text, request.target) for request in REQUESTS),
    *(Read(request.text) for request in REQUESTS),
    *(Generate(request.subject, 12) for request in REQUESTS),
]


@contextmanager
def room_for(model: EditableModel, n_rows: int) -> Iterator[list[int]]:
    """A device whose memory runs out in the last block where more rows than that run together."""
    sizes: list[int] = []

    def refuse(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(args[0]))
        if sizes[-1] > n_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    block = model.architecture.block(model.architecture.n_layers - 1)
    handle = model.model.get_submodule(block).register_forward_pre_hook(refuse)
    try:
        yield sizes
    finally:
        handle.remove()


def ask(model: EditableModel) -> dict[Question, object]:
    return answer_questions(model, QUESTIONS, seed=3, token_budget=4_096)


def optimize(model: EditableModel) -> TargetHidden:
    return optimize_target_hidden(
        model,
        REQUESTS,
        layer=1,
        settings=TargetSettings(n_steps=3, stop_loss=0),
        prefixes=("", "It is known. "),
        cache=TargetCache(None),
        report_progress=report_nothing,
    )


@pytest.mark.parametrize("n_rows", [1, 2, 4])
def test_answers_are_the_same_in_smaller_parts(n_rows: int) -> None:
    model = tiny_model()
    expected = ask(model)
    with room_for(model, n_rows) as sizes, pytest.warns(UserWarning, match="memory ran out"):
        found = ask(model)
    assert max(sizes) > n_rows  # it was tried
    assert list(found) == list(expected)
    for question, answer in expected.items():
        if isinstance(answer, GenerateAnswer):
            assert found[question] == answer
        else:
            assert isinstance(answer, ScoreAnswer)
            assert found[question].log_probs == pytest.approx(answer.log_probs, abs=1e-5)
            assert found[question].argmax == answer.argmax


def test_targets_are_the_same_in_smaller_parts() -> None:
    model = tiny_model()
    expected = optimize(model)
    with room_for(model, 4), pytest.warns(UserWarning, match="memory ran out"):
        found = optimize(model)
    torch.testing.assert_close(found.states, expected.states, rtol=1e-4, atol=1e-5)
    assert found.replay_failure is None


def test_a_warning_is_given_once_for_each_kind_of_work() -> None:
    model = tiny_model()
    with room_for(model, 1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ask(model)
    kinds = [str(warning.message).partition(" on ")[0] for warning in caught]
    assert sorted(kinds) == ["generating", "scoring", "scoring"]  # scores, and texts that are read


@pytest.mark.filterwarnings("ignore:.*memory ran out")
def test_too_little_for_a_single_row_is_one_clear_error() -> None:
    model = tiny_model()
    message = (
        "scoring on 'tiny': memory runs out even for one row at a time, got: CUDA out of memory. "
        "Tried to allocate 2.00 GiB. Load the model with --dtype bfloat16, spread it with "
        "--device-map auto, or use --device cpu."
    )
    with room_for(model, 0), pytest.raises(DeviceMemoryError, match=re.escape(message)):
        ask(model)


@pytest.mark.filterwarnings("ignore:.*memory ran out")
def test_what_was_too_large_is_not_tried_again() -> None:
    halving = Halving("counting")
    tried: list[int] = []

    def work(rows: list[int]) -> list[int]:
        tried.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("no")
        return rows

    batches = [list(range(10)), list(range(12)), [1]]
    found = [[row for part in halving.run(batch, work) for row in part] for batch in batches]
    assert found == batches
    assert tried == [10, 5, 3, 3, 3, 1, 3, 3, 3, 3, 1]


def test_other_errors_pass() -> None:
    def work(rows: list[int]) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        list(Halving("counting").run([1, 2], work))
