"""What all forms of an exported model have in common: its base, its place, what is said of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError

from editbench.edits.drift import Behavior, Drift, observe
from editbench.edits.update_errors import UpdateErrors
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import EditError
from editbench.files.whole_files import writing_whole, writing_whole_folder
from editbench.models.editable import EditableModel
from editbench.models.loading import DTypeName
from editbench.requests import EditRequest

Loader = Callable[[str, DTypeName], EditableModel]
"""Loads a model, by name or folder, in a precision."""

# In the order in which they are tried where an edit does not say in which it was computed.
DTYPES: tuple[DTypeName, ...] = ("float32", "auto", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Export:
    """What was written.

    Attributes:
        n_replaced: Tensors that were replaced, or that an adapter changes.
        n_tensors: Tensors of the model in all.
        dtypes: Precisions of those that were written.
        errors: What is lost of the update, by rounding to these precisions or by a bound on ranks.
        drift: How far what was written is from what was computed.
        left_out: Files of the source that may hold the unedited weights in another form.
    """

    n_replaced: int
    n_tensors: int
    dtypes: tuple[str, ...]
    errors: UpdateErrors
    drift: Drift
    left_out: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Computed:
    """The model that an edit is for, and what it says with the edit on it.

    Attributes:
        model: The model, without the edit.
        dtype: In which it was loaded.
        behavior: What it says with the edit.
    """

    model: EditableModel
    dtype: DTypeName
    behavior: Behavior


def load_for(
    edit: WeightEdit, name: str, load: Loader, facts: Sequence[EditRequest] = ()
) -> Computed:
    """Load the model that an edit was computed for, in the precision of that time.

    Raises:
        EditError: It is another model.
    """
    stated = edit.card.model_dtype
    problem: EditError | None = None
    for dtype in [each for each in DTYPES if each == stated] or DTYPES:
        model = load(name, dtype)
        try:
            edit.check_fits(model)
        except EditError as error:
            problem = problem or error
            del model
        else:
            with edit.applied(model):
                return Computed(model, dtype, observe(model, facts))
    assert problem is not None
    raise problem


def not_as_meant(problem: str) -> EditError:
    """What is raised where what was written is not what was meant."""
    return EditError(
        f"export model: what was written does not load as what was meant, got: {problem}. Nothing "
        "was kept. Load the source from a folder of its own, and leave it unchanged meanwhile."
    )


@contextmanager
def writing_export(out: Path, *, as_folder: bool = True) -> Iterator[Path]:
    """Write a folder or a file under another name, and give it its own when it is whole.

    Raises:
        EditError: Something is there already; or it cannot be written.
    """
    if out.exists() and not (as_folder and out.is_dir() and not any(out.iterdir())):
        expected = "the folder must be new or empty" if as_folder else "the file must be new"
        raise EditError(f"export model: {expected}, got {str(out)!r}. Choose another one.")
    try:
        with writing_whole_folder(out) if as_folder else writing_whole(out) as unfinished:
            yield unfinished
    except (OSError, SafetensorError) as error:
        raise EditError(
            f"export model: cannot write the {'folder' if as_folder else 'file'}, got "
            f"{str(out)!r} ({error}). Choose a place that is writable and has space left."
        ) from error
