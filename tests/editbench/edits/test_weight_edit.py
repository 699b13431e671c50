from contextlib import ExitStack

import pytest
import torch
from torch import Tensor

from editbench.edits.weight_edit import WeightEdit
from editbench.errors import EditError
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest
from editbench.testing import tiny_model
from memit_core import UpdateFactors

D_MODEL, D_MLP = 24, 96
REQUESTS = [EditRequest("0", "Ana Lund", "{} works as a", "poet")]


def weight_name(model: EditableModel, layer: int = 0) -> str:
    return model.architecture.weight_name(model.architecture.mlp_projections[layer])


def weight(model: EditableModel, layer: int = 0) -> Tensor:
    """A copy of an MLP projection's weight, as [d_out, d_in]."""
    stored = model.model.get_parameter(weight_name(model, layer)).detach().clone()
    return stored.T if stored.shape == (D_MLP, D_MODEL) else stored


def weight_under(edit: WeightEdit, model: EditableModel, layer: int = 0) -> Tensor:
    with edit.applied(model):
        return weight(model, layer)


def build(model: EditableModel, update: UpdateFactors | Tensor, **options: object) -> WeightEdit:
    return WeightEdit.build(
        model,
        editor="test",
        config={},
        requests=REQUESTS,
        updates={weight_name(model): update},
        **options,
    )


def test_the_update_is_added_in_the_orientation_d_out_by_d_in(model, random_factors):
    factors = random_factors(3, 0)
    expected = weight(model) + (factors.left @ factors.right.T)
    torch.testing.assert_close(
        weight_under(build(model, factors), model), expected.float(), rtol=1e-5, atol=1e-5
    )


def test_a_square_weight_is_transposed_iff_its_module_stores_it_so(gpt2, gptj):
    update = torch.arange(D_MODEL * D_MODEL, dtype=torch.float64).reshape(D_MODEL, D_MODEL)
    for editable, is_transposed in ((gpt2, True), (gptj, False)):
        name = editable.architecture.weight_name(editable.architecture.attention_projections[0])
        parameter = editable.model.get_parameter(name)
        before = parameter.detach().clone()
        edit = WeightEdit.build(
            editable, editor="test", config={}, requests=REQUESTS, updates={name: update}
        )
        with edit.applied(editable):
            added = parameter.detach() - before
        torch.testing.assert_close(
            added, (update.T if is_transposed else update).float(), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", ["mlp projection's bias", "transformer.h.0.ln_1.weight"])
def test_biases_and_norms_can_be_edited(model, tmp_path, name):
    if name.endswith("bias"):
        name = weight_name(model).replace("weight", "bias")
    update = torch.linspace(-1, 1, D_MODEL)
    edit = WeightEdit.build(
        model, editor="test", config={}, requests=REQUESTS, updates={name: update}
    )
    edit.save(tmp_path / "edit.safetensors")
    loaded = WeightEdit.load(tmp_path / "edit.safetensors")
    parameter = model.model.get_parameter(name)
    before = parameter.detach().clone()
    for applied, factor in ((edit, 1), (loaded, 1), (edit + loaded, 2), (-edit, -1)):
        with applied.applied(model):
            torch.testing.assert_close(parameter.detach(), before + factor * update)
        assert torch.equal(parameter, before)


def test_every_bit_comes_back_also_after_an_exception(model, make_edit):
    edit = make_edit(model)
    before = model.compute_fingerprint()
    with edit.applied(model):
        assert model.compute_fingerprint() != before
    assert model.compute_fingerprint() == before
    with pytest.raises(ZeroDivisionError), edit.applied(model):
        _ = 1 / 0
    assert model.compute_fingerprint() == before


@pytest.mark.parametrize("rank", [1, D_MODEL - 1, D_MODEL, 40])
def test_a_saved_edit_gives_the_same_bits_as_the_one_in_memory(model, make_edit, tmp_path, rank):
    edit = make_edit(model, rank=rank)
    path = tmp_path / "edit.safetensors"
    edit.save(path)
    loaded = WeightEdit.load(path)
    assert torch.equal(weight_under(edit, model), weight_under(loaded, model))
    assert loaded.card == edit.card
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("rank", "is_dense"), [(D_MODEL - 1, False), (D_MODEL, True)])
def test_factors_are_kept_only_below_both_dimensions(gpt2, random_factors, rank, is_dense):
    edit = build(gpt2, random_factors(rank, 0))
    assert isinstance(edit.updates[weight_name(gpt2)], Tensor) is is_dense


def test_an_edit_keeps_its_own_copy(gpt2, random_factors):
    factors = random_factors(2, 0)
    edit = build(gpt2, factors, dtype=torch.float64)
    expected = weight_under(edit, gpt2)
    factors.left.zero_()
    assert torch.equal(weight_under(edit, gpt2), expected)


