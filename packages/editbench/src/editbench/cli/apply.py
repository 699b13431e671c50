"""``editbench apply``: an edit onto a model, saved as an ordinary Hugging Face folder."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from editbench.cli.group import telling_what_is_kept
from editbench.cli.options import ModelLoading, in_file, loading_options, out_path
from editbench.errors import ConfigError
from editbench.plugins.manager import PluginManager

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from editbench.models.editable import EditableModel


_EXAMPLES = """\b
Example:
  editbench apply --model gpt2-xl --edit edit.safetensors --out edited-gpt2-xl
"""


@click.command(epilog=_EXAMPLES)
@click.option("--model", required=True, metavar="NAME", help="The model the edit was made for.")
@click.option(
    "--edit",
    "edit_files",
    required=True,
    multiple=True,
    type=in_file,
    metavar="FILE",
    help="An edit file; several are added up. Repeatable.",
)
@click.option("--out", required=True, type=out_path, metavar="DIR", help="A new or empty folder.")
@loading_options
@click.pass_obj
def apply(
    plugins: PluginManager,
    model: str,
    edit_files: tuple[Path, ...],
    out: Path,
    loading: ModelLoading,
) -> None:
    """Save a model with edits on it.

    The tokenizer comes along, and the folder loads like any other:
    AutoModelForCausalLM.from_pretrained(DIR). An edit fits the model that it was computed for,
    loaded with the same --dtype, and no other.
    """
    _check_output_folder(out)
    from editbench.edits.export import export_model
    from editbench.edits.weight_edit import WeightEdit

    with telling_what_is_kept(lambda: "Interrupted: no model was written."):
        # Damaged files are found before the model is loaded, which can take long.
        edit = WeightEdit.merge([WeightEdit.load(path) for path in edit_files])
        editable = loading.load(model, plugins)
        export_model(edit, editable, out, tokenizer=_load_tokenizer(editable))
    click.echo(f"Wrote {out}: {model} with {edit.card.n_edits} fact(s) by {edit.card.editor}")


def _check_output_folder(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(
            f"--out: expected a new or empty folder, got {str(path)!r}. Choose another name."
        )
    if not path.parent.is_dir():
        raise ConfigError(
            f"--out: there is no such folder, got {str(path.parent)!r}. Make it first."
        )


def _load_tokenizer(model: "EditableModel") -> "PreTrainedTokenizerBase":
    """The tokenizer with all its settings: an `EditableModel` keeps only what editing needs."""
    from transformers import AutoTokenizer

    if model.spec is not None and model.spec.load is not None:
        return model.spec.load()[1]
    return AutoTokenizer.from_pretrained(model.model.name_or_path, local_files_only=True)
