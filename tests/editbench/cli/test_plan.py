"""``--plan``: what would be computed, without weights and without computing it."""

import re
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.editbench.runner.toys import Length, Toy, make_grid

from editbench.cli.plan import work_of_trials
from editbench.costs.machine import Machine
from editbench.costs.plan import Plan, Work
from editbench.costs.stage import ExpectedCache, StageCost
from editbench.editors.base import Resources
from editbench.editors.memit import Memit
from editbench.editors.prompting import InContext, PromptingConfig
from editbench.metrics.probes import Accuracy
from editbench.models import memory_budget
from editbench.models.device_memory import GIB
from editbench.portability import Query
from editbench.requests import Probe
from editbench.runner import run_grid
from editbench.runner.prepare import prepare_run
from editbench.testing import tiny_model, toy_cases

GPU_BENCHMARKS = Path(__file__).parents[3] / "benchmarks" / "gpu"


@pytest.fixture
def outline_folder(model_folder, tmp_path):
    """A model folder without weights."""
    folder = tmp_path / "outline"
    shutil.copytree(model_folder, folder)
    (folder / "model.safetensors").unlink()
    return folder


def test_run_is_planned_without_weights(invoke, outline_folder, facts_file, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    result = invoke(
        "run", "--plan", "--model", outline_folder, "--dataset", f"facts={facts_file}",
        "--editor", "memit", "--editor", "rome", "--editor", "ft-w", "--n-edits", 2, "--n-edits", 4,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for stage in ("second moments", "target hidden states", "keys", "solve", "answers: scores"):
        assert f"  {stage} " in result.stdout
    assert "fine-tuning" in result.stdout
    assert "Times are estimates" in result.stdout
    assert "trials)" not in result.stdout  # no run was begun
    speeds = [path for path in tmp_path.rglob("*") if "machines" in path.parts]
    assert [path.suffix for path in speeds if path.is_file()] == [".json"]
    left = {path for path in tmp_path.rglob("*") if path not in speeds} - {tmp_path / "cache"}
    assert sorted(left) == before


def test_edit_is_planned(invoke, outline_folder, facts_file, tmp_path):
    out = tmp_path / "edit.safetensors"
    result = invoke(
        "edit", "--plan", "--model", outline_folder, "--facts", facts_file, "--out", out, "--check"
    )
    assert result.exit_code == 0, result.output
    assert "memit on" in result.stdout
    assert "answers: scores" in result.stdout
    assert not out.exists()


def test_an_editor_that_says_nothing_is_marked(invoke, outline_folder, facts_file, nudging):
    arguments = ["--dataset", f"facts={facts_file}", "--n-edits", 2, "--editor", "nudge"]
    result = invoke("run", "--plan", "--model", outline_folder, *arguments, plugins=[nudging])
    assert result.exit_code == 0, result.output
    assert "the editor does not say" in result.stdout
    assert "Stages marked ? are left out" in result.stdout


def test_layers_cannot_be_traced_in_a_plan(refuses, model_folder, facts_file):
    refuses(
        "run", "--plan", "--model", model_folder, "--dataset", f"facts={facts_file}",
        "--layers", "auto", says="nothing is computed, so no layers can be traced",
    )  # fmt: skip


def test_how_a_model_is_spread_is_not_known_without_weights(refuses, model_folder, facts_file):
    refuses(
        "run", "--plan", "--model", model_folder, "--dataset", f"facts={facts_file}",
        "--device-map", "auto",
        says=["--plan: where a model's weights are spread", "got --device-map auto", "--device"],
    )  # fmt: skip


def test_what_is_too_large_is_said(invoke, outline_folder, facts_file):
    arguments = ["--dataset", f"facts={facts_file}", "--n-edits", 2, "--max-memory", 0.0001]
    result = invoke("run", "--plan", "--model", outline_folder, *arguments)
    assert "Too large for" in result.stdout


def test_what_the_device_has_free_is_known(invoke, outline_folder, facts_file, monkeypatch):
    arguments = ["--dataset", f"facts={facts_file}", "--n-edits", 2, "--device", "cpu"]
    n_free = tiny_model().size.n_weight_bytes + 2**17
    monkeypatch.setattr(memory_budget, "free_memory", lambda device: n_free)
    result = invoke("run", "--plan", "--model", outline_folder, *arguments)
    assert "Too large for cpu: '" in result.stdout
    assert "beside the weights, and there are 0 MiB." in result.stdout
    assert "is unknown" not in result.stdout


def test_of_a_device_that_is_not_there_little_is_known(invoke, outline_folder, facts_file):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    arguments = ["--dataset", f"facts={facts_file}", "--n-edits", 2, "--device", "cuda"]
    result = invoke("run", "--plan", "--model", outline_folder, *arguments)
    assert result.exit_code == 0, result.output
    assert "The device is not on this machine, so times are unknown." in result.stdout
    assert "How much memory cuda has is unknown" in result.stdout
    result = invoke("run", "--plan", "--model", outline_folder, *arguments, "--max-memory", 4)
    assert "How much memory" not in result.stdout
    result = invoke("run", "--plan", *arguments)
    assert "peak" in result.stdout
    assert "on cuda (weights" in result.stdout


@pytest.fixture
def random_model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Models of published sizes, and facts as long as CounterFact's."""
    monkeypatch.syspath_prepend(str(GPU_BENCHMARKS))
    return import_module("random_model")


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "gib"), [("gptj", 24), ("neox", 80)])
def test_the_papers_models_fit(name: str, gib: int, random_model: ModuleType) -> None:
    """10,000 edits in bfloat16; the paper needed 48 GB for GPT-J and two devices for NeoX."""
    shape = random_model.SHAPES[name]
    model = random_model.make_model(shape, dtype=torch.bfloat16, device="meta")
    model.planned_device = torch.device("cuda")
    model.memory.narrow(int(gib * 1e9))
    requests = random_model.make_requests(shape, 10_000)
    editor = Memit(random_model.make_config(shape))
    stages = editor.estimate(model, requests, Resources(seed=0), ExpectedCache())
    assert [stage.name for stage in stages] == [
        "second moments", "target hidden states", "keys", "solve",
    ]  # fmt: skip
    for stage in stages:
        assert model.size.n_weight_bytes + stage.n_peak_bytes < gib * 1e9, stage
    # Chunks are as large as they fit and no larger: each of them reads all weights anew.
    _, targets, _, _ = stages
    largest = int(re.search("at most ([0-9]+) edits", targets.chunks)[1])
    assert 100 <= largest < 1_000
    assert targets.n_peak_bytes > 0.5 * model.memory.room
    assert model.memory.tokens >= 2_048
    # In each step an edit has its prompt, the same after each context prefix, and the KL term's.
    n_rows = 2 + editor.config.n_context_prefixes
    assert targets.n_tokens > 10_000 * n_rows * editor.config.n_steps


