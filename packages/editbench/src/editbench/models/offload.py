"""Parameters that are kept elsewhere until the moment they are used.

accelerate spreads a model that does not fit over the CPU's memory and a disk. A module whose
weights are kept there has placeholders on the meta device; its hook ``_hf_hook`` copies the values
in before each of its forwards, from ``weights_map``, and drops them afterwards. Nothing more than
that is relied on here. Hooks of `memit_core` see such a module's calls as they see any other's; its
parameters, which are not there between two calls, are brought in here.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import memit_core
from editbench.errors import ModelError
from memit_core import UpdateFactors


@contextmanager
def in_memory(model: nn.Module, names: Iterable[str]) -> Iterator[frozenset[str]]:
    """Let parameters stay where their modules compute for the length of a ``with`` body.

    Of a parameter that accelerate keeps elsewhere, that is a copy, which the model uses in the
    body's forwards and which may be written to; on every exit the copy is dropped, and what is kept
    elsewhere has not been touched. Others are in memory anyway, and stay as they are. Take the
    parameters from the model inside of the body.

    The copies of tied parameters are one parameter. Offloading takes ties apart; those of
    transformers' models are known from their ``all_tied_weights_keys``.

    Args:
        model: Any module.
        names: Names of parameters, as in ``model.named_parameters()``.

    Yields:
        The names of all parameters that were brought in.

    Raises:
        ModelError: A parameter is on the meta device and nothing brings it in, or tied parameters
            are kept in different places. Nothing has been changed then.
    """
    available = dict(model.named_parameters(remove_duplicate=False))
    ties = getattr(model, "all_tied_weights_keys", None) or {}
    keepers: dict[str, _Keeper] = {}
    for name in names:
        own = ties.get(name, name)
        tied = [other for other in available if other == name or ties.get(other, other) == own]
        found = {other: _find_keeper(model, other) for other in tied}
        if len({None if keeper is None else keeper.device for keeper in found.values()}) > 1:
            raise ModelError(
                "offloaded weights: tied parameters are kept in different places, got "
                f"{', '.join(tied)}. Load the model with a device map that has them in the same."
            )
        keepers |= {keeper.path: keeper for keeper in found.values() if keeper is not None}
    with ExitStack() as restoring:
        brought_in: set[str] = set()
        copies: dict[str, nn.Parameter] = {}
        for keeper in keepers.values():
            for tensors, local, placeholder in keeper.placeholders():
                name = ".".join(part for part in (keeper.path, local) if part)
                copy: Tensor = keeper.read(local, placeholder)
                if isinstance(placeholder, nn.Parameter):
                    copy = nn.Parameter(copy, requires_grad=placeholder.requires_grad)
                    copy = copies.setdefault(ties.get(name, name), copy)
                    brought_in.add(name)
                restoring.callback(tensors.__setitem__, local.rpartition(".")[2], placeholder)
                tensors[local.rpartition(".")[2]] = copy
            restoring.callback(setattr, keeper.hook, "offload", True)
            keeper.hook.offload = False
        yield frozenset(brought_in)


@contextmanager
def updated_weights(
    model: nn.Module, updates: Mapping[str, Tensor | UpdateFactors]
) -> Iterator[None]:
    """`memit_core.updated_weights`, also of parameters that accelerate keeps elsewhere.

    These stay in memory within the body, and what is kept elsewhere is not written to.

    Raises:
        MemitCoreError: As there.
        ModelError: As `in_memory`.
    """
    with (
        in_memory(model, updates) as brought_in,
        memit_core.updated_weights(model, updates, temporary=brought_in),
    ):
        yield


def find_device(model: nn.Module, name: str) -> torch.device:
    """Find where a parameter is when its module computes, wherever it is kept.

    Raises:
        ModelError: The parameter is on the meta device and nothing brings it in.
    """
    keeper = _find_keeper(model, name)
    return model.get_parameter(name).device if keeper is None else keeper.device


@dataclass(frozen=True, eq=False)
class _Keeper:
    """A module whose hook keeps parameters of it elsewhere, and brings them in."""

    path: str
    module: nn.Module
    hook: Any

    @property
    def device(self) -> torch.device:
        """Where the module computes."""
        return torch.device(self.hook.execution_device)

    def placeholders(self) -> list[tuple[dict[str, Any], str, Tensor]]:
        """All that the hook sees to: the dictionary that holds it, its name from here, itself."""
        parts = self.module.named_modules() if self.hook.place_submodules else [("", self.module)]
        found: list[tuple[dict[str, Any], str, Tensor]] = []
        for path, module in parts:
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and (tensor.is_meta or isinstance(tensor, nn.Parameter)):
                        found.append((tensors, f"{path}.{name}" if path else name, tensor))
        return found

    def read(self, name: str, placeholder: Tensor) -> Tensor:
        """Make a copy of a value where the module computes."""
        value: Tensor = self.hook.weights_map[name]
        return value.to(self.device, placeholder.dtype, copy=True)


def _find_keeper(model: nn.Module, name: str) -> _Keeper | None:
    """Find what brings a parameter in; None where it is in memory."""
    # A forward that was stopped midway may have left values in; the next one drops them, so that
    # what tells is the hook, not the parameter.
    parameter = model.get_parameter(name)
    owner = path = name.rpartition(".")[0]
    while True:
        module = model.get_submodule(path)
        hook = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):  # accelerate makes one of several
            reaches = path == owner or getattr(each, "place_submodules", False)
            if reaches and getattr(each, "offload", False):
                return _Keeper(path, module, each)
        if not path and not parameter.is_meta:
            return None
        if not path:
            raise ModelError(
                f"offloaded weights: parameter '{name}' has no values, got {parameter.dtype} on "
                "meta. Load the model's weights; only what accelerate has offloaded is brought in."
            )
        path = path.rpartition(".")[0]
