"""Training: what it optimizes, that it helps, and that a killed one ends with the same bits."""

import copy
import random

import pytest
import torch
from torch.nn import functional

from editbench.editors.mend.examples import draw_example
from editbench.editors.mend.hypernetwork import Hypernetwork
from editbench.editors.mend.objective import measure_losses
from editbench.editors.mend.training import DataOrigin, train_hypernetwork
from editbench.editors.training.gradients import decompose_gradients
from editbench.editors.training.matrices import find_matrices
from editbench.errors import ConfigError, EditError
from editbench.models.architecture import weight_is_transposed


class Killed(BaseException):
    """Stands for a signal that no program can catch."""


def examples_of(model, cases, n_neighbors=1):
    rng = random.Random(0)
    return [draw_example(model.tokens, case, n_neighbors, rng) for case in cases]


def logits_of(model, row):
    n = len(row.target_ids)
    return model.model(torch.tensor([row.token_ids])).logits[0, row.start : row.start + n]


@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_losses_are_those_of_models_with_edited_weights(model, cases, group_size) -> None:
    """Each group apart: weights really changed, one row at a time, against all rows at once."""
    matrices = find_matrices(model)
    network = Hypernetwork(matrices, rank=2, rate=5e-2, seed=0)
    examples = examples_of(model, cases[:4])
    measure_losses(model, network, examples, group_size, observe=True)  # for the statistics
    found = measure_losses(model, network, examples, group_size, observe=False)
    edit, locality, right = [], [], []
    for start in range(0, 4, group_size):
        group = examples[start : start + group_size]
        edited = copy.deepcopy(model)
        for matrix in matrices:
            weight = edited.model.get_parameter(matrix.name)
            for example in group:
                terms, _ = decompose_gradients(model, [matrix], [example.request])
                left, up = network(matrix, terms[matrix.name])
                update = (left.T @ up).detach()
                module = edited.model.get_submodule(matrix.module)
                weight.data += update.T if weight_is_transposed(module) else update
        for example in group:
            (row,) = example.equivalents
            targets = torch.tensor(row.target_ids)
            edit.append(functional.cross_entropy(logits_of(edited, row), targets))
            right.append((logits_of(edited, row).argmax(dim=-1) == targets).float().mean())
            (row,) = example.neighbors
            before = logits_of(model, row).log_softmax(dim=-1)
            after = logits_of(edited, row).log_softmax(dim=-1)
            locality.append((before.exp() * (before - after)).sum(dim=-1).mean())
    for one, others in ((found.edit, edit), (found.locality, locality), (found.recall, right)):
        torch.testing.assert_close(one, torch.stack(others).mean(), rtol=1e-4, atol=1e-5)
    assert found.locality > 1e-3


def test_losses_are_differentiable_by_the_network_alone(model, cases) -> None:
    network = Hypernetwork(find_matrices(model), rank=2, rate=1e-2, seed=0)
    losses = measure_losses(model, network, examples_of(model, cases[:2]), 1, observe=True)
    torch.autograd.backward(losses.edit + losses.locality)
    for matrix in network.matrices:
        assert network.rate_of(matrix.name).grad.abs() > 0
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_observing_is_what_moves_statistics(model, cases) -> None:
    network = Hypernetwork(find_matrices(model), rank=2, rate=1e-2, seed=0)
    examples = examples_of(model, cases[:2])
    before = copy.deepcopy(network.state_dict())
    measure_losses(model, network, examples, 1, observe=False)
    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())
    measure_losses(model, network, examples, 1, observe=True)
    moved = {n for n, each in network.state_dict().items() if not torch.equal(before[n], each)}
    assert moved
    assert all("statistics" in name for name in moved)


def test_training_lowers_the_validation_loss(train, settings) -> None:
    quick = {"max_steps": 12, "validation_interval": 12, "initial_rate": 0.02, "edit_weight": 1.0}
    losses = train(settings.updated(quick, "test")).record.validation_losses
    assert [loss[0] for loss in losses] == [0, 12]
    assert losses[1][1] < losses[0][1] - 0.1


