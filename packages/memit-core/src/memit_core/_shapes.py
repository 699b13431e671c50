"""Run-time checks of shapes and types at the public boundary, and the glossary of axis names.

The checks cost some tens of microseconds a call: right for a solve, wrong inside a forward hook.
They are off where the environment sets ``JAXTYPING_DISABLE=1``.
"""

import functools
import inspect
import reprlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast, get_args

import jaxtyping
import torch
from beartype import BeartypeConf
from beartype.door import is_bearable

from memit_core.errors import ShapeError

AXES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "n_edits": "facts to write, one per row",
        "n_tokens": "tokens, one per row",
        "d_key": "width of a key, the input of the edited weight",
        "d_value": "width of a value, the output of the edited weight",
        "rank": "columns of each factor of an update",
    }
)
"""Every axis name that an annotation of this package may use, and what is counted along it."""

# An int is as good as a float where PEP 484 says so: `preservation_weight=15000` is fine.
_CONFIGURATION: Final = BeartypeConf(is_pep484_tower=True)

_Checked = TypeVar("_Checked", bound=Callable[..., Any])


def shape_checked(target: _Checked) -> _Checked:
    """Check a function's arguments and result against its annotations on every call.

    Annotations are jaxtyping's; axes of one name must have one size throughout a call. Put on a
    class, it checks the arguments of its constructor.

    Raises:
        ShapeError: At call time, naming the parameter, what was given and what was expected.
        KeyError: At decoration time, if an axis is missing from the glossary.
    """
    if inspect.isclass(target):
        target.__init__ = shape_checked(target.__init__)  # type: ignore[method-assign]
        return target
    signature = inspect.signature(target)
    hints = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    hints = {name: hint for name, hint in hints.items() if hint is not inspect.Parameter.empty}
    result_hints = list(_find_tensor_hints(signature.return_annotation))
    for hint in (*hints.values(), *result_hints):
        for axis in _list_axes(hint):
            AXES[axis]  # an undocumented axis is a defect of this package
    operation = target.__qualname__.removesuffix(".__init__")

    @functools.wraps(target)
    def checked(*args: object, **kwargs: object) -> object:
        if jaxtyping.config.jaxtyping_disable:
            return target(*args, **kwargs)
        arguments = signature.bind(*args, **kwargs).arguments
        # The context holds the sizes that axes are bound to, and belongs to this call alone.
        with jaxtyping.jaxtyped("context"):
            bound: dict[str, tuple[int, str]] = {}
            for name, hint in hints.items():
                if name not in arguments:
                    continue
                value = arguments[name]
                if not is_bearable(value, hint, conf=_CONFIGURATION):
                    raise ShapeError(_describe_mismatch(operation, f"`{name}`", value, hint, bound))
                if isinstance(value, torch.Tensor):
                    members = (_list_axes(member) for member in _find_tensor_hints(hint))
                    axes = next(axes for axes in members if len(axes) == value.ndim)
                    for axis, size in zip(axes, value.shape, strict=True):
                        bound.setdefault(axis, (size, name))
            result = target(*args, **kwargs)
            for hint in result_hints:
                if not is_bearable(result, hint, conf=_CONFIGURATION):
                    raise ShapeError(
                        _describe_mismatch(operation, "the result", result, hint, bound)
                    )
            return result

    return cast(_Checked, checked)


def _find_tensor_hints(hint: object) -> Iterator[Any]:
    """Yield jaxtyping's types among an annotation and the members of its union."""
    for member in (hint, *get_args(hint)):
        if isinstance(member, type) and issubclass(member, jaxtyping.AbstractArray):
            yield member


def _list_axes(hint: object) -> list[str]:
    return [
        axis for tensor_hint in _find_tensor_hints(hint) for axis in tensor_hint.dim_str.split()
    ]


def _describe_mismatch(
    operation: str, what: str, value: object, hint: object, bound: Mapping[str, tuple[int, str]]
) -> str:
    """Word the error: what was given, what was expected, and which argument set the sizes."""
    if not isinstance(value, torch.Tensor):
        got = f"{type(value).__name__} {reprlib.repr(value)}"
    else:
        got = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    members = [member for member in (get_args(hint) or (hint,)) if member is not type(None)]
    expected = " or ".join(_describe_hint(member, bound) for member in members)
    message = f"{operation}: {what} does not fit, got {got}; expected {expected}."
    axes = dict.fromkeys(_list_axes(hint))
    if not axes:
        return message
    sources = [
        f"{axis}={bound[axis][0]} is set by `{bound[axis][1]}`" for axis in axes if axis in bound
    ]
    glossary = [f"{axis}: {AXES[axis]}" for axis in axes]
    return f"{message} Check that no argument is transposed ({'; '.join(sources + glossary)})."


def _describe_hint(hint: object, bound: Mapping[str, tuple[int, str]]) -> str:
    for tensor_hint in _find_tensor_hints(hint):
        axes = [f"{axis}={bound[axis][0]}" if axis in bound else axis for axis in _list_axes(hint)]
        return f"{tensor_hint.dtype.__name__} [{', '.join(axes)}]"
    return repr(hint) if isinstance(hint, str) else getattr(hint, "__name__", str(hint))
