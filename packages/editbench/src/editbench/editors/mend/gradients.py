"""The weights that MEND edits, and their gradients as sums of rank-1 terms, one a token.

Mitchell et al., 2021, section 3.2.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editbench.editors.training.target_likelihood import TargetBatch
from editbench.models.architecture import input_width, weight_is_transposed
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import Halving
from editbench.models.token_states import by_row
from editbench.requests import EditRequest

_N_BLOCKS = 3  # the last three, as published for every model


@dataclass(frozen=True, slots=True)
class Matrix:
    """One weight that is edited.

    Attributes:
        name: The parameter, as in the model's ``named_parameters``.
        module: Path of the linear module that it belongs to.
        d_in: Width of the module's input.
        d_out: Width of its output.
    """

    name: str
    module: str
    d_in: int
    d_out: int

    @classmethod
    def of(cls, model: EditableModel, module: str) -> "Matrix":
        """Describe the weight of a linear module."""
        linear = model.model.get_submodule(module)
        axis = 1 if weight_is_transposed(linear) else 0
        d_out = int(linear.get_parameter("weight").shape[axis])
        name = model.architecture.weight_name(module)
        return cls(name, module, input_width(linear), d_out)


def find_matrices(model: EditableModel, blocks: Sequence[int] | None = None) -> tuple[Matrix, ...]:
    """Find all linear maps of the MLPs of some blocks, in the order of the blocks and modules.

    They are two for a plain MLP and three for a gated one: gate, up and down. What the MLP is, is
    told by its output projection: everything that lies beside it. Where that is the block itself
    (OPT), only the block's own linear maps count, not those of the attention inside of it. Without
    `blocks` it is the last three.

    Raises:
        ModelError: The model has no such block.
    """
    n_layers = model.architecture.n_layers
    chosen = range(max(0, n_layers - _N_BLOCKS), n_layers) if blocks is None else blocks
    return tuple(
        Matrix.of(model, module) for block in chosen for module in _mlp_modules(model, block)
    )


def _mlp_modules(model: EditableModel, block: int) -> list[str]:
    block_path = model.architecture.block(block)
    mlp_path = model.architecture.mlp_projections[block].rpartition(".")[0]
    mlp = model.model.get_submodule(mlp_path)
    parts = mlp.named_children() if mlp_path == block_path else mlp.named_modules()
    return [f"{mlp_path}.{name}" for name, part in parts if isinstance(part, nn.Linear | Conv1D)]


@dataclass(frozen=True, slots=True)
class GradientTerms:
    """The gradient of one weight: ∇_W L = Σ v uᵀ over tokens.

    Tokens whose v is zero are left out: padding, and in the last block all that predict nothing.

    Attributes:
        inputs: u, what goes into the weight's module, ``[n_tokens, d_in]``, float32.
        gradients: v = ∂L/∂(the module's output), ``[n_tokens, d_out]``, float32.
        edits: Which edit each token belongs to, ``[n_tokens]``, ascending.
    """

    inputs: Tensor
    gradients: Tensor
    edits: Tensor

    def of(self, edits: range) -> "GradientTerms":
        """The terms of consecutive edits, numbered from 0 on."""
        chosen = (self.edits >= edits.start) & (self.edits < edits.stop)
        return GradientTerms(
            self.inputs[chosen], self.gradients[chosen], self.edits[chosen] - edits.start
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

    parts, sizes = zip(*halving.run(requests, decompose), strict=True)
    if len(parts) == 1:
        return parts[0]

    def join(own: Sequence[GradientTerms]) -> GradientTerms:
        starts = accumulate(sizes, initial=0)
        return GradientTerms(
            torch.cat([each.inputs for each in own]),
            torch.cat([each.gradients for each in own]),
            torch.cat([each.edits + start for each, start in zip(own, starts, strict=False)]),
        )

    return {matrix.name: join([terms[matrix.name] for terms in parts]) for matrix in matrices}


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
    return GradientTerms(inputs[edits, positions], gradients[edits, positions], edits)
