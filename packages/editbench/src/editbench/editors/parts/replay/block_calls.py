"""The decoder blocks of one recorded forward, callable again on other hidden states.

A block needs more than a hidden state: masks, positions, rotary angles, a cache. Every architecture
passes them in its own way. Recording the arguments of one real forward and calling the blocks with
them again works for all of them, without a line about any.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from editbench.models.editable import EditableModel

_HIDDEN = "hidden_states"


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward whose remaining blocks nobody needs."""


class BlockCalls:
    """Consecutive decoder blocks with the arguments that one forward gave them.

    Attributes:
        first: Index of the first recorded block.
        last: Index of the last recorded block.
        entry: Hidden states that entered block `first`, `[n_rows, width, d_model]`.
    """

    def __init__(
        self, blocks: list[nn.Module], first: int, entry: Tensor, calls: list[dict[str, Any]]
    ) -> None:
        self._blocks = blocks
        self._calls = calls
        self.first = first
        self.last = first + len(blocks) - 1
        self.entry = entry

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
        recorded blocks therefore compute nothing: each hands on what it got.

        Args:
            model: The model whose blocks are recorded.
            forward: Runs the model once.
            first: Index of the first block to record.
            last: Index of the last block to record.
            stop: Compute no recorded block (but block 0), and end the forward before block `last`.
        """
        modules = [
            model.model.get_submodule(model.architecture.block(layer))
            for layer in range(first, last + 1)
        ]
        entry: list[Tensor] = []
        calls: list[dict[str, Any]] = []

        def record_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            is_named = _HIDDEN in kwargs
            if not entry:
                entry.append(kwargs[_HIDDEN] if is_named else args[0])
            rest = {name: value for name, value in kwargs.items() if name != _HIDDEN}
            own = args if is_named else args[1:]
            calls.append({"args": own, "kwargs": rest, "is_named": is_named})
            if stop and len(calls) == len(modules):
                raise _Reached

        handles = [
            module.register_forward_pre_hook(record_call, with_kwargs=True) for module in modules
        ]
        try:
            with torch.no_grad(), _handing_on(model, modules[:-1] if stop else [], first):
                forward()
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return cls(modules, first, entry[0], calls)

    def run(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Send `hidden` through blocks `first` … `last`, both included; none if `last < first`.

        Args:
            hidden: States that enter block `first`, `[n_rows, width, d_model]`.
            first: Index of the first block to run.
            last: Index of the last block to run.

        Returns:
            The states that leave block `last`.
        """
        for layer in range(first, last + 1):
            call = self._calls[layer - self.first]
            args, kwargs = call["args"], call["kwargs"]
            if call["is_named"]:
                kwargs = {**kwargs, _HIDDEN: hidden}
            else:
                args = (hidden, *args)
            output = self._blocks[layer - self.first](*args, **kwargs)
            hidden = output[0] if isinstance(output, tuple | list) else output
        return hidden


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
    silent = [module for module in modules if module is not before]
    own = [vars(module).get("forward") for module in silent]  # offloading puts one there
    handle = before.register_forward_hook(keep_answer)
    try:
        for module in silent:
            vars(module)["forward"] = hand_on  # it shadows the class's method
        yield
    finally:
        handle.remove()
        for module, forward in zip(silent, own, strict=True):
            del vars(module)["forward"]
            if forward is not None:
                vars(module)["forward"] = forward
