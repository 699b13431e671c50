"""Modules of transformers that move much more memory than what they compute asks for.

GPT-2's and GPT-J's GELU, x·(1 + tanh(√(2/π)(x + 0.044715x³)))/2, passes over memory eight times,
and as often backwards; torch has one kernel for it. GPT-J's attention copies its whole table of
rotary angles for each row of a batch before it looks up a few: 2,048 positions for, say, five.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import NewGELUActivation

from editbench.models.editable import EditableModel

_TABLE_METHOD = "_get_embed_positions"


@contextmanager
def lean_modules(model: EditableModel) -> Iterator[None]:
    """Within the block, such modules of a model compute the same by less work.

    Results of the GELU differ in the last bits.
    """
    with made_lean(find_wasteful(model)):
        yield


def find_wasteful(model: EditableModel) -> list[nn.Module]:
    """The modules that `lean_modules` is about; walking a model takes a while."""
    return [
        module
        for module in model.model.modules()
        if isinstance(module, NewGELUActivation) or hasattr(module, _TABLE_METHOD)
    ]


@contextmanager
def made_lean(modules: Sequence[nn.Module]) -> Iterator[None]:
    """`lean_modules` for modules that have been found."""
    changed = []
    try:
        for module in modules:
            is_gelu = isinstance(module, NewGELUActivation)
            name = "forward" if is_gelu else _TABLE_METHOD
            if name in vars(module):  # a block around this one has done it
                continue
            changed.append((module, name))
            vars(module)[name] = _GELU if is_gelu else functools.partial(_expand_table, module)
        yield
    finally:
        for module, name in changed:
            del vars(module)[name]  # it shadowed the class's method


_GELU = functools.partial(functional.gelu, approximate="tanh")


def _expand_table(attention: nn.Module, position_ids: Tensor) -> Tensor:
    """The rotary angles of all positions for each row, `[n_rows, n_positions, 2·d]`, uncopied."""
    table = attention.get_buffer("embed_positions").to(position_ids.device)
    return table.expand(len(position_ids), -1, -1)
