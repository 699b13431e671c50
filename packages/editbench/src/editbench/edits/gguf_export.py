"""An edit for llama.cpp: a GGUF file with the edited tensors replaced, or a LoRA file."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from editbench.edits.adapter_export import DEFAULT_MAX_RANK, conclude, observe_meant
from editbench.edits.drift import Behavior, measure_drift, observe
from editbench.edits.exported import (
    Computed,
    Export,
    Loader,
    load_for,
    not_as_meant,
    writing_export,
)
from editbench.edits.files import Update
from editbench.edits.low_rank import LowRankUpdates, lower_ranks
from editbench.edits.model_card import BaseDescription, describe_model
from editbench.edits.replacement import cast_total
from editbench.edits.update_errors import UpdateErrors
from editbench.edits.weight_edit import WeightEdit, make_dense, orient_for_module
from editbench.errors import EditError, ModelError
from editbench.files.whole_files import write_whole
from editbench.models.adapters import read_gguf_adapter
from editbench.models.agreement import relative_error
from editbench.models.editable import EditableModel
from editbench.models.gguf_file import GgufFile
from editbench.models.gguf_places import GgufPlace, family_of, find_places, split_order
from editbench.models.gguf_tensors import read_tensor, write_with_replaced
from editbench.models.loading import DTypeName
from editbench.requests import EditRequest
from memit_core import UpdateFactors

TensorType = Literal["F16", "F32"]
_DTYPES = {"F16": torch.float16, "F32": torch.float32}
_REMEDY = "--tensor-type F32"


@dataclass(frozen=True, slots=True)
class GgufExport:
    """Everything that is needed to write a GGUF file with an edit, when the model itself is gone.

    Updates are added to the dequantized weights in float64. All other tensors and all metadata are
    those of the source, byte for byte, and go from file to file piece by piece.
    """

    edit: WeightEdit
    behavior: Behavior
    computed: DTypeName
    base: BaseDescription
    source: GgufFile
    replaced: dict[str, Tensor]
    tensors: dict[str, str]
    meant: dict[str, Tensor]
    errors: UpdateErrors
    tensor_type: TensorType
    facts: Sequence[EditRequest]

    @classmethod
    def plan(
        cls,
        edit: WeightEdit,
        computed: Computed,
        tensor_type: TensorType,
        facts: Sequence[EditRequest],
    ) -> "GgufExport":
        """Find what is to be written.

        Raises:
            EditError: An edited parameter is not one tensor of the file, or a number is too large.
        """
        model, source = computed.model, computed.model.gguf
        assert source is not None
        errors = UpdateErrors()
        replaced: dict[str, Tensor] = {}
        meant: dict[str, Tensor] = {}
        places = _find_places(edit, model, source)
        for name, place in places.items():
            parameter = model.model.get_parameter(name).data
            change = make_dense(orient_for_module(model, name, parameter, edit.updates[name])).cpu()
            before = read_tensor(source, place.tensor)
            total = before.double() + place.to_file(change)
            new = cast_total(total, _DTYPES[tensor_type], name, _REMEDY)
            errors.note_rounding(name, new, total, before)
            replaced[place.tensor] = new
            meant[name] = edit.edited(model, name, parameter).to(parameter.dtype).cpu()
        return cls(
            edit,
            computed.behavior,
            computed.dtype,
            BaseDescription.of(model),
            source,
            replaced,
            {name: place.tensor for name, place in places.items()},
            meant,
            errors,
            tensor_type,
            facts,
        )

    def write(self, path: Path, load: Loader) -> Export:
        """Write the file, whole or not at all, and its model card beside it.

        Before it gets its name gguf's own reader compares it with the source, and it is loaded.

        Raises:
            EditError: The file exists or cannot be written; or it does not load as what was meant.
        """
        dtype = _DTYPES[self.tensor_type]
        with writing_export(path, as_folder=False) as unfinished:
            write_with_replaced(self.source, unfinished, self.replaced)
            _compare_files(self.source, unfinished, self.replaced)
            try:
                written = load(str(unfinished), self.computed)
            except ModelError as error:
                raise not_as_meant(str(error)) from error
            for name, expected in self.meant.items():
                found = written.model.get_parameter(name).cpu()
                stored = self.replaced[self.tensors[name]]  # Gemma's norms are larger by one
                tolerated = 2 * torch.finfo(_coarser(dtype, found.dtype)).eps
                difference = (found.double() - expected.double()).norm()
                if difference > tolerated * stored.double().norm():
                    raise not_as_meant(f"'{name}' has other numbers")
            served = observe(written, self.facts)
            export = Export(
                n_replaced=len(self.replaced),
                n_tensors=len(self.source.tensors),
                dtypes=(str(dtype).removeprefix("torch."),),
                errors=self.errors,
                drift=measure_drift(self.behavior, served, len(self.facts)),
            )
            text = describe_model(self.base, self.edit.card, "gguf", export, self.facts)
            write_whole(card_beside(path), text)
        return export


def export_gguf_adapter(
    edit: WeightEdit,
    name: str,
    path: Path,
    *,
    load: Loader,
    tensor_type: TensorType = "F32",
    max_rank: int = DEFAULT_MAX_RANK,
    truncate: bool = False,
    facts: Sequence[EditRequest] = (),
) -> Export:
    """Write an edit as a LoRA file of llama.cpp, whole or not at all, and its model card beside it.

    It can be put on any GGUF file of the base, however that is quantized. Before it gets its name
    it is read back, put on the base, and compared.

    Args:
        edit: What to write.
        name: The base's name, for `load`: a GGUF file or another form of the model.
        path: A new file; the card is called ``<its stem>.README.md``.
        load: Loads the base.
        tensor_type: How the factors are stored.
        max_rank: The largest rank of an update.
        truncate: Whether an update of a higher rank may be cut to it.
        facts: Facts that both models are asked for.

    Raises:
        EditError: As for `GgufExport` and `export_adapter`.
    """
    with writing_export(path, as_folder=False) as unfinished:
        low = lower_ranks(edit.updates, max_rank, truncate=truncate)
        computed = load_for(edit, name, load, facts)
        model, base = computed.model, BaseDescription.of(computed.model)
        _write_adapter(low, model, _find_places(edit, model, model.gguf), unfinished, tensor_type)
        meant = observe_meant(edit, low, computed, facts)
        with _read_back(edit, low, model, unfinished, tensor_type).applied(model):
            served = observe(model, facts)
        dtype = _DTYPES[tensor_type]
        export = conclude(
            low,
            computed,
            meant,
            served,
            (str(dtype).removeprefix("torch."),),
            len(facts),
            precision=_coarser(dtype, model.model.dtype),
        )
        text = describe_model(base, edit.card, "gguf-adapter", export, facts)
        write_whole(card_beside(path), text)
    return export


def card_beside(path: Path) -> Path:
    """What the model card of a file is called."""
    return path.with_name(f"{path.stem}.README.md")


def _find_places(
    edit: WeightEdit, model: EditableModel, file: GgufFile | None
) -> dict[str, GgufPlace]:
    try:
        return find_places(model.model, edit.updates, file)
    except ModelError as error:
        raise EditError(f"export model: {error}") from error


def _compare_files(source: GgufFile, path: Path, replaced: dict[str, Tensor]) -> None:
    """See with gguf's own reader that a file is the source but for what was replaced.

    It takes seconds for a vocabulary, so the fields are compared as bytes, which they are copies
    of, and only the new file is read by it.
    """
    from gguf import GGUFReader

    with source.path.open("rb") as old_file, path.open("rb") as new_file:
        if old_file.read(source.fields_end) != new_file.read(source.fields_end):
            raise not_as_meant("other metadata")
    found = GGUFReader(path).tensors
    if [each.name for each in found] != list(source.tensors):
        raise not_as_meant("other tensors")
    stored = np.memmap(source.path, mode="r")
    for after in found:
        before = source.tensors[after.name]
        expected = (
            replaced[after.name].numpy().view(np.uint8)
            if after.name in replaced
            else stored[before.begin : before.begin + before.n_bytes]
        )
        if not np.array_equal(expected.reshape(-1), after.data.view(np.uint8).reshape(-1)):
            raise not_as_meant(f"'{after.name}' has other numbers")


def _write_adapter(
    low: LowRankUpdates,
    model: EditableModel,
    places: dict[str, GgufPlace],
    path: Path,
    tensor_type: TensorType,
) -> None:
    from gguf import GGUFWriter

    family = model.gguf.architecture if model.gguf is not None else family_of(model.model)
    alpha = max((factors.rank for factors in low.factors.values()), default=1)
    writer = GGUFWriter(path, family)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(alpha))
    n_bytes = 0
    for name, factors in low.factors.items():
        place, dtype = places[name], _DTYPES[tensor_type]
        rows, columns = split_order(place, model.model, name)
        inner = factors.right.double()[columns].T
        # llama.cpp multiplies by alpha / rank.
        outer = factors.left.double()[rows] * (factors.rank / alpha)
        for part, values in (("lora_a", inner), ("lora_b", outer)):
            cast = cast_total(values, dtype, name, _REMEDY).contiguous()
            writer.add_tensor(f"{place.tensor}.{part}", cast.numpy())
            n_bytes += cast.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if path.stat().st_size < n_bytes:  # numpy says nothing when a disk is full
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read_back(
    edit: WeightEdit,
    low: LowRankUpdates,
    model: EditableModel,
    path: Path,
    tensor_type: TensorType,
) -> WeightEdit:
    """The edit as a LoRA file has it, which has to be what was meant."""
    updates: dict[str, Update] = {}
    try:
        file = GgufFile.read(path, name=str(path))
        updates.update(read_gguf_adapter(file, model.model, str(path)))
    except ModelError as error:
        raise not_as_meant(str(error)) from error
    if updates.keys() != low.factors.keys():
        raise not_as_meant(f"updates of {', '.join(sorted(updates)) or 'nothing'}")
    tolerated = 8 * torch.finfo(_DTYPES[tensor_type]).eps
    for name, update in updates.items():
        expected: UpdateFactors = low.factors[name]
        if relative_error(make_dense(update), make_dense(expected)) > tolerated:
            raise not_as_meant(f"'{name}' is changed by other numbers")
    return WeightEdit(updates, edit.card)


def _coarser(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The dtype that rounds more."""
    return max(one, other, key=lambda dtype: torch.finfo(dtype).eps)
