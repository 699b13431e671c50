"""``edit --preview`` and ``--skip-known``: a look before the work."""

import json

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
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


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


def test_what_is_known_is_left_out(invoke, options, facts_file, model_folder, tmp_path):
    facts = [json.loads(line) for line in facts_file.read_text().splitlines()]
    shown = invoke(*options, "--check", "--out", "e.safetensors").stdout
    assert "before the edit, for 0" in shown
    from editbench.models.greedy import write_greedily
    from editbench.questions import Score
    from editbench.testing import tiny_model

    prompt = facts[0]["prompt"].replace("{}", facts[0]["subject"])
    said = write_greedily(tiny_model(), [Score(prompt, " ")], 2)[0]
    facts[0] |= {"target": said.strip(), "target_true": None}
    facts[0].pop("neighbors")
    path = tmp_path / "known.jsonl"
    path.write_text("\n".join(map(json.dumps, facts)))
    changed = [path if option == facts_file else option for option in options]
    result = invoke(*changed, "--skip-known", "--out", "k.safetensors")
    assert result.exit_code == 0, result.output
    assert "Known already, left out: 1 fact(s)." in result.stdout
    recipe = WeightEdit.load(tmp_path / "k.safetensors").recipe
    assert [request.case_id for request in recipe.requests] == [
        fact["case_id"] for fact in facts[1:]
    ]
