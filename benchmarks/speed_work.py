"""The work that the speed benchmarks share: a model, facts, context prefixes, hyperparameters.

A work folder holds `model/` (a configuration and a tokenizer; weights are made with a seed),
`requests.json`, `context_templates.json` and `hparams.json`.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.memit import MemitConfig
from editbench.editors.subject_tokens import target_row
from editbench.edits.edit import Edit
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest
from editbench.second_moments.moment_files import save_second_moments
from memit_core import SecondMoment

DEFAULT_WORK = Path("../shared/reference/speed")


@dataclass(frozen=True)
class SpeedWork:
    """What a work folder holds.

    Attributes:
        model: The model, with random weights.
        requests: The facts.
        prefixes: Context prefixes, the bare prompt first.
        config: The reference's hyperparameters, in our names.
    """

    model: EditableModel
    requests: list[EditRequest]
    prefixes: ContextPrefixes
    config: MemitConfig

    @classmethod
    def read(cls, folder: Path) -> "SpeedWork":
        """Make the model and read the rest."""
        groups = json.loads((folder / "context_templates.json").read_text())
        used = json.loads((folder / "hparams.json").read_text())
        return cls(
            make_model(folder / "model"),
            read_requests(folder / "requests.json"),
            ContextPrefixes(tuple(tuple(t.removesuffix("{}") for t in group) for group in groups)),
            MemitConfig(
                critical_layers=used["layers"],
                preservation_weight=used["mom2_update_weight"],
                n_steps=used["v_num_grad_steps"],
                learning_rate=used["v_lr"],
                clamp_factor=used["clamp_norm_factor"],
                offset_decay=used["v_weight_decay"],
                kl_weight=used["kl_factor"],
            ),
        )

    def shortened(self, n_steps: int | None) -> "SpeedWork":
        """The same with fewer steps of z, to try a benchmark out; None leaves them."""
        if n_steps is None:
            return self
        return replace(self, config=self.config.updated({"n_steps": n_steps}, "benchmark"))

    def more_requests(self, n: int) -> list[EditRequest]:
        """`n` facts: the subjects of the work's, with the relations and targets of each other."""
        own = self.requests
        return [
            EditRequest(
                str(index),
                own[index % len(own)].subject,
                own[(index + index // len(own)) % len(own)].prompt,
                own[(index + index // len(own)) % len(own)].target,
            )
            for index in range(n)
        ]


def choose_typical(work: SpeedWork, requests: Sequence[EditRequest], n: int) -> list[int]:
    """`n` of the requests whose mean is that of all, as far as that depends on lengths.

    Sorted by their longest rows and cut into as many parts, each gives the one in its middle.
    """

    def length(index: int) -> int:
        rows = (
            target_row(work.model.tokens, requests[index], prefix) for prefix in work.prefixes.flat
        )
        return max(len(row.token_ids) for row in rows)

    n = min(n, len(requests))
    order = sorted(range(len(requests)), key=length)
    return sorted(order[(2 * part + 1) * len(order) // (2 * n)] for part in range(n))


@functools.cache
def make_model(folder: Path) -> EditableModel:
    """A model with random float32 weights from a configuration, and its tokenizer; made once."""
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).float()
    return EditableModel(network, AutoTokenizer.from_pretrained(folder), name="speed")


def read_requests(path: Path) -> list[EditRequest]:
    """Facts in CounterFact's form."""
    return [
        EditRequest(
            str(record["case_id"]), asked["subject"], asked["prompt"], asked["target_new"]["str"]
        )
        for record in json.loads(path.read_text())
        for asked in [record["requested_rewrite"]]
    ]


def random_moments(model: EditableModel, layers: tuple[int, ...]) -> dict[int, Tensor]:
    """E[k kᵀ] of random keys, the same for all layers: a solve takes as long, whatever it is."""
    (d_key,) = {model.d_key(layer) for layer in layers}
    chance = torch.Generator().manual_seed(0)
    keys = torch.randn(2 * d_key, d_key, generator=chance, dtype=torch.float64)
    return dict.fromkeys(layers, keys.mT @ keys / len(keys))


def write_moments(path: Path, model: EditableModel, moments: dict[int, Tensor]) -> None:
    """Write second moments to a file that editors read."""
    kept = {
        layer: SecondMoment.from_moment(moment, n_tokens=None) for layer, moment in moments.items()
    }
    save_second_moments(path, kept, {"model_fingerprint": model.fingerprint})


def compare_updates(model: EditableModel, updates: Mapping[int, Tensor], edit: Edit) -> float:
    """The worst relative difference between a layer's update and what an edit does to it."""
    worst = 0.0
    for layer, expected in updates.items():
        name = model.architecture.weight_name(model.architecture.projection(layer, "mlp"))
        weight = model.model.get_parameter(name)
        before = weight.detach().clone()
        with edit.applied(model):
            found = (weight - before).double()
        worst = max(worst, float((found - expected).norm() / expected.norm()))
    return worst
