"""A block that has run but for its projection, whose weight is about to change.

The projection's inputs are the keys. What the block puts out is the rest plus what the projection
says of them, with its old weight as well as with the new one, so that the block need not run again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editbench.models.agreement import relative_error
from editbench.models.editable import EditableModel
from editbench.models.token_states import by_token
from memit_core import capture, intervene

# Of what is added, as rounding leaves it in bfloat16; whatever normalizes it loses all of it.
_TOLERATED = 0.05


@dataclass(frozen=True)
class OpenBlock:
    """See the module.

    Attributes:
        rest: What the block puts out without the projection's part, `[n_rows, width, d_model]`.
        inputs: The projection's inputs at the rows' tokens, one row after the other,
            `[n_tokens, d_key]`; where there is little padding, that of it, too.
        owners: The row of each, `[n_tokens]`.
        positions: Where in the row it is, `[n_tokens]`.
    """

    rest: Tensor
    inputs: Tensor
    owners: Tensor
    positions: Tensor

    @classmethod
    def run(
        cls, model: EditableModel, projection: str, mask: Tensor, run: Callable[[], Tensor]
    ) -> "OpenBlock":
        """Run a block but for its projection.

        `run` does it, on rows whose mask is `[n_rows, width]`, and returns what the block puts out.
        """
        silent = _silenced(model.model.get_submodule(projection))
        with capture(model.model, inputs_of=[projection]) as seen, silent:
            rest = run()
        inputs = by_token(seen.inputs[projection])
        # An MLP that skips padding has its own tokens alone, in the same order.
        there = mask if len(inputs) < mask.numel() else torch.ones_like(mask)
        owners, positions = there.nonzero(as_tuple=True)
        return cls(rest, inputs, owners, positions)

    def close(self, model: EditableModel, projection: str) -> Tensor:
        """What the block puts out with the weight as it is now, `[n_rows, width, d_model]`."""
        said = model.model.get_submodule(projection)(self.inputs.to(model.device))
        states = self.rest.to(model.device, copy=True)
        places = (self.owners.to(states.device), self.positions.to(states.device))
        return states.index_put_(places, said.to(states), accumulate=True)

    def inputs_at(self, last: Tensor) -> Tensor:
        """The projection's inputs at positions `[n_rows]`, one for each row: `[n_rows, d_key]`."""
        chosen = self.positions == last[self.owners]
        return self.inputs[chosen.to(self.inputs.device)]

    def moved(self, device: torch.device) -> "OpenBlock":
        """The same, with what is large kept on `device`."""
        return OpenBlock(self.rest.to(device), self.inputs.to(device), self.owners, self.positions)

    def part(self, rows: Sequence[int], width: int) -> "OpenBlock":
        """Consecutive rows by themselves, of which the longest has `width` tokens."""
        first, end = rows[0], rows[-1] + 1
        chosen = (self.owners >= first) & (self.owners < end) & (self.positions < width)
        return OpenBlock(
            self.rest[first:end, :width].clone(),
            self.inputs[chosen.to(self.inputs.device)],
            self.owners[chosen] - first,
            self.positions[chosen],
        )


@contextmanager
def _silenced(module: nn.Module) -> Iterator[None]:
    """Let a linear map say nothing but zeros, and do no work for it."""
    shape = torch.Size()

    def take_nothing(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal shape
        shape = args[0].shape[:-1]
        return (by_token(args[0])[:0], *args[1:])

    def put_zeros(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return output.new_zeros(*shape, output.shape[-1])

    with module.register_forward_pre_hook(take_nothing), module.register_forward_hook(put_zeros):
        yield


def can_stay_open(model: EditableModel, projection: str, run: Callable[[], Tensor]) -> bool:
    """Whether what the projection says is added to the block's output, and used for nothing else.

    Two outputs, far larger than anything around them, are put in its place: a norm behind it would
    make them the same. `run` runs the block on some rows, and returns what it puts out.
    """
    usual = run().float()
    chance = torch.Generator().manual_seed(0)
    step = torch.randn(usual.shape[-1], generator=chance).to(usual.device) * usual.abs().max()

    def run_with(said: Tensor) -> Tensor:
        # Not expanded: Falcon adds attention's output to the MLP's in place.
        put = {projection: lambda output: torch.zeros_like(output) + said.to(output)}
        with intervene(model.model, put):
            return run().float()

    moved = run_with(4 * step) - run_with(step)
    return relative_error(moved, (3 * step).to(moved).expand_as(moved)) <= _TOLERATED
