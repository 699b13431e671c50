"""Training on kept states against training on whole forwards, on every family of architectures."""

import pytest
import torch

from editbench.editors.borrowed_weights import borrowed_weights
from editbench.editors.training.batches import cut_requests
from editbench.editors.training.target_likelihood import (
    Scoring,
    TargetBatch,
    keep_states,
)
from editbench.models.editable import EditableModel
from editbench.models.memory_budget import MemoryBudget
from editbench.requests import EditRequest
from memit_core import capture

LAYER = 1
REQUESTS = [
    EditRequest("0", "Zoë Brandt", "{} plays the sport of", "tennis"),
    EditRequest("1", "Danielle Darrieux", "The mother tongue of {} is", "French, not Spanish"),
    EditRequest("2", "北京", "{} is the capital of", "Spain"),
]


def trained_names(model: EditableModel, *, only_projection: bool, layer: int) -> list[str]:
    path = model.architecture.block(layer)
    if only_projection:
        path = model.architecture.mlp_projections[layer]
    module = model.model.get_submodule(path)
    return [f"{path}.{name}" for name, _ in module.named_parameters()]


@pytest.mark.parametrize(
    ("scoring", "only_projection", "layer"),
    [
        ("teacher-forced", True, LAYER),
        ("last-position", False, LAYER),
        ("last-position", True, 3),
        ("teacher-forced", False, 3),
    ],
)
def test_losses_and_gradients_are_those_of_whole_forwards(
    family_model: EditableModel, scoring: Scoring, only_projection: bool, layer: int
) -> None:
    """Before training, and after all trained weights have moved."""
    model = family_model
    whole = [TargetBatch(model, some, scoring) for some in cut_requests(REQUESTS, 2)]
    kept = [TargetBatch(model, some, scoring) for some in cut_requests(REQUESTS, 2)]
    keep_states(model, kept, REQUESTS[0], layer, only_projection=only_projection)
    names = trained_names(model, only_projection=only_projection, layer=layer)
    with borrowed_weights(model, names) as parameters:
        for moved in (False, True):
            if moved:
                for parameter in parameters.values():
                    parameter.mul_(1.1)
            for one, other in zip(kept, whole, strict=True):
                found, expected = (batch_loss_and_gradients(b, parameters) for b in (one, other))
                for a, b in zip(found, expected, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def batch_loss_and_gradients(
    batch: TargetBatch, parameters: dict[str, torch.nn.Parameter]
) -> list[torch.Tensor]:
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    with torch.enable_grad():
        loss = batch.loss()
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return [loss.detach(), *(torch.zeros(()) if g is None else g for g in gradients)]


def test_blocks_before_the_trained_one_are_not_run_again(family_model: EditableModel) -> None:
    model = family_model
    batch = TargetBatch(model, REQUESTS, "teacher-forced")
    keep_states(model, [batch], REQUESTS[0], LAYER, only_projection=True)
    ran = []
    handles = [
        model.model.get_submodule(model.architecture.block(layer)).register_forward_hook(
            lambda *_, layer=layer: ran.append(layer)
        )
        for layer in range(4)
    ]
    with torch.no_grad():
        batch.loss()
    for handle in handles:
        handle.remove()
    if model.name == "opt_post_norm":  # its head sits behind a projection of its own
        assert ran == [0, 1, 2, 3]
    elif model.name in ("gemma2", "gemma3", "olmo2"):  # a norm behind the MLP
        assert ran == [1, 2, 3]
    else:
        assert ran == [2, 3]


def test_memory_for_kept_states_is_bounded(
    family_model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = family_model
    batches = [TargetBatch(model, some, "teacher-forced") for some in cut_requests(REQUESTS, 1)]
    expected = [batch.loss() for batch in batches]
    monkeypatch.setattr(MemoryBudget, "kept_bytes", 1)
    keep_states(model, batches, REQUESTS[0], LAYER, only_projection=True)
    block = model.architecture.block(0)
    for batch, loss, is_kept in zip(batches, expected, (True, False, False), strict=True):
        with torch.no_grad(), capture(model.model, outputs_of=[block]) as seen:
            torch.testing.assert_close(batch.loss(), loss)
            if is_kept and model.name != "opt_post_norm":
                assert block not in seen.outputs
                model.model(**model.batch([[5]]))
            else:
                assert block in seen.outputs