def test_less_memory_makes_smaller_parts():
    model = tiny_model()
    whole = model.memory.tokens
    model.memory.narrow(model.size.n_weight_bytes + GIB // 256)
    assert 1 < model.memory.tokens < whole
    model.memory.narrow(1)
    assert model.memory.tokens == 1
    assert model.memory.place(GIB) == torch.device("cpu")


def test_a_machine_is_measured_in_a_moment():
    model = tiny_model()
    machine = Machine.measure(model.size, model.device, model.model.dtype)
    assert machine is not None
    work = StageCost("work", n_flops=machine.flops, n_read_bytes=machine.read_bytes)
    assert machine.seconds(work) == pytest.approx(2)


def test_a_machine_is_measured_once(tmp_path, monkeypatch):
    model = tiny_model()
    sizes = (model.size, model.device, model.model.dtype)
    found = Machine.find(*sizes, tmp_path)
    assert found == Machine.find(*sizes, tmp_path)
    assert Machine.find(model.size, torch.device("cuda", 99), torch.float32, tmp_path) is None
    (kept,) = tmp_path.rglob("*.json")
    assert f"cpu-float32-{torch.get_num_threads()}_threads" in kept.name
    kept.write_text("{}")  # damaged: measured again
    assert Machine.find(*sizes, tmp_path) is not None
    assert "flops" in kept.read_text()


def test_long_work_is_summed_up_in_a_line():
    model = tiny_model()
    machine = Machine(4e8, 1e9, 1e9, 0.0)
    stages = (
        StageCost("thinking", n_tokens=12_345, n_flops=4e11),
        StageCost.unknown("guessing", "nobody knows"),
    )
    plan = Plan((Work("a trial", model, stages),), {id(model): machine})
    assert plan.total_seconds == pytest.approx(1000)
    (line,) = plan.summarize()
    assert line.startswith("Plan for tiny: 12.3k tokens, 400 GFLOP, peak ")
    assert line.endswith("at most about 17 min: thinking 17 min.")


@pytest.mark.parametrize(
    "stream", [{}, {"batch_size": 2, "checkpoints": lambda n_edits: (2,)}], ids=["whole", "stream"]
)
def test_answers_are_planned_token_by_token(tmp_path: Path, stream: dict[str, object]) -> None:
    """Facts before questions, and what only the unedited model is asked, and that once."""
    model = tiny_model(n_layers=2)
    first, *others = toy_cases(4)
    condition = Query("Elif Lund lives in the town of", ("Osk", "Velm"))
    neighbor = Probe("neighborhood", "Elif Lund is a", "pilot", conditions=(condition,))
    cases = [replace(first, probes=(*first.probes, neighbor)), *others]
    trials = make_grid(
        model,
        InContext(PromptingConfig(wording="new-fact")),
        dataset=Toy(cases),
        n_edits=(4,),
        metrics=(Accuracy(), Length()),
        **stream,
    )
    prepared = prepare_run(trials)
    assert [len(trial.batches[0].before) for trial in prepared.prepared] == [2, 2]
    planned = [
        sum(stage.n_tokens for stage in piece.stages) for piece in work_of_trials(prepared, None)
    ]
    counts: list[int] = []

    def count(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        counts.append(kwargs["input_ids"].numel())

    run = [0, 0]
    handle = model.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        for place in range(len(trials)):
            run_grid(trials[: place + 1], tmp_path / str(place), cache=None)
            run[place] = sum(counts) - run[0] * place
            counts.clear()
    finally:
        handle.remove()
    assert planned == run
    assert planned[1] > 2 * planned[0]  # all four facts stand before its questions
