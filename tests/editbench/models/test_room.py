"""How much memory work on a model may take, planned and for real."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload

from editbench.costs.answers import estimate_answers
from editbench.costs.plan import Plan, Work
from editbench.costs.stage import ExpectedCache, StageCost
from editbench.editors.base import Resources
from editbench.editors.memit import Memit
from editbench.editors.targets.batches import chunk_tasks, estimate_targets
from editbench.editors.targets.tasks import make_tasks
from editbench.models import device_memory, memory_budget
from editbench.models.device_memory import GIB, allocated_memory, is_present
from editbench.models.editable import EditableModel
from editbench.models.loading import load_model, load_outline
from editbench.questions import Score
from editbench.testing import tiny_model, tiny_tokenizer, toy_cases

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def outline(folder: Path, tmp_path: Path) -> EditableModel:
    """The model planned for this machine, without its weights."""
    hollow = tmp_path / "tiny"
    shutil.copytree(folder, hollow)
    (hollow / "model.safetensors").unlink()
    return load_outline(str(hollow), specs={}, device="cpu")


@pytest.fixture
def have_free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets every device have so many bytes free."""

    def pretend(n_bytes: float) -> None:
        monkeypatch.setattr(memory_budget, "free_memory", lambda device: n_bytes)

    return pretend


def test_a_planned_device_that_is_here_has_what_is_free(outline, have_free) -> None:
    n_weights = outline.size.n_weight_bytes
    have_free(10 * n_weights)
    assert outline.memory.room == 9 * n_weights  # the weights are still to come
    outline.memory.limit = 4 * n_weights
    assert outline.memory.room == 3 * n_weights
    have_free(n_weights // 2)
    assert outline.memory.room == 0


@pytest.mark.parametrize("share", [1 / 16, 1 / 4, 4, 64])
def test_a_plan_chooses_the_chunks_of_the_run(folder, outline, have_free, share) -> None:
    """The loaded model finds less memory free by just its weights."""
    loaded = load_model(str(folder), specs={}, device="cpu")
    n_weights = loaded.size.n_weight_bytes
    requests = [case.request for case in toy_cases(20)]
    questions = [Score(request.text, request.target) for request in requests]
    chunks = []
    for model, free in ((outline, (1 + share) * n_weights), (loaded, share * n_weights)):
        have_free(free)
        editor = Memit(Memit.default_config(loaded)[0])
        stages = [
            *editor.estimate(model, requests, Resources(seed=0), ExpectedCache()),
            *estimate_answers(model, questions),
        ]
        chunks.append([(stage.name, stage.chunks) for stage in stages])
    assert chunks[0] == chunks[1]
    assert (chunks[0][1][1] == "1 chunk of at most 20 edits, 25 steps") == (share == 64)


def test_of_a_device_that_is_not_here_nobody_knows(outline, monkeypatch) -> None:
    monkeypatch.setattr(memory_budget, "is_present", lambda device: False)
    outline.planned_device = CUDA
    assert outline.memory.room == float("inf")
    outline.memory.limit = 3 * outline.size.n_weight_bytes
    assert outline.memory.room == 2 * outline.size.n_weight_bytes


def test_a_limit_counts_all_that_is_allocated(have_free, monkeypatch) -> None:
    """Where that is counted; elsewhere it is known of the weights alone."""
    model = tiny_model()
    n_weights = model.size.n_weight_bytes
    have_free(100 * n_weights)
    model.memory.narrow(10 * n_weights)
    assert model.memory.room == 9 * n_weights
    monkeypatch.setattr(memory_budget, "allocated_memory", lambda device: 7 * n_weights)
    assert model.memory.room == 3 * n_weights


def test_devices_that_are_here() -> None:
    assert is_present(CPU)
    assert is_present(CUDA) == torch.cuda.is_available()
    assert not is_present(torch.device("cuda", 99))
    assert allocated_memory(CPU) is None
    assert device_memory.free_memory(CPU) > 0


def test_a_model_on_several_devices_goes_by_the_fullest(monkeypatch) -> None:
    model = tiny_model()
    free = {CPU: 1, torch.device("cuda:0"): 500, torch.device("cuda:1"): 300}
    monkeypatch.setattr(memory_budget, "free_memory", free.__getitem__)
    monkeypatch.setattr(memory_budget, "is_present", lambda device: True)
    assert model.memory.working_devices == (CPU,)
    assert model.memory.room == 1
    # As accelerate leaves them: a hook, or one that holds several.
    hooks = [SimpleNamespace(execution_device=torch.device("cuda", index)) for index in (0, 1)]
    parts = [model.architecture.embedding, model.architecture.projection(3, "mlp")]
    for part, hook in zip(parts, (hooks[0], SimpleNamespace(hooks=hooks[1:])), strict=True):
        model.model.get_submodule(part)._hf_hook = hook
    assert model.device == torch.device("cuda:0")
    assert model.memory.working_devices == (torch.device("cuda:0"), torch.device("cuda:1"))
    assert model.memory.room == 300
    model.memory.narrow(200)
    assert model.memory.room == 200
    plan = Plan.of([Work("work", model, (StageCost("thinking", n_peak_bytes=GIB),))])
    peak = "peak 1.0 GiB on cuda:0 and 1.0 GiB on cuda:1 and 0 MiB on cpu (weights"
    assert peak in next(plan.summarize())


def test_weights_that_wait_elsewhere_need_room_when_they_come(have_free) -> None:
    plain, moved = tiny_model(), tiny_model()
    cpu_offload(moved.model, execution_device="cpu")
    blocks = [moved.model.get_submodule(moved.architecture.block(layer)) for layer in range(4)]
    n_block = sum(each.numel() * each.element_size() for each in blocks[3].parameters())
    assert [moved.memory.waiting_bytes(layer) for layer in range(5)] == [
        n * n_block for n in (4, 3, 2, 1, 0)
    ]
    assert plain.memory.waiting_bytes(0) == 0
    have_free(2 * n_block)
    largest = max(plain.model.parameters(), key=torch.Tensor.numel)
    assert plain.memory.room == 2 * n_block
    assert moved.memory.room == 2 * n_block - largest.numel() * largest.element_size()


def test_blocks_that_gradients_pass_take_room_from_the_chunks_of_z(have_free) -> None:
    """All blocks behind the offset are on the device until the gradient has passed them."""
    plain, moved = tiny_model(), tiny_model()
    cpu_offload(moved.model, execution_device="cpu")
    requests = [case.request for case in toy_cases(20)]
    tasks = make_tasks(plain.tokens, requests, [""])
    have_free(2**20)
    n_plain, n_moved = (
        [len(chunk.rows) for chunk in chunk_tasks(model, tasks, 1)] for model in (plain, moved)
    )
    assert max(n_moved) < max(n_plain)
    settings = Memit.default_config(plain)[0]
    have_free(2**30)
    costs = [estimate_targets(model, tasks, 1, settings) for model in (plain, moved)]
    assert costs[1].chunks == costs[0].chunks
    assert costs[1].n_peak_bytes - costs[0].n_peak_bytes == moved.memory.waiting_bytes(2)


@pytest.mark.gpu
def test_what_work_holds_is_taken_off_on_a_gpu() -> None:
    model = tiny_model()
    model.model.to("cuda")
    model.memory.narrow(allocated_memory(torch.device("cuda")) + 2**30)
    before = model.memory.room
    held = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    assert model.memory.room == before - held.numel()
