"""Gradients of edits as sums of rank-1 terms, one a token (Mitchell et al., 2021, section 3.2)."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from editbench.editors.training.matrices import Matrix
from editbench.editors.training.target_likelihood import TargetBatch
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import Halving
from editbench.models.token_states import by_row
from editbench.requests import EditRequest


@dataclass(frozen=True, slots=True)
class GradientTerms:
    """The gradient of one weight: ∇_W L = Σ v uᵀ over tokens.

    Tokens whose v is zero are left out: padding, and in the last block all that predict nothing.

    Attributes:
        inputs: u, what goes into the weight's module, ``[n_tokens, d_in]``, float32.
        gradients: v = ∂L/∂(the module's output), ``[n_tokens, d_out]``, float32.
        edits: Which edit each token belongs to, ``[n_tokens]``, ascending.
        positions: Where the token stands in the edit's prompt with its target, ``[n_tokens]``.
    """

    inputs: Tensor
    gradients: Tensor
    edits: Tensor
    positions: Tensor

    def of(self, edits: range) -> "GradientTerms":
        """The terms of consecutive edits, numbered from 0 on."""
        chosen = (self.edits >= edits.start) & (self.edits < edits.stop)
        return GradientTerms(
            self.inputs[chosen],
            self.gradients[chosen],
            self.edits[chosen] - edits.start,
            self.positions[chosen],
        )

    @classmethod
    def joined(cls, parts: Sequence["GradientTerms"], n_edits: Sequence[int]) -> "GradientTerms":
        """The terms of some edits after those of others, numbered on; each part has `n_edits`."""
        starts = [0, *accumulate(n_edits)]
        return cls(
            torch.cat([part.inputs for part in parts]),
            torch.cat([part.gradients for part in parts]),
            torch.cat([part.edits + start for part, start in zip(parts, starts, strict=False)]),
            torch.cat([part.positions for part in parts]),
        )


def gather_gradients(
    model: EditableModel,
    matrices: Sequence[Matrix],
    requests: Sequence[EditRequest],
    halving: Halving,
) -> dict[str, GradientTerms]:
    """`decompose_gradients` of all edits, which run in parts if memory does not suffice for all."""

    def decompose(some: Sequence[EditRequest]) -> tuple[dict[str, GradientTerms], int]:
        return decompose_gradients(model, matrices, some)[0], len(some)

    parts = list(halving.run(requests, decompose))
    if len(parts) == 1:
        return parts[0][0]
    counts = [n_edits for _, n_edits in parts]
    return {
        matrix.name: GradientTerms.joined([terms[matrix.name] for terms, _ in parts], counts)
        for matrix in matrices
    }


def decompose_gradients(
    model: EditableModel, matrices: Sequence[Matrix], requests: Sequence[EditRequest]
) -> tuple[dict[str, GradientTerms], float]:
    """Take apart the gradients of some edits, which run together.

    The loss of an edit is the mean of −log p over its target's tokens, behind the prompt; the
    losses are added up. So what an edit contributes does not depend on what it runs with.

    Returns:
        The terms for each weight by its name, and the mean loss of the edits.
    """
    batch = TargetBatch(model, requests, "teacher-forced")
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    with ExitStack() as hooks, torch.enable_grad():
        for matrix in matrices:
            module = model.model.get_submodule(matrix.module)
            hooks.enter_context(module.register_forward_hook(_make_tap(matrix.name, seen)))
        loss = batch.loss() * len(requests)
        found = torch.autograd.grad(loss, [seen[matrix.name][1] for matrix in matrices])
    terms = {
        matrix.name: _collect_terms(seen[matrix.name][0], gradient, len(requests), model.device)
        for matrix, gradient in zip(matrices, found, strict=True)
    }
    return terms, loss.item() / len(requests)


def _make_tap(name: str, seen: dict[str, tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """A hook that notes a module's input, and adds to its output a zero to differentiate by."""

    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        tap = torch.zeros_like(output, requires_grad=True)
        seen[name] = (arguments[0].detach(), tap)
        return output + tap

    return hook


def _collect_terms(
    inputs: Tensor, gradients: Tensor, n_edits: int, device: torch.device
) -> GradientTerms:
    inputs, gradients = (
        by_row(each, n_edits).to(device, torch.float32) for each in (inputs, gradients)
    )
    edits, positions = gradients.ne(0).any(dim=-1).nonzero(as_tuple=True)
    return GradientTerms(inputs[edits, positions], gradients[edits, positions], edits, positions)
