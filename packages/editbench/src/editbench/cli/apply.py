"""``editbench apply``: an edit onto a model, written as what serves it can read."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from editbench.cli import options
from editbench.cli.group import telling_what_is_kept
from editbench.cli.options import ModelLoading
from editbench.cli.progress import ProgressDisplay
from editbench.errors import ConfigError
from editbench.plugins.manager import PluginManager
from editbench.requests import find_standing

if TYPE_CHECKING:
    from editbench.edits.exported import Export
    from editbench.edits.gguf_export import TensorType
    from editbench.models.editable import EditableModel
    from editbench.models.loading import DTypeName

Form = Literal["model", "adapter", "gguf-adapter"]

_EXAMPLES = """\b
Examples:
  editbench apply --model gpt2-xl --edit edit.safetensors --out edited-gpt2-xl
  editbench apply --model llama.gguf --edit e.safetensors --out edited.gguf
  editbench apply --model ./llama --edit e.safetensors --as adapter --out adapter
  editbench apply --model llama.gguf --edit e.safetensors --as gguf-adapter --out lora.gguf
"""
_N_NAMED = 5
_MUCH_LOST = 0.5
_DEFAULT_MAX_RANK = 256


@click.command(epilog=_EXAMPLES)
@options.model(required=True, help="The model the edit was made for.")
@options.edits(required=True)
@options.out(
    required=True, metavar="PATH", help="A new or empty folder; a new file, of a GGUF file or LoRA."
)
@click.option(
    "--as",
    "form",
    type=click.Choice(["model", "adapter", "gguf-adapter"]),
    default="model",
    show_default=True,
    help="What to write: the whole model, as a folder or, of a GGUF file, a GGUF file; a PEFT "
    "adapter; or a LoRA file for llama.cpp.",
)
@click.option(
    "--tensor-type",
    type=click.Choice(["F16", "F32"]),
    help="How GGUF files hold edited tensors, or an adapter's. [default: F16; F32 for an adapter]",
)
@click.option(
    "--max-rank",
    type=click.IntRange(min=1),
    default=_DEFAULT_MAX_RANK,
    show_default=True,
    metavar="N",
    help="The largest rank of an adapter's updates; those of a higher one are refused.",
)
@click.option(
    "--truncate", is_flag=True, help="Cut updates of a higher rank to it, and say what is lost."
)
@options.loading(
    options.dtype(
        default="auto",
        help="Precision of the whole edited model; 'auto' keeps what the files hold. The edit may "
        "have been computed in another one.",
    )
)
@click.pass_obj
def apply(
    plugins: PluginManager,
    model: str,
    edit_files: tuple[Path, ...],
    out: Path,
    form: Form,
    tensor_type: "TensorType | None",
    max_rank: int,
    truncate: bool,
    loading: ModelLoading,
) -> None:
    """Write a model with edits on it, or what makes one of its base.

    The edited tensors are replaced, in the precision that the model's files hold, or in F16 in a
    GGUF file; every other tensor and file comes through as it is. An adapter leaves the base alone,
    and is exact where the update's rank allows it. A README.md says what was edited, and how.

    What was written is read back by the program that will use it, and compared with the edited
    model, before the command is done; both are asked for the facts that the edit file has. An edit
    fits the model that it was computed for, and no other.
    """
    _check_options(form, out, tensor_type, truncate, loading)
    from editbench.edits.adapter_export import export_adapter
    from editbench.edits.export import export_edit
    from editbench.edits.gguf_export import export_gguf_adapter
    from editbench.edits.weight_edit import WeightEdit

    def load(name: str, dtype: "DTypeName") -> "EditableModel":
        # What was written lies here, and has no revisions.
        revision = loading.revision if name == model else None
        return replace(loading, dtype=dtype, revision=revision).load(name, plugins)

    with (
        telling_what_is_kept(lambda: "Interrupted: no model was written."),
        ProgressDisplay(),
    ):
        # Damaged files are found before the model is loaded, which can take long.
        edits = [WeightEdit.load(path) for path in edit_files]
        edit = WeightEdit.merge(edits)
        facts = [
            fact for each in edits if each.recipe for fact in find_standing(each.recipe.requests)
        ]
        match form:
            case "model":
                kind: TensorType = tensor_type or "F16"
                written = export_edit(
                    edit, model, out, load=load, dtype=loading.dtype, tensor_type=kind, facts=facts
                )
            case "adapter":
                written = export_adapter(
                    edit, model, out, load=load, max_rank=max_rank, truncate=truncate, facts=facts
                )
            case "gguf-adapter":
                written = export_gguf_adapter(
                    edit,
                    model,
                    out,
                    load=load,
                    tensor_type=tensor_type or "F32",
                    max_rank=max_rank,
                    truncate=truncate,
                    facts=facts,
                )
    _describe(written, form)
    click.echo(f"Wrote {out}: {model} with {edit.card.n_edits} fact(s) by {edit.card.editor}")


def _check_options(
    form: Form, out: Path, tensor_type: str | None, truncate: bool, loading: ModelLoading
) -> None:
    if form == "gguf-adapter":
        if out.exists():
            raise ConfigError(f"--out: expected a new file, got {str(out)!r}. Choose another name.")
        options.check_out_file(out)
    else:
        options.check_out_folder(out)
    if form == "model" and truncate:
        raise ConfigError("--truncate: a whole model has no rank, got --as model. Leave it out.")
    if form == "adapter" and tensor_type is not None:
        raise ConfigError(
            f"--tensor-type: it is of GGUF files, got {tensor_type} with --as adapter. Leave it "
            "out."
        )
    if form != "model" and loading.dtype != "auto":
        raise ConfigError(
            f"--dtype: an adapter leaves its base as it is, got {loading.dtype} with --as {form}. "
            "Leave it out."
        )


def _describe(written: "Export", form: Form) -> None:
    is_model, errors = form == "model", written.errors.of_each
    line = f"{'Replaced' if is_model else 'Changes'} {written.n_replaced} of {written.n_tensors}"
    line += f" tensors, in {' and '.join(written.dtypes)}" if errors else " tensors"
    if overall := written.errors.overall:
        cause = "rounding" if is_model else "what was cut off"
        line += f": {cause} moves the update by {100 * overall:.2g} % of its norm"
    click.echo(line)
    for name, lost in errors.items() if overall else ():
        click.echo(f"  {name}: {100 * lost:.2g} %")
    if max(errors.values(), default=0.0) > _MUCH_LOST:
        where, remedy = (
            ("in this precision", "Write it in float32 (--dtype, --tensor-type of a GGUF file)")
            if is_model
            else ("at this rank", "Allow more with --max-rank")
        )
        click.echo(
            f"Warning: little of the update is left {where}. {remedy}, or check what the edited "
            "model says.",
            err=True,
        )
    click.echo(f"Served against computed: {written.drift.describe()}")
    if left_out := written.left_out:
        more = f" and {len(left_out) - _N_NAMED} more" if len(left_out) > _N_NAMED else ""
        click.echo(
            "Left out, since they may hold the weights without the edit: "
            f"{', '.join(left_out[:_N_NAMED])}{more}"
        )
