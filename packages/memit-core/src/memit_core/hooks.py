"""Reading and replacing what flows through a model's modules.

Both context managers look all names up before they attach anything, detach on every exit, also on
exceptions, and say so if a module never ran. They nest; hooks of one module run in the order in
which they were attached, so an inner `capture` sees what an outer `intervene` wrote.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from torch import Tensor, nn

from memit_core._lookup import look_up
from memit_core.errors import MemitCoreError, ShapeError

# What decoder blocks of transformers call their input, wherever it stands in the signature.
_HIDDEN_STATES: Final = "hidden_states"


@dataclass(frozen=True, eq=False)
class Captured:
    """What the named modules were last called with and last returned.

    Attributes:
        inputs: First tensor argument, by module name.
        outputs: Output, or its first element if it is a tuple or list, by module name.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


class _ForwardStopped(BaseException):
    """Ends a forward pass early.

    No `Exception`, so that a model's own ``except Exception`` lets it through.
    """

    def __init__(self, owner: Captured) -> None:
        self.owner = owner


@contextmanager
def capture(
    model: nn.Module,
    *,
    inputs_of: Iterable[str] = (),
    outputs_of: Iterable[str] = (),
    stop: bool = False,
) -> Iterator[Captured]:
    """Keep the inputs and outputs of named modules while the model runs in the ``with`` body.

    A module's input is its first positional tensor; if it was called with keywords only, the tensor
    it got as ``hidden_states`` or else as the first parameter of its ``forward`` that is one. What
    takes part in autograd is kept itself, so that gradients flow; anything else is kept as a copy,
    out of reach of in-place operations downstream. A module that runs several times leaves its last
    call.

    Args:
        model: Any module.
        inputs_of: Names, as in ``model.named_modules()``, of modules whose input to keep.
        outputs_of: Names of modules whose output to keep.
        stop: End the forward pass as soon as every named module has run once. This leaves the
            ``with`` body, too: its statements after the forward call are skipped, and execution
            goes on after the body.

    Yields:
        `Captured`, filled as the model runs.

    Raises:
        MemitCoreError: A name is unknown (nothing is attached then); a module was called without a
            tensor or returned none; or the body ended normally and a module never ran.

    Example:
        >>> import torch
        >>> from memit_core import capture
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> with capture(model, outputs_of=["0"]) as captured:
        ...     output = model(torch.ones(1, 2))
        >>> captured.outputs["0"].shape
        torch.Size([1, 3])
    """
    modules = _list_modules(model)
    readers = look_up("capture", "module", inputs_of, modules)
    writers = look_up("capture", "module", outputs_of, modules)
    captured = Captured()
    waiting = [("input", name) for name in readers] + [("output", name) for name in writers]

    def note(kind: str, name: str) -> None:
        if (kind, name) in waiting:
            waiting.remove((kind, name))
        if stop and not waiting:
            raise _ForwardStopped(captured)

    def keep_input(
        name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        captured.inputs[name] = _keep(_find_input(name, module, args, kwargs))
        note("input", name)

    def keep_output(name: str, module: nn.Module, args: object, output: object) -> None:
        captured.outputs[name] = _keep(_open_output("capture", name, output)[0])
        note("output", name)

    with ExitStack() as attached:
        for name, module in readers.items():
            hook = partial(keep_input, name)
            attached.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        for name, module in writers.items():
            attached.enter_context(module.register_forward_hook(partial(keep_output, name)))
        try:
            yield captured
        except _ForwardStopped as stopped:
            if stopped.owner is not captured:
                raise
    _require_all_ran("capture", [name for _, name in waiting])


@contextmanager
def intervene(
    model: nn.Module, replacements: Mapping[str, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Replace the outputs of named modules while the model runs in the ``with`` body.

    Args:
        model: Any module.
        replacements: For each module name, as in ``model.named_modules()``, a function from the
            module's output to the one that goes on in its place, of the same shape. Where the
            output is a tuple or list, the function gets its first element, and the others stay.

    Yields:
        Nothing.

    Raises:
        MemitCoreError: A name is unknown (nothing is attached then); a module returned no tensor;
            or the body ended normally and a module never ran.
        ShapeError: A function returned something other than a tensor of the same shape.

    Example:
        >>> import torch
        >>> from memit_core import intervene
        >>> model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU())
        >>> with intervene(model, {"0": lambda hidden: -hidden}):
        ...     model(torch.tensor([-1.0, 2.0]))
        tensor([1., 0.])
    """
    targets = look_up("intervene", "module", replacements, _list_modules(model))
    waiting = list(targets)

    def replace_output(
        name: str,
        replace: Callable[[Tensor], Tensor],
        module: nn.Module,
        args: object,
        output: object,
    ) -> object:
        old, rebuild = _open_output("intervene", name, output)
        new = replace(old)
        if not isinstance(new, Tensor) or new.shape != old.shape:
            got = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise ShapeError(
                f"intervene: the function for '{name}' must return a tensor of its argument's "
                f"shape, got {got}; expected {list(old.shape)}."
            )
        if name in waiting:
            waiting.remove(name)
        return rebuild(new)

    with ExitStack() as attached:
        for name, module in targets.items():
            hook = partial(replace_output, name, replacements[name])
            attached.enter_context(module.register_forward_hook(hook))
        yield
    _require_all_ran("intervene", waiting)


def _list_modules(model: nn.Module) -> dict[str, nn.Module]:
    """List a model's modules by all their names; the model itself, named "", is none of them."""
    return {name: part for name, part in model.named_modules(remove_duplicate=False) if name}


def _keep(tensor: Tensor) -> Tensor:
    return tensor if tensor.requires_grad else tensor.clone()


def _find_input(
    name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor:
    """Find the tensor that a module works on, however it was passed."""
    for value in args:
        if isinstance(value, Tensor):
            return value
    # Only now: reading a signature takes longer than many a module.
    for key in (_HIDDEN_STATES, *inspect.signature(module.forward).parameters):
        if isinstance(value := kwargs.get(key), Tensor):
            return value
    raise MemitCoreError(
        f"capture: module '{name}' was called without a tensor, got {len(args)} positional "
        f"arguments and keywords {sorted(kwargs)}. Capture the input of a module inside of it."
    )


def _open_output(
    operation: str, name: str, output: object
) -> tuple[Tensor, Callable[[Tensor], object]]:
    """Find the tensor in what a module returned, and how to put another in its place."""
    if isinstance(output, Tensor):
        return output, lambda new: new
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        # A named tuple's own constructor would take its fields one by one.
        make, rest = getattr(output, "_make", type(output)), output[1:]
        return output[0], lambda new: make([new, *rest])
    raise MemitCoreError(
        f"{operation}: module '{name}' must return a tensor, or a tuple or list that starts with "
        f"one, got {type(output).__name__}. Choose a module inside of it."
    )


def _require_all_ran(operation: str, names: Iterable[str]) -> None:
    """Refuse a body that ended normally although a module never ran."""
    missing = list(dict.fromkeys(names))
    if missing:
        raise MemitCoreError(
            f"{operation}: a module never ran inside of the `with` body, got no call of "
            f"{', '.join(repr(name) for name in missing)}. Run the model there, or name modules "
            "that it uses."
        )
