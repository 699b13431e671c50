"""The decoder blocks of one recorded forward, callable again on other hidden states.

A block needs more than a hidden state: masks, positions, rotary angles, a cache. Every architecture
passes them in its own way. Recording the arguments of one real forward and calling the blocks with
them again works for all of them, without a line about any.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editbench.models.editable import EditableModel

Place = tuple[object, ...]
"""Where an argument stands: the block's index, and what leads to it from there."""

_HIDDEN = "hidden_states"


class ReplayMismatchError(RuntimeError):
    """Replaying this model's blocks does not give what its own forward gives."""


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward whose remaining blocks nobody needs."""


@dataclass(frozen=True, slots=True)
class _Call:
    """What a block is called with, hidden states aside, and whether these are given by name."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_named: bool


class BlockCalls:
    """Consecutive decoder blocks with the arguments that one forward gave them.

    Attributes:
        first: Index of the first recorded block.
        last: Index of the last recorded block.
        entry: Hidden states that entered block `first`, `[n_rows, width, d_model]`.
        repeated: Of a forward of one row, which arguments more rows need once for each row. Most
            have one row that serves every row of a batch; where an architecture folds other things
            into the first axis (ALiBi's biases: rows times heads), these are to be named here.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], first: int, entry: Tensor, calls: Sequence[_Call]
    ) -> None:
        self._blocks = blocks
        self._calls = calls
        self.first = first
        self.last = first + len(blocks) - 1
        self.entry = entry
        self.repeated: frozenset[Place] = frozenset()

    @classmethod
    def record(
        cls,
        model: EditableModel,
        forward: Callable[[], object],
        *,
        first: int,
        last: int,
        stop: bool = False,
    ) -> "BlockCalls":
        """Run `forward` without gradients and keep how it called blocks `first` … `last`.

        A block's arguments besides the hidden states do not depend on them. With `stop`, the
        recorded blocks (but block 0) therefore compute nothing: each hands on what it got, and the
        forward ends before block `last`.
        """
        modules = [
            model.model.get_submodule(model.architecture.block(layer))
            for layer in range(first, last + 1)
        ]
        entry: list[Tensor] = []
        calls: list[_Call] = []

        def record_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            is_named = _HIDDEN in kwargs
            if not entry:
                entry.append(kwargs[_HIDDEN] if is_named else args[0])
            rest = {name: value for name, value in kwargs.items() if name != _HIDDEN}
            calls.append(_Call(args if is_named else args[1:], rest, is_named))
            if stop and len(calls) == len(modules):
                raise _Reached

        with ExitStack() as hooks:
            for module in modules:
                handle = module.register_forward_pre_hook(record_call, with_kwargs=True)
                hooks.enter_context(handle)
            try:
                with torch.no_grad(), _handing_on(model, modules[:-1] if stop else [], first):
                    forward()
            except _Reached:
                pass
        return cls(modules, first, entry[0], calls)

    def run(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Send `hidden` through blocks `first` … `last`, both included; none if `last < first`.

        Returns:
            The states that leave block `last`, `[n_rows, width, d_model]` as they enter `first`.
        """
        for layer in range(first, last + 1):
            call = self._calls[layer - self.first]
            args, kwargs = call.args, call.kwargs
            if self.repeated:

                def repeat(place: Place, given: Tensor, n_rows: int = len(hidden)) -> Tensor:
                    counts = [n_rows if place in self.repeated else 1] + [1] * (given.dim() - 1)
                    return given.repeat(counts) if place in self.repeated else given

                args, kwargs = _map_tensors((args, kwargs), (layer,), repeat)
            if call.is_named:
                kwargs = {**kwargs, _HIDDEN: hidden}
            else:
                args = (hidden, *args)
            output = self._blocks[layer - self.first](*args, **kwargs)
            hidden = output[0] if isinstance(output, tuple | list) else output
        return hidden

    def tensors(self) -> dict[Place, Tensor]:
        """All tensors among the blocks' arguments, hidden states aside."""
        found: dict[Place, Tensor] = {}

        def note(place: Place, given: Tensor) -> Tensor:
            found[place] = given
            return given

        for layer, call in enumerate(self._calls, self.first):
            _map_tensors((call.args, call.kwargs), (layer,), note)
        return found


def _map_tensors(value: Any, place: Place, change: Callable[[Place, Tensor], Tensor]) -> Any:
    """Change every tensor in nested tuples, lists and dictionaries; the rest stays itself."""
    if isinstance(value, Tensor):
        return change(place, value)
    if type(value) in (tuple, list):
        return type(value)(
            _map_tensors(each, (*place, index), change) for index, each in enumerate(value)
        )
    if type(value) is dict:
        return {key: _map_tensors(each, (*place, key), change) for key, each in value.items()}
    return value


@contextmanager
def _handing_on(model: EditableModel, modules: Sequence[nn.Module], first: int) -> Iterator[None]:
    """Let blocks `first` and after hand on their input in the form in which a block answers."""
    if not modules:
        yield
        return
    answers: list[object] = []

    def keep_answer(module: nn.Module, args: object, output: object) -> None:
        answers.append(output)

    def hand_on(*args: Any, **kwargs: Any) -> object:
        hidden = kwargs[_HIDDEN] if _HIDDEN in kwargs else args[0]
        if not isinstance(answers[0], tuple | list):
            return hidden
        handed_on = (hidden, *answers[0][1:])
        # Reformer's answers have names.
        return answers[0]._make(handed_on) if hasattr(answers[0], "_make") else handed_on

    before = model.model.get_submodule(model.architecture.block(max(0, first - 1)))
    silent = {module: hand_on for module in modules if module is not before}
    with before.register_forward_hook(keep_answer), forwards_replaced(silent):
        yield


@contextmanager
def forwards_replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let modules be computed by other functions; their hooks stay."""
    # Offloading puts one there.
    own = {module: vars(module)["forward"] for module in forwards if "forward" in vars(module)}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward  # it shadows the class's method
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)
        for module, forward in own.items():
            vars(module)["forward"] = forward
