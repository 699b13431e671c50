"""``editbench apply``: an edit onto a model, saved as an ordinary Hugging Face folder."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from editbench.cli import options
from editbench.cli.group import telling_what_is_kept
from editbench.cli.options import ModelLoading, in_file
from editbench.cli.progress import ProgressDisplay
from editbench.plugins.manager import PluginManager

if TYPE_CHECKING:
    from editbench.edits.export import Export
    from editbench.models.editable import EditableModel
    from editbench.models.loading import DTypeName


_EXAMPLES = """\b
Example:
  editbench apply --model gpt2-xl --edit edit.safetensors --out edited-gpt2-xl
"""
_N_NAMED = 5
_MUCH_ROUNDING = 0.5


@click.command(epilog=_EXAMPLES)
@options.model(required=True, help="The model the edit was made for.")
@click.option(
    "--edit",
    "edit_files",
    required=True,
    multiple=True,
    type=in_file,
    metavar="FILE",
    help="An edit file; several are added up. Repeatable.",
)
@options.out(required=True, metavar="DIR", help="A new or empty folder.")
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
    loading: ModelLoading,
) -> None:
    """Save a model with edits on it.

    The edited tensors are replaced, in the precision that the model's files hold; every other
    tensor and file comes through as it is, and the folder loads like the model's own. Of a GGUF
    file the folder holds the dequantized weights. It is loaded
    once and compared before the command is done. An edit fits the model that it was computed for,
    and no other.
    """
    options.check_out_folder(out)
    from editbench.edits.export import export_edit
    from editbench.edits.weight_edit import WeightEdit

    def load(name: str, dtype: "DTypeName") -> "EditableModel":
        # What was written is a folder, and has no revisions.
        revision = loading.revision if name == model else None
        return replace(loading, dtype=dtype, revision=revision).load(name, plugins)

    with telling_what_is_kept(lambda: "Interrupted: no model was written."), ProgressDisplay():
        # Damaged files are found before the model is loaded, which can take long.
        edit = WeightEdit.merge([WeightEdit.load(path) for path in edit_files])
        written = export_edit(edit, model, out, load=load, dtype=loading.dtype)
    _describe(written)
    click.echo(f"Wrote {out}: {model} with {edit.card.n_edits} fact(s) by {edit.card.editor}")


def _describe(written: "Export") -> None:
    replaced = f"Replaced {written.n_replaced} of {written.n_tensors} tensors"
    if written.rounding is not None:
        replaced += (
            f", in {' and '.join(written.dtypes)}: rounding moves the update by "
            f"{100 * written.rounding:.2g} % of its norm"
        )
    click.echo(replaced)
    if written.rounding is not None and written.rounding > _MUCH_ROUNDING:
        click.echo(
            "Warning: little of the update is left in this precision. Write with --dtype float32, "
            "or check what the edited model says.",
            err=True,
        )
    if left_out := written.left_out:
        more = f" and {len(left_out) - _N_NAMED} more" if len(left_out) > _N_NAMED else ""
        click.echo(
            "Left out, since they may hold the weights without the edit: "
            f"{', '.join(left_out[:_N_NAMED])}{more}"
        )
