"""``--layers``: critical layers as numbers, or found by causal tracing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from editbench.cli.options import Decorator, gathering
from editbench.cli.overrides import Overrides
from editbench.cli.progress import ProgressDisplay
from editbench.errors import ConfigError, EditbenchError
from editbench.plugins.manager import PluginManager
from editbench.plugins.sources import open_dataset, validation_of

if TYPE_CHECKING:
    from editbench.editors.base import Editor
    from editbench.models.editable import EditableModel
    from editbench.tracing.facts import KnownFact

N_TRACED_FACTS = 50

_AUTO = "auto"
_SEED = 0


@dataclass(frozen=True)
class FactSource:
    """Where facts to trace come from: what to call it, and what reads them."""

    name: str
    read: "Callable[[], list[KnownFact]]"


@dataclass(frozen=True)
class WantedLayers:
    """What ``--layers`` says: `text` as it was given; None where it was not."""

    text: str | None

    def check(
        self,
        editors: "Mapping[str, type[Editor]]",
        overrides: Mapping[str, Sequence[Overrides]],
    ) -> None:
        """Refuse what cannot be meant, before any work is done.

        Raises:
            ConfigError: It is malformed, no editor has critical layers, or ``--set`` gives them,
                too.
        """
        if self.text is None:
            return
        fields = {
            field for editor in editors.values() for field in editor.config_type.writing_to((0,))
        }
        if not fields:
            listing = ", ".join(f"'{name}'" for name in editors)
            raise ConfigError(
                f"--layers: no editor of this command has critical layers, got {listing}. Leave it "
                "out, or choose 'memit'."
            )
        given = {name for each in chain(*overrides.values()) for name in each.set_values} & fields
        if given:
            raise ConfigError(
                f"--layers: --set gives {min(given)}, too, got {self.text!r}. Give one of them."
            )
        if self._facts_file is not None and not self._facts_file.is_file():
            raise ConfigError(
                f"--layers: there is no such file, got {str(self._facts_file)!r}. Check the path."
            )
        if not self.is_auto and not parse_layers(self.text):
            raise ConfigError(
                f"--layers: got {self.text!r}; expected numbers from 0, such as 3-8 or 3,5,8, or "
                "'auto'."
            )

    def settle(
        self,
        overrides: Mapping[str, Sequence[Overrides]],
        editors: "Mapping[str, type[Editor]]",
        model: "EditableModel",
        source: FactSource,
        cache: Path | None,
        display: ProgressDisplay,
    ) -> Mapping[str, Sequence[Overrides]]:
        """Give every editor that has critical layers those of the option, if it was given.

        `source` has known facts of the model, for ``auto`` without a file; in `cache` suggestions
        are kept.

        Raises:
            ConfigError: There is nothing to trace.
            TraceError: The traces suggest no layers.
        """
        if self.text is None:
            return overrides
        layers = self.find(model, source, cache, display)
        fields = {name: editors[name].config_type.writing_to(layers) for name in overrides}
        return {
            name: [replace(each, set_values={**each.set_values, **fields[name]}) for each in group]
            for name, group in overrides.items()
        }

    def find(
        self,
        model: "EditableModel",
        source: FactSource,
        cache: Path | None,
        display: ProgressDisplay,
    ) -> tuple[int, ...]:
        """The layers of the option, which was given; as for `settle`."""
        assert self.text is not None
        if self.is_auto:
            return self._trace(model, source, cache, display)
        return tuple(parse_layers(self.text))

    @property
    def is_auto(self) -> bool:
        """Whether they are to be found by tracing."""
        return self.text is not None and self.text.partition("=")[0] == _AUTO

    @property
    def _facts_file(self) -> Path | None:
        if self.text is None or not self.text.startswith(f"{_AUTO}="):
            return None
        return Path(self.text.partition("=")[2]).expanduser()

    def _trace(
        self,
        model: "EditableModel",
        source: FactSource,
        cache: Path | None,
        display: ProgressDisplay,
    ) -> tuple[int, ...]:
        from editbench.tracing.facts import read_known_facts
        from editbench.tracing.suggestion import suggest_layers

        file = self._facts_file
        name = source.name if file is None else file.name
        facts = source.read() if file is None else read_known_facts(file)
        if not facts:
            raise ConfigError(
                f"--layers auto: {name} names no true objects, got 0 facts to trace. Give a file "
                "of known facts with --layers auto=FILE, or numbers."
            )
        try:
            suggestion = suggest_layers(
                model, facts, n_facts=N_TRACED_FACTS, seed=_SEED, cache=cache, on_progress=display
            )
        except EditbenchError as error:
            error.add_note("(--layers auto; give numbers to do without it.)")
            raise
        listing = ", ".join(str(layer) for layer in suggestion.layers)
        display.say(
            f"Critical layers of {model.name}: {listing}, suggested by causal tracing of "
            f"{suggestion.n_prompts} facts of {name}."
        )
        return suggestion.layers


def layers_option() -> Decorator:
    """``--layers``, passed on as ``layers``: a `WantedLayers`."""
    return gathering(
        "layers",
        WantedLayers,
        click.option(
            "--layers",
            "text",
            metavar="LAYERS",
            help="Critical layers: numbers such as 3-8 or 3,5,8; or 'auto', found by causal "
            "tracing of the facts' true objects, or 'auto=FILE', of a file of known facts. An "
            "editor that writes to one layer takes the last of them.",
        ),
    )


def parse_layers(text: str) -> list[int]:
    """Read layer numbers: ``3-8``, ``3,5,8``, any mix; ``all`` gives an empty list.

    Raises:
        ConfigError: It is something else.
    """
    if text == "all":
        return []
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            layers.update(range(int(first), int(last if dash else first) + 1))
        except ValueError as error:
            raise ConfigError(
                f"--layers: got {text!r}; expected numbers from 0, such as 3-8 or 3,5,8, or 'all'."
            ) from error
    if not layers:
        raise ConfigError(f"--layers: the range is empty, got {text!r}.")
    return sorted(layers)


def facts_of_dataset(
    option: str, plugins: PluginManager, cache: Path | None, *, skip_invalid: bool = False
) -> FactSource:
    """The facts of a ``--dataset NAME[=PATH]`` to trace: of its validation split if it has one.

    So that the facts on which results are reported choose nothing, where that can be.
    """
    option = validation_of(option, plugins)

    def read() -> "list[KnownFact]":
        from editbench.tracing.facts import facts_of_cases

        dataset = open_dataset(option, plugins, cache, skip_invalid=skip_invalid)
        return facts_of_cases(dataset.cases())

    return FactSource(option, read)
