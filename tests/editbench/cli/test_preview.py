"""``edit --preview`` and ``--skip-known``: a look before the work."""

import json
import re

import pytest

from editbench.edits.weight_edit import WeightEdit


@pytest.fixture
def options(model_folder, facts_file, memit_options):
    return ["edit", "--model", model_folder, "--facts", facts_file, *memit_options]


def test_without_a_file_to_write_it_stops_there(invoke, options, tmp_path):
    result = invoke(*options, "--preview")
    assert result.exit_code == 0, result.output
    for part in ("says now", "nearest fact", "likeness", "neighbors that are nearest"):
        assert part in result.stdout
    assert "wrote" not in result.stdout
    assert not list(tmp_path.glob("*.safetensors"))


def test_afterwards_it_says_which_neighbors_moved(invoke, options):
    result = invoke(*options, "--preview", "--out", "e.safetensors")
    assert result.exit_code == 0, result.output
    (line,) = (line for line in result.stdout.splitlines() if "otherwise than before" in line)
    n_moved, n_asked = (int(word) for word in line.split() if word.isdigit())
    assert 0 <= n_moved <= n_asked
    assert n_asked > 0
    assert result.stdout.splitlines()[-1] == "Wrote e.safetensors"


def test_facts_about_one_subject_are_named(invoke, model_folder, memit_options, tmp_path):
    fact = {"subject": "Ana Lund", "target": "baker"}
    facts = [{**fact, "prompt": "{} works as a", "case_id": "a"},
             {**fact, "prompt": "{} is known as a", "case_id": "b"}]  # fmt: skip
    (tmp_path / "f.jsonl").write_text("\n".join(map(json.dumps, facts)))
    result = invoke(
        "edit", "--model", model_folder, "--facts", "f.jsonl", *memit_options, "--preview"
    )
    assert "subject shared with b" in result.stdout
    assert "subject shared with a" in result.stdout


def test_what_is_known_is_left_out(invoke, options, tmp_path):
    shown = invoke(*options, "--check", "--out", "e.safetensors").stdout
    n_known = int(re.search(r"before the edit, for (\d+)", shown)[1])
    assert 0 < n_known < 6
    result = invoke(*options, "--skip-known", "--out", "k.safetensors")
    assert result.exit_code == 0, result.output
    assert f"Known already, left out: {n_known} fact(s)." in result.stdout
    everything, left = (
        [request.target for request in WeightEdit.load(tmp_path / name).recipe.requests]
        for name in ("e.safetensors", "k.safetensors")
    )
    assert len(left) == 6 - n_known
    assert set(left) < set(everything)
