"""A model that learned from the real world: what `make real` shows, and its settings."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from editbench.cli.main import build_cli
from editbench.plugins.manager import load_plugins
from editbench.plugins.sources import open_dataset

pytestmark = [pytest.mark.real, pytest.mark.timeout(1_800)]
FACTS = Path(__file__).parents[2] / "docs" / "examples" / "real-facts.jsonl"
MODEL = "smollm2-135m-gguf"


def invoke(*arguments: object) -> str:
    plugins = load_plugins()
    result = CliRunner().invoke(
        build_cli(plugins), [str(each) for each in arguments], obj=plugins, catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def test_facts_of_the_real_world_are_corrected_and_their_neighbors_stay(tmp_path: Path) -> None:
    output = invoke(
        "edit", "--model", MODEL, "--facts", FACTS, "--side-by-side",
        "--out", tmp_path / "edit.safetensors", "--cache", tmp_path / "cache",
    )  # fmt: skip
    found = {
        kind: (int(before), int(asked), int(after))
        for kind, before, asked, after in re.findall(
            r"(\w+) with the expected text: (\d+) of (\d+) before, (\d+) after", output
        )
    }
    assert found["facts"][1] == 15
    assert found["facts"][2] >= 14
    assert found["facts"][0] <= 2
    assert found["paraphrases"][2] >= found["paraphrases"][0] + 4
    assert found["neighbors"][:2] == (30, 30)
    assert found["neighbors"][2] >= 25
    assert re.search(r"The Eiffel Tower is located in the city of\s*│ Paris.*│ Rome", output)
    assert re.search(r"The Louvre is located in the city of\s*│ Paris.*│ Paris", output)


def test_settings_of_the_short_name_hold_what_they_are_meant_to(
    shared: Path, tmp_path: Path
) -> None:
    run, data = tmp_path / "run", shared / "data" / "counterfact"
    invoke(
        "run", "--model", MODEL, "--dataset", f"counterfact={data / 'counterfact-700.json'}",
        "--n-edits", 100, "--metrics", "success",
        "--cache", tmp_path / "cache", "--out", run,
    )  # fmt: skip
    rows = json.loads(invoke("report", run, "--format", "json"))
    values = {(row["editor"], row["metric"]): row["value"] for row in rows}
    assert values["memit", "efficacy_success"] >= 99
    assert values["memit", "paraphrase_success"] >= 95
    unedited = values["unedited", "neighborhood_success"]
    assert values["memit", "neighborhood_success"] >= unedited - 2
    trials = [json.loads(path.read_text()) for path in run.glob("trials/*/trial.json")]
    (edit,) = [edit for trial in trials for edit in trial["edits"] if edit["editor"] == "memit"]
    assert edit["extra"]["target_steps"] <= 15


def test_validation_facts_share_nothing_with_the_reported_ones(shared: Path) -> None:
    plugins, data = load_plugins(), shared / "data" / "counterfact"
    files = {"counterfact": data / "counterfact-700.json", "facts": data / "validation-2000.jsonl"}
    reported, validation = (
        {case.request.subject for case in open_dataset(f"{kind}={path}", plugins, None).cases()}
        for kind, path in files.items()
    )
    assert reported
    assert validation
    assert not reported & validation
