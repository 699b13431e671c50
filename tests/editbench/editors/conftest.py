"""The golden models of the reference implementation, with its inputs in our formats."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from editbench.editors.base import Resources
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.memit import MemitConfig
from editbench.models.editable import EditableModel
from editbench.models.loading import load_model
from editbench.requests import EditRequest
from editbench.second_moments.moment_files import save_second_moments
from memit_core import SecondMoment


@dataclass
class Golden:
    """What went into one run of the reference, and what came out."""

    folder: Path
    model: EditableModel
    requests: list[EditRequest]
    prefixes: ContextPrefixes
    config: MemitConfig
    second_moments: Path
    memit: dict[str, torch.Tensor]
    losses: list[dict[str, Any]]

    @property
    def resources(self) -> Resources:
        return Resources(seed=0, second_moments=self.second_moments, context_prefixes=self.prefixes)


@pytest.fixture(scope="session", params=["gpt2", "gptj"])
def golden(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Golden:
    folder = shared / "reference" / "golden" / request.param
    model = load_model(str(folder / "model"), specs={})
    records = json.loads((folder / "requests.json").read_text())
    templates = json.loads((folder / "context_templates.json").read_text())
    used = json.loads((folder / "hparams.json").read_text())["memit"]
    stored = load_file(folder / "covariance.safetensors")
    moments = tmp_path_factory.mktemp(request.param) / "moments.safetensors"
    write_moments(stored, used["layers"], moments)
    return Golden(
        folder=folder,
        model=model,
        requests=[
            EditRequest(
                str(record["case_id"]),
                record["requested_rewrite"]["subject"],
                record["requested_rewrite"]["prompt"],
                record["requested_rewrite"]["target_new"]["str"],
                record["requested_rewrite"]["relation_id"],
            )
            for record in records
        ],
        prefixes=ContextPrefixes(
            tuple(tuple(text.removesuffix("{}") for text in group) for group in templates)
        ),
        config=MemitConfig(
            critical_layers=used["layers"],
            preservation_weight=used["mom2_update_weight"],
            n_steps=used["v_num_grad_steps"],
            learning_rate=used["v_lr"],
            clamp_factor=used["clamp_norm_factor"],
            offset_decay=used["v_weight_decay"],
            kl_weight=used["kl_factor"],
            loss_layer=used["v_loss_layer"],
        ),
        second_moments=moments,
        memit=load_file(folder / "memit.safetensors"),
        losses=json.loads((folder / "memit_losses.json").read_text()),
    )


def write_moments(stored: dict[str, torch.Tensor], layers: list[int], path: Path) -> None:
    """Write the reference's second moments in our format."""
    moments = {
        layer: SecondMoment.from_moment(
            stored[f"layer.{layer}.moment"], n_tokens=int(stored[f"layer.{layer}.count"])
        )
        for layer in layers
    }
    save_second_moments(path, moments, {"corpus": "golden"})


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of `expected`."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
