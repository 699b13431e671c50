"""The editor: all edits count, statistics stay, weights are found, and the contract is kept."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from editbench.cli.overrides import Overrides
from editbench.editors.base import Resources
from editbench.editors.mend.editor import Mend, MendConfig
from editbench.editors.mend.trained_file import (
    find_trained,
    read_record,
    read_trained,
    trained_path,
    write_trained,
)
from editbench.editors.mend.training_config import MendTraining
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import ConfigError, EditError
from editbench.files.seals import checksum_file
from editbench.models.builtin_specs import BUILTIN_SPECS
from editbench.requests import EditRequest
from editbench.testing import check_editor, tiny_model
from memit_core import UpdateFactors


@pytest.fixture(scope="module")
def weights(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("mend") / "weights.safetensors"
    write_trained(path, trained.tensors, trained.record)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDITBENCH_CACHE", str(tmp_path / "cache"))


def edit_of(model, config, requests) -> WeightEdit:
    edit = Mend(config).edit(model, requests, Resources(seed=0))
    assert isinstance(edit, WeightEdit)
    return edit


def dense(update) -> torch.Tensor:
    return update.dense().double() if isinstance(update, UpdateFactors) else update.double()


def assert_equal_updates(one: WeightEdit, other: WeightEdit, scale: float = 1.0) -> None:
    assert one.updates.keys() == other.updates.keys()
    for name in one.updates:
        expected = scale * dense(other.updates[name])
        assert (dense(one.updates[name]) - expected).norm() < 1e-5 * expected.norm()


def test_mend_keeps_the_editor_contract() -> None:
    assert [result for result in check_editor(Mend) if not result.passed] == []


def test_the_card_says_what_became_of_each_fact(model, cases, weights) -> None:
    edit = edit_of(model, MendConfig(weights=weights), [case.request for case in cases[:3]])
    told = [(fact["case_id"], fact["status"]) for fact in edit.card.extra["facts"]]
    assert told == [(case.request.case_id, "written") for case in cases[:3]]


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 128])
def test_all_edits_count_whatever_the_chunks(model, cases, weights, chunk_size) -> None:
    requests = [case.request for case in cases[:7]]
    whole = edit_of(model, MendConfig(weights=weights, chunk_size=7), requests)
    assert_equal_updates(
        edit_of(model, MendConfig(weights=weights, chunk_size=chunk_size), requests), whole
    )
    last_alone = edit_of(model, MendConfig(weights=weights), requests[-1:])
    assert any(
        not torch.allclose(dense(last_alone.updates[n]), dense(whole.updates[n]), rtol=0.1)
        for n in whole.updates
    )


def test_updates_of_edits_add_up(model, cases, weights) -> None:
    config = MendConfig(weights=weights)
    requests = [case.request for case in cases[:3]]
    parts = [edit_of(model, config, [request]) for request in requests]
    assert_equal_updates(edit_of(model, config, requests), WeightEdit.merge(parts))


def test_few_edits_give_factors_and_many_a_dense_update(model, cases, weights) -> None:
    config = MendConfig(weights=weights, chunk_size=4)
    few = edit_of(model, config, [cases[0].request]).updates
    assert all(isinstance(update, UpdateFactors) for update in few.values())
    many = edit_of(model, config, [case.request for case in cases]).updates
    assert any(isinstance(update, torch.Tensor) for update in many.values())


def test_editing_does_not_move_the_statistics(model, cases, weights) -> None:
    """The order of edits, and what was edited before, are of no consequence."""
    config = MendConfig(weights=weights)
    requests = [case.request for case in cases[:4]]
    content = weights.read_bytes()
    first = edit_of(model, config, requests[:1])
    assert_equal_updates(edit_of(model, config, requests), edit_of(model, config, requests[::-1]))
    again = edit_of(model, config, requests[:1])
    assert all(torch.equal(dense(first.updates[n]), dense(again.updates[n])) for n in first.updates)
    assert weights.read_bytes() == content
    network, _ = read_trained(weights, model)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_lr_scale_scales_the_update(model, cases, weights) -> None:
    requests = [cases[0].request]
    once = edit_of(model, MendConfig(weights=weights), requests)
    thrice = edit_of(model, MendConfig(weights=weights, lr_scale=3.0), requests)
    assert_equal_updates(thrice, once, scale=3.0)
    for name, rate in once.card.extra["rates"].items():
        assert thrice.card.extra["rates"][name] == pytest.approx(3 * rate)


def test_learned_rates_belong_to_names(model, cases, weights, tmp_path) -> None:
    """A rate of 0 for one weight stops the updates of that weight and of no other."""
    name = "transformer.h.3.mlp.c_fc.weight"
    tensors = load_file(weights)
    tensors[f"own.{name.replace('.', '/')}.rate"].zero_()
    path = tmp_path / "stopped.safetensors"
    record = read_record(weights)
    save_file(tensors, path, metadata={"editbench": record.model_dump_json()})
    edit = edit_of(model, MendConfig(weights=path), [cases[0].request])
    for each, update in edit.updates.items():
        assert bool(dense(update).norm() == 0) == (each == name)


def test_no_edits_no_update(model, weights) -> None:
    edit = edit_of(model, MendConfig(weights=weights), [])
    assert not edit.changes_something


def test_card_says_what_trained_the_network(model, cases, weights, trained) -> None:
    card = edit_of(model, MendConfig(weights=weights), [cases[0].request]).card
    assert card.config["weights_sha256"] == checksum_file(weights) == card.extra["weights_sha256"]
    assert card.extra["training"]["dataset"] == "toy"
    assert card.extra["training"]["best_step"] == trained.record.best_step
    json.dumps(card.model_dump(mode="json"))


def test_a_network_of_another_model_is_refused(cases, weights, model) -> None:
    other = tiny_model(seed=1)
    with pytest.raises(EditError) as caught:
        edit_of(other, MendConfig(weights=weights), [cases[0].request])
    assert model.fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)
    assert "editbench train mend" in str(caught.value)
    with pytest.raises(EditError, match="trained for another model"):
        Mend(MendConfig(weights=weights)).check_usable(other)
    Mend(MendConfig(weights=weights)).check_usable(model)


def test_without_trained_weights_the_error_says_how_to_train_them(model, cases) -> None:
    config, _ = Mend.default_config(model)
    assert Mend(config).describe_trained(model) == "no trained hypernetwork is there yet"
    how = "editbench train mend --model tiny --dataset NAME"
    with pytest.raises(EditError, match=how):
        Mend(config).check_usable(model)
    with pytest.raises(EditError, match=how):
        edit_of(model, config, [cases[0].request])


def test_of_two_networks_the_one_that_is_used_is_named(model, weights, trained) -> None:
    write_trained(trained_path(model), trained.tensors, trained.record)
    _, origin = Overrides(set_values={"weights": str(weights)}).configure(Mend, model)
    assert origin.endswith(f"from {weights}")


def test_weights_in_the_cache_are_found_and_named_by_their_content(model, cases, trained) -> None:
    path = trained_path(model)
    write_trained(path, trained.tensors, trained.record)
    assert find_trained(model) == path
    config, _ = Mend.default_config(model)
    assert config.model_dump()["weights_sha256"] == checksum_file(path)
    described = Mend(config).describe_trained(model)
    assert "trained on 'toy'" in described
    assert str(path) in described
    assert edit_of(model, config, [cases[0].request]).changes_something
    record = trained.record.model_copy(update={"seed": 7})
    write_trained(path, trained.tensors, record)
    assert Mend.default_config(model)[0] != config
    with pytest.raises(EditError, match="with the hash"):
        edit_of(model, config, [cases[0].request])


def test_configuration_depends_on_what_the_file_holds(weights, trained, tmp_path) -> None:
    path = tmp_path / "other.safetensors"
    record = trained.record.model_copy(update={"seed": 7})
    write_trained(path, trained.tensors, record)
    first, second = MendConfig(weights=weights), MendConfig(weights=path)
    assert first.weights_sha256 != second.weights_sha256
    assert first.updated({"weights": str(path)}, "test") == second
    assert first.updated({"lr_scale": 2.0}, "test").weights_sha256 == first.weights_sha256


def test_weights_that_changed_under_a_configuration_are_refused(weights) -> None:
    with pytest.raises(ConfigError, match="holds other weights than weights_sha256 says"):
        MendConfig.parse({"weights": weights, "weights_sha256": "0" * 64}, "test")
    with pytest.raises(ConfigError, match="cannot read the file of weights"):
        MendConfig.parse({"weights": "/nowhere"}, "test")


def test_foreign_and_damaged_files_are_refused(model, weights, tmp_path) -> None:
    request = EditRequest("x", "Ana", "{} is", "a poet")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(EditError, match="cannot read the trained hypernetwork"):
        edit_of(model, MendConfig(weights=damaged), [request])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(EditError, match="holds no trained hypernetwork"):
        edit_of(model, MendConfig(weights=foreign), [request])
    with pytest.raises(EditError, match="holds no trained hypernetwork"):
        read_record(foreign)
    incomplete = tmp_path / "incomplete.safetensors"
    tensors = load_file(weights)
    tensors.popitem()
    metadata = {"editbench": read_record(weights).model_dump_json()}
    save_file(tensors, incomplete, metadata=metadata)
    with pytest.raises(EditError, match="not those of its record"):
        edit_of(model, MendConfig(weights=incomplete), [request])


def test_files_are_the_same_for_the_same_training(trained, weights, tmp_path) -> None:
    path = tmp_path / "again.safetensors"
    write_trained(path, trained.tensors, trained.record)
    assert path.read_bytes() == weights.read_bytes()


@pytest.mark.parametrize(
    ("name", "blocks"), [("gpt2-xl", (45, 46, 47)), ("gpt-j-6b", (25, 26, 27))]
)
def test_published_settings(name, blocks) -> None:
    (spec,) = (spec for spec in BUILTIN_SPECS if spec.name == name)
    assert MendConfig.parse(spec.defaults["mend"], name) == MendConfig(lr_scale=1.0)
    training = MendTraining.parse(spec.defaults["mend-training"], name)
    assert training == MendTraining(blocks=blocks)
    assert (training.rank, training.learning_rate, training.edit_weight) == (1920, 1e-6, 0.1)
