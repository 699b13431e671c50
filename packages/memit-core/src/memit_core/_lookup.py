"""Looking up parts of a model by name, all of them before anything is touched."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from memit_core.errors import MemitCoreError

_Part = TypeVar("_Part")


def look_up(
    operation: str, kind: str, names: Iterable[str], available: Mapping[str, _Part]
) -> dict[str, _Part]:
    """Resolve every name, or none, in the order given, each name once.

    `kind` is "module" or "parameter"; messages name it, and the public function.

    Raises:
        MemitCoreError: A name is unknown; the message suggests the nearest one.
    """
    if isinstance(names, str):
        raise MemitCoreError(
            f"{operation}: {kind} names must come in a list or tuple, got the string {names!r}."
        )
    found = {}
    for name in names:
        if name not in available:
            nearest = difflib.get_close_matches(name, available, n=1)
            advice = f"Did you mean '{nearest[0]}'?" if nearest else f"See named_{kind}s()."
            raise MemitCoreError(
                f"{operation}: the model has no such {kind}, got '{name}'. {advice}"
            )
        found[name] = available[name]
    return found
