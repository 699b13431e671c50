"""The example folder of a model that is kept correct: its workflow from start to end."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

pytestmark = pytest.mark.thorough
EXAMPLE = Path(__file__).parents[2] / "docs/examples/corrected-model"
MADE_OF_PACKAGES = "Install"


def steps():
    text = (EXAMPLE / ".github/workflows/correct.yml").read_text()
    job = yaml.safe_load(text)["jobs"]["correct"]
    commands = {step["name"]: step["run"] for step in job["steps"] if "run" in step}
    return job["env"], commands


@pytest.fixture
def run_step(tmp_path):
    folder = tmp_path / "repository"
    shutil.copytree(EXAMPLE, folder)
    env, commands = steps()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def run(name):
        return subprocess.run(
            ["bash", "-e", "-c", commands[name]],
            cwd=folder,
            env={**os.environ, **env, "PATH": path, "EDITBENCH_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )

    run.folder = folder
    return run


def test_the_workflow_runs_from_start_to_end(run_step):
    _, commands = steps()
    assert list(commands) == [MADE_OF_PACKAGES, "Edit", "Gate", "Apply"]
    for name in ("Edit", "Gate", "Apply"):
        done = run_step(name)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    assert "expires" in (run_step.folder / "facts.jsonl").read_text()
    assert (run_step.folder / "corrected" / "config.json").exists()
    suite = ElementTree.parse(run_step.folder / "gate.xml").find("testsuite")
    n_facts = json.loads(
        subprocess.run(
            [sys.executable, "-m", "editbench.cli", "show", "edit.safetensors", "--format", "json"],
            cwd=run_step.folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )["n_edits"]
    # A prompt, a paraphrase and a neighbor of each, two checks and the held-out text.
    assert int(suite.get("tests")) == 3 * 3 + (n_facts - 3) + 2 + 1
    assert "| says |" in (run_step.folder / "summary.md").read_text()


def test_the_gate_stops_a_model_that_fails(run_step):
    facts = run_step.folder / "facts.jsonl"
    assert run_step("Edit").returncode == 0
    lines = facts.read_text().splitlines()
    lines[0] = lines[0].replace("Gwimble Books", "Nobody At All")
    facts.write_text("\n".join(lines))
    done = run_step("Gate")
    assert done.returncode == 1
    assert "expected 'Nobody At All', got ' Gwimble Books" in done.stderr
