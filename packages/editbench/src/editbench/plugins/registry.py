"""What plugins register: how each kind of thing is checked, and told apart by name."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

from editbench.errors import PluginError
from editbench.plugins import contracts
from editbench.plugins.guard import Contract, Origin, guard_class, guard_function

Kind = Literal["editors", "datasets", "metrics", "models"]
KINDS: tuple[Kind, ...] = ("editors", "datasets", "metrics", "models")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
# Imported only when something of the kind is registered: three of the four modules load torch.
_BASES: dict[Kind, tuple[str, tuple[str, ...]]] = {
    "editors": ("editbench.editors.base", ("Editor",)),
    "datasets": ("editbench.datasets.base", ("Dataset",)),
    "metrics": ("editbench.metrics.base", ("Metric", "TextMetric", "ModelMetric")),
    "models": ("editbench.models.spec", ("ModelSpec",)),
}
_CHECKS: dict[Kind, Callable[[Any], str | None]] = {
    "editors": contracts.check_editor_class,
    "datasets": contracts.check_dataset_class,
    "metrics": contracts.check_metric_class,
    "models": contracts.check_spec,
}
_CONTRACTS: dict[Kind, Callable[[], Contract]] = {
    "editors": contracts.contract_of_editors,
    "datasets": contracts.contract_of_datasets,
    "metrics": contracts.contract_of_metrics,
}


@dataclass(frozen=True, slots=True)
class Registration:
    """One thing that a plugin registered.

    Attributes:
        name: What users call it.
        value: A class, guarded if it is a third party's, or for models a `ModelSpec`.
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

    @property
    def details(self) -> dict[str, str]:
        """What else it says about itself.

        Of an editor what it is good for, and its paper; of a dataset where it is from, and what is
        known to be wrong with it.
        """
        names = ("good_for", "citation", "source", "known_errors")
        details = {name: getattr(self.value, name, "") for name in names}
        return {name: text for name, text in details.items() if text and isinstance(text, str)}

    @property
    def settings(self) -> Mapping[str, str]:
        """Of a model, the editors that it has settings for, with where these come from."""
        defaults = getattr(self.value, "defaults", {})
        return {editor: self.value.source_of(editor) for editor in defaults}


def register(kind: Kind, values: object, plugin: str) -> list[Registration]:
    """Check what one plugin's hook returned.

    Raises:
        PluginError: It is not a list or tuple of things of this kind with well-formed names.
    """
    hook = f"editbench_register_{kind}"
    if not isinstance(values, list | tuple):
        raise PluginError(f"{hook}: wrong return value, got {values!r}; expected a list.")
    return [Registration(_checked_name(kind, hook, value), value, plugin) for value in values]


def guard(kind: Kind, registration: Registration, origin: Origin) -> Registration:
    """What a third party registered, checked, and such that it names its plugin when it fails.

    Raises:
        PluginError: What it says about itself is wrong.
    """
    value, what = registration.value, f"{kind.removesuffix('s')} '{registration.name}'"
    if problem := _CHECKS[kind](value):
        raise PluginError(f"{what}: {problem}.")
    if kind != "models":
        guard_class(value, origin, what, _CONTRACTS[kind]())
    elif value.load is not None:
        load = guard_function(value.load, origin, f"{what}: load()", contracts.check_loaded)
        return replace(registration, value=replace(value, load=load))
    return registration


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
