"""An edited model as an ordinary Hugging Face folder: the source, but for what the edit changes."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editbench.edits.model_folder import ModelFolder, Precision
from editbench.edits.replacement import Replacement, find_replacement
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import EditError, ModelError
from editbench.files.whole_files import writing_whole_folder
from editbench.models.editable import EditableModel
from editbench.models.gguf import read_gguf_tokenizer
from editbench.models.loading import DTypeName, load_model
from editbench.models.offload import in_memory
from editbench.models.quiet import quiet_transformers

Loader = Callable[[str, DTypeName], EditableModel]
"""Loads a model, by name or folder, in a precision."""

# In the order in which they are tried where an edit does not say in which it was computed.
_DTYPES: tuple[DTypeName, ...] = ("float32", "auto", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Export:
    """What was written.

    Attributes:
        n_replaced: Tensors that were replaced.
        n_tensors: Tensors in all.
        dtypes: Precisions of those that were replaced.
        rounding: ‖round(W + Δ) − W − Δ‖ / ‖Δ‖, what their precision does to the update; None if
            there is no update.
        left_out: Files of the source that may hold the unedited weights in another form.
    """

    n_replaced: int
    n_tensors: int
    dtypes: tuple[str, ...]
    rounding: float | None
    left_out: tuple[str, ...]


def export_model(
    edit: WeightEdit,
    model: EditableModel,
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: DTypeName = "auto",
) -> Export:
    """Save `model` with `edit` on it, whole or not at all; `model` itself stays as it is.

    Of a model that was read from a folder every file comes through as it is, and every tensor but
    the edited ones, which keep name and precision. A model that was made in memory, or read from a
    GGUF file, is saved as transformers does it. The folder loads with
    ``AutoModelForCausalLM.from_pretrained``, without editbench. Before it gets its name it is
    loaded, on the CPU, and compared with what was meant.

    Args:
        edit: What to put on the model.
        model: The model that the edit was computed for.
        folder: A folder that is new or empty.
        tokenizer: Of a model that was made in memory: its tokenizer.
        dtype: Precision of the whole edited model; ``auto`` keeps the source's.

    Raises:
        EditError: The edit is not for this model; the folder holds something; it cannot be written;
            or it does not load as what was meant.
    """

    def load(name: str, dtype: DTypeName) -> EditableModel:
        trusted = model.model.is_custom_code()
        return load_model(name, specs={}, dtype=dtype, device="cpu", trust_remote_code=trusted)

    with _writing(folder) as unfinished:
        edit.check_fits(model)
        writer = _Writer.plan(edit, model, unfinished, dtype, tokenizer)
        computed = edit.card.model_dtype
        is_known = model.source is not None and computed in _DTYPES
        return writer.write(unfinished, load, computed if is_known else "auto")  # type: ignore[arg-type]


def export_edit(
    edit: WeightEdit, name: str, folder: Path, *, load: Loader, dtype: DTypeName = "auto"
) -> Export:
    """`export_model` of a model that is not loaded yet: never is more than one in memory.

    The model is loaded in the precision in which the edit was computed, to know that it is the one.

    Args:
        edit: What to put on the model.
        name: The model's name, for `load`.
        folder: A folder that is new or empty.
        load: Loads the model, and later what was written.
        dtype: Precision of the whole edited model; ``auto`` keeps the source's.

    Raises:
        EditError: As for `export_model`.
    """
    with _writing(folder) as unfinished:
        model, computed = _load_for(edit, name, load)
        spec = model.spec
        tokenizer = None if spec is None or spec.load is None else spec.load()[1]
        writer = _Writer.plan(edit, model, unfinished, dtype, tokenizer)
        del model
        return writer.write(unfinished, load, computed)


def _load_for(edit: WeightEdit, name: str, load: Loader) -> tuple[EditableModel, DTypeName]:
    """Load the model that an edit was computed for, in the precision of that time."""
    stated = edit.card.model_dtype
    problem: EditError | None = None
    for dtype in [each for each in _DTYPES if each == stated] or _DTYPES:
        model = load(name, dtype)
        try:
            edit.check_fits(model)
        except EditError as error:
            problem = problem or error
            del model
        else:
            return model, dtype
    assert problem is not None
    raise problem


@dataclass(frozen=True, slots=True)
class _Writer:
    """Everything that is needed to write an edited model, when the model itself is gone."""

    source: ModelFolder
    replacement: Replacement
    precision: Precision
    dtype: DTypeName
    fingerprint: str

    @classmethod
    def plan(
        cls,
        edit: WeightEdit,
        model: EditableModel,
        folder: Path,
        dtype: DTypeName,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> "_Writer":
        """Find what is to be written; a model that no folder holds is saved in `folder` first."""
        if model.source is None:
            if model.gguf is not None:
                tokenizer = read_gguf_tokenizer(model.gguf)
            if tokenizer is None:
                raise EditError(
                    f"export model: '{model.name}' was made in memory, got no tokenizer. Give the "
                    "model's tokenizer as it was loaded."
                )
            with quiet_transformers(), _ready_to_save(model.model):
                model.model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
        source = ModelFolder.read(model.source or folder)
        wanted = None if dtype == "auto" else getattr(torch, dtype)
        network = model.model
        kept = [*(network._keep_in_fp32_modules_strict or ())]
        if wanted == torch.float16:
            kept += network._keep_in_fp32_modules or ()
        precision = Precision(wanted, kept)
        replacement = find_replacement(edit, model, source.tensors, precision)
        return cls(source, replacement, precision, dtype, edit.card.model_fingerprint)

    def write(self, folder: Path, load: Loader, computed: DTypeName) -> Export:
        """Write the folder, and load it once to see that it is what was meant.

        The source has the edit's fingerprint where it is loaded in the precision `computed`.
        """
        fingerprint = self.fingerprint
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a load says was said already
            if self.dtype != computed and self.source.is_changed_by(self.precision):
                # In a lower precision than the edit's the source is another model.
                computed = self.dtype
                fingerprint = load(str(self.source.path), self.dtype).fingerprint
            self.source.write(folder, self.replacement.tensors, self.precision)
            try:
                written = load(str(folder), computed)
            except ModelError as error:
                raise _not_as_meant(str(error)) from error
        self._compare(written, fingerprint)
        return Export(
            n_replaced=len(self.replacement.tensors),
            n_tensors=len(self.source.tensors),
            dtypes=tuple(str(dtype).removeprefix("torch.") for dtype in self.replacement.dtypes),
            rounding=self.replacement.rounding,
            left_out=self.source.left_out,
        )

    def _compare(self, written: EditableModel, fingerprint: str) -> None:
        """Check that a model is the source but for what was replaced."""
        network = written.model
        with in_memory(network, self.replacement.after):
            for name, after in self.replacement.after.items():
                parameter = network.get_parameter(name)
                if not torch.equal(parameter.cpu(), after.to(parameter.dtype)):
                    raise _not_as_meant(f"'{name}' has other numbers")
                parameter.data.copy_(self.replacement.before[name])
            if written.compute_fingerprint() != fingerprint:
                raise _not_as_meant("something besides the edited weights has changed")


def _not_as_meant(problem: str) -> EditError:
    return EditError(
        f"export model: what was written does not load as what was meant, got: {problem}. Nothing "
        "was kept. Load the source from a folder of its own, and leave it unchanged meanwhile."
    )


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """Write a folder under another name, and give it its own when it is whole."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EditError(
            f"export model: the folder must be new or empty, got {str(folder)!r}. "
            "Choose another one."
        )
    try:
        with writing_whole_folder(folder) as unfinished:
            yield unfinished
    except (OSError, SafetensorError) as error:
        raise EditError(
            f"export model: cannot write the folder, got {str(folder)!r} ({error}). "
            "Choose a place that is writable and has space left."
        ) from error


@contextmanager
def _ready_to_save(network: PreTrainedModel) -> Iterator[None]:
    """Let transformers save what accelerate has offloaded."""
    if not any(parameter.is_meta for parameter in network.parameters()):
        yield
        return
    # It looks into this map, which is there only if it has placed the model by itself.
    placed_elsewhere = not hasattr(network, "hf_device_map")
    if placed_elsewhere:
        vars(network)["hf_device_map"] = {"": "cpu"}
    try:
        # Of offloaded weights, it does not see that they are tied.
        with in_memory(network, network.all_tied_weights_keys):
            yield
    finally:
        if placed_elsewhere:
            del vars(network)["hf_device_map"]
