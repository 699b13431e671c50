"""``editbench stats``: second moments of keys, collected once and reused by every edit."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from editbench.cli.edit import check_output_file
from editbench.cli.group import telling_what_is_kept, writing
from editbench.cli.layers import parse_layers
from editbench.cli.options import (
    CORPUS_SOURCES,
    ModelLoading,
    loading_options,
    open_corpus,
    out_path,
    quiet_option,
)
from editbench.cli.progress import ProgressDisplay
from editbench.plugins.manager import PluginManager

if TYPE_CHECKING:
    from editbench.models.architecture import ProjectionKind
    from editbench.models.editable import EditableModel


_EXAMPLES = """\b
Examples:
  editbench stats --model gpt2-xl --corpus wiki.txt --out gpt2-xl.safetensors
  editbench stats --model gpt-j-6b --corpus hf:wikimedia/wikipedia:20231101.en \\
    --layers 3-8 --n-tokens 1000000 --out gpt-j.safetensors
"""


@click.command(epilog=_EXAMPLES)
@click.option("--model", required=True, metavar="NAME", help="Short name, hub name or folder.")
@click.option("--corpus", required=True, metavar="SOURCE", help=f"Ordinary text: {CORPUS_SOURCES}")
@click.option("--out", required=True, type=out_path, metavar="FILE", help="The file to write.")
@click.option(
    "--layers",
    metavar="LAYERS",
    help="Such as 3-8, or 3,5,8, or 'all'. By default the layers that MEMIT edits in this model.",
)
@click.option(
    "--module",
    type=click.Choice(["mlp", "attention"]),
    default="mlp",
    show_default=True,
    help="Whose keys: the inputs of the MLP's or of attention's output projection.",
)
@click.option(
    "--n-tokens",
    type=click.IntRange(min=1),
    default=100_000,
    show_default=True,
    help="How many tokens to take the mean over; 100,000 take minutes where the paper's 44 "
    "million take a day, and edit nearly as well.",
)
@loading_options
@quiet_option
@click.pass_obj
def stats(
    plugins: PluginManager,
    model: str,
    corpus: str,
    out: Path,
    layers: str | None,
    module: "ProjectionKind",
    n_tokens: int,
    loading: ModelLoading,
    quiet: bool,
) -> None:
    """Collect second moments of a model's keys.

    Taken over ordinary text, they tell an editor what must not move (C in the paper's Eqn 15). All
    layers are collected in one pass; an interrupted collection goes on where it was when the
    command is repeated.
    """
    check_output_file(out)
    wanted = None if layers is None else parse_layers(layers)
    texts = open_corpus(corpus)
    from editbench.editors.parts.second_moments import collect_to_file, describe_collection

    with (
        ProgressDisplay(quiet=quiet) as display,
        telling_what_is_kept(lambda: _describe_interruption(out)),
        writing(out),
    ):
        editable = loading.load(model, plugins)
        chosen = wanted or _default_layers(plugins, editable, everything=wanted == [])
        for layer in chosen:
            editable.architecture.check_layer(layer)
        if _is_done(out, describe_collection(editable, texts, chosen, n_tokens, module)):
            click.echo(f"{out} holds exactly this already: nothing to do.")
            return
        moments = collect_to_file(editable, texts, chosen, n_tokens, out, display, module)
    n_collected = min(moment.n_tokens or 0 for moment in moments.values())
    listing = ", ".join(str(layer) for layer in chosen)
    click.echo(f"Wrote {out}: layers {listing}, {n_collected:,} tokens of {texts.name}")
    if n_collected < n_tokens:
        click.echo(f"Warning: the corpus ended before {n_tokens:,} tokens.", err=True)


def _default_layers(
    plugins: PluginManager, model: "EditableModel", *, everything: bool
) -> list[int]:
    if everything:
        return list(range(model.architecture.n_layers))
    config, _ = plugins.get_editor("memit").default_config(model)
    return list(config.model_dump()["critical_layers"])


def _is_done(out: Path, provenance: Mapping[str, Any]) -> bool:
    """Whether a file of the same origin is there; any other file will be replaced."""
    from memit_core import MemitCoreError, load_second_moments

    try:
        return out.exists() and load_second_moments(out).provenance == provenance
    except (MemitCoreError, OSError):
        return False


def _describe_interruption(out: Path) -> str:
    partial = out.with_name(f"{out.name}.partial")
    if partial.exists():
        return f"Interrupted: {partial} is kept; the same command goes on from there."
    return "Interrupted: nothing had been kept yet."
