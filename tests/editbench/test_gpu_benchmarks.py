"""The scripts for a GPU, at a size that a processor runs in seconds."""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from editbench.editors.subject_tokens import target_row
from editbench.results.report import summarize

pytestmark = pytest.mark.thorough

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


MASS_EDIT = ("--shape", "tiny", "--n-edits", 5, "--n-steps", 2, "--dtype", "float32")


def test_mass_edit(run, tmp_path: Path) -> None:
    results = tmp_path / "gpu"
    run("mass_edit", *MASS_EDIT, "--out", results / "tiny.json")
    assert [path.name for path in results.iterdir()] == ["tiny.json"]
    content = json.loads((results / "tiny.json").read_text())
    assert content["command"].startswith("python benchmarks/gpu/mass_edit.py --shape tiny")
    assert content["complete"]
    assert content["settings"]["mean_steps"] == 2  # stopped early by none
    assert content["settings"]["replay_failure"] is None
    rows = {row["stage"]: row for row in content["rows"]}
    for stage in ("second moments", "target hidden states", "keys", "solve"):
        assert rows[stage]["seconds"] > 0
        assert rows[stage]["flops"] + rows[stage]["double_flops"] > 0
        assert rows[stage]["utilization"] > 0
    n_calls = {"target hidden states": 2, "keys": 4, "second moments read": 3, "solve": 3}
    for stage, n in n_calls.items():  # a chunk and the rest, or three layers
        assert len(rows[stage]["seconds_of_calls"]) == n
        assert sum(rows[stage]["seconds_of_calls"]) == pytest.approx(rows[stage]["seconds"])
    parts = [rows[stage]["seconds"] for stage in n_calls]
    assert rows["z, keys and solve"]["seconds"] == pytest.approx(sum(parts))
    (line,) = written_lines(tmp_path, "| tiny, 5 facts | solve |")
    assert line.count("|") == 8
    assert "of 3 |" in line
    assert written_lines(tmp_path, f"- `{content['command']}`")[0].endswith(", once")


def written_lines(results: Path, start: str) -> list[str]:
    """Lines of the table of GPUs' records that begin so."""
    command = [sys.executable, SCRIPTS.parent / "write_table.py", results, "--results", results]
    subprocess.run(command, check=True)
    table = (results / "gpu_benchmarks.md").read_text()
    return [line for line in table.splitlines() if line.startswith(start)]


def test_an_edit_that_is_ended_early_leaves_what_it_has_measured(
    load, run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "gpu" / "tiny.json"
    solved = []

    def solve(*args: object) -> object:
        if solved:
            raise KeyboardInterrupt
        solved.append(args)
        return plain(*args)

    preserved_values = load("mass_edit").PreservedValues
    plain = preserved_values.solve
    monkeypatch.setattr(preserved_values, "solve", solve)
    monkeypatch.setattr(load("growing_record"), "_SECONDS_BETWEEN", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run("mass_edit", *MASS_EDIT, "--out", out)
    content = json.loads(out.read_text())
    assert not content["complete"]
    assert content["running"]["stage"] == "insertion"
    assert (content["running"]["done"], content["running"]["total"]) == (1, 3)
    rows = {row["stage"]: row for row in content["rows"]}
    assert rows["target hidden states"]["utilization"] > 0
    assert len(rows["solve"]["seconds_of_calls"]) == 2  # the second of them was interrupted
    assert "utilization" not in rows["solve"]  # the plan says what all layers take
    (line,) = written_lines(tmp_path, f"- `{content['command']}`")
    assert "**ended early**" in line
    assert line.endswith("of insertion (1 of 3)")


def test_all_steps_that_fit_are_run(load, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    run_all = load("run_all")
    ran = []

    def fake(script: str, arguments: list[str]):
        def main() -> None:
            ran.append((script, arguments))
            if script == "bad":
                sys.exit("not a shape")

        return contextlib.nullcontext(main)

    monkeypatch.setattr(run_all, "command", fake)
    steps = [
        run_all.Step("bad", "bad", 1, "--out {out}/bad.json", "--small"),
        run_all.Step("long", "long", 9, "", ""),
        run_all.Step("short", "short", 2, "", ""),
    ]
    assert run_all.run_steps(steps, 5, Path("records"), "cpu", is_tiny=False) == 1
    expected = [["--out", "records/bad.json", "--device", "cpu"], ["--device", "cpu"]]
    assert ran == [("bad", expected[0]), ("short", expected[1])]
    said = capsys.readouterr()
    assert re.search(r"long: skipped, it takes 9 minutes, and [45]\.\d are left", said.out)
    assert "bad: failed" in said.out
    assert "not a shape" in said.err
    assert run_all.run_steps(steps[2:], 5, Path("records"), "cpu", is_tiny=True) == 0


@pytest.mark.slow
def test_steps_leave_records_of_their_own_commands(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_all = load("run_all")
    arguments = ["--minutes", "20", "--tiny", "--device", "cpu", "--out", str(tmp_path / "gpu")]
    steps = ["check", "neox", "gptj"]
    monkeypatch.setattr(sys, "argv", ["run_all.py", *arguments, "--steps", *steps])
    assert run_all.main() == 0
    names = {"gptj", "neox"}
    assert {path.stem for path in (tmp_path / "gpu").iterdir()} == names
    for name in names:
        command = json.loads((tmp_path / "gpu" / f"{name}.json").read_text())["command"]
        assert command.startswith("python benchmarks/gpu/mass_edit.py --shape ")
        assert written_lines(tmp_path, f"- `{command}`")


def test_commands_of_steps_are_understood(load, monkeypatch: pytest.MonkeyPatch) -> None:
    run_all = load("run_all")
    assert [step.name for step in run_all.STEPS[:2]] == ["check", "gptj"]
    for step in run_all.STEPS:
        arguments = f"{step.arguments} --help".format(out="records").split()
        with (
            run_all.command(step.script, arguments) as main,
            pytest.raises(SystemExit) as ended,
        ):
            main()
        assert ended.value.code == 0


def test_atlas_big(run, tmp_path: Path) -> None:
    sizes = ("--largest", 4, "--largest-rome", 4, "--n-scales", 1, "--n-validation", 4)
    run("atlas_big", "--tiny", "--out", tmp_path, "--steps", 2, "--weights", "100", *sizes)
    lines = summarize([tmp_path / "scaling"]).lines
    assert {line.editor for line in lines} == {"unedited", "memit", "ft-w", "rome"}
    assert {line.n_edits for line in lines} == {4}
    assert {"score", "accuracy_score"} <= {line.metric for line in lines}
    content = json.loads((tmp_path / "training.json").read_text())
    assert content["complete"]
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
        Worker().inner()
    assert Worker.inner is before
    first, second = clock.calls["inner"]
    assert min(first, second) >= 0.1
    assert clock.seconds["inner"] == first + second
    assert 0.02 <= clock.seconds["outer"] < 0.1
