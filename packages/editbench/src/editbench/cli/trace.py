"""``editbench trace``: causal tracing, and the critical layers that follow from it."""

import math
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from editbench.cli import options
from editbench.cli.group import telling_what_is_kept
from editbench.cli.lookup import read_cases
from editbench.cli.options import ModelLoading, in_file
from editbench.cli.progress import ProgressDisplay
from editbench.cli.terminal import lay_out
from editbench.errors import ConfigError, DataError, TraceError
from editbench.plugins.manager import PluginManager
from editbench.plugins.sources import open_dataset

if TYPE_CHECKING:
    from editbench.datasets.base import Dataset
    from editbench.tracing.effects import EffectLine, Effects
    from editbench.tracing.facts import KnownFact
    from editbench.tracing.manifest import Trace
    from editbench.tracing.settings import Kind, SeveredKind

_DEFAULT_DATASET = "atlas"
_EXAMPLES = """\b
Examples:
  editbench trace
  editbench trace --model gpt2-xl --facts known_1000.json --out traces/gpt2-xl
  editbench trace --model ./llama --dataset facts=mine.jsonl --n-facts 50 --heat-maps 5
"""


@click.command(epilog=_EXAMPLES)
@options.model(default="atlas", show_default=True)
@click.option(
    "--facts",
    "facts_file",
    type=in_file,
    metavar="FILE",
    help="Known facts: a JSON list of objects with subject, attribute and prompt.",
)
@options.dataset(
    help="Take the true objects of a dataset's facts instead. [default: atlas]",
)
@options.skip_invalid()
@click.option(
    "--n-facts",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Trace the first N facts that the model predicts; the others are skipped.",
)
@click.option(
    "--noise",
    default="3s",
    show_default=True,
    metavar="LEVEL",
    help="Standard deviation of the noise on the subject's embeddings: a number, or a multiple of "
    "their own over all subjects, such as 3s.",
)
@click.option(
    "--n-samples",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many noise samples to average over.",
)
@click.option(
    "--window",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many layers of MLP or attention outputs are restored together. [default: 10, and "
    "fewer in models of fewer than 28 layers]",
)
@options.seed(help="Of the noise.")
@click.option(
    "--preset",
    type=click.Choice(["reference"]),
    help="Draw the same noise for every prompt, and take windows of 10, as the reference does.",
)
@click.option(
    "--heat-maps",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="How many prompts get a heat map of their own.",
)
@click.option("--no-figures", is_flag=True, help="Draw nothing.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="Tables to read; CSV; or a JSON object.",
)
@options.out(metavar="DIR", help="The trace folder. [default: traces/<time>]")
@options.resume(help="Go on with the trace in --out, skipping what is done.")
@options.cache()
@options.loading()
@options.quiet()
@click.pass_obj
def trace(
    plugins: PluginManager,
    model: str,
    facts_file: Path | None,
    dataset: str | None,
    skip_invalid: bool,
    n_facts: int,
    noise: str,
    n_samples: int,
    window: int | None,
    seed: int,
    preset: str | None,
    heat_maps: int,
    no_figures: bool,
    output_format: str,
    out: Path | None,
    resume: bool,
    cache: Path | None,
    loading: ModelLoading,
    quiet: bool,
) -> None:
    """Find out where a model keeps its facts.

    The subject of a known fact is blurred with noise, and one state of the clean run is put back,
    at every token and in every layer: how much of the answer's probability comes back says whether
    the fact passes there. At the last subject token this is done with MLPs and attention severed,
    too. From that follows a range of critical layers, which '--layers auto' uses.

    Results are kept in a folder, prompt by prompt, with tables and figures.
    """
    from editbench.tracing.folder import refuse_folder, refuse_other_trace
    from editbench.tracing.settings import parse_noise
    from editbench.tracing.study import TraceOptions, prepare_trace, trace_into

    parse_noise(noise)
    if facts_file is not None and dataset is not None:
        raise ConfigError("trace: --facts and --dataset exclude each other. Give one of them.")
    folder = _choose_folder(out, resume=resume)
    refuse_folder(folder, resume=resume)
    is_read_by_people = output_format == "table"
    with (
        ProgressDisplay(quiet=quiet) as display,
        telling_what_is_kept(lambda: _describe_interruption(folder)),
    ):
        if facts_file is not None:
            source, facts = facts_file.name, _read_known(facts_file, skip_invalid, display)
        else:
            source = dataset or _DEFAULT_DATASET
            opened = open_dataset(source, plugins, cache, skip_invalid=skip_invalid)
            facts = _facts_of(opened, source, display)
        editable = loading.load(model, plugins)
        manifest, known = prepare_trace(
            editable,
            facts,
            TraceOptions(noise, n_samples, window, seed, as_reference=preset == "reference"),
            source=source,
            limit=n_facts,
            provenance={"command": sys.argv},
            on_progress=display,
        )
        refuse_other_trace(folder, manifest)
        if is_read_by_people:
            display.say(
                f"{len(known.prompts)} of {known.n_asked} facts of {source} are predicted by "
                f"'{model}' and traced; {known.n_skipped} skipped."
            )
            spread = "" if manifest.spread is None else f" ({noise}, σ = {manifest.spread:.4g})"
            display.say(
                f"Noise {manifest.settings.noise_level:.4g}{spread}, {n_samples} samples; "
                f"windows of {manifest.settings.window} layers."
            )
            display.say(f"Trace folder: {folder}")
        finished = trace_into(folder, editable, manifest, known, resume=resume, on_progress=display)
    if finished.replay_failure is not None:
        click.echo(
            f"Warning: cells were traced one at a time ({finished.replay_failure})", err=True
        )
    _show(folder, finished, output_format, None if no_figures else heat_maps)


def _choose_folder(out: Path | None, *, resume: bool) -> Path:
    if out is None and resume:
        raise TraceError("--resume: which trace? Name its folder with --out DIR.")
    return out or Path("traces") / f"{datetime.now():%Y-%m-%d-%H%M%S}"


def _read_known(path: Path, skip_invalid: bool, display: ProgressDisplay) -> "list[KnownFact]":
    from editbench.datasets.files import describe_left_out
    from editbench.tracing.facts import read_known_facts

    left_out: list[DataError] = []
    facts = read_known_facts(path, left_out if skip_invalid else None)
    for line in describe_left_out(path, left_out, len(facts)):
        display.note(line)
    return facts


def _facts_of(dataset: "Dataset", option: str, display: ProgressDisplay) -> "list[KnownFact]":
    from editbench.tracing.facts import facts_of_cases

    facts = facts_of_cases(read_cases(dataset, display))
    if not facts:
        raise TraceError(
            f"trace: dataset '{option}' names no true objects, got 0 facts to trace. Choose "
            "another dataset, or a file of known facts with --facts."
        )
    return facts


def _show(folder: Path, finished: "Trace", output_format: str, heat_maps: int | None) -> None:
    """Write tables and figures into the folder, and the table that is asked for to stdout."""
    from editbench.tracing.effects import average_effects
    from editbench.tracing.folder import write_file
    from editbench.tracing.suggestion import suggest_from_traces
    from editbench.tracing.tables import write_effects_csv, write_effects_json

    effects = average_effects(finished.prompts)
    suggestion = None
    try:
        suggestion = suggest_from_traces(finished.prompts)
        listing = ", ".join(map(str, suggestion.layers))
        conclusion = f"Suggested critical layers: {listing}\n  ({suggestion.rule})"
    except TraceError as refusal:
        conclusion = str(refusal)
    texts = {"csv": write_effects_csv(effects), "json": write_effects_json(effects, suggestion)}
    for suffix, text in texts.items():
        write_file(folder / f"effects.{suffix}", text.encode())
    if heat_maps is not None:
        from editbench.tracing.figures import write_figures

        suggested = () if suggestion is None else suggestion.layers
        write_figures(folder, finished, effects, suggested, n_prompts=heat_maps)
    if output_format != "table":
        click.echo(texts[output_format], nl=False)
        return
    click.echo(_format_tables(effects), nl=False)
    click.echo(conclusion)
    click.echo(f"Results: {folder}")


def _describe_interruption(folder: Path) -> str:
    n_traced = len(list(folder.glob("prompts/[0-9]*.safetensors")))
    if not (folder / "trace.json").exists():
        return "Interrupted before the first prompt: nothing had been kept yet."
    return (
        f"Interrupted: {n_traced} prompts are traced and kept in {folder}. Go on with the same "
        f"options and --out {folder} --resume."
    )


def _format_tables(effects: "Effects") -> str:
    """Layers as rows: a table for each kind by role, and one with modules severed."""
    from editbench.results.tables.model import Cell, Column, Table
    from editbench.results.tables.terminal import draw_table
    from editbench.tracing.effects import ROLE_NAMES, ROLES
    from editbench.tracing.settings import KINDS

    clean, corrupted = effects.clean, effects.corrupted
    tables = {
        _TITLES[kind]: {ROLE_NAMES[role]: effects.profile(kind, role) for role in ROLES}
        for kind in KINDS
    }
    tables[_SEVERED_TITLE] = {
        name: effects.profile(kind, "last_subject") for kind, name in _SEVERED_COLUMNS.items()
    }
    drawn = []
    for title, found in tables.items():
        columns = {name: lines for name, lines in found.items() if lines}
        headings = (Column(f"n = {lines[0].n}", name, "right") for name, lines in columns.items())
        rows = tuple(
            (Cell(str(layer)), *(Cell(*_format_effect(lines[layer])) for lines in columns.values()))
            for layer in range(effects.n_layers)
        )
        table = Table(title, (Column("layer", align="right"), *headings), (rows,))
        drawn.append(draw_table(table))
    return lay_out(
        f"Probability of the answer: {clean.value:.3f} clean, {corrupted.value:.3f} corrupted "
        f"({clean.n} prompts). What restoring brings back, ± half of the 95 % interval:",
        *drawn,
    )


def _format_effect(line: "EffectLine") -> tuple[str, str]:
    """The effect, and half of its interval; empty if there is none."""
    spread = line.ci_high - line.effect
    effect = f"{line.effect:.3f}".replace("-0.000", "0.000")
    return effect, "" if math.isnan(spread) else f"{spread:.3f}"


_TITLES = {
    "hidden": "One state restored",
    "mlp": "A window of MLP outputs restored",
    "attention": "A window of attention outputs restored",
}
_SEVERED_TITLE = "One state restored at the last subject token, modules severed"
_SEVERED_COLUMNS: "dict[Kind | SeveredKind, str]" = {
    "hidden": "nothing severed",
    "severed_mlp": "MLPs severed",
    "severed_attention": "attention severed",
}
