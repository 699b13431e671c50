"""What a module puts out, replaced or left uncomputed for the length of a block.

Modules see rows of hidden states, `[n_rows, n_positions, d]`; OPT's MLP sees them flattened.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def fixed_at(
    module: nn.Module, fixed: Mapping[tuple[int, int], Tensor], shape: tuple[int, int]
) -> Iterator[None]:
    """Let a module put out given values at one position of some lines of rows.

    Args:
        module: Puts out rows for all lines, line after line.
        fixed: By line and position, its values: `[d]`, or `[n_samples, d]`. Positions count from
            the end; where a single position is computed, it is the one that is meant.
        shape: Numbers of lines and of samples.
    """

    def replace(module: nn.Module, args: object, output: Tensor) -> Tensor:
        rows = output.reshape(*shape, -1, output.shape[-1]).clone()
        for (line, position), values in fixed.items():
            rows[line, :, position if rows.shape[2] > 1 else 0] = values
        return rows.view(output.shape)

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def put_out(module: nn.Module, values: Tensor) -> Iterator[None]:
    """Let a module put out the same values, `[n_positions, d]`, in every row."""

    def replace(module: nn.Module, args: object, output: Tensor) -> Tensor:
        rows = output.reshape(-1, *values.shape)
        # A copy: Falcon adds attention's output to the MLP's in place.
        return values.expand_as(rows).contiguous().view(output.shape)

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def only_last(module: nn.Module) -> Iterator[None]:
    """Let a module that treats each position alone work on the last; elsewhere it puts out zero.

    One that is handed more than its input (BLOOM's MLP adds the residual by itself) is left alone.
    """
    shape: list[int] = []

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        shape.clear()
        if len(args) != 1 or args[0].dim() != 3:
            return None
        shape.extend(args[0].shape[:-1])
        return (args[0][:, -1:],)

    def put_back(module: nn.Module, args: object, output: Tensor) -> Tensor:
        if not shape:
            return output
        everywhere = output.new_zeros(*shape, output.shape[-1])
        everywhere[:, -1:] = output
        return everywhere

    handles = [module.register_forward_pre_hook(select), module.register_forward_hook(put_back)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
