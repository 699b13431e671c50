"""Linear maps that need not be computed again, since an offset cannot reach their input."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class UnmovedMaps:
    """The linear maps of one block whose input moves, with an offset, at the first position alone.

    In the block behind an offset, queries, keys and values of all later positions are what they
    were; where attention and MLP stand side by side (GPT-J, GPT-NeoX), so is all of the MLP. Which
    maps these are is not read off an architecture but found out: the state at the first position is
    changed, and whatever input stays the same elsewhere, bit by bit, stays the same always.

    Args:
        block: A decoder block.
        run: Sends hidden states `[n_rows, width, d_model]` through it.
        states: The states that enter it without an offset.
    """

    def __init__(self, block: nn.Module, run: Callable[[Tensor], object], states: Tensor) -> None:
        self._maps: list[tuple[nn.Module, Tensor]] = []
        if states.shape[1] == 1:
            return
        moved = states.clone()
        moved[:, 0] = moved[:, 0].roll(1, dims=-1)  # no norm undoes that
        before, after = (_record_maps(block, run, each) for each in (states, moved))
        for module, (given, output) in before.items():
            stays = module in after and given.dim() == 3 and given.shape[:2] == states.shape[:2]
            if stays and torch.equal(given[:, 1:], after[module][0][:, 1:]):
                self._maps.append((module, output[:, 1:]))

    @contextmanager
    def reused(self) -> Iterator[None]:
        """Within the block, ask these maps about the first position; the rest is as it was."""
        handles = []

        # Without the axis of length one: with it, torch makes many small products of one large.
        def take_first(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0][:, 0], *args[1:])

        try:
            for module, rest in self._maps:

                def put_back(
                    module: nn.Module, args: object, output: Tensor, rest: Tensor = rest
                ) -> Tensor:
                    return torch.cat([output[:, None], rest], dim=1)

                handles.append(module.register_forward_pre_hook(take_first))
                handles.append(module.register_forward_hook(put_back))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _record_maps(
    block: nn.Module, run: Callable[[Tensor], object], states: Tensor
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """Input and output of every linear map of `block` that runs just once."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    repeated: set[nn.Module] = set()

    def record(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if module in seen or not args:
            repeated.add(module)
        else:
            # Copies: Falcon adds attention's output to the MLP's in place.
            seen[module] = (args[0].clone(), output.clone())

    maps = [module for module in block.modules() if isinstance(module, nn.Linear | Conv1D)]
    handles = [module.register_forward_hook(record) for module in maps]
    try:
        with torch.no_grad():
            run(states)
    finally:
        for handle in handles:
            handle.remove()
    return {module: found for module, found in seen.items() if module not in repeated}
