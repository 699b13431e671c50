"""Options that several commands share, each declared once, and what they are gathered into.

Commands write ``@options.seed()``.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from editbench.cli.completion import complete_names
from editbench.errors import ConfigError, ModelError
from editbench.plugins.sources import default_cache, open_corpus

if TYPE_CHECKING:
    from editbench.editors.base import Inputs
    from editbench.models.editable import EditableModel
    from editbench.models.loading import DTypeName
    from editbench.plugins.manager import PluginManager

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

CORPUS_SOURCES = (
    "a text file with one text a line; 'prose', an embedded English text; 'atlas', that of the "
    "embedded world; or a dataset of the Hugging Face hub, hf:NAME[:CONFIG[:SPLIT[:COLUMN]]]."
)

out_path = click.Path(path_type=Path)
in_file = click.Path(path_type=Path)


def shared(*names: str, **settings: Any) -> Callable[..., Decorator]:
    """Declare an option; each command may name its parameter, and change some settings."""

    def declare(*more_names: str, **changes: Any) -> Decorator:
        return click.option(*names, *more_names, **{**settings, **changes})

    return declare


def gathering(name: str, make: Callable[..., object], *options: Decorator) -> Decorator:
    """Declare options that a command gets as one argument.

    Args:
        name: The argument.
        make: Makes it of the options' values; its parameters are theirs.
        options: The options, in the order of ``--help``.
    """
    parameters = inspect.signature(make).parameters

    def declare(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_gathered(*arguments: object, **given: object) -> object:
            made = make(**{each: given.pop(each) for each in parameters})
            return command(*arguments, **{name: made}, **given)

        declared: Callable[..., Any] = with_gathered
        for option in reversed(options):
            declared = option(declared)
        return declared

    return declare


model = shared(
    "--model",
    metavar="NAME",
    help="Short name, hub name or folder.",
    shell_complete=complete_names("models"),
)
editor = shared(
    "--editor", metavar="NAME", help="How to edit.", shell_complete=complete_names("editors")
)
dataset = shared("--dataset", metavar="NAME[=PATH]", shell_complete=complete_names("datasets"))
out = shared("--out", type=out_path)
seed = shared(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Of every random choice."
)
config = shared(
    "--config",
    metavar="FILE",
    help="The editor's hyperparameters: a flat YAML or JSON file, ours or another tool's.",
)
set_ = shared(
    "--set",
    "set_options",
    multiple=True,
    metavar="EDITOR.FIELD=VALUE",
    help="One hyperparameter; wins over --config. Repeatable.",
)
on_conflict = shared(
    "--on-conflict",
    type=click.Choice(["error", "drop-all", "keep-first"]),
    default="error",
    show_default=True,
    help="What to do with facts that contradict each other.",
)
resume = shared(
    "--resume", is_flag=True, help="Go on with the run in --out, skipping what is done."
)
skip_invalid = shared(
    "--skip-invalid",
    is_flag=True,
    help="Leave out records that cannot be used, and list them; by default the first of them is an "
    "error.",
)
edits = shared(
    "--edit",
    "edit_files",
    multiple=True,
    type=in_file,
    metavar="FILE",
    help="An edit file; several are added up. Repeatable.",
)
metrics = shared(
    "--metrics",
    multiple=True,
    metavar="NAME[,NAME]",
    shell_complete=complete_names("metrics", many=True),
    help="What to measure; by default what is meant for the dataset.",
)
held_out_text = shared(
    "--held-out-text",
    type=in_file,
    metavar="FILE",
    help="Ordinary text to see what the edits have done to the rest of the model (metrics "
    "'perplexity' and 'divergence'): a text file, one text a line, some 20,000 words at most. By "
    "default what the dataset has.",
)
as_of = shared(
    "--as-of",
    metavar="DATE",
    callback=lambda _context, _option, value: _read_date(value),
    help="Leave out facts that have expired by this day, such as 2026-03-31.",
)
corpus = shared("--corpus", metavar="SOURCE", help=f"Ordinary text: {CORPUS_SOURCES}")
dtype = shared(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "auto"]),
    default="float32",
    show_default=True,
    help="Precision of the weights; 'auto' keeps what the files hold.",
)
output_format = shared(
    "--format",
    "output_format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to print it.",
)
quiet = shared("-q", "--quiet", is_flag=True, help="Show no progress.")


@dataclass(frozen=True)
class ModelLoading:
    """How models are loaded, as `loading` read it."""

    dtype: "DTypeName"
    device: str | None
    device_map: str | None
    max_memory: float | None
    revision: str | None
    trust_remote_code: bool
    allow_pickle: bool

    def load(self, name: str, plugins: "PluginManager") -> "EditableModel":
        """Load a model by short name, hub name or folder."""
        from editbench.models.loading import load_model

        more = {"device_map": self.device_map, "allow_pickle": self.allow_pickle}
        return self._make(load_model, name, plugins, **more)

    def outline(self, name: str, plugins: "PluginManager") -> "EditableModel":
        """Make a model without weights, to estimate what work on it takes.

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

        return self._make(load_outline, name, plugins)

    def _make(
        self,
        make: "Callable[..., EditableModel]",
        name: str,
        plugins: "PluginManager",
        **more: object,
    ) -> "EditableModel":
        specs = plugins.models()
        try:
            model = make(
                name,
                dtype=self.dtype,
                device=self.device,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
                specs=specs,
                **more,
            )
        except ModelError as error:
            if name not in specs and not Path(name).exists():  # it may be a failed plugin's
                plugins.suspect_failures(error)
            raise
        if self.max_memory is not None:
            model.memory.narrow(int(self.max_memory * 2**30))
        return model


