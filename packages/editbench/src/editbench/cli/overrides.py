"""Editors' hyperparameters as the command line gives them: ``--config`` and ``--set``."""

import functools
import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editbench.errors import ConfigError, shown
from editbench.plugins.guard import calling

if TYPE_CHECKING:
    from editbench.editors.base import Editor, EditorConfig
    from editbench.models.editable import EditableModel

_LAYER_FIELDS = {"critical_layers", "layer", "loss_layer"}


@dataclass(frozen=True)
class Overrides:
    """Hyperparameters of one editor that are given, in place of its defaults: a point of the grid.

    Attributes:
        source: Where `file_values` come from; empty if there is no file.
        file_values: Fields of the configuration file.
        set_values: Fields of ``--set``; they win.
        names: What the file calls these fields, where it is another tool's.
        remark: What was understood of such a file, in one line.
    """

    source: str = ""
    file_values: Mapping[str, Any] = field(default_factory=dict)
    set_values: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    remark: str | None = None

    def configure(
        self,
        editor: "type[Editor]",
        model: "EditableModel",
        start: "tuple[EditorConfig, str] | None" = None,
    ) -> "tuple[EditorConfig, str]":
        """Complete the values with those of `start`, or the editor's defaults for `model`.

        Returns:
            The configuration, and where the values that nobody gave come from, with what else was
            trained.

        Raises:
            ConfigError: A value is invalid; the message says which and where it stands.
        """
        config, origin = start or editor.default_config(model)
        with calling(editor, f"editor '{editor.name}': {editor.config_type.__name__}"):
            if self.file_values:
                config = self._update_from_file(config)
            if self.set_values:
                config = config.updated(self.set_values, "--set")
        self._check_layers(config, model)
        if self.file_values and self.file_values.keys() >= editor.config_type.model_fields.keys():
            origin = f"all of {self.source}"
        trained = editor(config).describe_trained(model)
        return config, "; ".join(part for part in (origin, trained) if part)

    def _update_from_file(self, config: "EditorConfig") -> "EditorConfig":
        try:
            return config.updated_from_file(self.file_values, self.source)
        except ConfigError as error:
            for ours, theirs in self.names.items():
                if ours != theirs and f"'{ours}'" in str(error):
                    error.add_note(f"(The file calls '{ours}' '{theirs}'.)")
            raise

    def _check_layers(self, config: "EditorConfig", model: "EditableModel") -> None:
        """Refuse another tool's file for a deeper model."""
        n_layers = model.architecture.n_layers
        for ours in _LAYER_FIELDS & (self.names.keys() - self.set_values.keys()):
            layers = getattr(config, ours)
            last = max(layers) if isinstance(layers, tuple) else layers
            if last is not None and last >= n_layers:
                raise ConfigError(
                    f"{self.source}: field '{self.names[ours]}' names layer {last}, got model "
                    f"'{model.name}' with {n_layers} layers, counted from 0. Is the file for "
                    "another model? Choose layers of this one with --set, or mend the file."
                )


def read_overrides(
    editors: "Mapping[str, type[Editor]]", config_files: Sequence[str], set_options: Sequence[str]
) -> dict[str, list[Overrides]]:
    """Work out the grid of overrides of each chosen editor.

    Several files for one editor, or several values for one field, span a grid.

    Args:
        editors: The chosen editors, by name.
        config_files: Values of ``--config``: ``FILE`` or a preset, or ``EDITOR=`` with either.
        set_options: Values of ``--set``: ``EDITOR.FIELD=VALUE``, the value in YAML.

    Returns:
        The overrides of each editor; one that is empty where nothing is set.

    Raises:
        ConfigError: A file or option is malformed, or names an editor or field that is not there.
    """
    files: dict[str, list[Overrides]] = {}
    for option in config_files:
        name, path = _assign_file(option, editors)
        files.setdefault(name, []).append(_read_file(path, editors[name]))
    sets: dict[str, dict[str, list[Any]]] = {}
    for option in set_options:
        name, field_name, value = _parse_set_option(option, editors)
        alternatives = sets.setdefault(name, {}).setdefault(field_name, [])
        if value not in alternatives:
            alternatives.append(value)
    return {
        name: list(_span(files.get(name, [Overrides()]), sets.get(name, {}))) for name in editors
    }


