"""Which tensors of a checkpoint an edit replaces, and by what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from editbench.edits.model_folder import Place, Precision
from editbench.edits.update_errors import UpdateErrors
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import EditError
from editbench.models.editable import EditableModel
from editbench.models.offload import in_memory
from editbench.models.weight_files import StoredTensor


@dataclass(frozen=True, slots=True)
class Replacement:
    """What an edit comes to in a checkpoint.

    Attributes:
        tensors: What to write, by file and name of the tensor that it replaces.
        before: Of each edited parameter what the checkpoint holds, as the module stores it.
        after: The same as it is written.
        dtypes: The precisions that are written.
        errors: What they do to the update.
    """

    tensors: Mapping[Place, Tensor]
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    dtypes: tuple[torch.dtype, ...]
    errors: UpdateErrors


def find_replacement(
    edit: WeightEdit,
    model: EditableModel,
    checkpoint: Mapping[Place, StoredTensor],
    precision: Precision,
) -> Replacement:
    """Work out what an edit changes in the checkpoint that a model was loaded from.

    Updates are added to what the checkpoint holds, in float64, and cast once, whatever precision
    the model was loaded in.

    Raises:
        EditError: The edit is for another model; a parameter cannot be found in the checkpoint; or
            a number is too large for the precision.
    """
    edit.check_fits(model)
    places: dict[str, list[Place]] = {}
    for name in edit.updates:
        places[name] = _find(checkpoint, _names_of(model, name), _in_memory(model, name))
    elsewhere = [name for name, found in places.items() if not found]
    tensors, dtypes = _through_conversion(edit, model, elsewhere, checkpoint, precision)
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    errors = UpdateErrors()
    for name, found in places.items():
        before[name] = checkpoint[found[0]].read() if found else _in_memory(model, name)
        total = edit.edited(model, name, before[name]).cpu()
        dtype = precision.of(name, before[name].dtype) if found else dtypes[name]
        after[name] = cast_total(total, dtype, name)
        errors.note_rounding(name, after[name], total, before[name])
        tensors |= dict.fromkeys(found, after[name])
    return Replacement(
        tensors,
        before,
        after,
        tuple(dict.fromkeys(tensor.dtype for tensor in tensors.values())),
        errors,
    )


def _through_conversion(
    edit: WeightEdit,
    model: EditableModel,
    names: Sequence[str],
    checkpoint: Mapping[Place, StoredTensor],
    precision: Precision,
) -> tuple[dict[Place, Tensor], dict[str, torch.dtype]]:
    """Parameters that the checkpoint holds in other parts: fused, split or turned.

    Transformers knows the way back, of whole blocks: what is fused lies in one block.

    Returns:
        What to write, and for each parameter in which precision.
    """
    tensors: dict[Place, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for layer in range(model.architecture.n_layers):
        block = f"{model.architecture.block(layer)}."
        edited = [name for name in names if name.startswith(block)]
        if not edited:
            continue
        parts = [name for name, _ in model.model.named_parameters() if name.startswith(block)]
        loaded = {name: _in_memory(model, name) for name in parts}
        dtypes |= {name: loaded[name].dtype for name in edited}  # where nothing changes
        doubled = {name: tensor.double() for name, tensor in loaded.items()}
        plain = revert_weight_conversion(model.model, dict(doubled))
        changed = {name: edit.edited(model, name, loaded[name]).cpu() for name in edited}
        for key, total in revert_weight_conversion(model.model, {**doubled, **changed}).items():
            if torch.equal(total, plain[key]):
                continue
            places = _find(checkpoint, [key], plain[key].to(loaded[edited[0]].dtype))
            if not places:
                raise _not_found(edited[0])
            dtype = precision.of(key, checkpoint[places[0]].dtype)
            tensors |= dict.fromkeys(places, cast_total(total, dtype, key))
            dtypes |= dict.fromkeys(edited, dtype)
    if lacking := [name for name in names if name not in dtypes]:
        raise _not_found(lacking[0])
    return tensors, dtypes


def _find(
    checkpoint: Mapping[Place, StoredTensor], names: Sequence[str], loaded: Tensor
) -> list[Place]:
    """Where a parameter comes from: the same bits, and the names most alike at their ends.

    Names in a checkpoint differ from the model's, of which a tied parameter has several.
    """
    same = [
        place
        for place, stored in checkpoint.items()
        if stored.shape == tuple(loaded.shape)
        and stored.dtype.is_floating_point
        and _holds_same_bits(stored.read(), loaded)
    ]
    found: list[Place] = []
    for name in names:
        likeness = {place: _n_common_parts(place[1], name) for place in same}
        best = [place for place in same if likeness[place] == max(likeness.values())]
        if len({key for _, key in best}) > 1:
            raise EditError(
                f"export model: the tensors of '{name}' in the checkpoint cannot be told "
                f"apart, got {', '.join(sorted(key for _, key in best)[:3])} with the same "
                "numbers. Rename the one that belongs to the language model as the model does."
            )
        found += [place for place in best if place not in found]
    return found


def _not_found(name: str) -> EditError:
    return EditError(
        f"export model: no tensor of the checkpoint holds the parameter '{name}' as the model has "
        "it in memory. Load the model from the folder and leave it unchanged; if the class "
        "computes this weight from others, it cannot be saved."
    )


def cast_total(
    total: Tensor,
    dtype: torch.dtype,
    name: str,
    remedy: str = "--dtype float32 or bfloat16",
) -> Tensor:
    """Round an edited parameter to the precision that it is written in; `remedy` is another one.

    Raises:
        EditError: A number is too large for it.
    """
    found = total.to(dtype)
    if not bool(found.isfinite().all()):
        precision = str(dtype).removeprefix("torch.")
        raise EditError(
            f"export model: the edited '{name}' does not fit into {precision}, got "
            f"{float(total.abs().max()):.3g}; expected at most {torch.finfo(dtype).max:.3g}. "
            f"Write it with {remedy}."
        )
    return found


def _in_memory(model: EditableModel, name: str) -> Tensor:
    """A parameter on the CPU, wherever accelerate keeps it."""
    with in_memory(model.model, [name]):
        return model.model.get_parameter(name).detach().cpu()


def _names_of(model: EditableModel, name: str) -> list[str]:
    """All names of a parameter: a tied one has several."""
    parameters = dict(model.model.named_parameters(remove_duplicate=False))
    same = [each for each, parameter in parameters.items() if parameter is parameters[name]]
    # Where offloading has put placeholders, only this says so.
    tied = getattr(model.model, "all_tied_weights_keys", None) or {}
    pairs = [pair for pair in tied.items() if name in pair]
    return list(dict.fromkeys([name, *same, *(each for pair in pairs for each in pair)]))


def _holds_same_bits(stored: Tensor, loaded: Tensor) -> bool:
    """Whether a tensor of a file is what was loaded, apart from the precision."""

    def bits(tensor: Tensor, part: slice) -> Tensor:
        return tensor.reshape(-1)[part].to(loaded.dtype).contiguous().view(torch.uint8)

    # The beginning tells almost all apart, and the rest of the file is not read.
    parts = (slice(64), slice(None))
    return all(torch.equal(bits(stored, part), bits(loaded, part)) for part in parts)


def _n_common_parts(one: str, other: str) -> int:
    """How many parts of two dotted names agree, from the end."""
    pairs = zip(reversed(one.split(".")), reversed(other.split(".")), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