def test_rounding_to_float32_moves_the_update_by_less_than_1e_7(gpt2, random_factors):
    factors = random_factors(20, 0)
    exact = factors.left @ factors.right.T
    kept = build(gpt2, factors).updates[weight_name(gpt2)]
    rounded = kept.left.double() @ kept.right.double().T
    assert (rounded - exact).norm() < 1e-7 * exact.norm()


def test_the_card_reports_how_much_each_parameter_changes(model, random_factors):
    factors = random_factors(2, 0)
    edit = build(model, factors, extra={"loss": 0.5})
    relative = float((factors.left @ factors.right.T).norm() / weight(model).double().norm())
    report = edit.card.extra["updates"][weight_name(model)]
    assert report["n_weights"] == D_MODEL * D_MLP
    assert report["rank"] == 2
    assert report["relative_norm"] == pytest.approx(relative, rel=1e-6)
    assert edit.card.extra["loss"] == 0.5
    assert edit.n_changed_parameters == D_MODEL * D_MLP


def test_edits_add_up(model, make_edit):
    one, other = make_edit(model, seed=1), make_edit(model, seed=2)
    before = weight(model)
    added = (weight_under(one, model) - before) + (weight_under(other, model) - before)
    total = one + other
    torch.testing.assert_close(weight_under(total, model), before + added, rtol=1e-5, atol=1e-5)
    assert total.updates[weight_name(model)].rank == 4
    assert total.card.n_edits == 2
    assert total.card.editor == "random"
    assert [card["n_edits"] for card in total.card.extra["merged"]] == [1, 1]
    assert total.card.requests_hash not in {one.card.requests_hash, other.card.requests_hash}


def test_edits_of_different_parameters_are_joined(model, make_edit):
    merged = WeightEdit.merge([make_edit(model, layer=0), make_edit(model, seed=1, layer=1)])
    assert set(merged.updates) == {weight_name(model, 0), weight_name(model, 1)}


def test_a_sum_of_high_rank_becomes_dense(gpt2, make_edit):
    edits = [make_edit(gpt2, rank=10, seed=seed) for seed in range(3)]
    before = weight(gpt2).double()
    total = WeightEdit.merge(edits)
    assert isinstance(total.updates[weight_name(gpt2)], Tensor)
    added = sum(weight_under(edit, gpt2).double() - before for edit in edits)
    torch.testing.assert_close(
        weight_under(total, gpt2).double(), before + added, rtol=1e-4, atol=1e-4
    )


def test_an_edit_and_its_negative_cancel(model, make_edit):
    edit = make_edit(model)
    before = weight(model)
    torch.testing.assert_close(
        weight_under(-edit, model) - before, before - weight_under(edit, model)
    )
    torch.testing.assert_close(weight_under(edit + -edit, model), before, rtol=0, atol=1e-12)
    assert (-edit).card.extra["negated"] is True
    twice = WeightEdit.__neg__(-edit)
    assert twice.card.extra["negated"] is False
    assert torch.equal(weight_under(twice, model), weight_under(edit, model))


def test_dense_edits_negate_and_add_too(gpt2, make_edit):
    edit = make_edit(gpt2, rank=D_MODEL)
    total = edit + -edit
    assert not total.changes_something
    assert torch.equal(weight_under(total, gpt2), weight(gpt2))


def test_an_edit_of_zeros_changes_nothing(model, make_edit):
    zeros = UpdateFactors(torch.zeros(D_MODEL, 1), torch.ones(D_MLP, 1))
    assert not build(model, zeros).changes_something
    assert not build(model, torch.zeros(D_MODEL, D_MLP)).changes_something
    assert make_edit(model).changes_something


def test_merging_needs_edits_of_one_model(gpt2, gptj, make_edit):
    with pytest.raises(EditError, match="got no edit"):
        WeightEdit.merge([])
    with pytest.raises(EditError, match=f"'tiny-gptj'.*{gptj.fingerprint}.*'tiny'"):
        _ = make_edit(gpt2) + make_edit(gptj)
    with pytest.raises(TypeError):
        _ = make_edit(gpt2) + 1


def test_an_edit_for_another_model_is_refused_with_both_names(gpt2, make_edit):
    other = tiny_model(n_layers=2, d_model=D_MODEL, seed=7)
    other.name = "other"
    before = other.compute_fingerprint()
    edit = make_edit(gpt2)
    with pytest.raises(EditError, match="another model") as error, edit.applied(other):
        pass
    for part in ("'other'", other.fingerprint, "'tiny'", gpt2.fingerprint):
        assert part in str(error.value)
    assert other.compute_fingerprint() == before