def _read_file(path: Path, editor: "type[Editor]") -> Overrides:
    """Read a configuration file, ours or another tool's, or look up a preset of that name."""
    config_type = editor.config_type
    if (preset := config_type.presets.get(str(path))) and not path.exists():
        return Overrides(f"preset '{path}'", preset)
    values, source = read_config_file(path), str(path)
    dialect = config_type.dialect
    translated = dialect and dialect.translate(values, config_type.model_fields, source)
    if not translated:
        _check_fields(values, editor, source)
        return Overrides(source, values)
    remark = translated.understanding.describe(path)
    return Overrides(source, translated.values, names=translated.names, remark=remark)


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a flat mapping from a YAML or JSON file.

    Raises:
        ConfigError: The file is missing, or holds something else.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--config: cannot read the file, got {str(path)!r} ({error}). Check the path."
        ) from error
    try:
        pairs = _read_json_pairs(text) if path.suffix == ".json" else _read_yaml_pairs(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: is neither YAML nor JSON: {error}") from error
    if pairs is None or not all(isinstance(name, str) for name, _ in pairs):
        raise ConfigError(
            f"{path}: expected a flat mapping of fields to values, got {shown(text)}."
        )
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ConfigError(f"{path}: field '{name}' stands twice. Remove one of them.")
        values[name] = value
    return values


def _read_json_pairs(text: str) -> list[tuple[str, Any]] | None:
    content = json.loads(text, object_pairs_hook=_Pairs)
    return list(content) if isinstance(content, _Pairs) else None


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it stands, repetitions included."""


def _read_yaml_pairs(text: str) -> list[tuple[str, Any]] | None:
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            return None
        construct = functools.partial(loader.construct_object, deep=True)
        return [(construct(name), construct(value)) for name, value in node.value]
    finally:
        loader.dispose()


def _span(files: Sequence[Overrides], sets: Mapping[str, Sequence[Any]]) -> Iterable[Overrides]:
    combinations = itertools.product(*sets.values())
    for each, chosen in itertools.product(files, combinations):
        yield replace(each, set_values=dict(zip(sets, chosen, strict=True)))


def _assign_file(option: str, editors: "Mapping[str, type[Editor]]") -> tuple[str, Path]:
    name, separator, path = option.partition("=")
    if separator and name in editors:
        return name, Path(path)
    configurable = [name for name, editor in editors.items() if editor.config_type.model_fields]
    if len(configurable) != 1:
        raise ConfigError(
            f"--config: which editor is it for? Got {option!r} with editors "
            f"{_enumerate(configurable)}. Write --config EDITOR=FILE."
        )
    return configurable[0], Path(option)


def _parse_set_option(option: str, editors: "Mapping[str, type[Editor]]") -> tuple[str, str, Any]:
    expected = "EDITOR.FIELD=VALUE, such as memit.preservation_weight=15000"
    place, value = parse_assignment(option, expected)
    name, dot, field_name = place.rpartition(".")
    if not dot:
        raise ConfigError(f"--set: got {option!r}; expected {expected}.")
    if name not in editors:
        raise ConfigError(
            f"--set: editor '{name}' is not part of this command, got {option!r}; expected one of "
            f"{_enumerate(editors)}."
        )
    _check_fields([field_name], editors[name], f"--set {option}")
    return name, field_name, value


def parse_assignment(option: str, expected: str) -> tuple[str, Any]:
    """What stands before the first = of a ``--set``, and the value in YAML that stands behind.

    Raises:
        ConfigError: There is no =, or no YAML; the message says what was `expected`.
    """
    import yaml

    name, separator, text = option.partition("=")
    if not separator:
        raise ConfigError(f"--set: got {option!r}; expected {expected}.")
    try:
        return name.strip(), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set: the value is not YAML, got {option!r}.") from error


def _check_fields(names: Iterable[str], editor: "type[Editor]", source: str) -> None:
    known = editor.config_type.model_fields
    for name in names:
        if name not in known:
            raise ConfigError(f"{source}: {editor.config_type.unknown_field(name)}")


def _enumerate(names: Collection[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
