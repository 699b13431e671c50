"""What need not be computed again in the block behind an offset, since no offset can reach it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class UnmovedMaps:
    """What some modules of one block put out wherever an offset does not reach.

    In the block behind an offset, queries, keys and values of all later positions are what they
    were; where attention and MLP stand side by side (GPT-J, GPT-NeoX), so is all of the MLP.

    Args:
        modules: Modules that see each position's own state alone (`SparedModules.unmoved`).
        run: Sends hidden states `[n_rows, width, d_model]` through their block.
        states: The states that enter it without an offset.
    """

    def __init__(
        self, modules: Sequence[nn.Module], run: Callable[[Tensor], object], states: Tensor
    ) -> None:
        self._rest: dict[nn.Module, Tensor] = {}
        if states.shape[1] == 1 or not modules:
            return

        def keep(module: nn.Module, args: object, output: Tensor) -> None:
            # A copy: Falcon adds attention's output to the MLP's in place.
            self._rest[module] = output[:, 1:].clone()

        handles = [module.register_forward_hook(keep) for module in modules]
        try:
            with torch.no_grad():
                run(states)
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def reused(self) -> Iterator[None]:
        """Within the block, ask these modules about the first position; the rest is as it was."""
        handles = []

        # Without the axis of length one: with it, torch makes many small products of one large.
        def take_first(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0][:, 0], *args[1:])

        def put_back(module: nn.Module, args: object, output: Tensor) -> Tensor:
            return torch.cat([output[:, None], self._rest[module]], dim=1)

        try:
            for module in self._rest:
                handles.append(module.register_forward_pre_hook(take_first))
                handles.append(module.register_forward_hook(put_back))
            yield
        finally:
            for handle in handles:
                handle.remove()
