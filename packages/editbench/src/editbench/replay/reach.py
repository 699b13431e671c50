"""What an offset can reach, and what a read can see: found out, not read off an architecture.

Two things are found out on one short row, for no architecture names them. Some modules are
*unmoved*: what they are given at one position depends on that position's state alone, so that an
offset moves what they put out at its own position, and nowhere else. In a block these are the maps
to queries, keys and values; where attention and MLP stand side by side (GPT-J, GPT-NeoX), the whole
MLP, too. Others are *read alone*: in a block whose output is read at some positions only, what the
MLP, the map to queries and the one behind attention put out elsewhere reaches nothing.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editbench.models.chosen_positions import find_mlps
from editbench.models.editable import EditableModel
from editbench.replay.block_calls import BlockCalls

_N_POSITIONS = 4


@dataclass(frozen=True, slots=True)
class Reach:
    """Paths of modules, each an MLP or a linear map, none inside of another one.

    Attributes:
        last: Index of the block that is read out.
        unmoved: By block, modules that are given at each position what its own state alone makes.
        read_alone: Those of block `last` whose output matters only at positions that are read.
    """

    last: int
    unmoved: Mapping[int, tuple[str, ...]]
    read_alone: tuple[str, ...]

    @classmethod
    def unknown(cls, last: int) -> "Reach":
        """Nothing can be left out."""
        return cls(last, {}, ())

    @classmethod
    def find(cls, model: EditableModel, first: int, last: int, moved: Iterable[int]) -> "Reach":
        """Find out: what changes elsewhere when something at one position does?

        Blocks `first` to `last` are run, `last` is read out, and unmoved modules are looked for in
        those of `moved`.
        """
        ids = [model.tokens.encode("a")[-1]] * _N_POSITIONS
        inputs = {**model.batch([ids]), "use_cache": False}
        calls = BlockCalls.record(
            model, lambda: model.model.base_model(**inputs), first=first, last=last, stop=True
        )
        chance = torch.Generator().manual_seed(0)  # any states will do
        states = torch.randn(calls.entry.shape, generator=chance).to(calls.entry)
        with torch.no_grad():
            unmoved = {layer: _find_unmoved(model, layer, calls, states) for layer in moved}
            return cls(last, unmoved, _find_read_alone(model, last, calls, states))


def _find_unmoved(
    model: EditableModel, layer: int, calls: BlockCalls, states: Tensor
) -> tuple[str, ...]:
    modules = _list_candidates(model, layer)
    moved = states.clone()
    moved[:, 0] = moved[:, 0].roll(1, dims=-1)  # no norm undoes that
    before, after = (_record_inputs(modules, layer, calls, each) for each in (states, moved))
    found: list[str] = []
    for path, given in before.items():
        is_same = path in after and torch.equal(given[:, 1:], after[path][:, 1:])
        if is_same and not _lies_in(path, found):
            found.append(path)
    return tuple(found)


def _find_read_alone(
    model: EditableModel, layer: int, calls: BlockCalls, states: Tensor
) -> tuple[str, ...]:
    modules = _list_candidates(model, layer)
    expected = calls.run(states, layer, layer)[:, -1]
    fit = _record_inputs(modules, layer, calls, states)  # those that work row by row
    found: list[str] = []
    for path in fit:
        if _lies_in(path, found):
            continue
        with modules[path].register_forward_hook(_blank_before_the_last):
            if torch.equal(calls.run(states, layer, layer)[:, -1], expected):
                found.append(path)
    return tuple(found)


def _list_candidates(model: EditableModel, layer: int) -> dict[str, nn.Module]:
    """By path, a block's MLP where that is a module, and linear maps, behind what they lie in."""
    block, mlps = model.architecture.block(layer), find_mlps(model, [layer])
    return {
        f"{block}.{name}": module
        for name, module in model.model.get_submodule(block).named_modules()
        if module in mlps or isinstance(module, nn.Linear | Conv1D)
    }


def _record_inputs(
    modules: Mapping[str, nn.Module], layer: int, calls: BlockCalls, states: Tensor
) -> dict[str, Tensor]:
    """Inputs of those modules that run just once, from rows of positions to rows of positions."""
    seen: dict[str, list[Tensor | None]] = {}
    paths = {module: path for path, module in modules.items()}

    def record(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        in_rows = all(
            isinstance(each, Tensor) and each.shape[:-1] == states.shape[:-1]
            for each in (*args, output)
        )
        # A copy: Falcon adds attention's output to the MLP's in place.
        given = args[0].clone() if in_rows and len(args) == 1 and not kwargs else None
        seen.setdefault(paths[module], []).append(given)

    with ExitStack() as hooks:
        for module in paths:
            hooks.enter_context(module.register_forward_hook(record, with_kwargs=True))
        calls.run(states, layer, layer)
    return {
        path: given[0]
        for path in modules
        if len(given := seen.get(path, [])) == 1 and given[0] is not None
    }


def _blank_before_the_last(module: nn.Module, args: object, output: Tensor) -> Tensor:
    blanked = torch.zeros_like(output)
    blanked[:, -1] = output[:, -1]
    return blanked


def _lies_in(path: str, others: Iterable[str]) -> bool:
    return any(path.startswith(f"{other}.") for other in others)
