"""What a decoder's work costs: floating-point operations and bytes, from the shapes of its maps.

A multiplication by a weight of m entries takes 2m operations a token; attention takes another 4d
for each pair of a query and a key, d being the width of all heads together. Norms, activations and
sums are left out of operations: they are below a hundredth. A backward pass to the activations
alone, which is all that an offset's gradient needs, takes the same for a weight and twice as much
for attention.

Bytes are those that matter: what a block holds at its widest place, and what it keeps for a
backward pass (inputs of norms and activations, queries, keys, values; never the input of a weight,
whose own gradient nobody asks for). They are rounded upwards.
"""

from dataclasses import dataclass
from typing import Self

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from editbench.models.architecture import Architecture, input_width

_FLOAT32 = 4
# Float32 copies of logits that a loss makes: themselves, log-probabilities and two gradients.
_LOGIT_COPIES = 4


@dataclass(frozen=True, slots=True)
class DecoderSize:
    """The sizes of a decoder's parts; all of its blocks are taken to be alike.

    Attributes:
        n_layers: Decoder blocks.
        d_model: Width of the residual stream.
        d_attention: Width of all heads' queries together.
        d_cache: Width of the keys and values of one token in one block, together.
        d_mlp: Width inside of the MLP: `d_key` of its output projection.
        n_heads: Heads of attention.
        n_attention: Entries of the weights in a block's attention.
        n_mlp: Entries of the other weights of a block.
        n_logits: Width of the logits.
        n_norms: Norms in a block.
        itemsize: Bytes of a number.
        n_weight_bytes: Bytes of all parameters.
        keeps_scores: Whether attention makes a matrix of all queries and keys.
        composed_norms: Whether norms are written out operation by operation, in float32.
        is_parallel: Whether attention and MLP stand side by side.
    """

    n_layers: int
    d_model: int
    d_attention: int
    d_cache: int
    d_mlp: int
    n_heads: int
    n_attention: int
    n_mlp: int
    n_logits: int
    n_norms: int
    itemsize: int
    n_weight_bytes: int
    keeps_scores: bool
    composed_norms: bool
    is_parallel: bool

    @classmethod
    def of(cls, model: PreTrainedModel, architecture: Architecture, *, d_key: int) -> Self:
        """Read the sizes off a model; its weights are not looked at, and may be missing."""
        config = model.config.get_text_config(decoder=True)
        n_heads = getattr(config, "num_attention_heads", None) or 1
        # A block that has attention, if there is one: the others are taken to be like it.
        own = next(((i, path) for i, path in enumerate(architecture.own_attention) if path), None)
        d_attention, n_attention = architecture.d_model, 0
        if own is not None:
            d_attention = input_width(model.get_submodule(own[1]))
            n_attention = _count_entries(model.get_submodule(own[1].rpartition(".")[0]))
        n_cached_heads = getattr(config, "num_key_value_heads", None) or n_heads
        block = model.get_submodule(architecture.block(own[0] if own is not None else 0))
        norms = [module for module in block.modules() if "norm" in type(module).__name__.lower()]
        head = model.get_submodule(architecture.head).get_parameter("weight")
        return cls(
            n_layers=architecture.n_layers,
            d_model=architecture.d_model,
            d_attention=d_attention,
            d_cache=2 * n_cached_heads * (d_attention // n_heads),
            d_mlp=d_key,
            n_heads=n_heads,
            n_attention=n_attention,
            n_mlp=_count_entries(block) - n_attention,
            n_logits=head.shape[0],
            n_norms=len(norms),
            itemsize=model.dtype.itemsize,
            n_weight_bytes=sum(
                parameter.numel() * parameter.element_size() for parameter in model.parameters()
            ),
            keeps_scores=config._attn_implementation == "eager",
            composed_norms=not all(isinstance(norm, nn.LayerNorm) for norm in norms),
            is_parallel=len(norms) == 1 or bool(getattr(config, "use_parallel_residual", False)),
        )

    def block_flops(
        self, n_tokens: float, n_pairs: float, *, n_mlp_tokens: float | None = None
    ) -> float:
        """Operations of one block's forward pass.

        Args:
            n_tokens: Tokens, padding included.
            n_pairs: Pairs of a query and a key, those that are masked included.
            n_mlp_tokens: Tokens that the MLP works on, where that is not all of them.
        """
        n_mlp_tokens = n_tokens if n_mlp_tokens is None else n_mlp_tokens
        maps = self.n_attention * n_tokens + self.n_mlp * n_mlp_tokens
        return 2 * maps + self.attention_flops(n_pairs)

    def attention_flops(self, n_pairs: float) -> float:
        """Operations of one block on pairs of a query and a key, the weights left out."""
        return 4 * self.d_attention * n_pairs

    def head_flops(self, n_reads: float) -> float:
        """Operations of the head's forward pass for logits at `n_reads` places."""
        return 2 * self.d_model * self.n_logits * n_reads

    @property
    def n_inward(self) -> int:
        """Entries of a block's weights that work on what enters it, normed; others need attention.

        What an offset in front of the block moves there is its own position alone.
        """
        outward = self.d_attention * self.d_model
        return self.n_attention - outward + (self.n_mlp if self.is_parallel else 0)

    @property
    def n_mlp_maps(self) -> int:
        """Maps of an MLP, as far as its weights tell: three where one gates another, else two."""
        return max(2, round(self.n_mlp / (self.d_model * self.d_mlp)))

    @property
    def n_cache_bytes(self) -> int:
        """Bytes of the keys and values of one token in all blocks."""
        return self.n_layers * self.d_cache * self.itemsize

    @property
    def n_copied_bytes(self) -> int:
        """Bytes of the keys and values of one token in one block, as attention multiplies by them.

        Where heads share keys there is a copy for each head besides.
        """
        n_heads_own = 2 * self.d_attention if self.d_cache < 2 * self.d_attention else 0
        return (self.d_cache + n_heads_own) * self.itemsize

    def working_bytes(self, n_keys: int) -> int:
        """Bytes for each token while one block runs: its widest place."""
        in_attention = 2 * self.d_attention + self.d_cache + self._score_width(n_keys)
        return (4 * self.d_model + max(in_attention, self.n_mlp_maps * self.d_mlp)) * self.itemsize

    def kept_bytes(self, n_keys: int, *, n_prefix: float = 0) -> int:
        """Bytes for each token that one block keeps for the backward pass.

        `n_prefix` is the tokens of a prefix whose keys and values the block keeps with it, divided
        by the tokens that run.
        """
        d_norms = self.n_norms * self.d_model * (3 * _FLOAT32 if self.composed_norms else 1)
        norms = d_norms * (1 if self.composed_norms else self.itemsize)
        keys_values = self.d_cache * (1 + n_prefix)
        if self.d_cache < 2 * self.d_attention:  # heads that share keys have a copy each
            keys_values = 2 * self.d_attention * (1 + n_prefix) + self.d_cache
        widths = self.d_model + 2 * self.d_attention + keys_values
        widths += self.d_mlp * (1 if self.n_mlp_maps == 2 else 3) + self._score_width(n_keys)
        return norms + round(widths * self.itemsize)

    def logit_bytes(self, *, with_loss: bool) -> int:
        """Bytes for each place at which logits are read, or also a loss and its gradient taken."""
        return self.n_logits * (self.itemsize + (_LOGIT_COPIES if with_loss else 1) * _FLOAT32)

    def _score_width(self, n_keys: int) -> int:
        """Numbers for each token in attention's scores, as if of the model's type."""
        if not self.keeps_scores:
            return 0
        return 3 * self.n_heads * n_keys * max(1, _FLOAT32 // self.itemsize)


def _count_entries(module: nn.Module) -> int:
    maps = (part for part in module.modules() if isinstance(part, nn.Linear | Conv1D))
    return sum(part.weight.numel() for part in maps)
