"""Putting updates on a model's weights, and taking them off again without a trace."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from memit_core._linalg import find_float64_device, require_finite
from memit_core._lookup import look_up
from memit_core.errors import MemitCoreError, ShapeError
from memit_core.update_factors import UpdateFactors


@contextmanager
def updated_weights(
    model: nn.Module,
    updates: Mapping[str, Tensor | UpdateFactors],
    *,
    temporary: Collection[str] = (),
) -> Iterator[None]:
    """Add updates to a model's parameters for the length of a ``with`` body.

    The sum is formed in float64 and then cast to the parameter's dtype. Parameters change in
    place, so whatever shares their memory, such as a tied head, follows. On every exit, also on
    exceptions, all their bits are as before: they come back from a copy, for adding and subtracting
    again would round.

    Args:
        model: Any module; whether its parameters require gradients does not matter.
        updates: For each parameter, by its name in ``model.named_parameters()``, what to add: a
            tensor of the parameter's own shape, or factors whose product has it. (Where a model
            stores the transpose of a weight, swap the factors.)
        temporary: Names of parameters that do not outlast the body, such as copies of what is kept
            on another device: they are updated, and no copy is taken to restore them from.

    Yields:
        Nothing.

    Raises:
        MemitCoreError: A name is unknown, two names are one tied parameter, a parameter is not
            floating-point, or it has no values (on the meta device). Nothing has been changed then.
        ShapeError: An update does not have its parameter's shape. Nothing has been changed then.
        IllPosedError: An update is not finite. Nothing has been changed then.

    Example:
        >>> import torch
        >>> from memit_core import updated_weights
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> before = layer.weight.detach().clone()
        >>> with updated_weights(layer, {"weight": torch.ones(2, 2)}):
        ...     changed = not torch.equal(layer.weight, before)
        >>> changed, torch.equal(layer.weight, before)
        (True, True)
    """
    # Tied parameters go by several names.
    available = dict(model.named_parameters(remove_duplicate=False))
    parameters = look_up("updated_weights", "parameter", updates, available)
    for name, parameter in parameters.items():
        _require_fit(name, parameter, updates[name])
    _require_distinct(parameters)
    memory = {name: parameter.detach() for name, parameter in parameters.items()}
    saved = {name: each.clone() for name, each in memory.items() if name not in temporary}
    with ExitStack() as restoring:
        for name, tensor in memory.items():
            if name in saved:
                restoring.callback(_restore, parameters[name], tensor, saved[name])
            _write(tensor, add_update(tensor, updates[name]))
        del updates  # the body may need the memory
        yield


def _require_distinct(parameters: Mapping[str, nn.Parameter]) -> None:
    names: dict[int, str] = {}
    for name, parameter in parameters.items():
        if (other := names.setdefault(id(parameter), name)) != name:
            raise MemitCoreError(
                f"updated_weights: two names are one tied parameter, got '{other}' and '{name}'. "
                "Add their updates up, and give the sum under one name."
            )


def _require_fit(name: str, parameter: nn.Parameter, update: Tensor | UpdateFactors) -> None:
    """Refuse an update that cannot be added to a parameter."""
    if not parameter.is_floating_point():
        raise MemitCoreError(
            f"updated_weights: parameter '{name}' must be floating-point, got {parameter.dtype}. "
            "Load the model without quantization."
        )
    if parameter.is_meta:
        raise MemitCoreError(
            f"updated_weights: parameter '{name}' has no values, got {parameter.dtype} on meta. "
            "Load the model's weights, or bring in those that are kept elsewhere."
        )
    if isinstance(update, UpdateFactors):
        shape, parts = [update.d_value, update.d_key], [update.left, update.right]
    elif isinstance(update, Tensor) and update.is_floating_point():
        shape, parts = list(update.shape), [update]
    else:
        got = update.dtype if isinstance(update, Tensor) else type(update).__name__
        raise ShapeError(
            f"updated_weights: the update of '{name}' does not fit, got {got}; expected a "
            "floating-point tensor or UpdateFactors."
        )
    if shape != list(parameter.shape):
        raise ShapeError(
            f"updated_weights: the update of '{name}' does not fit, got {shape}; expected "
            f"{list(parameter.shape)}. Check that it is not transposed."
        )
    for part in parts:
        require_finite("updated_weights", f"updates[{name!r}]", part)


def add_update(weight: Tensor, update: Tensor | UpdateFactors) -> Tensor:
    """Return weight + update in float64, where the weight is: what `updated_weights` then casts."""
    device = find_float64_device(weight.device)
    with torch.no_grad():
        total = weight.to(device=device, dtype=torch.float64, copy=True)
        if isinstance(update, UpdateFactors):
            left, right = (
                factor.to(device=device, dtype=torch.float64)
                for factor in (update.left, update.right)
            )
            return total.addmm_(left, right.mT)
        return total.add_(update.to(device=device, dtype=torch.float64))


def _write(weight: Tensor, values: Tensor) -> None:
    """Copy values into a weight's memory, whatever mode it was created under."""
    # Outside of inference mode, tensors that were created inside of it are read-only.
    inference = weight.is_inference() or torch.is_inference_mode_enabled()
    with torch.no_grad(), torch.inference_mode(inference):
        weight.copy_(values)


def _restore(parameter: nn.Parameter, memory: Tensor, saved: Tensor) -> None:
    """Give a parameter its old bits in its old memory, even if the body gave it other memory."""
    _write(memory, saved)
    if parameter.data_ptr() != memory.data_ptr():
        parameter.data = memory
