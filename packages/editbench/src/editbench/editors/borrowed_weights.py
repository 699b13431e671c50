"""Weights that an editor overwrites while it computes, and that get their exact bits back."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from editbench.errors import EditError, ModelError
from editbench.models.editable import EditableModel
from editbench.models.offload import updated_weights
from memit_core import MemitCoreError


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
        except (MemitCoreError, ModelError) as error:
            raise EditError(f"edit '{model.name}': {error}") from error
        # Only now: one that accelerate has offloaded was a placeholder before.
        yield {name: model.model.get_parameter(name) for name in names}
