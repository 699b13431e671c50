"""What a trial asks of a cluster, and what its model may fill there; no cluster is needed."""

from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from tests.editbench.runner.toys import make_grid

from editbench.costs.answers import estimate_answers
from editbench.costs.stage import ExpectedCache, StageCost
from editbench.editors.base import Editor
from editbench.editors.memit import Memit, MemitConfig
from editbench.metrics.probes import Success
from editbench.models.editable import EditableModel
from editbench.progress import report_nothing
from editbench.runner import Inputs, prepare_run
from editbench.runner.on_ray import needs
from editbench.runner.prepare import PreparedTrial
from editbench.testing import tiny_model, toy_corpus

GIB = 2**30
NODES = [{"CPU": 2.0, "memory": float(16 * GIB)}, {"CPU": 4.0, "memory": float(3 * GIB)}]


class Silent(Memit):
    """An editor that does not say what it costs."""

    name: ClassVar[str] = "silent"
    estimate = Editor.estimate


class Stumbling(Memit):
    """An editor whose plan fails."""

    name: ClassVar[str] = "stumbling"

    def estimate(self, *arguments: object) -> Sequence[StageCost]:
        raise RuntimeError("no idea")


@pytest.fixture
def model() -> EditableModel:
    """One for each test: limits of memory stay on it."""
    return tiny_model(n_layers=2)


def prepared_trial(model: EditableModel, editor: type[Memit]) -> PreparedTrial:
    config = MemitConfig(
        critical_layers=(0, 1), preservation_weight=10.0, n_steps=4, second_moment_tokens=2000
    )
    inputs = Inputs(corpus=toy_corpus())
    more = {"metrics": [Success()], "inputs": lambda model, dataset: inputs}
    trials = make_grid(model, editor(config), n_edits=[12], **more)
    return prepare_run(trials).prepared[1]


def stages_of(work: PreparedTrial) -> list[StageCost]:
    (batch,) = work.batches
    requests = [case.request for case in batch.cases]
    resources = work.inputs.resources(0, None, report_nothing)
    editing = work.editor.estimate(work.model, requests, resources, ExpectedCache())
    return [*editing, *estimate_answers(work.model, batch.questions)]


def test_what_a_trial_needs_follows_from_its_plan(model):
    work, n_bytes = prepared_trial(model, Memit), model.memory.weight_bytes[model.device]
    options = needs.TaskNeeds().settle(work, NODES)
    peak = max(stage.n_peak_bytes for stage in stages_of(work))
    assert peak > n_bytes  # the rule for what is not planned would give less
    assert options == {
        "num_cpus": min(torch.get_num_threads(), 4),
        "num_gpus": 0.0,
        "memory": GIB + n_bytes + round(1.25 * peak),
    }
    assert model.memory.limit is None
    # What is planned for a GPU is not taken of main memory.
    assert needs.TaskNeeds(gpus=0.5).settle(work, NODES)["memory"] == GIB + 2 * n_bytes


def test_a_trial_asks_for_no_more_than_a_machine_has_if_its_plan_fits_there(model):
    work, n_bytes = prepared_trial(model, Memit), model.memory.weight_bytes[model.device]
    peak = max(stage.n_peak_bytes for stage in stages_of(work))
    for more in (1.125, 0.3):
        nodes = [{"CPU": 1.0, "memory": float(GIB + n_bytes + round(more * peak))}]
        planned = needs.estimate_peak(work, nodes)
        assert planned is not None
        assert planned <= peak  # smaller batches take less
        memory = needs.TaskNeeds().settle(work, nodes)["memory"]
        most = max(round(planned), round(more * peak))
        assert memory == GIB + n_bytes + min(round(1.25 * planned), most)


@pytest.mark.parametrize("editor", [Silent, Stumbling])
def test_what_is_not_planned_has_memory_for_the_weights_twice(editor, model):
    memory = needs.TaskNeeds().settle(prepared_trial(model, editor), NODES)["memory"]
    assert memory == GIB + 2 * model.memory.weight_bytes[model.device]


def test_what_is_asked_for_is_not_chosen(model):
    chosen = needs.TaskNeeds(cpus=2, gpus=0, memory=1.5).settle(prepared_trial(model, Memit), NODES)
    assert chosen == {"num_cpus": 2, "num_gpus": 0, "memory": 3 * GIB // 2}
    assert needs.count_places(chosen, NODES) == 1 + 2
    with_gpu = needs.TaskNeeds(cpus=2, gpus=0.5).settle(prepared_trial(model, Memit), NODES)
    assert needs.count_places(with_gpu, NODES) == 0


def test_with_the_share_that_it_asks_for_a_trial_has_the_batches_of_a_machine_of_its_own(model):
    work = prepared_trial(model, Memit)
    alone = stages_of(work)
    memory = needs.TaskNeeds().settle(work, NODES)["memory"]
    needs.limit_memory(model, memory=memory, gpus=0)
    assert model.memory.room < memory
    assert stages_of(work) == alone


def test_a_small_share_makes_small_batches(model):
    work = prepared_trial(model, Memit)
    alone = stages_of(work)
    needs.limit_memory(model, memory=model.memory.weight_bytes[model.device] + 2**21, gpus=0)
    narrow = stages_of(work)
    assert sum(stage.n_block_calls for stage in narrow) > sum(s.n_block_calls for s in alone)
    for one, other in zip(narrow, alone, strict=True):
        assert one.n_peak_bytes <= other.n_peak_bytes


@pytest.mark.parametrize(
    ("memory", "gpus", "own", "limit"),
    [
        (8 * GIB, 0, None, 7 * GIB),
        (8 * GIB, 0, GIB, GIB),
        (0, 0, None, None),  # nothing is set aside, so there is nothing to go by
        (8 * GIB, 0.25, None, 19 * GIB),
        (8 * GIB, 1, None, None),
    ],
)
def test_the_share_of_a_task(memory, gpus, own, limit, model, monkeypatch):
    monkeypatch.setattr(needs, "_gpu_bytes", lambda device: 80 * GIB)
    model.memory.narrow(own)
    needs.limit_memory(model, memory=memory, gpus=gpus)
    assert model.memory.limit == limit
