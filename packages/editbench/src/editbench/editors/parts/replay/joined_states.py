"""Keys or values of which the first part is constant, so that no gradient of it is computed.

Attention multiplies by all keys and values, of which a replay makes the last few anew. torch would
compute the gradient of each factor as a whole and throw most of it away, which, with prompts some
times as long as what is replayed, takes longer than all the rest of attention.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class JoinedStates(Tensor):
    """Constant states with new ones behind them, `[…, n_held + width, d]`.

    It is a tensor like any other, and what is computed from it is an ordinary one. Only, a matrix
    product with it as the right factor, as it is or transposed, has gradients of the new part and
    no others. What stands at the end of its last axis but one is new, or of the last if transposed.
    """

    _new: Tensor

    @classmethod
    def join(cls, new: Tensor, room: Tensor) -> Self:
        """Write new states to the end of what holds the constant ones.

        Args:
            new: The new part, `[…, width, d]`.
            room: The constant part with space for the new one behind it. It is overwritten, so
                gradients of what was joined in it before can no longer be taken.
        """
        return cls._of(_Join.apply(new, room), new)  # type: ignore[no-untyped-call]

    @classmethod
    def _of(cls, whole: Tensor, new: Tensor) -> Self:
        joined = whole.as_subclass(cls)
        joined._new = new
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
                product: Tensor = _Product.apply(one, other._new, other.detach())  # type: ignore[no-untyped-call]
                return product
            result = func(*args, **kwargs)
            if isinstance(one, cls) and (
                (
                    func in _TRANSPOSING
                    and {axis % one.dim() - one.dim() for axis in rest} == {-2, -1}
                )
                or (func in _CASTING and all(isinstance(each, torch.dtype) for each in rest))
            ):
                return cls._of(result, func(one._new, *rest, **kwargs))
            return result


_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__}
_TRANSPOSING = {torch.transpose, Tensor.transpose}
_CASTING = {Tensor.to, Tensor.float}


def _fits(one: object, other: object) -> bool:
    """Whether this is a product, batch by batch, with joined states on the right."""
    return (
        isinstance(other, JoinedStates)
        and isinstance(one, Tensor)
        and not isinstance(one, JoinedStates)
        and one.shape[:-2] == other.shape[:-2]
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
    """One times whole, where `new` is the end of `whole` along one of its last two axes."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, new: Tensor, whole: Tensor) -> Tensor:
        ctx.save_for_backward(one, whole)
        ctx.is_transposed = new.shape[-1] < whole.shape[-1]
        ctx.width = new.shape[-1] if ctx.is_transposed else new.shape[-2]
        return one @ whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        one, whole = ctx.saved_tensors
        of_one = of_new = None
        if ctx.needs_input_grad[0]:
            of_one = gradient @ whole.mT
        if ctx.needs_input_grad[1]:
            if ctx.is_transposed:
                gradient = gradient[..., -ctx.width :]
            else:
                one = one[..., -ctx.width :]
            of_new = one.mT @ gradient
        return of_one, of_new, None
