"""``editbench stats``: second moments of keys, collected once and reused by every edit."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from editbench.cli import options
from editbench.cli.group import telling_what_is_kept, writing
from editbench.cli.layers import parse_layers
from editbench.cli.options import ModelLoading, in_file
from editbench.cli.plan import announce, work_of_collection
from editbench.cli.progress import ProgressDisplay
from editbench.errors import ConfigError, SecondMomentError
from editbench.plugins.manager import PluginManager
from editbench.plugins.sources import default_cache, open_corpus

if TYPE_CHECKING:
    from editbench.models.architecture import ProjectionKind
    from editbench.models.editable import EditableModel
    from editbench.second_moments.collection_work import TokenCount
    from editbench.second_moments.corpus_keys import Shard


_EXAMPLES = """\b
Examples:
  editbench stats --model gpt2-xl --corpus wiki.txt --out gpt2-xl.safetensors
  editbench stats --model gpt-j-6b --corpus hf:wikimedia/wikipedia:20231101.en \\
    --layers 3-8 --n-tokens 1000000 --out gpt-j.safetensors
  editbench stats --merge part-1.safetensors --merge part-2.safetensors --out all.safetensors
"""


@click.command(epilog=_EXAMPLES)
@options.model()
@options.corpus()
@options.out(required=True, metavar="FILE", help="The file to write.")
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
    metavar="N|auto",
    default="auto",
    show_default=True,
    help="How many tokens to take the mean over; 'auto' stops when what sampling costs an edit is "
    "small. The paper's 44 million take a day, and edit hardly better than 100,000.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens that a text is cut to. By default 2,048, and never more than the model takes.",
)
@click.option(
    "--shard",
    metavar="I/N",
    help="Collect only the I-th of N shares, to run them side by side; needs a count of tokens.",
)
@click.option(
    "--merge",
    "shards",
    type=in_file,
    multiple=True,
    metavar="FILE",
    help="Collect nothing, but join the files of all shards; give it once for each.",
)
@options.loading()
@options.quiet()
@click.pass_obj
def stats(
    plugins: PluginManager,
    model: str | None,
    corpus: str | None,
    out: Path,
    layers: str | None,
    module: "ProjectionKind",
    n_tokens: str,
    max_length: int | None,
    shard: str | None,
    shards: tuple[Path, ...],
    loading: ModelLoading,
    quiet: bool,
) -> None:
    """Collect second moments of a model's keys.

    Taken over ordinary text, they tell an editor what must not move (C in the paper's Eqn 15). All
    layers are collected in one pass; an interrupted collection goes on where it was when the
    command is repeated. Files that memit has collected (.npz) need no conversion: give them to
    --second-moments as they are.
    """
    options.check_out_file(out)
    if shards:
        _merge(shards, out)
        return
    if model is None or corpus is None:
        raise ConfigError(
            "stats: --model and --corpus are needed to collect second moments. Give both, or "
            "--merge FILE for each shard that has been collected."
        )
    wanted = None if layers is None else parse_layers(layers)
    count = _parse_count(n_tokens)
    share: dict[str, Any] = {"max_length": max_length, "shard": _parse_shard(shard)}
    texts = open_corpus(corpus)
    from editbench.second_moments.collection import describe_collection
    from editbench.second_moments.collection_files import collect_to_file

    with (
        ProgressDisplay(quiet=quiet) as display,
        telling_what_is_kept(lambda: _describe_interruption(out)),
        writing(out),
    ):
        editable = loading.load(model, plugins)
        chosen = wanted or _default_layers(plugins, editable, everything=wanted == [])
        for layer in chosen:
            editable.architecture.check_layer(layer)
        collection = (editable, texts, chosen, count)
        if _is_done(out, describe_collection(*collection, module, **share)):
            click.echo(f"{out} holds exactly this already: nothing to do.")
            return
        n_shards = share["shard"].n_shards
        work = work_of_collection(editable, chosen, count, module, n_shards)
        announce(work, default_cache(), display)
        moments = collect_to_file(*collection, out, display, module, **share)
    n_collected = min(moment.n_tokens or 0 for moment in moments.values())
    listing = ", ".join(str(layer) for layer in chosen)
    click.echo(f"Wrote {out}: layers {listing}, {n_collected:,} tokens of {texts.name}")
    if shard is None and count != "auto" and n_collected < count:
        click.echo(f"Warning: the corpus ended before {count:,} tokens.", err=True)


def _parse_count(text: str) -> "TokenCount":
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(
            f"--n-tokens: no count of tokens, got {text!r}; expected 1 or more, or auto."
        )
    return int(text)


def _parse_shard(text: str | None) -> "Shard":
    from editbench.second_moments.corpus_keys import WHOLE, Shard

    if text is None:
        return WHOLE
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise ConfigError(f"--shard: no shard, got {text!r}; expected I/N, such as 2/8.")
    return Shard(int(match[1]) - 1, int(match[2]))


def _merge(shards: Sequence[Path], out: Path) -> None:
    from editbench.second_moments.moment_files import merge_shards

    with writing(out):
        moments = merge_shards(shards, out)
    n_collected = min(moment.n_tokens or 0 for moment in moments.values())
    listing = ", ".join(str(layer) for layer in moments)
    click.echo(f"Wrote {out}: layers {listing}, {n_collected:,} tokens of {len(shards)} shards")


def _default_layers(
    plugins: PluginManager, model: "EditableModel", *, everything: bool
) -> list[int]:
    if everything:
        return list(range(model.architecture.n_layers))
    memit = plugins.get_editor("memit")
    (layers,) = memit(memit.default_config(model)[0]).needs_second_moments(model).values()
    return list(layers)


def _is_done(out: Path, provenance: Mapping[str, Any]) -> bool:
    """Whether a file of the same origin is there; any other file will be replaced."""
    from editbench.second_moments.moment_files import SecondMomentFile

    try:
        return out.exists() and SecondMomentFile(out).provenance == provenance
    except SecondMomentError:
        return False


def _describe_interruption(out: Path) -> str:
    partial = out.with_name(f"{out.name}.partial")
    if partial.exists():
        return f"Interrupted: {partial} is kept; the same command goes on from there."
    return "Interrupted: nothing had been kept yet."
