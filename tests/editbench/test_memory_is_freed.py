"""What work needs is gone when it is done, not when Python next looks for rings of objects.

Python looks after so many objects, however large they are. On a GPU what a chunk of edits leaves
behind until then is tens of gigabytes, and the next chunk runs out of memory.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from editbench.editors.base import Editor, Resources
from editbench.editors.finetune import FineTune
from editbench.editors.memit import Memit
from editbench.editors.mend.editor import Mend
from editbench.editors.rome import Rome
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.questions import Generate, Question, Read, Score
from editbench.testing import config_for_check, tiny_model, toy_cases, toy_corpus

CASES = toy_cases(12)
REQUESTS = [case.request for case in CASES]


@pytest.fixture
def model() -> EditableModel:
    return tiny_model()


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    yield
    gc.enable()


def storages() -> set[int]:
    """Where the numbers of all tensors lie that Python knows of."""
    return {
        each.untyped_storage().data_ptr()
        for each in gc.get_objects()
        if issubclass(type(each), torch.Tensor) and each.numel() > 0
    }


def bytes_left_by(work: Callable[[], object]) -> int:
    """Bytes of tensors that `work` leaves behind, what it returns excepted; it runs twice."""
    work()  # whatever is kept once, is kept now
    gc.collect()
    gc.disable()
    before = storages()
    work()
    left = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for each in gc.get_objects()
        if issubclass(type(each), torch.Tensor) and each.numel() > 0
    }
    return sum(n_bytes for place, n_bytes in left.items() if place not in before)


def test_a_ring_is_found() -> None:
    """The check can fail."""

    def leave_a_ring() -> None:
        ring: list[object] = [torch.zeros(1000)]
        ring.append(ring)

    assert bytes_left_by(leave_a_ring) == 4_000


@pytest.mark.parametrize("editor", [Memit, Rome, FineTune], ids=lambda editor: editor.name)
def test_editors(editor: type[Editor], model: EditableModel, tmp_path) -> None:
    config = config_for_check(editor, model, CASES, tmp_path)
    resources = Resources(seed=0, corpus=toy_corpus())

    def edit() -> None:
        editor(config).edit(model, REQUESTS, resources)

    assert bytes_left_by(edit) == 0


@pytest.mark.filterwarnings("ignore:.*memory ran out")
@pytest.mark.parametrize("editor", [Memit, FineTune, Mend], ids=lambda editor: editor.name)
def test_editors_that_go_on_in_smaller_parts(
    editor: type[Editor],
    model: EditableModel,
    tmp_path: Path,
    room_for: Callable[..., AbstractContextManager[list[int]]],
) -> None:
    config = config_for_check(editor, model, CASES, tmp_path)
    resources = Resources(seed=0, corpus=toy_corpus())

    def edit() -> None:
        with room_for(model, 8) as sizes:
            editor(config).edit(model, REQUESTS, resources)
        assert max(sizes) > 8

    assert bytes_left_by(edit) == 0


def test_a_model_is_gone_with_the_last_who_has_it() -> None:
    """Whatever was asked of it: `apply` loads two models, one after the other."""
    model = tiny_model()
    weights = weakref.ref(next(model.model.parameters()))
    gc.collect()
    gc.disable()
    answer_questions(model, [Read("Ana Lund works.")], seed=0, token_budget=model.memory.tokens)
    assert model.fingerprint
    del model
    assert weights() is None


def test_answers(model: EditableModel) -> None:
    questions: list[Question] = [
        *(Score(request.text, request.target) for request in REQUESTS),
        *(Read(request.text) for request in REQUESTS),
        *(Generate(request.subject, 12) for request in REQUESTS),
    ]

    def ask() -> None:
        answer_questions(model, questions, seed=3, token_budget=64)

    assert bytes_left_by(ask) == 0
