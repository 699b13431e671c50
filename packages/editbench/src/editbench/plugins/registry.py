"""What plugins register: how each kind of thing is checked, and told apart by name."""

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from editbench.errors import PluginError

Kind = Literal["editors", "datasets", "metrics", "models"]
KINDS: tuple[Kind, ...] = ("editors", "datasets", "metrics", "models")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
# Imported only when something of the kind is registered: three of the four modules load torch.
_BASES: dict[Kind, tuple[str, tuple[str, ...]]] = {
    "editors": ("editbench.editors.base", ("Editor",)),
    "datasets": ("editbench.datasets.base", ("Dataset",)),
    "metrics": ("editbench.metrics.base", ("Metric", "TextMetric")),
    "models": ("editbench.models.spec", ("ModelSpec",)),
}


@dataclass(frozen=True, slots=True)
class Registration:
    """One thing that a plugin registered.

    Attributes:
        name: What users call it.
        value: A class, or for models a `ModelSpec`.
        plugin: Name of the plugin that registered it.
    """

    name: str
    value: Any
    plugin: str

    @property
    def summary(self) -> str:
        """What it is, in one line: a model's notes, else the first line of the docstring."""
        text = getattr(self.value, "notes", None) or inspect.getdoc(self.value) or ""
        return text.strip().partition("\n")[0]


def register(kind: Kind, values: object, plugin: str) -> list[Registration]:
    """Check what one plugin's hook returned.

    Args:
        kind: What the hook registers.
        values: What it returned.
        plugin: The plugin's name.

    Raises:
        PluginError: It is not a list or tuple of things of this kind with well-formed names.
    """
    hook = f"editbench_register_{kind}"
    if not isinstance(values, list | tuple):
        raise PluginError(f"{hook}: wrong return value, got {values!r}; expected a list.")
    return [Registration(_checked_name(kind, hook, value), value, plugin) for value in values]


def reject_duplicates(kind: Kind, registrations: Iterable[Registration]) -> None:
    """Refuse two registrations of one name: nobody could tell which of them would run.

    Raises:
        PluginError: A name occurs twice; the message names both plugins.
    """
    owner: dict[str, str] = {}
    for registration in registrations:
        if registration.name in owner:
            raise PluginError(
                f"{kind}: the name '{registration.name}' is registered twice, by plugin "
                f"'{owner[registration.name]}' and by plugin '{registration.plugin}'. Uninstall "
                f"one of them, or set EDITBENCH_DISABLE_PLUGINS={registration.plugin}."
            )
        owner[registration.name] = registration.plugin


def _checked_name(kind: Kind, hook: str, value: object) -> str:
    module, base_names = _BASES[kind]
    bases = tuple(getattr(import_module(module), base_name) for base_name in base_names)
    expected = " or ".join(base_names)
    if kind == "models":
        if not isinstance(value, bases):
            raise PluginError(f"{hook}: not a model, got {value!r}; expected a {expected}.")
    elif not (inspect.isclass(value) and issubclass(value, bases)):
        raise PluginError(f"{hook}: got {value!r}; expected a subclass of {module}.{expected}.")
    elif inspect.isabstract(value):
        missing = ", ".join(sorted(getattr(value, "__abstractmethods__", ())))
        raise PluginError(f"{hook}: {value.__qualname__} is abstract. Implement: {missing}.")
    name = getattr(value, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PluginError(
            f"{hook}: {getattr(value, '__qualname__', value)!r} has no proper name, got {name!r}; "
            "expected lower-case letters, digits, hyphens, dots or underscores."
        )
    return name
