"""What the outer two of the replayed blocks need not compute everywhere.

Two things are found out on one short row, for no architecture names them: which modules of the
block behind an offset see each position's own state alone (an offset then moves what they put out
at the first position, and nowhere else), and which modules of the block that is read out matter
only where it is read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editbench.models.chosen_positions import find_position_wise
from editbench.models.editable import EditableModel
from editbench.replay.block_calls import BlockCalls

_N_POSITIONS = 4


@dataclass(frozen=True, slots=True)
class SparedModules:
    """The modules, each an MLP or a linear map, none inside of another one.

    Attributes:
        first: Index of the block behind the offset.
        last: Index of the block that is read out.
        unmoved: In block `first`: an offset at one position reaches their output there alone.
        read: In block `last`: their output matters only at positions that are read.
    """

    first: int
    last: int
    unmoved: tuple[nn.Module, ...]
    read: tuple[nn.Module, ...]

    @classmethod
    def find(cls, model: EditableModel, first: int, last: int) -> "SparedModules":
        """Find them; `first` must not be behind `last`."""
        ids = [model.tokens.encode("a")[-1]] * _N_POSITIONS
        inputs = {**model.batch([ids]), "use_cache": False}
        calls = BlockCalls.record(
            model, lambda: model.model.base_model(**inputs), first=first, last=last, stop=True
        )
        chance = torch.Generator().manual_seed(0)  # any states will do
        states = torch.randn(calls.entry.shape, generator=chance).to(calls.entry)
        with torch.no_grad():
            unmoved = _find_unmoved(model, first, calls, states) if first < last else ()
            return cls(first, last, unmoved, _find_read(model, last, calls, states))


def _find_unmoved(
    model: EditableModel, layer: int, calls: BlockCalls, states: Tensor
) -> tuple[nn.Module, ...]:
    candidates = find_position_wise(model, layer)
    moved = states.clone()
    moved[:, 0] = moved[:, 0].roll(1, dims=-1)  # no norm undoes that
    before, after = (_record_inputs(candidates, calls, layer, each) for each in (states, moved))
    return tuple(
        module
        for module, given in before.items()
        if module in after and torch.equal(given[:, 1:], after[module][:, 1:])
    )


def _find_read(
    model: EditableModel, layer: int, calls: BlockCalls, states: Tensor
) -> tuple[nn.Module, ...]:
    expected = calls.run(states, layer, layer)[:, -1]
    found = []
    for module in _record_inputs(find_position_wise(model, layer), calls, layer, states):
        with _unheard_before_last(module):
            if torch.equal(calls.run(states, layer, layer)[:, -1], expected):
                found.append(module)
    return tuple(found)


def _record_inputs(
    modules: Sequence[nn.Module], calls: BlockCalls, layer: int, states: Tensor
) -> Mapping[nn.Module, Tensor]:
    """Inputs of those modules that run just once, from rows of positions to rows of positions."""
    seen: dict[nn.Module, list[Tensor | None]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        in_rows = all(
            isinstance(each, Tensor) and each.dim() == 3 and each.shape[:2] == states.shape[:2]
            for each in (*args, output)
        )
        # A copy: Falcon adds attention's output to the MLP's in place.
        given = args[0].clone() if in_rows and len(args) == 1 else None
        seen.setdefault(module, []).append(given)

    with _hooked(module.register_forward_hook(record) for module in modules):
        calls.run(states, layer, layer)
    return {
        module: given[0]
        for module, given in seen.items()
        if len(given) == 1 and given[0] is not None
    }


@contextmanager
def _unheard_before_last(module: nn.Module) -> Iterator[None]:
    def silence(module: nn.Module, args: object, output: Tensor) -> Tensor:
        heard = torch.zeros_like(output)
        heard[:, -1] = output[:, -1]
        return heard

    with _hooked([module.register_forward_hook(silence)]):
        yield


@contextmanager
def _hooked(handles: Iterable[Any]) -> Iterator[None]:
    attached = list(handles)
    try:
        yield
    finally:
        for handle in attached:
            handle.remove()
