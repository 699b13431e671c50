"""What a short model name stands for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from editbench.errors import PluginError

if TYPE_CHECKING:  # `editbench list` reads specs without torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A short name, where its weights are, and settings that are known to suit it.

    Exactly one of `repository` and `load` is given.

    Attributes:
        name: The short name, as in ``--model gpt2-xl``.
        repository: A hub id, or a local folder.
        load: Returns the model and its tokenizer, for a model that is not in a repository.
        notes: One line about the model, for ``editbench list``.
        defaults: Hyperparameters per editor, such as ``{"memit": {"critical_layers": (3, 4)}}``;
            fields that are left out take the editor's own defaults.
        defaults_source: Where `defaults` come from; goes into a run's provenance.
        corpus: Text to collect second moments from, as ``--corpus`` names it; empty for the
            embedded one.
    """

    name: str
    repository: str | None = None
    load: "Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]] | None" = None
    notes: str = ""
    defaults: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    defaults_source: str = ""
    corpus: str = ""

    def __post_init__(self) -> None:
        if (self.repository is None) == (self.load is None):
            raise PluginError(
                f"model '{self.name}': exactly one of 'repository' and 'load' must be given, "
                f"got repository={self.repository!r} and load={self.load!r}."
            )
