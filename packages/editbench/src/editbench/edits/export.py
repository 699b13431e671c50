"""An edited model as a model of the same form: the source, but for what the edit changes."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from editbench.edits.drift import Behavior, measure_drift, observe
from editbench.edits.exported import (
    DTYPES,
    Computed,
    Export,
    Loader,
    load_for,
    not_as_meant,
    writing_export,
)
from editbench.edits.gguf_export import GgufExport, TensorType
from editbench.edits.model_card import BaseDescription, describe_model
from editbench.edits.model_folder import ModelFolder, Precision
from editbench.edits.replacement import Replacement, find_replacement
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import EditError, ModelError
from editbench.files.whole_files import write_whole
from editbench.models.editable import EditableModel
from editbench.models.gguf import read_gguf_tokenizer
from editbench.models.loading import DTypeName, load_model
from editbench.models.offload import in_memory
from editbench.models.quiet import quiet_transformers
from editbench.requests import EditRequest


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

    with writing_export(folder) as unfinished:
        known = [each for each in DTYPES if each == edit.card.model_dtype]
        with edit.applied(model):
            behavior = observe(model)
        computed = Computed(model, known[0] if known and model.source else "auto", behavior)
        return _Writer.plan(edit, computed, unfinished, dtype, tokenizer).write(unfinished, load)


def export_edit(
    edit: WeightEdit,
    name: str,
    out: Path,
    *,
    load: Loader,
    dtype: DTypeName = "auto",
    tensor_type: TensorType = "F16",
    facts: Sequence[EditRequest] = (),
) -> Export:
    """`export_model` of a model that is not loaded yet: never is more than one in memory.

    The model is loaded in the precision in which the edit was computed, to know that it is the one.
    Of a GGUF file it is a GGUF file that is written, see `GgufExport`.

    Args:
        edit: What to put on the model.
        name: The model's name, for `load`.
        out: A folder that is new or empty; a new file where the model is a GGUF file.
        load: Loads the model, and later what was written.
        dtype: Precision of the whole edited model; ``auto`` keeps the source's.
        tensor_type: How a GGUF file holds the edited tensors.
        facts: Facts that both models are asked for.

    Raises:
        EditError: As for `export_model`.
    """
    computed = load_for(edit, name, load, facts)
    if computed.model.gguf is not None and not computed.model.adapters:
        gguf_export = GgufExport.plan(edit, computed, tensor_type, facts)
        del computed
        return gguf_export.write(out, load)
    with writing_export(out) as unfinished:
        spec = computed.model.spec
        tokenizer = None if spec is None or spec.load is None else spec.load()[1]
        writer = _Writer.plan(edit, computed, unfinished, dtype, tokenizer, facts)
        del computed
        return writer.write(unfinished, load)


@dataclass(frozen=True, slots=True)
class _Writer:
    """Everything that is needed to write an edited model, when the model itself is gone."""

    edit: WeightEdit
    behavior: Behavior
    computed: DTypeName  # in which the source has the edit's fingerprint
    base: BaseDescription
    source: ModelFolder
    replacement: Replacement
    precision: Precision
    dtype: DTypeName
    facts: Sequence[EditRequest]

    @classmethod
    def plan(
        cls,
        edit: WeightEdit,
        computed: Computed,
        folder: Path,
        dtype: DTypeName,
        tokenizer: PreTrainedTokenizerBase | None,
        facts: Sequence[EditRequest] = (),
    ) -> "_Writer":
        """Find what is to be written; a model that no folder holds is saved in `folder` first."""
        model = computed.model
        held = None if model.adapters else model.source
        if held is None:
            tokenizer = tokenizer or _read_tokenizer(model)
            if tokenizer is None:
                raise EditError(
                    f"export model: '{model.name}' was made in memory, got no tokenizer. Give the "
                    "model's tokenizer as it was loaded."
                )
            with quiet_transformers(), _ready_to_save(model.model):
                model.model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
        source = ModelFolder.read(held or folder)
        wanted = None if dtype == "auto" else getattr(torch, dtype)
        network = model.model
        kept = [*(network._keep_in_fp32_modules_strict or ())]
        if wanted == torch.float16:
            kept += network._keep_in_fp32_modules or ()
        precision = Precision(wanted, kept)
        replacement = find_replacement(edit, model, source.tensors, precision)
        return cls(
            edit,
            computed.behavior,
            computed.dtype,
            BaseDescription.of(model),
            source,
            replacement,
            precision,
            dtype,
            facts,
        )

    def write(self, folder: Path, load: Loader) -> Export:
        """Write the folder, and load it once to see that it is what was meant."""
        fingerprint, computed = self.edit.card.model_fingerprint, self.computed
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
                raise not_as_meant(str(error)) from error
        served = observe(written, self.facts)
        self._compare(written, fingerprint)
        export = Export(
            n_replaced=len(self.replacement.tensors),
            n_tensors=len(self.source.tensors),
            dtypes=tuple(str(dtype).removeprefix("torch.") for dtype in self.replacement.dtypes),
            errors=self.replacement.errors,
            drift=measure_drift(self.behavior, served, len(self.facts)),
            left_out=self.source.left_out,
        )
        card = describe_model(self.base, self.edit.card, "model", export, self.facts)
        write_whole(folder / "README.md", card)
        return export

    def _compare(self, written: EditableModel, fingerprint: str) -> None:
        """Check that a model is the source but for what was replaced."""
        network = written.model
        with in_memory(network, self.replacement.after):
            for name, after in self.replacement.after.items():
                parameter = network.get_parameter(name)
                if not torch.equal(parameter.cpu(), after.to(parameter.dtype)):
                    raise not_as_meant(f"'{name}' has other numbers")
                parameter.data.copy_(self.replacement.before[name])
            if written.compute_fingerprint() != fingerprint:
                raise not_as_meant("something besides the edited weights has changed")


def _read_tokenizer(model: EditableModel) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model as its folder or file has it; None if nothing was read from one."""
    if model.gguf is not None:
        return read_gguf_tokenizer(model.gguf)
    if model.source is None:
        return None
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model.source)
    return found


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
