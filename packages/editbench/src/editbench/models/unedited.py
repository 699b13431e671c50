"""What may be had of the unedited model only, whatever is on it."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from editbench.models.editable import EditableModel

P = ParamSpec("P")
T = TypeVar("T")


def of_unedited(
    operation: str,
) -> Callable[
    [Callable[Concatenate[EditableModel, P], T]], Callable[Concatenate[EditableModel, P], T]
]:
    """Make a decorator of functions of a model, for whose length all edits are off it.

    Args:
        operation: What the function does, for the message where that is not the unedited model.
    """

    def decorate(
        function: Callable[Concatenate[EditableModel, P], T],
    ) -> Callable[Concatenate[EditableModel, P], T]:
        @wraps(function)
        def run(model: EditableModel, /, *args: P.args, **kwargs: P.kwargs) -> T:
            with model.unedited(operation):
                return function(model, *args, **kwargs)

        return run

    return decorate
