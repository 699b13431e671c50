"""An edit as an adapter for peft: small, and put on its base when that is loaded."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from editbench.edits.drift import Behavior, measure_drift, observe
from editbench.edits.exported import (
    Computed,
    Export,
    Loader,
    load_for,
    not_as_meant,
    writing_export,
)
from editbench.edits.low_rank import LowRankUpdates, lower_ranks
from editbench.edits.model_card import BaseDescription, describe_model
from editbench.edits.weight_edit import WeightEdit, make_dense
from editbench.errors import EditError, ModelError
from editbench.files.whole_files import write_whole
from editbench.models.adapters import (
    ADAPTER_WEIGHTS,
    BASE_FINGERPRINT,
    load_peft,
    require_peft,
)
from editbench.models.agreement import agree, relative_error
from editbench.models.architecture import weight_is_transposed
from editbench.models.editable import EditableModel
from editbench.models.folder import ADAPTER_CONFIG
from editbench.requests import EditRequest
from memit_core import UpdateFactors

DEFAULT_MAX_RANK = 256
_SAME = 1e-5  # relative, of products of float32


def export_adapter(
    edit: WeightEdit,
    name: str,
    folder: Path,
    *,
    load: Loader,
    max_rank: int = DEFAULT_MAX_RANK,
    truncate: bool = False,
    facts: Sequence[EditRequest] = (),
) -> Export:
    """Write an edit as a PEFT folder, whole or not at all.

    Before it gets its name peft puts it on the base, and what that says then is compared with what
    the edited model says.

    Args:
        edit: What to write.
        name: The base's name, for `load`.
        folder: A folder that is new or empty.
        load: Loads the base.
        max_rank: The largest rank of an update.
        truncate: Whether an update of a higher rank may be cut to it.
        facts: Facts that both models are asked for.

    Raises:
        EditError: The edit is not for this base, changes what an adapter cannot change, or is of
            too high a rank; the folder holds something or cannot be written; or the base says
            something else with the adapter than with the edit.
        ModelError: peft is not installed.
    """
    require_peft("adapter")
    with writing_export(folder) as unfinished:
        low = lower_ranks(edit.updates, max_rank, truncate=truncate)
        computed = load_for(edit, name, load, facts)
        base = BaseDescription.of(computed.model)
        _write(low.factors, computed.model, base, unfinished)
        meant = observe_meant(edit, low, computed, facts)
        served = _read_back(low.factors, computed.model, unfinished, facts)
        written = conclude(low, computed, meant, served, ("float32",), len(facts))
        card = describe_model(base, edit.card, "adapter", written, facts)
        write_whole(unfinished / "README.md", card)
    return written


def observe_meant(
    edit: WeightEdit, low: LowRankUpdates, computed: Computed, facts: Sequence[EditRequest]
) -> Behavior:
    """What the model says with the edit as the adapter has it: less what was cut off."""
    if not low.errors.overall:
        return computed.behavior
    with WeightEdit(low.factors, edit.card).applied(computed.model):
        return observe(computed.model, facts)


def conclude(
    low: LowRankUpdates,
    computed: Computed,
    meant: Behavior,
    served: Behavior,
    dtypes: tuple[str, ...],
    n_facts: int,
    *,
    precision: torch.dtype | None = None,
) -> Export:
    """Say what was written, if it says what was meant.

    Args:
        low: What is in the adapter.
        computed: The base, and what it says with the whole edit.
        meant: What it says with what is in the adapter.
        served: What it says with the adapter.
        dtypes: Precisions of the adapter's tensors.
        n_facts: How many facts it was asked for.
        precision: The adapter's, where that is lower than the base's.

    Raises:
        EditError: `served` is not `meant`.
    """
    network = computed.model.model
    if not agree(served.logits, meant.logits, precision or network.dtype):
        error = relative_error(served.logits, meant.logits)
        raise not_as_meant(f"logits that are off by {error:.2g} of their size")
    return Export(
        n_replaced=len(low.factors),
        n_tensors=sum(1 for _ in network.parameters()),
        dtypes=dtypes,
        errors=low.errors,
        drift=measure_drift(computed.behavior, served, n_facts),
    )


def _write(
    factors: Mapping[str, UpdateFactors], model: EditableModel, base: BaseDescription, folder: Path
) -> None:
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    turned = []
    for name, update in factors.items():
        path, _, kind = name.rpartition(".")
        if kind != "weight":
            raise EditError(
                f"adapter: it changes weights of linear maps alone, got '{name}'. Write the whole "
                "model: --as model."
            )
        turned.append(weight_is_transposed(model.model.get_submodule(path)))
        ranks[path] = update.rank
        tensors[f"base_model.model.{path}.lora_A.weight"] = update.right.T.contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = update.left.contiguous()
    rank = max(ranks.values(), default=1)
    others = {path: each for path, each in ranks.items() if each != rank}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # so that the scale is 1
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "fan_in_fan_out": any(turned),
        "lora_dropout": 0.0,
        "bias": "none",
    }
    write_whole(folder / ADAPTER_CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    said = {
        "format": "pt",
        BASE_FINGERPRINT: model.fingerprint,
        f"{BASE_FINGERPRINT}.dtype": str(model.model.dtype).removeprefix("torch."),
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata=said)


def _read_back(
    factors: Mapping[str, UpdateFactors],
    model: EditableModel,
    folder: Path,
    facts: Sequence[EditRequest],
) -> Behavior:
    """Let peft put the adapter on the model; it has to be what was meant. The model is spent."""
    network = model.model
    try:
        load_peft(network, folder, model.name)  # modules are put into the network itself
    except ModelError as error:
        raise not_as_meant(str(error)) from error
    for name, update in factors.items():
        module = network.get_submodule(name.rpartition(".")[0])
        found = module.get_delta_weight("default")
        expected = make_dense(update).float()
        if weight_is_transposed(module.get_base_layer()):
            expected = expected.T
        if relative_error(found.cpu(), expected.cpu()) > _SAME:
            raise not_as_meant(f"'{name}' is changed by other numbers")
    return observe(model, facts)
