"""The scripts for a GPU, at a size that a processor runs in seconds."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from editbench.editors.parts.subject_tokens import target_row
from editbench.results.report import summarize

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script as its own command would."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def load_script(name: str) -> ModuleType:
        module = __import__(name)
        assert Path(module.__file__).parent == SCRIPTS
        return module

    return load_script


@pytest.fixture
def run(load, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run_script(name: str, *arguments: object) -> None:
        module = load(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments), "--device", "cpu"])
        module.main()

    return run_script


def test_requests_are_as_long_as_they_should_be(load) -> None:
    random_model = load("random_model")
    shape = random_model.SHAPES["tiny"]
    model = random_model.make_model(shape, dtype=torch.float32, device="cpu")
    requests = random_model.make_requests(shape, 200)
    assert requests == random_model.make_requests(shape, 200)
    assert len({request.subject for request in requests}) == 200
    rows = json.loads((SCRIPTS / "prompt_lengths.json").read_text())["rows"]
    known = {tuple(lengths) for *lengths, _ in rows}
    behind = []
    for request in requests:
        row = target_row(model.tokens, request, "")
        n_before = len(model.tokens.encode(request.text[: request.subject_start]))
        n_behind = row.target_start - row.subject_last
        n_own = row.subject_last + 1 - n_before
        assert (n_before, n_own, n_behind, len(row.target_ids)) in known
        behind.append(n_behind)
    assert len(set(behind)) > 3


def test_mass_edit(run, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    arguments = ("--shape", "tiny", "--n-edits", 5, "--n-steps", 2, "--dtype", "float32")
    run("mass_edit", *arguments, "--out", out)
    content = json.loads(out.read_text())
    assert content["command"].startswith("python benchmarks/gpu/mass_edit.py --shape tiny")
    assert content["settings"]["mean_steps"] == 2  # stopped early by none
    assert content["settings"]["replay_failure"] is None
    rows = {row["stage"]: row for row in content["rows"]}
    for stage in ("second moments", "target hidden states", "keys", "solve"):
        assert rows[stage]["seconds"] > 0
        assert rows[stage]["flops"] + rows[stage]["double_flops"] > 0
        assert rows[stage]["utilization"] > 0
    parts = [rows[stage]["seconds"] for stage in ("target hidden states", "keys", "solve")]
    assert rows["z, keys and solve"]["seconds"] == pytest.approx(sum(parts))


def test_atlas_big(run, tmp_path: Path) -> None:
    sizes = ("--largest", 4, "--largest-rome", 4, "--n-scales", 1, "--n-validation", 4)
    run("atlas_big", "--tiny", "--out", tmp_path, "--steps", 2, "--weights", "100", *sizes)
    lines = summarize([tmp_path / "scaling"]).lines
    assert {line.editor for line in lines} == {"unedited", "memit", "ft-w", "rome"}
    assert {line.n_edits for line in lines} == {4}
    assert {"score", "accuracy_score"} <= {line.metric for line in lines}
    content = json.loads((tmp_path / "training.json").read_text())
    assert content["n_subjects"] == 120
    assert set(content["seconds"]) == {"training", "choosing λ", "scaling"}


def test_the_clock_counts_no_second_twice(load) -> None:
    class Worker:
        def outer(self) -> None:
            time.sleep(0.02)
            self.inner()

        def inner(self) -> None:
            time.sleep(0.1)

    clock = load("measures").StageClock(torch.device("cpu"))
    before = Worker.inner
    with clock.watching({"outer": [(Worker, "outer")], "inner": [(Worker, "inner")]}):
        Worker().outer()
    assert Worker.inner is before
    assert clock.seconds["inner"] >= 0.1
    assert 0.02 <= clock.seconds["outer"] < 0.1
