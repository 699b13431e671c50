"""Which linear map of a decoder block is which.

Attention and feed-forward parts are told apart by the words that the hub's models use for them; the
map out of each is the last one, in the order of definition, that is as wide as the residual stream.
"""

from collections.abc import Callable, Iterator

from torch import nn
from transformers.pytorch_utils import Conv1D

from editbench.errors import ModelError

_ATTENTION_WORDS = ("attention", "attn")
_FEED_FORWARD_WORDS = ("mlp", "ffn", "feedforward", "feed_forward")
_EXPERT_WORDS = ("expert", "sparsemoe", "moeblock")  # Gemma 3n routes, but has no experts
_NOT_ATTENTION_ITSELF = ("norm", "dropout")  # `post_attention_layernorm`, `attn_dropout`


def has_attention(block: nn.Module) -> bool:
    """Whether a module has attention in it, as every decoder block does."""
    return any(_is_attention(name, module) for name, module in block.named_modules() if name)


def refuse_unsupported_block(block: nn.Module, path: str) -> None:
    """Refuse blocks in which there is no single weight to write to.

    Raises:
        ModelError: The block looks both ways, is a mixture of experts, or carries an adapter.
    """
    for name, module in block.named_modules():
        kind = type(module).__name__
        place = f"'{path}.{name}' ({kind})" if name else f"'{path}' ({kind})"
        if type(module).__module__.startswith("peft."):
            raise ModelError(
                f"unsupported model: {place} is an adapter. Merge it first "
                "(`merge_and_unload`), and use the merged model."
            )
        if name and _is_attention(name, module):
            if getattr(module, "is_causal", True) is False:
                raise ModelError(
                    f"unsupported model: the attention {place} is not causal, as in an encoder; "
                    "expected a decoder-only causal language model."
                )
        elif _is_called(name, module, _EXPERT_WORDS):
            raise ModelError(
                f"unsupported model: {place} belongs to a mixture of experts; expected one MLP "
                "per block with one output projection."
            )


def find_mlp_projection(block: nn.Module, path: str, d_model: int) -> str:
    """Find the linear map out of the MLP of the block at `path`, and return its own path.

    Raises:
        ModelError: There is none; the message lists the maps that there are.
    """
    outside = [
        (name, module)
        for name, module in _linear_maps(block)
        if not _lies_in(block, name, _is_attention) and not _lies_in(block, name, _is_mixer)
    ]
    # A block may own other maps as wide as the residual stream, such as per-layer inputs; where
    # something is called an MLP, only that is meant. OPT's maps lie in the block itself.
    named = [pair for pair in outside if _lies_in(block, pair[0], _is_feed_forward)]
    maps = named or outside
    found = _last_of_width(d_model, maps)
    if found is None:
        listed = ", ".join(
            f"'{name}' ({type(module).__name__}, {_output_width(module)} wide)"
            for name, module in maps
        )
        raise ModelError(
            f"unsupported model: looked in '{path}' for the MLP's output projection, a Linear or "
            f"Conv1D with an output {d_model} wide, found {listed or 'no linear map'}."
        )
    return f"{path}.{found}"


def find_attention_projection(block: nn.Module, path: str, d_model: int) -> str | None:
    """Find the linear map out of a block's attention; None if there is none."""
    inside = [
        (name, module)
        for name, module in _linear_maps(block)
        if _lies_in(block, name, _is_attention)
    ]
    found = _last_of_width(d_model, inside)
    return None if found is None else f"{path}.{found}"


def _last_of_width(width: int, maps: list[tuple[str, nn.Linear | Conv1D]]) -> str | None:
    fitting = [name for name, module in maps if _output_width(module) == width]
    return fitting[-1] if fitting else None


def _linear_maps(block: nn.Module) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module.weight.is_floating_point():
            yield name, module


def _output_width(module: nn.Linear | Conv1D) -> int:
    return int(module.nf if isinstance(module, Conv1D) else module.out_features)


def _lies_in(block: nn.Module, path: str, is_kind: Callable[[str, nn.Module], bool]) -> bool:
    parts = path.split(".")
    ancestors = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return any(is_kind(name, block.get_submodule(name)) for name in ancestors)


def _is_attention(path: str, module: nn.Module) -> bool:
    kind = type(module).__name__.lower()
    return _is_called(path, module, _ATTENTION_WORDS) and not any(
        word in kind for word in _NOT_ATTENTION_ITSELF
    )


def _is_feed_forward(path: str, module: nn.Module) -> bool:
    return _is_called(path, module, _FEED_FORWARD_WORDS)


def _is_mixer(path: str, module: nn.Module) -> bool:
    """Whether a module has a convolution in it, or weights besides its maps' and norms'.

    Such are Mamba's and other recurrences, which have maps as wide as the residual stream, too.
    """
    return not _is_feed_forward(path, module) and any(
        isinstance(part, nn.Conv1d)
        or (any(True for _ in part.parameters(recurse=False)) and not _has_usual_weights(part))
        for part in module.modules()
    )


def _has_usual_weights(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D) or "norm" in type(module).__name__.lower()


def _is_called(path: str, module: nn.Module, words: tuple[str, ...]) -> bool:
    """Whether a module's own name or the name of its class has one of the words in it."""
    names = (path.rpartition(".")[2].lower(), type(module).__name__.lower())
    return any(word in name for name in names for word in words)
