"""Activation functions by one kernel, where transformers composes them of many."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn import functional
from transformers.activations import NewGELUActivation

from editbench.models.editable import EditableModel


@contextmanager
def fused_activations(model: EditableModel) -> Iterator[None]:
    """Within the block, GPT-2's and GPT-J's GELU is computed by torch's own kernel.

    It is the same function, x·(1 + tanh(√(2/π)(x + 0.044715x³)))/2, but eight passes over memory
    become one, and as many backwards. Results differ in the last bits.
    """
    with fused(find_composed_activations(model)):
        yield


def find_composed_activations(model: EditableModel) -> list[nn.Module]:
    """The modules that `fused_activations` is about; walking a model takes a while."""
    return [module for module in model.model.modules() if isinstance(module, NewGELUActivation)]


@contextmanager
def fused(activations: Sequence[nn.Module]) -> Iterator[None]:
    """`fused_activations` for modules that have been found."""
    composed = [module for module in activations if "forward" not in vars(module)]
    kernel = functools.partial(functional.gelu, approximate="tanh")
    try:
        for module in composed:
            vars(module)["forward"] = kernel  # it shadows the class's method
        yield
    finally:
        for module in composed:
            vars(module).pop("forward", None)
