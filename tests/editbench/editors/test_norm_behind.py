"""A norm between a projection and the residual stream: where it is, and what gets through it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from editbench.editors.base import Resources
from editbench.editors.closed_form.norm_behind import NormBehind
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.keys.reading import read_hidden
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.subject_tokens import key_row
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.target_hidden import optimize_target_hidden
from editbench.models.editable import EditableModel
from editbench.progress import report_nothing
from editbench.requests import EditRequest
from editbench.testing import toy_corpus
from memit_core import capture

WITH_NORMS = {"gemma2", "gemma3", "olmo2"}


def ellipsoid(d, seed=0, epsilon=0.0):
    chance = torch.Generator().manual_seed(seed)
    scale = 0.2 + 3 * torch.rand(d, generator=chance, dtype=torch.float64)
    return NormBehind(scale, epsilon), chance


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_it_is_found_in_the_families_that_have_one(kind, family, family_model):
    found = NormBehind.find(family_model, 1, kind)
    assert (found is not None) == (family in WITH_NORMS)
    if found is None:
        return
    assert found.epsilon == family_model.model.config.rms_norm_eps
    projection = family_model.architecture.projection(1, kind)
    block = family_model.model.get_submodule(family_model.architecture.block(1))
    place = "post_feedforward_layernorm" if kind == "mlp" else "post_attention_layernorm"
    norm: nn.Module = block.get_submodule(place)
    with torch.no_grad(), capture(family_model.model, outputs_of=[projection]) as seen:
        family_model.model(**family_model.batch([[3, 5, 8, 13]]))
    said = seen.outputs[projection]
    torch.testing.assert_close(found(said).float(), norm(said), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.5])
def test_what_lies_on_the_ellipsoid_is_reached(epsilon):
    norm, chance = ellipsoid(12, epsilon=epsilon)
    said, other = torch.randn(2, 5, 12, generator=chance, dtype=torch.float64)
    other *= said.norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True)
    moved = said + norm.pull_back(said, norm(other) - norm(said))
    torch.testing.assert_close(norm(moved), norm(other), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved.norm(dim=1), said.norm(dim=1))


def test_epsilon_is_felt_where_little_is_said():
    # d = 4, ‖u‖² = 4e-6: as large as ε = 1e-6 in the mean, so that f is g u / √(2e-6).
    norm = NormBehind(torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), epsilon=1e-6)
    said = torch.full((1, 4), 1e-3).double()
    torch.testing.assert_close(norm(said), norm.scale[None] / 2**0.5)
    pulled = norm.pull_back(said, torch.tensor([[2**-0.5, 0.0, 0.0, 0.0]]).double())
    assert (pulled + said).norm() == pytest.approx(2e-3)
    before = (norm(said)[0, 0], norm(said + pulled)[0, 0])
    assert before[1] > 1.1 * before[0]


@pytest.mark.parametrize("length", [0.1, 1.0, 30.0])
def test_of_the_ellipsoid_the_nearest_point_is_taken(length):
    norm, chance = ellipsoid(4, seed=1)
    wanted = length * torch.randn(3, 4, generator=chance, dtype=torch.float64)
    reached = norm(norm.invert(wanted, torch.ones(3, dtype=torch.float64)))
    others = norm(torch.randn(20_000, 4, generator=chance, dtype=torch.float64))
    nearest = torch.cdist(wanted, others).min(dim=1).values
    assert ((reached - wanted).norm(dim=1) <= nearest + 1e-9).all()


def test_the_length_of_what_is_said_does_not_matter():
    norm, chance = ellipsoid(6)
    said, residuals = torch.randn(2, 3, 6, generator=chance, dtype=torch.float64)
    moved = norm.pull_back(said, residuals)
    torch.testing.assert_close(norm.pull_back(1000 * said, residuals), 1000 * moved)


def test_a_small_residual_is_met_but_for_its_radial_part():
    norm, chance = ellipsoid(8)
    said = torch.randn(2, 8, generator=chance, dtype=torch.float64)
    residuals = 1e-4 * torch.randn(2, 8, generator=chance, dtype=torch.float64)
    normal = functional.normalize(norm(said) / norm.scale.square(), dim=1)
    tangent = residuals - (residuals * normal).sum(dim=1, keepdim=True) * normal
    reached = norm(said + norm.pull_back(said, residuals)) - norm(said)
    torch.testing.assert_close(reached, tangent, rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2"])
def test_an_edit_comes_through_the_norm(name, families, make_network, tokenizers, monkeypatch):
    model = EditableModel(make_network(families[name][0]), tokenizers["bos"], name=name)
    requests = [
        EditRequest("0", "Danielle Darrieux", "The mother tongue of {} is", "French"),
        EditRequest("1", "Zoë Brandt", "{} plays the sport of", "tennis"),
    ]
    config = MemitConfig(
        critical_layers=(1,), preservation_weight=1e-6, n_steps=3, clamp_factor=0.1,
        learning_rate=0.1, learning_rate_unit="relative", second_moment_tokens=200,
    )  # fmt: skip
    prefixes = ContextPrefixes.of([[""]], "test")
    resources = Resources(seed=0, corpus=toy_corpus(), context_prefixes=prefixes)
    wanted = optimize_target_hidden(
        model,
        requests,
        layer=1,
        settings=config,
        prefixes=prefixes.flat,
        cache=TargetCache(None),
        report_progress=report_nothing,
    )

    def missing() -> Tensor:
        with Memit(config).edit(model, requests, resources).applied(model):
            rows = [key_row(model.tokens, each, "") for each in requests]
            left = wanted.states - read_hidden(model, rows, 1)
        return left.norm(dim=1) / (wanted.states - wanted.initial).norm(dim=1)

    through = missing()
    assert (through < 0.5).all()  # what is left is radial
    monkeypatch.setattr(NormBehind, "find", lambda *_: None)
    assert (missing() > 1.5 * through).all()
