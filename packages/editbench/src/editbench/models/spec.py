"""What a short model name stands for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from editbench.errors import PluginError

if TYPE_CHECKING:  # `editbench list` reads specs without torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A short name, where its weights are, and settings that are known to suit it.

    Exactly one of `repository`, `find_file` and `load` is given.

    Attributes:
        name: The short name, as in ``--model gpt2-xl``.
        repository: A hub id, or a local folder.
        find_file: Returns the path of a GGUF file that something else has brought to this machine.
        load: Returns the model and its tokenizer, for a model that is in no file.
        notes: One line about the model, for ``editbench list``.
        defaults: Hyperparameters per editor, such as ``{"memit": {"critical_layers": (3, 4)}}``;
            fields that are left out take the editor's own defaults.
        defaults_source: Where `defaults` come from; goes into a run's provenance.
        sources: The same for single editors, where these differ.
        corpus: Text to collect second moments from, as ``--corpus`` names it; empty for
            the embedded prose.
    """

    name: str
    repository: str | None = None
    find_file: Callable[[], Path] | None = None
    load: "Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]] | None" = None
    notes: str = ""
    defaults: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    defaults_source: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    corpus: str = ""

    def __post_init__(self) -> None:
        given = (self.repository, self.find_file, self.load)
        if sum(each is not None for each in given) != 1:
            raise PluginError(
                f"model '{self.name}': exactly one of 'repository', 'find_file' and 'load' must be "
                f"given, got repository={self.repository!r}, find_file={self.find_file!r} and "
                f"load={self.load!r}."
            )

    def source_of(self, editor: str) -> str:
        """Where the settings of an editor come from, in a few words."""
        unnamed = f"settings that come with '{self.name}'"
        return self.sources.get(editor) or self.defaults_source or unnamed
