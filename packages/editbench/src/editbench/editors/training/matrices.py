"""The matrices of the MLPs of chosen blocks: what MEND and UltraEdit edit."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from editbench.models.architecture import input_width, weight_is_transposed
from editbench.models.editable import EditableModel

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
