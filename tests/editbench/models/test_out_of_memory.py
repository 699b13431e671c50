"""Work goes on in smaller parts when memory runs out, and says the same."""

import gc
import re
import warnings
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.settings import TargetSettings
from editbench.editors.targets.target_hidden import TargetHidden, optimize_target_hidden
from editbench.errors import DeviceMemoryError
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import Halving, else_on_cpu, explaining_out_of_memory
from editbench.progress import report_nothing
from editbench.questions import Generate, GenerateAnswer, Question, Read, Score, ScoreAnswer
from editbench.testing import tiny_model, toy_cases

RoomFor = Callable[..., AbstractContextManager[list[int]]]
REQUESTS = [case.request for case in toy_cases(6)]
QUESTIONS: list[Question] = [
    *(Score(request.text, request.target) for request in REQUESTS),
    *(Read(request.text) for request in REQUESTS),
    *(Generate(request.subject, 12) for request in REQUESTS),
]


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
def test_answers_are_the_same_in_smaller_parts(n_rows: int, room_for: RoomFor) -> None:
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


def test_targets_are_the_same_in_smaller_parts(room_for: RoomFor) -> None:
    model = tiny_model()
    expected = optimize(model)
    with room_for(model, 4), pytest.warns(UserWarning, match="memory ran out"):
        found = optimize(model)
    torch.testing.assert_close(found.states, expected.states, rtol=1e-4, atol=1e-5)
    assert found.replay_failure is None


def test_a_warning_is_given_once_for_each_kind_of_work(room_for: RoomFor) -> None:
    model = tiny_model()
    with room_for(model, 1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ask(model)
    kinds = [str(warning.message).partition(" on ")[0] for warning in caught]
    assert sorted(kinds) == ["generating", "scoring", "scoring"]  # scores, and texts that are read


@pytest.mark.filterwarnings("ignore:.*memory ran out")
def test_too_little_for_a_single_row_is_one_clear_error(room_for: RoomFor) -> None:
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


@pytest.mark.filterwarnings("ignore:.*memory ran out")
def test_nothing_of_what_failed_is_left_when_it_is_tried_again() -> None:
    left: list[weakref.ref[torch.Tensor]] = []
    n_alive: list[int] = []

    def work(rows: list[int]) -> torch.Tensor:
        gc.disable()  # as if Python looked for rings much later
        n_alive.append(sum(reference() is not None for reference in left))
        made = torch.zeros(1_000)
        left.append(weakref.ref(made))
        if len(rows) > 1:
            try:
                raise torch.OutOfMemoryError("no")
            except torch.OutOfMemoryError as error:
                ring = error  # a frame that holds the error that holds the frame
                raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED") from ring
        return made

    try:
        for part in Halving("counting").run([1, 2, 3], work):
            del part
    finally:
        gc.enable()
    assert n_alive == [0] * 5  # 3, 2, 1, 1 and 1


@pytest.mark.filterwarnings("ignore:.*memory ran out")
def test_work_within_work_is_divided_as_well() -> None:
    def room_beside(rows: list[int]) -> list[int]:
        def work(some: list[int]) -> list[int]:
            if len(rows) > 2:  # what is there beside it takes the room, however few these are
                raise MemoryError
            return some

        return [row for part in Halving("inner").run(rows, work) for row in part]

    assert list(Halving("outer").run([1, 2, 3], room_beside)) == [[1, 2], [3]]


def test_what_cannot_be_divided_is_done_on_the_cpu() -> None:
    tried: list[str] = []

    def work(device: torch.device) -> str:
        tried.append(device.type)
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return device.type

    message = "counting: memory ran out on cuda:1, so it is done on the CPU, which takes longer"
    with pytest.warns(UserWarning, match=f"^{message}$"):
        assert else_on_cpu("counting", torch.device("cuda", 1), work) == "cpu"
    assert else_on_cpu("counting", torch.device("cpu"), work) == "cpu"
    assert tried == ["cuda", "cpu", "cpu"]


def test_other_errors_are_not_mended_on_the_cpu() -> None:
    def work(device: torch.device) -> None:
        raise RuntimeError(f"shapes do not fit on {device}")

    with pytest.raises(RuntimeError, match="shapes do not fit on cuda"):
        else_on_cpu("counting", torch.device("cuda"), work)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError("no more")]
)
def test_what_cannot_be_helped_is_explained(error: Exception) -> None:
    message = (
        f"editing: memory runs out and the work cannot be divided, got: {error} Load the model "
        "with --dtype bfloat16, spread it with --device-map auto, or use --device cpu."
    )
    refused = pytest.raises(DeviceMemoryError, match=f"^{re.escape(message)}$")
    with refused as caught, explaining_out_of_memory("editing"):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [DeviceMemoryError("said well"), RuntimeError("shapes")])
def test_what_explains_itself_or_is_something_else_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explaining_out_of_memory("editing"):
        raise error
    assert caught.value is error
