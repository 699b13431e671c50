"""Whether a model goes on from a cache as if it had read whole rows; found out once, by trying.

All models of transformers take a row from its beginning. Beyond that they differ: GPT keeps no
cache, RWKV one of its own; recurrent states and short convolutions are no keys and values, and see
padding in front of a row.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from editbench.errors import EditbenchError, ModelError
from editbench.models.agreement import agree, relative_error
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import is_out_of_memory
from memit_core import capture, intervene

Continuing = Literal["padded", "alike", "never"]
"""How rows go on from a cache: of any lengths, padded on the left; only of one length; not at all.

With ``padded`` the cache is keys and values of every token, and nothing else.
"""

_N_TOKENS, _N_CACHED = 7, (5, 3)
_found: "WeakKeyDictionary[nn.Module, Continuing]" = WeakKeyDictionary()


def find_continuing(model: EditableModel) -> Continuing:
    """How the model goes on from a cache; tried once for each model in memory.

    Of a model without weights it is what its configuration says.

    Raises:
        ModelError: Its forward cannot be used at all: what it says at a token depends on later
            ones or on padding, or is no row of logits; or MLPs write into no residual stream.
    """
    if model.planned_device is not None or model.device.type == "meta":
        return _guess(model)
    if model.model not in _found:
        with torch.no_grad():
            _found[model.model] = _find(model)
    return _found[model.model]


def _find(model: EditableModel) -> Continuing:
    longest = min(_N_TOKENS, model.max_positions or _N_TOKENS)
    if longest < _N_TOKENS:
        return "never"
    ids = model.tokens.encode("What a model says after a text, it says after any part of it.")
    ids = (ids * _N_TOKENS)[:_N_TOKENS]
    expected = _read_whole(model, ids)
    if not expected.isfinite().all():  # overflowed, as by an edit; nothing can be compared
        return _guess(model)
    if _holds_keys_and_values(model) and _goes_on(model, ids, _N_CACHED, expected):
        return "padded"
    return "alike" if _goes_on(model, ids, (_N_CACHED[0],), expected) else "never"


def _read_whole(model: EditableModel, ids: Sequence[int]) -> Tensor:
    """Logits of a row, `[n_tokens, vocabulary]`, that a shorter one beside it must agree with."""
    kind, short = type(model.model).__name__, _N_CACHED[0]
    inputs = {**model.batch([ids, ids[:short]]), "use_cache": False}
    block, projection = model.architecture.block(0), model.architecture.projection(0, "mlp")
    try:
        with capture(model.model, outputs_of=[block]) as usual:
            logits = model.model(**inputs).logits
        with (
            intervene(model.model, {projection: lambda said: said + said.abs().max() + 1}),
            capture(model.model, outputs_of=[block], stop=True) as moved,
        ):
            model.model(**inputs)
    except Exception as error:
        if isinstance(error, EditbenchError) or is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())
        raise ModelError(
            f"unsupported model: the forward of {kind} fails on two rows of tokens, got "
            f"{type(error).__name__}: {said}."
        ) from error
    if torch.equal(moved.outputs[block], usual.outputs[block]):  # Reformer has two streams
        raise ModelError(
            f"unsupported model: what '{projection}' says does not go into the states that "
            f"'{block}' hands on, in {kind}; expected one residual stream that MLPs write into."
        )
    shape = (2, len(ids), model.n_logits)
    if tuple(logits.shape) != shape:
        raise ModelError(
            f"unsupported model: {kind} answers to two rows of {len(ids)} tokens with logits of "
            f"shape {list(logits.shape)}; expected {list(shape)}."
        )
    if logits.isfinite().all() and not agree(logits[1, :short], logits[0, :short], logits.dtype):
        off = relative_error(logits[1, :short], logits[0, :short])
        raise ModelError(
            f"unsupported model: what {kind} says at a token depends on later tokens or on "
            f"padding, got logits that differ by {off:.1e} of their size; expected a causal "
            "language model."
        )
    return logits[0]


def _guess(model: EditableModel) -> Continuing:
    return "padded" if _holds_keys_and_values(model) else "alike"


def _holds_keys_and_values(model: EditableModel) -> bool:
    """Whether transformers' cache for the model has nothing but keys and values in it."""
    try:
        layers = DynamicCache(config=model.model.config).layers
    except (AttributeError, LookupError, ValueError):  # made for models that have a cache
        return False
    return {type(layer) for layer in layers} <= {DynamicLayer, DynamicSlidingWindowLayer}


def _goes_on(
    model: EditableModel, ids: Sequence[int], begins: Sequence[int], expected: Tensor
) -> bool:
    """Whether beginnings of a row, run first, and two tokens behind each give its own logits."""
    first = model.batch([ids[:n] for n in begins], "left")
    following = [ids[n : n + 2] for n in begins]
    behind = model.batch_behind(first["attention_mask"], following, begins)
    found: list[Tensor] = []
    try:
        cache = DynamicCache(config=model.model.config)
        arguments: Mapping[str, Any] = {"past_key_values": cache, "use_cache": True}
        found.append(model.model(**first, **arguments).logits[:, -1:])
        found.append(model.model(**behind, **arguments).logits)
        # One token more in each row, as texts are written.
        whole = torch.stack([expected[n - 1 : n + 2] for n in begins])
        return agree(torch.cat(found, dim=1), whole, whole.dtype)
    except (RuntimeError, AttributeError, TypeError, ValueError, LookupError, AssertionError) as e:
        if is_out_of_memory(e):
            raise
        return False  # a cache of a kind that nobody thought of breaks wherever it happens to
