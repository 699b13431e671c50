"""Training goes on with fewer groups of edits at a time when memory runs out."""

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from editbench.editors.mend.examples import Example, draw_example
from editbench.editors.mend.hypernetwork import Hypernetwork
from editbench.editors.mend.objective import Losses, measure_parts, sum_losses
from editbench.editors.mend.training import DataOrigin, train_hypernetwork
from editbench.editors.mend.training_config import MendTraining
from editbench.editors.training.matrices import find_matrices
from editbench.errors import DeviceMemoryError
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import Halving
from editbench.progress import report_nothing
from editbench.requests import EditCase

RoomFor = Callable[..., AbstractContextManager[list[int]]]


def differentiate(
    model: EditableModel, network: Hypernetwork, examples: Sequence[Example], group_size: int
) -> tuple[Losses, list[Tensor], int]:
    """The losses, their gradients by all that is trained, and in how many parts they came."""
    parameters = list(network.parameters())
    totals = [torch.zeros_like(parameter) for parameter in parameters]

    def finish(part: Losses) -> tuple[Losses, Sequence[Tensor | None]]:
        found = torch.autograd.grad(part.edit + part.locality, parameters, allow_unused=True)
        return part, found

    parts = []
    halving = Halving("training")
    for part, gradients in measure_parts(
        model, network, examples, group_size, finish, halving, observe=True
    ):
        parts.append(part)
        for total, gradient in zip(totals, gradients, strict=True):
            total.add_(0 if gradient is None else gradient)
    return sum_losses(parts), totals, len(parts)


@pytest.mark.parametrize(("group_size", "n_rows"), [(1, 3), (1, 6), (2, 5), (2, 8)])
def test_gradients_are_the_same_in_smaller_parts(
    group_size: int,
    n_rows: int,
    model: EditableModel,
    cases: list[EditCase],
    room_for: RoomFor,
) -> None:
    """Seven edits, of which the last group may have fewer; neighbors are one or two."""
    rng = random.Random(0)
    examples = [draw_example(model.tokens, case, 1, rng) for case in cases[:7]]
    examples[2] = Example(examples[2].request, examples[2].equivalents, examples[2].neighbors * 2)
    networks = [Hypernetwork(find_matrices(model), rank=2, rate=5e-2, seed=0) for _ in range(2)]
    expected, gradients, n_parts = differentiate(model, networks[0], examples, group_size)
    assert n_parts == 1
    with room_for(model, n_rows) as sizes, pytest.warns(UserWarning, match="training: memory ran"):
        found, parts_gradients, n_parts = differentiate(model, networks[1], examples, group_size)
    assert max(sizes) > n_rows
    assert n_parts > 1
    for name in ("edit", "locality", "recall"):
        one, other = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    scale = max(float(each.abs().max()) for each in gradients)
    for one, other in zip(parts_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * scale)
    for name, tensor in networks[0].state_dict().items():  # statistics, too
        torch.testing.assert_close(networks[1].state_dict()[name], tensor, rtol=1e-4, atol=1e-7)


def train(model: EditableModel, cases: list[EditCase]) -> list[tuple[float, ...]]:
    config = MendTraining(
        rank=4, initial_rate=5e-3, batch_size=4, max_steps=4, validation_interval=2
    )
    trained = train_hypernetwork(
        model,
        cases[:18],
        cases[18:],
        config,
        DataOrigin("toy", "a" * 64),
        seed=0,
        report_progress=report_nothing,
    )
    return list(trained.record.validation_losses)


@pytest.mark.filterwarnings("ignore:.*memory ran out")
def test_training_is_the_same_in_smaller_parts(
    model: EditableModel, cases: list[EditCase], room_for: RoomFor
) -> None:
    expected = train(model, cases)
    with room_for(model, 3) as sizes:
        found = train(model, cases)
    assert max(sizes) == 4  # gradients of four edits, and so on: halved before more are asked
    assert len(found) == 3
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*memory ran out")
def test_too_little_for_a_single_group_is_one_clear_error(
    model: EditableModel, cases: list[EditCase], room_for: RoomFor
) -> None:
    with room_for(model, 1), pytest.raises(DeviceMemoryError, match="even for one row at a time"):
        train(model, cases)
