"""Options that several commands share, and what they are gathered into."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from editbench.errors import ConfigError, ModelError
from editbench.plugins.sources import (
    corpus_of,
    default_cache,
    describe_default_corpus,
    open_corpus,
)

if TYPE_CHECKING:
    from editbench.datasets.corpus import Corpus
    from editbench.editors.base import Progress, Resources
    from editbench.editors.context_prefixes import ContextPrefixes
    from editbench.models.editable import EditableModel
    from editbench.models.loading import DTypeName
    from editbench.plugins.manager import PluginManager
    from editbench.runner import Inputs

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

CONFLICT_POLICIES = ("error", "drop-all", "keep-first")

CORPUS_SOURCES = (
    "a text file with one text a line; 'atlas', the embedded world's text; or a dataset of the "
    "Hugging Face hub, hf:NAME[:CONFIG[:SPLIT[:COLUMN]]]."
)

out_path = click.Path(path_type=Path)
in_file = click.Path(path_type=Path)


@dataclass(frozen=True)
class ModelLoading:
    """How models are loaded, as `loading_options` read it."""

    dtype: "DTypeName"
    device: str | None
    device_map: str | None
    revision: str | None
    trust_remote_code: bool
    allow_pickle: bool
    max_memory: int | None = None

    def load(self, name: str, plugins: "PluginManager") -> "EditableModel":
        """Load a model by short name, hub name or folder."""
        from editbench.models.loading import load_model

        specs = plugins.models()
        with _suspecting_plugins(name, plugins):
            model = load_model(
                name,
                dtype=self.dtype,
                device=self.device,
                device_map=self.device_map,
                trust_remote_code=self.trust_remote_code,
                allow_pickle=self.allow_pickle,
                revision=self.revision,
                specs=specs,
            )
        model.memory.narrow(self.max_memory)
        return model

    def outline(self, name: str, plugins: "PluginManager") -> "EditableModel":
        """Make a model without weights, to plan work on it.

        Raises:
            ConfigError: It is to be spread: what goes where is decided when the weights are loaded,
                by what is free then.
        """
        if self.device_map is not None:
            raise ConfigError(
                "--plan: where a model's weights are spread is decided when they are loaded, got "
                f"--device-map {self.device_map}. Plan for one device with --device and "
                "--max-memory, or leave out --plan: a long run says its plan before it begins."
            )
        from editbench.models.loading import load_outline

        specs = plugins.models()
        with _suspecting_plugins(name, plugins):
            model = load_outline(
                name,
                dtype=self.dtype,
                device=self.device,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
                specs=specs,
            )
        model.memory.narrow(self.max_memory)
        return model


@contextmanager
def _suspecting_plugins(model: str, plugins: "PluginManager") -> Iterator[None]:
    """Make an error about a model say that its short name may be one of a plugin that failed."""
    try:
        yield
    except ModelError as error:
        if model not in plugins.models() and not Path(model).exists():
            plugins.suspect_failures(error)
        raise


@dataclass(frozen=True)
class EditorInputs:
    """What editors may use besides model and requests, as `editor_input_options` read it.

    Attributes:
        second_moments: A file of second moments, or a folder of memit's.
        context_prefixes: Groups of context prefixes.
        corpus: Ordinary text to collect second moments from.
        cache: Where results worth keeping are kept; None keeps none.
    """

    second_moments: Path | None
    context_prefixes: "ContextPrefixes | None"
    corpus: "Corpus | None"
    cache: Path | None

    def remark_on_corpus(self, model: "EditableModel") -> str | None:
        """What to say where second moments would come from text that nobody chose."""
        if self.second_moments is not None or self.corpus is not None:
            return None
        return describe_default_corpus(model.name, model.spec)

    def resources(
        self,
        model: "EditableModel",
        seed: int,
        report_progress: "Progress",
        *,
        with_corpus: bool = True,
    ) -> "Resources":
        """Hand them to an editor.

        Args:
            model: The model that it edits.
            seed: Source of every random choice.
            report_progress: Told about the editor's work.
            with_corpus: False for a plan, which does not read the corpus.
        """
        from editbench.editors.base import Resources

        return Resources(
            seed=seed,
            cache=self.cache,
            report_progress=report_progress,
            second_moments=self.second_moments,
            context_prefixes=self.context_prefixes,
            corpus=self._corpus_unless_needless(model) if with_corpus else None,
        )

    def for_runner(self, model: "EditableModel", *, with_corpus: bool = True) -> "Inputs":
        """Hand them to the trials on a model.

        Args:
            model: The model.
            with_corpus: False for a plan, which does not read the corpus.
        """
        from editbench.runner import Inputs

        return Inputs(
            second_moments=self.second_moments,
            context_prefixes=self.context_prefixes,
            corpus=self._corpus_unless_needless(model) if with_corpus else None,
        )

    def _corpus_unless_needless(self, model: "EditableModel") -> "Corpus | None":
        if self.second_moments is not None:
            return None
        return self.corpus or corpus_of(model.spec)


def dtype_option(default: str, text: str) -> Decorator:
    """The option ``--dtype``."""
    return click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16", "auto"]),
        default=default,
        show_default=True,
        help=text,
    )


_LOADED_DTYPE = dtype_option(
    "float32", "Precision of the weights; 'auto' keeps what the files hold."
)


def loading_options(command: Command, *, dtype: Decorator = _LOADED_DTYPE) -> Command:
    """Add the options that say how a model is loaded, passed on as ``loading``."""

    @dtype
    @click.option(
        "--device",
        metavar="DEVICE",
        help="Where to compute, such as cpu, cuda or cuda:1. [default: a GPU if there is one]",
    )
    @click.option(
        "--device-map",
        metavar="MAP",
        help="How to spread a model over devices, memory and disk: 'auto', or places by module as "
        "JSON; instead of --device.",
    )
    @click.option(
        "--max-memory",
        type=click.FloatRange(min=0, min_open=True),
        metavar="GIB",
        help="How much memory of the device to use, the weights included; the work is divided into "
        "smaller parts to keep to it. [default: what is free]",
    )
    @click.option(
        "--revision", metavar="REVISION", help="Branch, tag or commit of a model on the hub."
    )
    @click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Run Python code that comes with the model. Only for authors that you trust.",
    )
    @click.option(
        "--allow-pickle",
        is_flag=True,
        help="Load pickled weights, which can run code; safetensors need no such trust.",
    )
    @functools.wraps(command)
    def with_loading(
        *arguments: object,
        dtype: "DTypeName",
        device: str | None,
        device_map: str | None,
        max_memory: float | None,
        revision: str | None,
        trust_remote_code: bool,
        allow_pickle: bool,
        **options: object,
    ) -> object:
        loading = ModelLoading(
            dtype,
            device,
            device_map,
            revision,
            trust_remote_code,
            allow_pickle,
            None if max_memory is None else int(max_memory * 2**30),
        )
        return command(*arguments, loading=loading, **options)

    return with_loading  # type: ignore[return-value]  # wraps() keeps the command's own signature


def editor_input_options(command: Command) -> Command:
    """Add the options for what an editor may use, passed on as ``inputs``."""

    @click.option(
        "--second-moments",
        type=in_file,
        metavar="FILE",
        help="Second moments of keys, as 'editbench stats' writes them, or memit's: an .npz file, "
        "or a folder with one for each layer. By default they are collected, and kept in the "
        "cache.",
    )
    @click.option(
        "--context-prefixes",
        type=in_file,
        metavar="FILE",
        help="A JSON list of groups of texts to put before prompts; by default they are sampled "
        "from the model, with the seed.",
    )
    @click.option(
        "--corpus",
        metavar="SOURCE",
        help="Ordinary text to collect second moments from, where no file of them is given: "
        f"{CORPUS_SOURCES} By default what the model's settings name (Wikipedia for the "
        "published ones), or 'atlas'.",
    )
    @cache_options
    @functools.wraps(command)
    def with_inputs(
        *arguments: object,
        second_moments: Path | None,
        context_prefixes: Path | None,
        corpus: str | None,
        cache: Path | None,
        **options: object,
    ) -> object:
        if second_moments is not None and not second_moments.exists():
            raise ConfigError(
                f"--second-moments: there is no such file, got {str(second_moments)!r}."
            )
        inputs = EditorInputs(
            second_moments,
            None if context_prefixes is None else _read_context_prefixes(context_prefixes),
            None if corpus is None else open_corpus(corpus),
            cache,
        )
        return command(*arguments, inputs=inputs, **options)

    return with_inputs  # type: ignore[return-value]  # wraps() keeps the command's own signature


def cache_options(command: Command) -> Command:
    """Add ``--cache`` and ``--no-cache``, passed on as ``cache``: a folder or None."""

    @click.option(
        "--cache",
        type=out_path,
        metavar="DIR",
        envvar="EDITBENCH_CACHE",
        help="Where to keep what is worth keeping between runs: target hidden states and "
        "second moments. By default your user's cache folder.",
    )
    @click.option("--no-cache", is_flag=True, help="Keep nothing between runs but downloads.")
    @functools.wraps(command)
    def with_cache(
        *arguments: object, cache: Path | None, no_cache: bool, **options: object
    ) -> object:
        folder = None if no_cache else cache or default_cache()
        return command(*arguments, cache=folder, **options)

    return with_cache  # type: ignore[return-value]  # wraps() keeps the command's own signature


def skip_invalid_option(command: Command) -> Command:
    """Add ``--skip-invalid``."""
    return click.option(
        "--skip-invalid",
        is_flag=True,
        help="Leave out records that cannot be used, and list them; by default the first of them "
        "is an error.",
    )(command)


def quiet_option(command: Command) -> Command:
    """Add ``--quiet``."""
    return click.option("-q", "--quiet", is_flag=True, help="Show no progress.")(command)


def _read_context_prefixes(path: Path) -> "ContextPrefixes":
    from editbench.editors.context_prefixes import ContextPrefixes

    return ContextPrefixes.read(path)
