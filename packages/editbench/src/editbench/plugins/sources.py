"""What users call a dataset or a text, and what that means."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from editbench.plugins.manager import PluginManager

if TYPE_CHECKING:
    from editbench.datasets.base import Dataset
    from editbench.datasets.corpus import Corpus
    from editbench.editors.base import Inputs
    from editbench.models.editable import EditableModel


def default_cache() -> Path:
    """The folder for what is kept between runs: the user's cache folder of this platform."""
    import platformdirs

    return platformdirs.user_cache_path("editbench")


def open_dataset(
    source: str, plugins: PluginManager, cache: Path | None, *, skip_invalid: bool = False
) -> "Dataset":
    """Make the dataset of a ``NAME[=PATH]``; nothing is read yet.

    Raises:
        UnknownNameError: There is no dataset of this name.
        ConfigError: It needs a path and there is none, or takes none.
    """
    name, separator, path = source.partition("=")
    dataset_type = plugins.get_dataset(name)
    dataset = dataset_type(Path(path).expanduser() if separator else None, cache or default_cache())
    dataset.skip_invalid = skip_invalid
    return dataset


def view_dataset(
    dataset: "Dataset", *, as_chat: bool = False, held_out: "Corpus | None" = None
) -> "Dataset":
    """The dataset asked as a chat, or with other held-out text; itself if neither is wanted."""
    from editbench.datasets.view import DatasetView

    is_same = not as_chat and held_out is None
    return dataset if is_same else DatasetView(dataset, as_chat=as_chat, held_out=held_out)


def validation_of(source: str, plugins: PluginManager) -> str:
    """The validation split of a ``NAME[=PATH]``; the same where there is none."""
    name = f"{source}-validation"
    return name if "=" not in source and name in plugins.datasets() else source


def open_corpus(source: str) -> "Corpus":
    """Find texts: a file, ``prose``, ``atlas``, or ``hf:NAME[:CONFIG[:SPLIT[:COLUMN]]]``.

    Raises:
        DataError: The file cannot be read or holds no text.
        ConfigError: The hub's name is malformed, or the extra ``editbench[hub]`` is missing.
    """
    from editbench.datasets.corpus import HUB_PREFIX, hub_corpus, prose_corpus, text_file_corpus
    from editbench.plugins.atlas import atlas_corpus

    if source.startswith(HUB_PREFIX):
        return hub_corpus(source)
    embedded = {"prose": prose_corpus, "atlas": atlas_corpus}
    return embedded[source]() if source in embedded else text_file_corpus(Path(source).expanduser())


def complete_inputs(inputs: "Inputs", model: "EditableModel") -> "Inputs":
    """The inputs with the text that second moments of a model are collected from, if any are.

    Where nobody chose one it is what the model's settings name, or else the embedded prose. On a
    model without weights nothing is collected.
    """
    if inputs.second_moments is not None or model.planned_device is not None:
        return replace(inputs, corpus=None)
    spec = model.spec
    default = spec.corpus if spec is not None and spec.corpus else "prose"
    return replace(inputs, corpus=inputs.corpus or open_corpus(default))


def describe_default_corpus(inputs: "Inputs", model: "EditableModel") -> str | None:
    """What to say where second moments would come from text that nobody chose."""
    if inputs.second_moments or inputs.corpus or model.spec:
        return None
    return (
        f"Second moments of '{model.name}' are collected from the embedded text 'prose', since "
        "neither a file of them nor a corpus is given. For results that count, give more text."
    )
