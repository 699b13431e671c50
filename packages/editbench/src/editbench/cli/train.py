"""``editbench train``: what an editor needs to learn before it can edit."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from editbench.cli import options
from editbench.cli.group import telling_what_is_kept
from editbench.cli.lookup import read_cases
from editbench.cli.options import ModelLoading, in_file
from editbench.cli.overrides import parse_assignment, read_config_file
from editbench.cli.progress import ProgressDisplay
from editbench.errors import ConfigError
from editbench.plugins.manager import PluginManager
from editbench.plugins.sources import open_dataset

if TYPE_CHECKING:
    from editbench.editors.mend.training import TrainedHypernetwork

_EXAMPLES = """\b
Examples:
  editbench train mend --model gpt2-xl --dataset zsre=zsre_mend_train.json
  editbench train mend --model atlas --dataset atlas-training --validation atlas-validation \\
    --set max_steps=500 --out mend.safetensors
"""


@click.group(epilog="\b\nExample:\n  editbench train mend --model gpt2-xl --dataset counterfact\n")
def train() -> None:
    """Train what an editor has to learn before it can edit."""


@train.command(epilog=_EXAMPLES)
@options.model(required=True)
@options.dataset(
    required=True,
    help="Cases to train on, each with a paraphrase and a neighborhood probe; not those that "
    "results will be reported on.",
)
@click.option(
    "--validation",
    metavar="NAME[=PATH]",
    help="Cases that decide when to stop. By default a tenth of the dataset's subjects is held "
    "out for that.",
)
@options.out(
    metavar="FILE",
    help="The hypernetwork to write (.safetensors). By default it goes into the cache, where the "
    "editor finds it.",
)
@options.skip_invalid()
@options.seed()
@click.option(
    "--max-steps", type=click.IntRange(min=1), help="Steps at most; the same as --set max_steps=N."
)
@click.option(
    "--max-minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Minutes at most, over all sessions of a training that is resumed.",
)
@options.resume(help="Go on with a training that was interrupted or ran out of time.")
@options.config(
    "config_file",
    type=in_file,
    help="The training's settings: a flat YAML or JSON file.",
)
@options.set_(metavar="FIELD=VALUE", help="One setting; wins over --config. Repeatable.")
@options.loading()
@options.quiet()
@click.pass_obj
def mend(
    plugins: PluginManager,
    model: str,
    dataset: str,
    validation: str | None,
    out: Path | None,
    skip_invalid: bool,
    seed: int,
    max_steps: int | None,
    max_minutes: float | None,
    resume: bool,
    config_file: Path | None,
    set_options: tuple[str, ...],
    loading: ModelLoading,
    quiet: bool,
) -> None:
    """Train the hypernetwork that MEND edits a model with.

    It is kept about once a minute beside the file, as FILE.partial: a training that was killed
    goes on from there with --resume, and ends with the same bits. Training ends when validation
    no longer improves, and what is written is the network as it was at the best validation.
    """
    if out is not None:
        options.check_out_file(out)
    if max_steps is not None:
        set_options = (*set_options, f"max_steps={max_steps}")
    file_values = {} if config_file is None else read_config_file(config_file)
    expected = "FIELD=VALUE, such as rank=64"
    set_values = dict(parse_assignment(option, expected) for option in set_options)
    open_data = functools.partial(
        open_dataset, plugins=plugins, cache=None, skip_invalid=skip_invalid
    )
    train_data = open_data(dataset)
    held_out_data = None if validation is None else open_data(validation)
    from editbench.editors.mend.trained_file import trained_path, write_trained
    from editbench.editors.mend.training import DataOrigin, hold_out, train_hypernetwork
    from editbench.editors.mend.training_config import configure_training

    path = out
    with (
        ProgressDisplay(quiet=quiet) as display,
        telling_what_is_kept(lambda: _describe_interruption(path)),
    ):
        data = DataOrigin(
            train_data.name,
            train_data.fingerprint,
            held_out_data.name if held_out_data is not None else None,
            held_out_data.fingerprint if held_out_data is not None else None,
        )
        cases = read_cases(train_data, display)
        editable = loading.load(model, plugins)
        config, origin = configure_training(editable)
        config = config.updated(file_values, str(config_file)).updated(set_values, "--set")
        path = out or trained_path(editable)
        partial = path.with_name(f"{path.name}.partial")
        if partial.exists() and not resume:
            raise ConfigError(
                f"train mend: {partial} holds a training that was interrupted. Pass --resume to go "
                "on with it, or remove the file to begin anew."
            )
        if resume and path.exists() and not partial.exists():
            raise ConfigError(
                f"train mend: the training of {path} has ended, and nothing is kept to go on from. "
                "Choose another --out, or leave out --resume to train anew in its place."
            )
        if held_out_data is None:
            cases, held_out = hold_out(cases, config.validation_share, seed)
        else:
            held_out = list(read_cases(held_out_data, display))
        display.say(f"Settings of the training: {origin}.")
        trained = train_hypernetwork(
            editable,
            cases,
            held_out,
            config,
            data,
            seed=seed,
            report_progress=display,
            max_seconds=None if max_minutes is None else 60 * max_minutes,
            checkpoint=partial,
        )
        write_trained(path, trained.tensors, trained.record)
        if not trained.may_go_on:
            partial.unlink(missing_ok=True)
    click.echo(_summarize(trained))
    click.echo(f"Wrote {path}")
    if trained.may_go_on:
        click.echo(f"With --resume and more --max-minutes it goes on, from {partial}.")
    if out is not None:
        click.echo(f"To edit with it: --editor mend --set mend.weights={out}")


def _describe_interruption(path: Path | None) -> str:
    partial = None if path is None else path.with_name(f"{path.name}.partial")
    if partial is not None and partial.exists():
        return f"Interrupted: {partial} is kept; the same command with --resume goes on from there."
    return "Interrupted: nothing had been kept yet."


def _summarize(trained: "TrainedHypernetwork") -> str:
    record = trained.record
    step, loss, edit, locality, recall = min(record.validation_losses, key=lambda each: each[1])
    return (
        f"Trained on {record.dataset} for {record.steps:,} steps: {trained.ended}. Best after "
        f"{step:,}: validation loss {loss:.4f} (edit {edit:.4f}, locality {locality:.4f} nats), "
        f"{100 * recall:.1f} % of target tokens given."
    )
