"""Logits: at chosen places of a forward only, or from hidden states that did not come out of one.

For a vocabulary of 128,000 the logits of every position weigh more than everything else in a
forward pass. What stands between the last block and the loss (final norm, head, soft-capping)
treats each position alone, so the head may as well be given only the positions that are asked for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from editbench.errors import ModelError
from editbench.models.architecture import input_width
from editbench.models.editable import EditableModel

# A loss of each of some reads: told their logits `[n, vocabulary]`, and which of all reads they
# are, it says `[n]` numbers. None of them may depend on another read's logits.
ReadLoss = Callable[[Tensor, slice], Tensor]


@contextmanager
def select_head_positions(model: EditableModel, rows: Tensor, positions: Tensor) -> Iterator[None]:
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


def apply_head(model: EditableModel, hidden: Tensor) -> Tensor:
    """Logits `[n, vocabulary]` of states that left a decoder block, `[n, d_model]`.

    By final norm, output head and, where the architecture caps its logits, the cap; on the model's
    device, where its own forward puts them. Architectures that do more than this between their last
    block and their logits are told apart by comparing with their own forward (`SuffixReplay` does).

    Raises:
        ModelError: Something else stands between the last block and the head.
    """
    network = model.model
    head = network.get_submodule(model.architecture.head)
    if model.architecture.final_norm is not None:
        hidden = network.get_submodule(model.architecture.final_norm)(hidden)
    if input_width(head) != hidden.shape[-1]:
        raise ModelError(
            f"reading out hidden states: the head of '{model.name}' takes {input_width(head)} "
            f"dimensions, got {hidden.shape[-1]}. Its blocks can only be read out by its own "
            "forward; use its last layer as loss layer."
        )
    logits = head(hidden)
    cap = getattr(network.config.get_text_config(), "final_logit_softcapping", None)
    if cap is not None:
        logits = (logits / cap).tanh() * cap
    return logits.to(model.device)


def find_losses(model: EditableModel, hidden: Tensor, loss: ReadLoss) -> Tensor:
    """A loss of each state's logits, of which no more than a slice is ever in memory.

    Gradients are found along with the losses, slice by slice: a row's loss depends on that row
    alone, so what there is to keep for the backward pass is as wide as a state, not as a
    vocabulary. Making logits once more in the backward pass would take the head half as long again.

    Args:
        model: The model.
        hidden: States that left a decoder block, `[n, d_model]`.
        loss: What is wanted of the logits. It is called once for each slice, in order.

    Returns:
        The losses, `[n]`, on the model's device; differentiable (once) with respect to `hidden`
        and nothing else.

    Raises:
        ModelError: See `apply_head`.
    """
    has_gradient = hidden.requires_grad and torch.is_grad_enabled()
    losses: list[Tensor] = []
    gradients: list[Tensor] = []
    start = 0
    for part in hidden.detach().split(model.memory.reads_with_loss):
        part.requires_grad_(has_gradient)
        found = loss(apply_head(model, part), slice(start, start + len(part)))
        if has_gradient:
            gradients += torch.autograd.grad(found.sum(), part)
        losses.append(found.detach())
        start += len(part)
    if not has_gradient:
        return torch.cat(losses)
    linked: Tensor = _WithGradients.apply(  # type: ignore[no-untyped-call]
        hidden, torch.cat(losses), torch.cat(gradients)
    )
    return linked


class _WithGradients(torch.autograd.Function):
    """Losses `[n]` of states `[n, d_model]`, where each one's gradient is known already."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, losses: Tensor, gradients: Tensor) -> Tensor:
        ctx.save_for_backward(gradients)
        return losses.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        weighted = weights.to(gradients.device)[:, None] * gradients
        return weighted.to(gradients.dtype), None, None
