"""``editbench train mend``: a hypernetwork from cases, kept when killed, found when editing."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors import safe_open

from editbench.edits.weight_edit import WeightEdit

QUICK = ["rank=2", "validation_interval=2", "validation_cases=2", "batch_size=2"]
SETTINGS = [part for setting in QUICK for part in ("--set", setting)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDITBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def options(model_folder, facts_file):
    return ["--model", model_folder, "--dataset", f"facts={facts_file}", *SETTINGS]


def record_of(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["editbench"])


def test_what_is_trained_can_edit(invoke, options, model_folder, facts_file, tmp_path):
    result = invoke("train", "mend", *options, "--max-steps", 3, "--out", "m.safetensors")
    assert result.exit_code == 0, result.output
    assert "Trained on facts for 3 steps: all steps were taken." in result.stdout
    assert "--set mend.weights=m.safetensors" in result.stdout
    record = record_of(tmp_path / "m.safetensors")
    assert record["dataset"] == "facts"
    assert record["validation"] is None
    assert record["steps"] == record["config"]["max_steps"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors"]
    result = invoke(
        "edit", "--model", model_folder, "--facts", facts_file, "--editor", "mend",
        "--set", "mend.weights=m.safetensors", "--out", "e.safetensors",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    edit = WeightEdit.load(tmp_path / "e.safetensors")
    assert edit.card.n_edits == 6
    assert edit.changes_something


def test_without_out_the_editor_finds_it(invoke, options, model_folder, facts_file, tmp_path):
    editing = ["edit", "--model", model_folder, "--facts", facts_file, "--editor", "mend"]
    refused = invoke(*editing, "--out", "e.safetensors")
    assert refused.exit_code == 2
    assert "Train one with 'editbench train mend --model" in refused.stderr
    result = invoke("train", "mend", *options, "--max-steps", 1)
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "cache" / "mend").iterdir()
    assert f"Wrote {path}" in result.stdout
    result = invoke(*editing, "--out", "e.safetensors")
    assert result.exit_code == 0, result.output
    assert str(path) in result.stdout


def test_validation_may_be_another_dataset(invoke, options, facts_file, tmp_path):
    validation = ["--validation", f"facts={facts_file}"]
    result = invoke("train", "mend", *options, *validation, "--max-steps", 1, "--out", "m")
    assert result.exit_code == 0, result.output
    record = record_of(tmp_path / "m")
    assert record["validation"] == "facts"
    assert record["validation_fingerprint"] == record["dataset_fingerprint"]


def test_it_ends_in_time(invoke, options, tmp_path):
    result = invoke("train", "mend", *options, "--max-minutes", 1e-4, "--out", "m")
    assert result.exit_code == 0, result.output
    assert "time was used up" in result.stdout
    assert "it goes on, from m.partial" in result.stdout


def test_with_more_time_or_steps_it_goes_on_until_it_has_ended(invoke, refuses, options, tmp_path):
    training = ["train", "mend", *options, "--out", "m"]
    assert invoke(*training, "--max-minutes", 1e-4).exit_code == 0
    refuses(*training, says="Pass --resume")
    steps = record_of(tmp_path / "m")["steps"]
    more = invoke(*training, "--resume", "--max-steps", steps + 2)
    assert more.exit_code == 0, more.output
    assert record_of(tmp_path / "m")["steps"] == steps + 2
    assert not (tmp_path / "m.partial").exists()
    refuses(*training, "--resume", says=["has ended", "leave out --resume"])


def test_settings_come_from_a_file_and_set_wins(invoke, options, tmp_path):
    (tmp_path / "t.yaml").write_text("rank: 3\nmax_steps: 1\nclip_norm: 7\n")
    result = invoke("train", "mend", *options, "--config", "t.yaml", "--out", "m")
    assert result.exit_code == 0, result.output
    config = record_of(tmp_path / "m")["config"]
    assert (config["rank"], config["max_steps"], config["clip_norm"]) == (2, 1, 7)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--set", "ranks=2"], ["--set", "unknown field 'ranks'", "rank"]),
        (["--set", "rank"], ["expected FIELD=VALUE"]),
        (["--set", "rank=0"], ["field 'rank'"]),
        (["--max-steps", "0"], ["--max-steps"]),
        (["--out", "nowhere/m"], ["there is no such folder"]),
        (["--set", "edits_at_once=3"], ["edits_at_once must divide batch_size"]),
        (["--set", "blocks=[9]"], ["no such layer", "got 9"]),
    ],
)
def test_bad_input_is_refused(refuses, options, more, says):
    refuses("train", "mend", *options, *more, says=says)


def test_a_dataset_without_probes_is_refused(refuses, model_folder, tmp_path):
    facts = tmp_path / "bare.jsonl"
    facts.write_text(
        "".join(
            json.dumps({"subject": name, "prompt": "{} works as a", "target": "poet"}) + "\n"
            for name in ("Ana", "Boris")
        )
    )
    refuses(
        "train", "mend", "--model", model_folder, "--dataset", f"facts={facts}", "--out", "m",
        says=["no case has both a paraphrase and a neighborhood probe", "lack a paraphrase probe"],
    )  # fmt: skip


@pytest.mark.thorough
def test_a_killed_training_goes_on_with_resume(invoke, options, model_folder, tmp_path):
    """SIGKILL, at any moment; then the file is that of a training that was never killed."""
    arguments = ["train", "mend", *options, "--max-steps", 14]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "editbench.cli", *map(str, arguments), "--out", "m"]
    program = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    partial = tmp_path / "m.partial"
    deadline = time.monotonic() + 120
    while not partial.exists():
        assert program.poll() is None, program.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    program.send_signal(signal.SIGKILL)
    program.communicate(timeout=60)
    assert not (tmp_path / "m").exists()
    refused = invoke(*arguments, "--out", "m")
    assert refused.exit_code == 2
    assert "Pass --resume" in refused.stderr
    resumed = invoke(*arguments, "--out", "m", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert not partial.exists()
    whole = subprocess.run(
        [*command[:-1], "whole"], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert whole.returncode == 0, whole.stderr
    assert (tmp_path / "m").read_bytes() == (tmp_path / "whole").read_bytes()


def test_interrupt_says_what_is_kept(invoke, options, monkeypatch):
    from editbench.editors.mend import training

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Training, "take_step", interrupt)
    result = invoke("train", "mend", *options, "--out", "m")
    assert result.exit_code == 130
    assert "m.partial is kept; the same command with --resume goes on" in result.stderr


def test_help_of_the_command(invoke):
    result = invoke("train", "mend", "--help")
    assert result.exit_code == 0
    assert "editbench train mend" in result.stdout.partition("Options:")[2]