def loading(precision: Decorator | None = None) -> Decorator:
    """Options that say how a model is loaded, passed on as ``loading``: a `ModelLoading`."""
    return gathering(
        "loading",
        ModelLoading,
        precision or dtype(),
        click.option(
            "--device",
            metavar="DEVICE",
            help="Where to compute, such as cpu, cuda or cuda:1. [default: a GPU if there is one]",
        ),
        click.option(
            "--device-map",
            metavar="MAP",
            help="How to spread a model over devices, memory and disk: 'auto', or places by module "
            "as JSON; instead of --device.",
        ),
        click.option(
            "--max-memory",
            type=click.FloatRange(min=0, min_open=True),
            metavar="GIB",
            help="How much memory of the device to use, the weights included; the work is divided "
            "into smaller parts to keep to it. [default: what is free]",
        ),
        click.option(
            "--revision", metavar="REVISION", help="Branch, tag or commit of a model on the hub."
        ),
        click.option(
            "--trust-remote-code",
            is_flag=True,
            help="Run Python code that comes with the model. Only for authors that you trust.",
        ),
        click.option(
            "--allow-pickle",
            is_flag=True,
            help="Load pickled weights, which can run code; safetensors need no such trust.",
        ),
    )


def cache() -> Decorator:
    """``--cache`` and ``--no-cache``, passed on as ``cache``: a folder or None."""

    def choose(cache: Path | None, no_cache: bool) -> Path | None:
        return None if no_cache else cache or default_cache()

    return gathering(
        "cache",
        choose,
        click.option(
            "--cache",
            type=out_path,
            metavar="DIR",
            envvar="EDITBENCH_CACHE",
            help="Where to keep what is worth keeping between runs: target hidden states and "
            "second moments. By default your user's cache folder.",
        ),
        click.option("--no-cache", is_flag=True, help="Keep nothing between runs but downloads."),
    )


def inputs() -> Decorator:
    """Options for what an editor may use, passed on as ``inputs`` and ``cache``."""

    def read(
        second_moments: Path | None, context_prefixes: Path | None, corpus: str | None
    ) -> "Inputs":
        if second_moments is not None and not second_moments.exists():
            raise ConfigError(
                f"--second-moments: there is no such file, got {str(second_moments)!r}."
            )
        from editbench.editors.base import Inputs
        from editbench.editors.context_prefixes import ContextPrefixes

        return Inputs(
            second_moments=second_moments,
            context_prefixes=None
            if context_prefixes is None
            else ContextPrefixes.read(context_prefixes),
            corpus=None if corpus is None else open_corpus(corpus),
        )

    gathered = gathering(
        "inputs",
        read,
        click.option(
            "--second-moments",
            type=in_file,
            metavar="FILE",
            help="Second moments of keys, as 'editbench stats' writes them, or memit's: an .npz "
            "file, or a folder with one for each layer. By default they are collected, and kept in "
            "the cache.",
        ),
        click.option(
            "--context-prefixes",
            type=in_file,
            metavar="FILE",
            help="A JSON list of groups of texts to put before prompts; by default they are "
            "sampled from the model, with the seed.",
        ),
        corpus(
            help="Ordinary text to collect second moments from, where no file of them is given: "
            f"{CORPUS_SOURCES} By default what the model's settings name (Wikipedia for the "
            "published ones), or 'prose'."
        ),
    )
    return lambda command: gathered(cache()(command))


def _read_date(value: str | None) -> date | None:
    try:
        return None if value is None else date.fromisoformat(value)
    except ValueError as error:
        raise ConfigError(
            f"--as-of: is no date, got {value!r}; expected one such as 2026-03-31."
        ) from error


def check_out_file(path: Path) -> None:
    """Find out before hours of work whether the file of ``--out`` can be written.

    Raises:
        ConfigError: The place is a folder or a device, or its folder does not exist.
    """
    if path.exists() and not path.is_file():
        raise ConfigError(f"--out: not an ordinary file, got {str(path)!r}. Choose another name.")
    _check_parent(path)


def check_out_folder(path: Path) -> None:
    """The same for a folder, which is to be new or empty."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(
            f"--out: expected a new or empty folder, got {str(path)!r}. Choose another name."
        )
    _check_parent(path)


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigError(
            f"--out: there is no such folder, got {str(path.parent)!r}. Make it first."
        )
