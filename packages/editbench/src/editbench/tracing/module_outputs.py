"""What a module puts out, replaced for the length of a block.

Modules see rows of hidden states, `[n_rows, n_positions, d]`; OPT's MLP sees them flattened.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from editbench.replay.block_calls import forwards_replaced


@contextmanager
def known(outputs: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Let modules put out what is known of them, and compute nothing."""

    def answer(output: Tensor) -> Callable[..., Tensor]:
        return lambda *_args, **_kwargs: output

    with forwards_replaced({module: answer(output) for module, output in outputs.items()}):
        yield


@contextmanager
def fixed_at(
    module: nn.Module, fixed: Mapping[tuple[int, int], Tensor], shape: tuple[int, int]
) -> Iterator[None]:
    """Let a linear map put out given values at one position of some lines of rows.

    Args:
        module: Puts out rows for all lines, line after line.
        fixed: By line and position, its values: `[d]`, or `[n_samples, d]`. Positions count from
            the end; where a single position is computed, it is the one that is meant.
        shape: Numbers of lines and of samples.
    """

    def replace(module: nn.Module, args: object, output: Tensor) -> None:
        rows = output.view(*shape, -1, output.shape[-1])
        for (line, position), values in fixed.items():
            rows[line, :, position if rows.shape[2] > 1 else 0] = values

    with module.register_forward_hook(replace):
        yield


@contextmanager
def put_out(module: nn.Module, values: Tensor) -> Iterator[None]:
    """Let a module put out the same values, `[n_positions, d]`, in every row."""

    def replace(module: nn.Module, args: object, output: Tensor) -> Tensor:
        rows = output.reshape(-1, *values.shape)
        # A copy: Falcon adds attention's output to the MLP's in place.
        return values.expand_as(rows).contiguous().view(output.shape)

    with module.register_forward_hook(replace):
        yield
