"""An MLP at chosen positions only: in the block that is read out, nobody asks for the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from editbench.models.editable import EditableModel


def find_mlp(model: EditableModel, layer: int) -> nn.Module | None:
    """The MLP of a block; None where it is no module of its own, as in OPT."""
    path = model.architecture.mlp_projections[layer].rpartition(".")[0]
    if path == model.architecture.block(layer):
        return None
    return model.model.get_submodule(path)


@contextmanager
def only_at(mlp: nn.Module, rows: Tensor, positions: Tensor) -> Iterator[None]:
    """Let an MLP, which treats each position alone, work on some; elsewhere it puts out zero.

    One that is handed more than its input (BLOOM's adds the residual by itself) is left alone.

    Args:
        mlp: The MLP.
        rows: Rows of the batch, long, `[n]`.
        positions: Positions within those rows, long, `[n]`; each place only once, or its gradient
            is counted as often as it is there.
    """
    shape: torch.Size | None = None

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal shape
        if len(args) != 1:
            return None
        shape = args[0].shape
        return (args[0][rows, positions].unsqueeze(0),)

    def put_back(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if shape is None:
            return output
        everywhere = output.new_zeros(*shape[:-1], output.shape[-1])
        return everywhere.index_put((rows, positions), output[0])

    handles = [mlp.register_forward_pre_hook(select), mlp.register_forward_hook(put_back)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
