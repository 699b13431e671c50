"""Cache layers that hand out constant keys and values with new ones behind them.

Attention multiplies by all keys and values, of which a replay makes the last few anew. Where
gradients are taken, torch would compute that of each factor as a whole and throw most of it away,
which, with prompts some times as long as what is replayed, takes longer than all the rest of
attention: `JoinedStates` have gradients of the new part alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from editbench.models.states_behind import put_behind

Join = Callable[[Tensor, Tensor], Tensor]
"""Puts new keys or values, `[n_rows, …, width, d]`, behind those that are held."""


@dataclass(eq=False, slots=True)
class HeldStates:
    """Keys and values of one layer, `[n_rows, n_heads, n_held, d_head]`; None where there are none.

    Cache layers know of them, and they of no cache layer: Python frees rings of objects late, and
    these are the largest there are.
    """

    keys: Tensor | None = None
    values: Tensor | None = None

    def keep(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Hold these in place of what was held; a cache layer may have it for its `update`."""
        self.keys, self.values = keys, values
        return keys, values

    def hand_out(
        self,
        cache_layer: Any,
        *,
        rows: Tensor | None = None,
        join: Join = put_behind,
        n_spare: int = 0,
    ) -> None:
        """Let a cache layer hand out what is held at the time, and keep nothing of new states.

        Args:
            cache_layer: The layer; it stays of its class.
            rows: The row of what is held that each row of new states has before it; None: row i
                has row ``i % n_rows``.
            join: `JoinedStates.join` where gradients are taken of new states alone.
            n_spare: For how many new states `join` finds room behind those that are held.
        """
        if self.keys is not None and self.values is not None:
            # How long they are is all that models ask of what a layer holds.
            cache_layer.keys, cache_layer.values = (
                states.new_empty(()).expand(states[..., n_spare:, :].shape)
                for states in (self.keys, self.values)
            )
            cache_layer.dtype, cache_layer.device = self.keys.dtype, self.keys.device
            cache_layer.is_initialized = True
        # Of this instance alone: it shadows the method.
        cache_layer.update = partial(self._behind, rows, join)

    def _behind(
        self, rows: Tensor | None, join: Join, keys: Tensor, values: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        both = ((keys, self.keys), (values, self.values))
        keys, values = (_put_rows_behind(new, held, rows, join) for new, held in both)
        return keys, values


def _put_rows_behind(new: Tensor, held: Tensor | None, rows: Tensor | None, join: Join) -> Tensor:
    if held is None or not held.shape[-2]:
        return new
    return join(new, held if rows is None else held[rows.to(held.device)])


class JoinedStates(Tensor):
    """Constant states with new ones behind them, `[…, n_held + width, d]`.

    It is a tensor like any other, and what is computed from it is an ordinary one. Only, a matrix
    product with it as the right factor, as it is, transposed or cast, has gradients of the new part
    and no others, and keeps for them what the states are held in, but no copy of it.
    """

    _new: Tensor  # as transposed and cast as the whole is
    _held: Tensor  # as transposed, but never cast

    @classmethod
    def join(cls, new: Tensor, room: Tensor) -> Self:
        """Write new states to the end of what holds the constant ones.

        Args:
            new: The new part, `[…, width, d]`.
            room: The constant part with space for the new one behind it. It is overwritten, so
                gradients of what was joined in it before can no longer be taken.
        """
        whole = _Join.apply(new, room)  # type: ignore[no-untyped-call]
        return cls._of(whole, new, whole.detach())

    @classmethod
    def _of(cls, whole: Tensor, new: Tensor, held: Tensor) -> Self:
        joined = whole.as_subclass(cls)
        joined._new, joined._held = new, held
        return joined

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Remember what is new when transposed or cast; forget it in everything else."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            one, *rest = args or (None,)
            if func in _PRODUCTS and len(rest) == 1 and _fits(one, rest[0]):
                other = rest[0]
                factors = (one, other._new, other._held, other.detach())
                product: Tensor = _Product.apply(*factors)  # type: ignore[no-untyped-call]
                return product
            result = func(*args, **kwargs)
            if isinstance(one, cls) and func in _TRANSPOSING and _swaps_last_two(one, rest):
                return cls._of(result, one._new.mT, one._held.mT)
            if isinstance(one, cls) and func in _CASTING and _are_dtypes(rest, kwargs):
                return cls._of(result, func(one._new, *rest, **kwargs), one._held)
            return result


_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__}
_TRANSPOSING = {torch.transpose, Tensor.transpose}
_CASTING = {Tensor.to, Tensor.float}


def _swaps_last_two(states: Tensor, axes: Sequence[int]) -> bool:
    return {axis % states.dim() - states.dim() for axis in axes} == {-2, -1}


def _are_dtypes(arguments: Sequence[object], options: Mapping[str, object]) -> bool:
    given = [*arguments, *options.values()]
    return all(isinstance(each, torch.dtype) for each in given)


def _fits(one: object, other: object) -> bool:
    """Whether this is a product, batch by batch, with joined states on the right."""
    return (
        isinstance(other, JoinedStates)
        and isinstance(one, Tensor)
        and not isinstance(one, JoinedStates)
        and one.shape[:-2] == other.shape[:-2]
        and one.dtype == other.dtype
    )


class _Join(torch.autograd.Function):
    """What a room holds, with new states `[…, width, d]` behind it.

    torch's own writing to a part of a tensor copies the gradient of the whole of it.
    """

    @staticmethod
    def forward(ctx: Any, new: Tensor, room: Tensor) -> Tensor:
        ctx.width = new.shape[-2]
        whole = room.detach()  # the same memory, without the graph of the time before
        whole[..., -ctx.width :, :] = new
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[..., -ctx.width :, :], None


class _Product(torch.autograd.Function):
    """One times whole, which is `held` cast; `new` is the end of it along one of the last axes."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, new: Tensor, held: Tensor, whole: Tensor) -> Tensor:
        ctx.save_for_backward(one, held)
        ctx.is_transposed = new.shape[-1] < held.shape[-1]
        ctx.width = new.shape[-1] if ctx.is_transposed else new.shape[-2]
        return one @ whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        one, held = ctx.saved_tensors
        of_one = of_new = None
        if ctx.needs_input_grad[0]:
            of_one = gradient @ held.mT.to(gradient.dtype)
        if ctx.needs_input_grad[1]:
            if ctx.is_transposed:
                gradient = gradient[..., -ctx.width :]
            else:
                one = one[..., -ctx.width :]
            of_new = one.mT @ gradient
        return of_one, of_new, None, None
