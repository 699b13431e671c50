"""Tracing goes on with fewer cells at a time when memory runs out, and finds the same."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch

from editbench.errors import DeviceMemoryError
from editbench.models.editable import EditableModel
from editbench.tracing.facts import KnownFact
from editbench.tracing.prompts import choose_known
from editbench.tracing.settings import TraceSettings
from editbench.tracing.tracer import Tracer
from editbench.tracing.traces import TracedPrompt

MakePrompt = Callable[[EditableModel, str, str], TracedPrompt]
RoomFor = Callable[..., AbstractContextManager[list[int]]]


def test_traces_are_the_same_with_fewer_cells_at_a_time(
    family_model: EditableModel,
    make_prompt: MakePrompt,
    settings: TraceSettings,
    room_for: RoomFor,
) -> None:
    prompt = make_prompt(family_model, "Zoë", "{} is")
    tracer = Tracer(family_model, settings)
    expected = tracer.trace(prompt)
    if tracer.replay_failure is not None:
        pytest.skip("cells are computed one at a time anyway")
    cramped = Tracer(family_model, settings)
    n_rows = 1 + settings.n_samples  # the clean and the corrupted run together, or one cell
    warned = pytest.warns(UserWarning, match=f"tracing '{family_model.name}'")
    with room_for(family_model, n_rows) as sizes, warned as caught:
        found = cramped.trace(prompt)
    assert max(sizes) > n_rows
    assert len(caught) == 1
    assert cramped.replay_failure is None
    for kind, scores in expected.scores.items():
        np.testing.assert_allclose(found.scores[kind], scores, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*memory ran out")
def test_too_little_for_a_single_cell_is_one_clear_error(
    tiny: EditableModel, make_prompt: MakePrompt, settings: TraceSettings
) -> None:
    """It is no reason to give up replay, which takes the least."""
    prompt = make_prompt(tiny, "Ana Lund", "{} works as a")
    tracer = Tracer(tiny, settings)
    tracer.trace(prompt)
    n_rows: list[int] = []

    def refuse(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        n_rows.append(len(args[0]))
        if max(n_rows) > 1 + settings.n_samples:  # from the first cells on that run together
            raise torch.OutOfMemoryError("CUDA out of memory.")

    last = tiny.model.get_submodule(tiny.architecture.block(-1 % tiny.architecture.n_layers))
    handle = last.register_forward_pre_hook(refuse)
    try:
        with pytest.raises(DeviceMemoryError, match="tracing 'tiny': memory runs out even for one"):
            tracer.trace(prompt)
    finally:
        handle.remove()
    assert n_rows[-1] == settings.n_samples
    assert tracer.replay_failure is None


def test_memory_that_runs_out_at_first_is_not_taken_for_another_architecture(
    tiny: EditableModel, make_prompt: MakePrompt, settings: TraceSettings, room_for: RoomFor
) -> None:
    prompt = make_prompt(tiny, "Ana Lund", "{} works as a")
    tracer = Tracer(tiny, settings)
    with room_for(tiny, 0), pytest.raises(torch.OutOfMemoryError):
        tracer.trace(prompt)
    assert tracer.replay_failure is None
    tracer.trace(prompt)


@pytest.mark.parametrize("n_rows", [1, 3])
def test_facts_are_asked_for_in_smaller_parts(
    n_rows: int, tiny: EditableModel, tiny_facts: list[KnownFact], room_for: RoomFor
) -> None:
    expected = choose_known(tiny, tiny_facts)
    with room_for(tiny, n_rows), pytest.warns(UserWarning, match="asking 'tiny' for facts"):
        assert choose_known(tiny, tiny_facts) == expected
