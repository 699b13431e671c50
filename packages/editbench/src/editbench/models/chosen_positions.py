"""Modules at chosen positions only: padding, and what nobody reads, need not be computed.

MLPs and linear maps treat each position alone, so what is left out changes nothing elsewhere.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from editbench.models.continuing import find_continuing
from editbench.models.editable import EditableModel

# Gathering and putting back takes about as long as a twentieth of an MLP, a tenth of a linear map.
_WORTHWHILE_FOR_MLPS = 0.95
_WORTHWHILE_FOR_MAPS = 0.9


@dataclass(frozen=True, slots=True)
class Places:
    """Positions in rows of a batch, each place once.

    Attributes:
        rows: Rows of the batch, long, `[n]`.
        positions: Positions within those rows, long, `[n]`.
    """

    rows: Tensor
    positions: Tensor

    @classmethod
    def without_padding(cls, mask: Tensor) -> "Places | None":
        """The places where a mask `[n_rows, width]` is 1; None if too few are 0 to matter."""
        rows, positions = mask.nonzero(as_tuple=True)
        return None if len(rows) > _WORTHWHILE_FOR_MLPS * mask.numel() else cls(rows, positions)


def find_mlps(model: EditableModel, layers: Iterable[int]) -> list[nn.Module]:
    """The MLPs of those of `layers` that have them as modules; OPT's have not."""
    architecture = model.architecture
    paths = {layer: architecture.mlp_projections[layer].rpartition(".")[0] for layer in layers}
    return [
        model.model.get_submodule(path)
        for layer, path in paths.items()
        if path != architecture.block(layer)
    ]


def find_position_wise(model: EditableModel, layer: int) -> list[nn.Module]:
    """All of a block that treats each position alone: its MLP, and attention's linear maps."""
    mlps = find_mlps(model, [layer])
    inside = {id(module) for mlp in mlps for module in mlp.modules()}
    block = model.model.get_submodule(model.architecture.block(layer))
    maps = (module for module in block.modules() if isinstance(module, nn.Linear | Conv1D))
    return [*mlps, *(module for module in maps if id(module) not in inside)]


def find_read_modules(model: EditableModel, layer: int) -> list[nn.Module]:
    """What of a block is needed only where its output is read: MLP and attention's projection.

    Where tokens see others by anything but keys and values, nobody knows what comes after what.
    """
    projection = model.architecture.own_attention[layer]
    if projection is None or find_continuing(model) != "padded":
        return []
    return [*find_mlps(model, [layer]), model.model.get_submodule(projection)]


@contextmanager
def skipping_padding(
    model: EditableModel, mask: Tensor, layers: Iterable[int], besides: Sequence[nn.Module] = ()
) -> Iterator[None]:
    """Within the block, no work is done on padding where leaving it out saves time.

    Args:
        model: The model.
        mask: 1 for a token, 0 for padding, `[n_rows, width]`.
        layers: The blocks that will run on rows with this mask.
        besides: Modules that something else is done about.
    """
    modules, places = find_padded(model, mask, layers)
    with only_at([module for module in modules if module not in besides], places):
        yield


def find_padded(
    model: EditableModel, mask: Tensor, layers: Iterable[int]
) -> tuple[list[nn.Module], Places | None]:
    """The modules that waste time on padding, and where there is none; see `skipping_padding`."""
    places = Places.without_padding(mask)
    if places is None:
        return [], None
    if len(places.rows) > _WORTHWHILE_FOR_MAPS * mask.numel():
        return find_mlps(model, layers), places
    return [module for layer in layers for module in find_position_wise(model, layer)], places


@contextmanager
def only_at(modules: Sequence[nn.Module], places: Places | None) -> Iterator[None]:
    """Let modules, which treat each position alone, work at some; elsewhere they put out zero.

    One that is handed more than its input (BLOOM's MLP adds the residual by itself, RWKV's looks
    at the token before), or whose input is not laid out in rows, is left alone.

    The modules are MLPs and linear maps, none inside of another one; `places` None is everywhere.
    """
    with ExitStack() as hooks:
        for module in modules if places is not None else ():
            assert places is not None
            hooks.enter_context(_only_at(module, places))
        yield


@contextmanager
def _only_at(module: nn.Module, places: Places) -> Iterator[None]:
    index: Tensor | None = None
    shape = torch.Size()

    def take(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        nonlocal index, shape
        index = None
        if kwargs or len(args) != 1 or args[0].dim() != 3:
            return None
        shape = args[0].shape
        index = (places.rows * shape[1] + places.positions).to(args[0].device)
        return (_Take.apply(args[0], index).unsqueeze(0),), {}  # type: ignore[no-untyped-call]

    def put_back(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if index is None:
            return output
        put: Tensor = _Put.apply(output[0], index, shape[:-1])  # type: ignore[no-untyped-call]
        return put

    with (
        module.register_forward_pre_hook(take, with_kwargs=True),
        module.register_forward_hook(put_back),
    ):
        yield


# torch's own indexing adds up gradients one by one, in case a place is there twice. None is.
class _Take(torch.autograd.Function):
    """Rows `index` of `states [n_rows, width, d]`, laid out flat: `[n, d]`."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = states.shape
        return states.flatten(0, 1).index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _spread(gradient, index, ctx.shape[:-1]), None


class _Put(torch.autograd.Function):
    """The inverse: `[n, d]` becomes `[n_rows, width, d]` with zeros elsewhere."""

    @staticmethod
    def forward(ctx: Any, chosen: Tensor, index: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(index)
        return _spread(chosen, index, shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return gradient.flatten(0, 1).index_select(0, index), None, None


def _spread(chosen: Tensor, index: Tensor, shape: torch.Size) -> Tensor:
    everywhere = chosen.new_zeros(*shape, chosen.shape[-1])
    everywhere.flatten(0, 1).index_copy_(0, index, chosen)
    return everywhere
