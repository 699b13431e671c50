"""Logits at chosen places only.

For a vocabulary of 128,000 the logits of every position weigh more than everything else in a
forward pass. What stands between the last block and the loss (final norm, head, soft-capping)
treats each position alone, so the head may as well be given only the positions that are asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from editbench.errors import ModelError
from editbench.models.editable import EditableModel


@contextmanager
def select_head_positions(
    model: EditableModel, rows: torch.Tensor, positions: torch.Tensor
) -> Iterator[None]:
    """Within the block, the model's logits come out as ``[1, n, vocab]`` instead of everywhere.

    Entry i is the logits of row ``rows[i]`` at position ``positions[i]``, with everything that the
    architecture does after its head. Do not pass ``logits_to_keep`` at the same time.

    Args:
        model: The model whose forward passes are shortened.
        rows: Batch rows, long, ``[n]``.
        positions: Positions within those rows, long, ``[n]``; negative ones count from the end.

    Raises:
        ModelError: The block ended normally, but the head never ran.
    """
    path = model.architecture.head
    n_runs = 0

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal n_runs
        n_runs += 1
        hidden = args[0]
        chosen = hidden[rows.to(hidden.device), positions.to(hidden.device)]
        return (chosen.unsqueeze(0), *args[1:])

    handle = model.model.get_submodule(path).register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
    if n_runs == 0:
        raise ModelError(
            f"selecting positions: the head '{path}' of '{model.name}' never ran. "
            "Run the whole model inside the block."
        )