def test_updates_that_fit_no_parameter_are_refused(gpt2, make_edit):
    name = weight_name(gpt2)
    with pytest.raises(EditError, match=r"got shape \[96, 24\]; expected \[24, 96\]"):
        build(gpt2, torch.ones(D_MLP, D_MODEL))
    renamed = WeightEdit({f"{name}.x": torch.ones(2)}, make_edit(gpt2).card)
    with pytest.raises(EditError, match="no parameter of that name"), renamed.applied(gpt2):
        pass
    one, other = make_edit(gpt2), make_edit(gpt2)
    other.updates[name] = torch.ones(3, 3)
    with pytest.raises(EditError, match="differ in shape"):
        _ = one + other


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_updates_that_are_not_finite_are_refused(gpt2, bad):
    with pytest.raises(EditError, match="is not finite"):
        build(gpt2, torch.full((D_MODEL, D_MLP), bad))
    edit = build(gpt2, torch.ones(D_MODEL, D_MLP))
    edit.updates[weight_name(gpt2)] *= bad
    before = gpt2.compute_fingerprint()
    with pytest.raises(EditError, match="finite"), edit.applied(gpt2):
        pass
    assert gpt2.compute_fingerprint() == before


@pytest.fixture
def following(model, make_edit):
    """An edit, one computed while it was on, and one computed on top of both."""
    first = make_edit(model, seed=0)
    with first.applied(model):
        second = make_edit(model, seed=1)
        with second.applied(model):
            third = make_edit(model, seed=2, layer=1)
    return first, second, third


def test_the_card_names_the_edits_that_were_on(model, following, tmp_path):
    first, second, third = following
    assert first.card.edits_on == ()
    assert "edits_on" not in first.card.model_dump()
    assert "edits_on" not in first.card.model_dump_json()
    assert second.card.edits_on == (first.identity,)
    assert third.card.edits_on == (first.identity, second.identity)
    assert third.card.model_fingerprint == model.fingerprint
    third.save(tmp_path / "third.safetensors")
    loaded = WeightEdit.load(tmp_path / "third.safetensors")
    assert loaded.card == third.card
    assert loaded.identity == third.identity


def test_an_edit_fits_only_on_top_of_those_that_were_on(model, following):
    first, second, third = following
    with first.applied(model), second.applied(model), third.applied(model):
        assert model.edits_on == tuple(edit.identity for edit in following)
    for below in ([], [first, first], [second_alone(second)], [second_alone(second), first]):
        with ExitStack() as stack:
            for edit in below:
                stack.enter_context(edit.applied(model))
            before = model.state
            with (
                pytest.raises(EditError, match=f"other edits.*expected {first.identity}. Put"),
                second.applied(model),
            ):
                pass
            assert model.state == before
    assert model.state == model.fingerprint


def second_alone(edit: WeightEdit) -> WeightEdit:
    """The same updates, as if they had been computed on the unedited model."""
    return WeightEdit(edit.updates, edit.card.model_copy(update={"edits_on": ()}))


def test_edits_that_follow_each_other_are_merged_in_their_order(model, following):
    first, second, third = following
    with first.applied(model), second.applied(model), third.applied(model):
        stacked = weight(model).detach().clone()
    whole = WeightEdit.merge(following)
    assert whole.card.edits_on == ()
    assert whole.card.n_edits == 3
    torch.testing.assert_close(weight_under(whole, model), stacked, rtol=1e-6, atol=1e-6)
    rest = second + third
    assert rest.card.edits_on == (first.identity,)
    with first.applied(model), rest.applied(model):
        torch.testing.assert_close(weight(model), stacked, rtol=1e-6, atol=1e-6)
    with (first + second).applied(model):
        fourth = WeightEdit.build(model, editor="x", config={}, requests=[], updates=third.updates)
    assert WeightEdit.merge([first + second, fourth]).card.edits_on == ()


@pytest.mark.parametrize("order", [(1, 0), (0, 2), (0, 2, 1), (2, 1), (0, 0, 2)])
def test_edits_that_need_others_before_them_are_not_merged_without(following, order):
    with pytest.raises(EditError, match="do not come before it"):
        WeightEdit.merge([following[index] for index in order])


def test_edits_of_one_state_are_added_up_like_those_of_the_unedited_model(model, make_edit):
    first, beside = make_edit(model, seed=0), make_edit(model, seed=1)
    with first.applied(model):
        one, other = make_edit(model, seed=2), make_edit(model, seed=3)
    assert WeightEdit.merge([first, one, other]).card.edits_on == ()
    assert WeightEdit.merge([first, beside, one]).card.edits_on == ()
    assert (one + other).card.edits_on == (first.identity,)
