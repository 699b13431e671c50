"""Where in a causal language model the things are that an editor needs.

Nothing is listed by model family: the decoder blocks, the projections that write into the residual
stream, the final norm and the head are read off the module tree.
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from editbench.errors import ModelError
from editbench.models.decoder_block import (
    find_attention_projection,
    find_mlp_projection,
    has_attention,
    refuse_unsupported_block,
)

ProjectionKind = Literal["mlp", "attention"]
"""Which of a block's two maps into the residual stream."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The module paths of one causal language model.

    Attributes:
        blocks: Path of the list of decoder blocks, such as ``transformer.h``.
        n_layers: How many blocks there are.
        d_model: Width of the residual stream.
        mlp_projections: Per layer, the path of the linear map out of the MLP: the weight that
            updates are usually written to.
        own_attention: Per layer, the path of the linear map out of attention; None where there is
            none, as in blocks that mix tokens by a recurrence or a convolution.
        embedding: Path of the token embedding.
        final_norm: Path of the norm between the last block and the head; None where there is none.
        head: Path of the map to logits, whether or not its weight is tied to the embedding.
    """

    blocks: str
    n_layers: int
    d_model: int
    mlp_projections: tuple[str, ...]
    own_attention: tuple[str | None, ...]
    embedding: str
    final_norm: str | None
    head: str

    def block(self, layer: int) -> str:
        """The path of one decoder block.

        Raises:
            ModelError: The model has no such layer.
        """
        self.check_layer(layer)
        return f"{self.blocks}.{layer}"

    def projection(self, layer: int, kind: ProjectionKind) -> str:
        """The path of the map out of one block's MLP or attention.

        Raises:
            ModelError: The model has no such layer, or no attention in it.
        """
        self.check_layer(layer)
        path = self.mlp_projections[layer] if kind == "mlp" else self.own_attention[layer]
        if path is None:
            some = ", ".join(str(each) for each, own in enumerate(self.own_attention) if own)
            raise ModelError(
                f"attention's output projection: block '{self.block(layer)}' has none; expected a "
                f"layer with attention, which are {some or 'none'}. Use MLPs instead."
            )
        return path

    @property
    def attention_projections(self) -> tuple[str, ...]:
        """Per layer, the path of the linear map out of attention.

        Raises:
            ModelError: A block has none.
        """
        return tuple(self.projection(layer, "attention") for layer in range(self.n_layers))

    def check_layer(self, layer: int) -> None:
        """Refuse a layer that the model does not have.

        Raises:
            ModelError: The model has no such layer.
        """
        if not 0 <= layer < self.n_layers:
            raise ModelError(
                f"no such layer: got {layer}; expected 0 to {self.n_layers - 1}. "
                f"This model has {self.n_layers} layers, counted from 0."
            )

    @staticmethod
    def weight_name(module_path: str) -> str:
        """The name, among the model's ``named_parameters``, of a module's weight."""
        return f"{module_path}.weight"


def find_architecture(model: PreTrainedModel) -> Architecture:
    """Find the parts of a causal language model in its module tree.

    Args:
        model: Any causal language model of transformers. A composite one (vision and text) is
            looked at only where its text decoder is.

    Returns:
        The paths, all of which `model.get_submodule` resolves.

    Raises:
        ModelError: A part is missing or ambiguous, or the model is of a kind that has no single
            MLP projection to write to (mixture of experts, quantized, adapters, encoders). The
            message says what was looked for and what was found.
    """
    _refuse_unsupported(model)
    config = model.config.get_text_config(decoder=True)
    d_model = _read_size(model, config, "hidden_size")
    n_layers = _read_size(model, config, "num_hidden_layers")
    blocks = _find_blocks(model, n_layers)
    members = [
        (f"{blocks}.{layer}", model.get_submodule(f"{blocks}.{layer}")) for layer in range(n_layers)
    ]
    for path, block in members:
        refuse_unsupported_block(block, path)
    return Architecture(
        blocks=blocks,
        n_layers=n_layers,
        d_model=d_model,
        mlp_projections=tuple(find_mlp_projection(block, path, d_model) for path, block in members),
        own_attention=tuple(
            find_attention_projection(block, path, d_model) for path, block in members
        ),
        embedding=_path_of(model, model.get_input_embeddings(), "token embedding"),
        final_norm=_find_final_norm(model, blocks),
        head=_path_of(model, model.get_output_embeddings(), "language-model head"),
    )


def weight_is_transposed(module: nn.Module) -> bool:
    """Whether a linear module stores its weight as ``[d_in, d_out]`` (GPT-2's Conv1D).

    Raises:
        ModelError: The module is no linear map.
    """
    if isinstance(module, Conv1D):
        return True
    if isinstance(module, nn.Linear):
        return False
    raise ModelError(
        f"orientation of a weight: the module is no linear map, got {type(module).__name__}; "
        "expected Linear or Conv1D."
    )


def input_width(module: nn.Module) -> int:
    """d_in of a linear module, however it stores its weight."""
    axis = 0 if weight_is_transposed(module) else 1
    return int(module.get_parameter("weight").shape[axis])


def _refuse_unsupported(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"unsupported model: {name} is an encoder-decoder; expected a decoder-only causal "
            "language model."
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise ModelError(
            f"unsupported model: {name} is quantized, so no update can be added to its weights. "
            "Load the unquantized checkpoint, for example in bfloat16."
        )


def _read_size(model: PreTrainedModel, config: PreTrainedConfig, field: str) -> int:
    size = getattr(config, field, None)
    if not isinstance(size, int):
        raise ModelError(
            f"unsupported model: the configuration of {type(model).__name__} has no "
            f"'{field}', got {size!r}; expected a number."
        )
    return size


def _find_blocks(model: PreTrainedModel, n_layers: int) -> str:
    lists = {
        path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList)
    }
    fitting = [
        path
        for path, module in lists.items()
        if len(module) == n_layers and any(has_attention(block) for block in module)
    ]
    if len(fitting) > 1:
        decoder = model.get_decoder()
        inside = {id(module) for module in decoder.modules()} if decoder is not None else set()
        fitting = [path for path in fitting if id(lists[path]) in inside] or fitting
    if len(fitting) != 1:
        found = ", ".join(f"'{path}' ({len(module)})" for path, module in lists.items())
        raise ModelError(
            f"unsupported model: looked in {type(model).__name__} for one list of {n_layers} "
            f"decoder blocks with attention in them, found {len(fitting)}. "
            f"Lists of modules and their lengths: {found or 'none'}."
        )
    return fitting[0]


def _find_final_norm(model: PreTrainedModel, blocks: str) -> str | None:
    """Walk up from the blocks until a norm stands beside the path; prefer one defined after it."""
    path = blocks
    while path:
        path, _, child = path.rpartition(".")
        siblings = list(model.get_submodule(path).named_children())
        place = [name for name, _ in siblings].index(child)
        norms = [
            (index, name)
            for index, (name, module) in enumerate(siblings)
            if "norm" in type(module).__name__.lower() and "emb" not in name.lower()
        ]
        after = [name for index, name in norms if index > place]
        if norms:
            name = after[0] if after else norms[-1][1]
            return f"{path}.{name}" if path else name
    return None


def _path_of(model: PreTrainedModel, part: nn.Module | None, what: str) -> str:
    for path, module in model.named_modules(remove_duplicate=False):
        if part is not None and module is part:
            return path
    raise ModelError(
        f"unsupported model: {type(model).__name__} names no {what}, got "
        f"{type(part).__name__}; expected a module of the model. "
        "Load it as a causal language model (AutoModelForCausalLM)."
    )
