"""Keys and values behind ones that all rows share, which attention need not have a copy of.

Attention multiplies the queries of all rows by the shared part at once, and by each row's own part
apart. Put together row by row, the shared part is copied for each row in each block, and again for
each head where heads share keys: of a long prefix that takes longer than all the rest of a block.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

_SCORES = 2**24  # of queries and keys that are there at once

# What tells of a tensor without looking into it.
_ABOUT = {
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    Tensor.dtype.__get__,  # type: ignore[attr-defined]
    Tensor.device.__get__,
    Tensor.ndim.__get__,  # type: ignore[attr-defined]
    Tensor.size,
    Tensor.dim,
}
# What heads that share keys are given a copy each by.
_REPEATING = (Tensor.__getitem__, Tensor.expand, Tensor.reshape)
_EACH_HEAD = (*[slice(None)] * 2, None, *[slice(None)] * 2)


def put_behind(new: Tensor, held: Tensor) -> Tensor:
    """Put new states, `[n_rows, n_heads, width, d]`, behind held ones; row i has ``i % n_held``."""
    n_rows, n_before = len(new), held.shape[-2]
    if n_rows % len(held):
        held = held[torch.arange(n_rows, device=held.device) % len(held)]
    whole = new.new_empty(*new.shape[:-2], n_before + new.shape[-2], new.shape[-1])
    groups = rearrange(whole, "(group row) ... -> group row ...", row=len(held))
    groups[..., :n_before, :] = held  # copied once, not gathered first
    whole[..., n_before:, :] = new
    return whole


class StatesBehind(Tensor):
    """States of rows, `[n_rows, n_heads, n_shared + width, d]`, that begin with the same ones.

    It is a tensor like any other, and what is computed from it is an ordinary one. Only torch's
    attention takes it as it is, also where it is repeated for heads; for whatever else is done with
    it, it is put together first.
    """

    _own: Tensor
    _shared: Tensor
    _repeated: tuple[tuple[Callable[..., Tensor], tuple[Any, ...]], ...]

    @classmethod
    def of(cls, own: Tensor, shared: Tensor) -> Self:
        """Put `[n_rows, n_heads, width, d]` behind `[1, n_heads, n_shared, d]`, in name alone."""
        length = shared.shape[-2] + own.shape[-2]
        empty = own.new_empty(()).expand(*own.shape[:-2], length, own.shape[-1])
        return cls._of(empty, own, shared, ())

    @classmethod
    def _of(cls, empty: Tensor, own: Tensor, shared: Tensor, repeated: Any) -> Self:
        made = empty.as_subclass(cls)
        made._own, made._shared, made._repeated = own, shared, repeated
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Attend, or remember what repeats it; put it together for everything else."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _ABOUT:
                return func(*args, **kwargs)
            if func is functional.scaled_dot_product_attention:
                if (found := _attend(*args, **kwargs)) is not None:
                    return found
            elif func in _REPEATING and isinstance(args[0], cls) and not kwargs:
                one, *rest = args
                step = (func, tuple(rest))
                empty = func(one.as_subclass(Tensor), *rest)
                return cls._of(empty, one._own, one._shared, (*one._repeated, step))
            return func(*_put_together(args), **_put_together(kwargs))

    def _whole(self) -> Tensor:
        whole = put_behind(self._own, self._shared)
        for func, rest in self._repeated:
            whole = func(whole, *rest)
        return whole

    def _is_for(self, n_heads: int) -> bool:
        """Whether it is as it was made, but for copies of each head for so many in all."""
        n_rows, n_own, _, d = self._own.shape
        length = self._shared.shape[-2] + self._own.shape[-2]
        if not self._repeated:
            return n_own == n_heads
        each = (n_rows, n_own, n_heads // n_own, length, d)
        return self._repeated == tuple(
            zip(_REPEATING, ((_EACH_HEAD,), each, (n_rows, n_heads, length, d)), strict=True)
        )


def _put_together(argument: Any) -> Any:
    """An argument of a function, or several, in which all states are put together."""
    if isinstance(argument, StatesBehind):
        return argument._whole()
    if isinstance(argument, Mapping):
        return {name: _put_together(each) for name, each in argument.items()}
    if isinstance(argument, list | tuple):
        return type(argument)(map(_put_together, argument))
    return argument


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """What torch's attention says, `[n_rows, n_heads, width, d]`; None where that must say it."""
    if not (isinstance(key, StatesBehind) and isinstance(value, StatesBehind)):
        return None
    n_heads, width = query.shape[1:3]
    n_asked = key._own.shape[1] if enable_gqa else n_heads
    if not (key._is_for(n_asked) and value._is_for(n_asked)) or dropout_p:
        return None
    if is_causal or (attn_mask is None and width > 1):
        return None
    if attn_mask is not None and (attn_mask.dim() != 4 or attn_mask.shape[1] != 1):
        return None
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    n_keys = key.as_subclass(Tensor).shape[-2]
    n_together = max(1, _SCORES // (n_heads * width * n_keys))
    if attn_mask is not None:
        attn_mask = attn_mask[..., key._shared.shape[-2] :].expand(len(query), -1, -1, -1)
    parts = [
        _attend_rows(
            query[rows], key, value, None if attn_mask is None else attn_mask[rows], rows, scale
        )
        for start in range(0, len(query), n_together)
        for rows in [slice(start, start + n_together)]
    ]
    return torch.cat(parts)


def _attend_rows(
    query: Tensor,
    key: StatesBehind,
    value: StatesBehind,
    mask: Tensor | None,
    rows: slice,
    scale: float,
) -> Tensor:
    """Attention of some rows to all that is shared, and to what of their own the mask shows."""
    n_own, n_shared = key._own.shape[1], key._shared.shape[-2]
    n_rows, _, width, _ = query.shape
    # Scores that are rounded to half precision would be far off what torch's own attention says.
    dtype = torch.promote_types(query.dtype, torch.float32)
    all_keys, all_values = (key._shared[0].to(dtype), value._shared[0].to(dtype))
    own_keys, own_values = (
        each._own[rows].transpose(0, 1).to(dtype)  # by heads, then by rows
        for each in (key, value)
    )
    states = scale * query.to(dtype)
    states = rearrange(states, "row (own head) q d -> own row (head q) d", own=n_own)
    shared = states.flatten(1, 2) @ all_keys.mT
    own = states @ own_keys.mT
    if mask is not None:
        by_head = own.unflatten(2, (-1, width))
        shown = mask[:, 0][None, :, None]
        if mask.dtype == torch.bool:
            by_head.masked_fill_(~shown, -torch.inf)
        else:
            by_head += shown
    weights = torch.cat([shared.unflatten(1, (n_rows, -1)), own], dim=-1).softmax(dim=-1)
    said = (weights[..., :n_shared].flatten(1, 2) @ all_values).unflatten(1, (n_rows, -1))
    said = said + weights[..., n_shared:] @ own_values
    by_row = rearrange(said, "own row (head q) d -> row (own head) q d", q=width)
    return by_row.to(query.dtype)
