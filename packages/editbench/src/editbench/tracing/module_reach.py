"""Which modules need not be asked about every position; found out, not read off an architecture.

Some are *unmoved*: what they are given at one position depends on that position's state alone. In
the block behind a restored state these are the maps to queries, keys and values; where attention
and MLP stand side by side (GPT-J, GPT-NeoX), the whole MLP, too. What they put out there is known
before the block is called: at the restored token from the run that the state is of, elsewhere from
the corrupted run.

Others are *read alone*: in the last block, of which only the last position is read, what the MLP,
the map to queries and the one behind attention put out elsewhere reaches nothing.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editbench.models.editable import EditableModel
from editbench.tracing.block_replay import BlockReplay


@dataclass(frozen=True, slots=True)
class ModuleReach:
    """Names of modules; none that lies in another one of them.

    Attributes:
        unmoved: By layer, those that are given at each position what its own state alone makes.
        read_alone: Those of the last block that the last position reads at that position alone.
    """

    unmoved: tuple[tuple[str, ...], ...]
    read_alone: tuple[str, ...]

    @classmethod
    def unknown(cls, n_layers: int) -> "ModuleReach":
        """Nothing can be left out."""
        return cls(((),) * n_layers, ())


def find_reach(model: EditableModel, replay: BlockReplay, n_positions: int) -> ModuleReach:
    """Find out: what changes elsewhere when something at one position does?

    Args:
        model: The model.
        replay: Its blocks on a whole prompt.
        n_positions: The prompt's length, at least 2.
    """
    chance = torch.Generator().manual_seed(0)  # any states will do
    states = torch.randn(1, n_positions, model.architecture.d_model, generator=chance)
    states = states.to(model.device, model.model.dtype)
    by_layer = [_list_candidates(model, layer) for layer in range(model.architecture.n_layers)]
    unmoved = [
        _find_unmoved(modules, layer, replay, states) for layer, modules in enumerate(by_layer)
    ]
    return ModuleReach(tuple(unmoved), _find_read_alone(by_layer[-1], replay, states))


def _find_unmoved(
    modules: Mapping[str, nn.Module], layer: int, replay: BlockReplay, states: Tensor
) -> tuple[str, ...]:
    moved = states.clone()
    moved[:, 0] = moved[:, 0].roll(1, dims=-1)  # no norm undoes that
    before, after = (_record_inputs(modules, layer, replay, each) for each in (states, moved))
    same = [
        name
        for name, given in before.items()
        if name in after and torch.equal(given[:, 1:], after[name][:, 1:])
    ]
    return _outermost(same)


def _find_read_alone(
    modules: Mapping[str, nn.Module], replay: BlockReplay, states: Tensor
) -> tuple[str, ...]:
    def read_last() -> Tensor:
        return replay.run(replay.last_layer, states)[:, -1]

    expected, found = read_last(), []
    for name in _record_inputs(modules, replay.last_layer, replay, states):
        with modules[name].register_forward_hook(_blank_before_the_last):
            if torch.equal(read_last(), expected):
                found.append(name)
    return _outermost(found)


def _list_candidates(model: EditableModel, layer: int) -> dict[str, nn.Module]:
    """The linear maps of a block, and its MLP where that is a module."""
    path = model.architecture.block(layer)
    block = model.model.get_submodule(path)
    maps: dict[str, nn.Module] = {
        f"{path}.{name}": module
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    mlp = model.architecture.mlp_projections[layer].rpartition(".")[0]
    return maps if mlp == path else {mlp: model.model.get_submodule(mlp), **maps}


def _record_inputs(
    modules: Mapping[str, nn.Module], layer: int, replay: BlockReplay, states: Tensor
) -> dict[str, Tensor]:
    """Inputs of the modules that run once, on rows of states and nothing else."""
    seen: dict[str, Tensor] = {}
    unfit: set[str] = set()
    names = {module: name for name, module in modules.items()}

    def record(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        name = names[module]
        fits = len(args) == 1 and not kwargs and isinstance(output, Tensor)
        if not fits or name in seen or args[0].shape[:-1] != states.shape[:-1]:
            unfit.add(name)
        else:
            seen[name] = args[0].clone()

    with ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_hook(record, with_kwargs=True))
        replay.run(layer, states)
    return {name: given for name, given in seen.items() if name not in unfit}


def _blank_before_the_last(module: nn.Module, args: object, output: Tensor) -> Tensor:
    blanked = torch.zeros_like(output)
    blanked[:, -1] = output[:, -1]
    return blanked


def _outermost(names: Sequence[str]) -> tuple[str, ...]:
    """Leave out modules that lie in another one of them."""
    return tuple(name for name in names if not any(name.startswith(f"{other}.") for other in names))