def test_the_model_and_the_global_random_state_are_left_alone(train, model) -> None:
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    states = (random.getstate(), torch.get_rng_state())
    train()
    assert all(torch.equal(before[name], each) for name, each in model.model.state_dict().items())
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert not any(module._forward_hooks for module in model.model.modules())


def assert_same(one, other) -> None:
    assert one.record == other.record
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_the_same_seed_gives_the_same_bits(train, trained) -> None:
    assert_same(train(), trained)
    other = train(seed=1)
    assert any(not torch.equal(other.tensors[n], trained.tensors[n]) for n in trained.tensors)


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_killed_training_ends_with_the_same_bits(
    train, trained, tmp_path, monkeypatch, step
) -> None:
    monkeypatch.setattr("editbench.editors.mend.training._CHECKPOINT_SECONDS", -1.0)
    path = tmp_path / "checkpoint"

    def kill(stage: str, done: int, total: int, note: str = "") -> None:
        if done == step:
            raise Killed

    with pytest.raises(Killed):
        train(checkpoint=path, report_progress=kill)
    seen = []

    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        seen.append(done)

    assert_same(train(checkpoint=path, report_progress=watch), trained)
    assert seen[0] == step  # the step that was lost, and no other
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint"]


def test_a_checkpoint_of_another_training_is_refused(train, settings, tmp_path) -> None:
    path = tmp_path / "checkpoint"
    train(settings.updated({"max_steps": 2}, "test"), checkpoint=path)
    with pytest.raises(ConfigError, match=r"belongs to another training, got seed 0; expected 1"):
        train(settings.updated({"max_steps": 2}, "test"), seed=1, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(EditError, match="cannot read"):
        train(settings.updated({"max_steps": 2}, "test"), checkpoint=path)


def test_more_steps_may_be_asked_of_an_interrupted_training(train, settings, tmp_path) -> None:
    path = tmp_path / "checkpoint"
    train(settings.updated({"max_steps": 2}, "test"), checkpoint=path)
    longer = settings.updated({"max_steps": 4}, "test")
    assert_same(train(longer, checkpoint=path), train(longer))


def test_it_stops_when_validation_no_longer_improves(train, settings) -> None:
    config = settings.updated({"initial_rate": 1e-9, "patience": 2, "max_steps": 99}, "test")
    config = config.updated({"learning_rate": 1e-30, "rate_learning_rate": 1e-30}, "test")
    outcome = train(config)
    assert outcome.ended == "validation no longer improved"
    assert outcome.record.steps < 99
    assert outcome.record.best_step == outcome.record.steps - 4


def test_it_stops_in_time(train, settings) -> None:
    outcome = train(settings.updated({"max_steps": 10_000}, "test"), max_seconds=0.5)
    assert outcome.ended == "time was used up"
    assert 0 < outcome.record.steps < 10_000


def test_record_says_where_the_weights_come_from(trained, model, settings) -> None:
    record = trained.record
    assert record.model_fingerprint == model.fingerprint
    assert (record.dataset, record.dataset_fingerprint) == ("toy", "a" * 64)
    assert record.config == settings
    assert record.seed == 0
    assert record.steps == 6
    assert record.best_step in {loss[0] for loss in record.validation_losses}
    assert set(record.versions) >= {"editbench", "torch"}
    assert record.matrices == tuple(matrix.name for matrix in find_matrices(model))


def test_groups_must_fill_a_batch(train, settings) -> None:
    with pytest.raises(ConfigError, match="edits_at_once must divide batch_size, got 3 and 4"):
        train(settings.updated({"edits_at_once": 3}, "test"))


def test_a_loss_that_is_not_finite_ends_the_training(train, settings) -> None:
    config = settings.updated({"learning_rate": 1e30, "clip_norm": 1e30}, "test")
    with pytest.raises(EditError, match=r"the loss is not finite in step \d, got (nan|inf)"):
        train(config)


def test_record_names_both_datasets(model, cases, settings) -> None:
    data = DataOrigin("one", "b", "other", "c")
    outcome = train_hypernetwork(
        model,
        cases[:18],
        cases[18:],
        settings.updated({"max_steps": 1}, "test"),
        data,
        seed=0,
        report_progress=lambda stage, done, total, note="": None,
    )
    assert outcome.record.validation == "other"
    assert outcome.record.validation_fingerprint == "c"
