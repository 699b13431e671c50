"""Weights that an editor overwrites while it computes, and that get their exact bits back."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from editbench.edits.weight_edit import orient_for_module
from editbench.errors import EditError
from editbench.models.editable import EditableModel
from memit_core import MemitCoreError, UpdateFactors, updated_weights


@contextmanager
def borrowed_weights(
    model: EditableModel, names: Sequence[str]
) -> Iterator[dict[str, nn.Parameter]]:
    """Let a ``with`` body write into parameters; their exact bits come back on every exit.

    Args:
        model: The model.
        names: Which of its parameters.

    Yields:
        The parameters, by name.

    Raises:
        EditError: A parameter cannot be written to: it is quantized, or cannot be loaded.
    """
    nothing = torch.zeros(())
    unchanged = {name: nothing.expand(model.model.get_parameter(name).shape) for name in names}
    with ExitStack() as stack:
        try:
            stack.enter_context(updated_weights(model.model, unchanged))
        except MemitCoreError as error:
            raise EditError(f"edit '{model.name}': {error}") from error
        # Only now: one that accelerate has offloaded was a placeholder before.
        yield {name: model.model.get_parameter(name) for name in names}


@contextmanager
def growing_update(model: EditableModel, name: str) -> Iterator[Callable[[UpdateFactors], None]]:
    """Let a ``with`` body add one update after another to a weight, then give its bits back.

    The sum is kept in float64 and cast at every step, so that in any dtype the weight is what one
    edit with all the updates so far would make of it.

    Args:
        model: The model.
        name: The weight's name.

    Yields:
        A function that adds Δ, ``[d_out, d_in]``, to the weight.

    Raises:
        EditError: The weight cannot be written to.
    """
    with borrowed_weights(model, [name]) as parameters:
        weight = parameters[name].detach()
        # Apple's accelerator has no float64.
        device = torch.device("cpu") if weight.device.type == "mps" else weight.device
        total = weight.to(device, torch.float64, copy=True)

        def add(update: UpdateFactors) -> None:
            oriented = orient_for_module(model, name, weight, update)
            assert isinstance(oriented, UpdateFactors)
            total.addmm_(oriented.left, oriented.right.mT)
            weight.copy_(total)

        yield add
