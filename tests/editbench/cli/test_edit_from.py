"""``edit --from``, ``show`` and ``diff``: an edit file knows what it was made from."""

import json

import pytest
import torch
from safetensors.torch import load_file

from editbench.edits.weight_edit import WeightEdit

MORE = [
    {"subject": "Nils Rau", "prompt": "{} works as a", "target": "baker", "note": "by hand"},
    {"subject": "Nora Rau", "prompt": "{} works as a", "target": "pilot", "case_id": "nora"},
]


@pytest.fixture
def edit(invoke, model_folder, memit_options):
    """Runs ``edit``; returns what it printed."""

    def run(out, *options, facts=None, cache=()):
        source = [] if facts is None else ["--facts", facts, "--model", model_folder]
        moments = memit_options if facts is not None else memit_options[:2]
        result = invoke("edit", *source, *moments, *options, *cache, "--out", out)
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


@pytest.fixture
def write_facts(tmp_path):
    def write(name, facts):
        path = tmp_path / name
        path.write_text("".join(json.dumps(fact) + "\n" for fact in facts))
        return path

    return write


@pytest.fixture
def facts(facts_file):
    lines = facts_file.read_text().splitlines()
    return [{**json.loads(line), "case_id": str(place)} for place, line in enumerate(lines, 1)]


def numbers(path):
    return {
        name: tensor for name, tensor in load_file(path).items() if not name.startswith("targets/")
    }


def assert_same(one, other):
    first, second = numbers(one), numbers(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_dropping_and_adding_gives_the_bits_of_an_edit_from_the_start(
    edit, facts, write_facts, tmp_path
):
    more = write_facts("more.jsonl", MORE)
    everything = write_facts(
        "all.jsonl", [*facts[:2], *facts[3:], {**MORE[0], "case_id": "1-2"}, MORE[1]]
    )
    edit("a.safetensors", facts=write_facts("facts.jsonl", facts))
    said = edit(
        "b.safetensors", "--from", "a.safetensors", "--drop", facts[2]["case_id"],
        "--facts", more, cache=["--no-cache"],
    )  # fmt: skip
    assert "Dropped: 1 fact(s): 3" in said
    assert "Added: 2 fact(s): 1-2, nora" in said
    assert "Target states: 5 of 7 were in a.safetensors" in said
    edit("c.safetensors", facts=everything)
    assert_same(tmp_path / "b.safetensors", tmp_path / "c.safetensors")


def test_no_target_state_is_found_again(edit, facts, write_facts, tmp_path, monkeypatch):
    edit("a.safetensors", facts=write_facts("facts.jsonl", facts), cache=["--no-cache"])

    def fail(*_, **__):
        raise AssertionError("a target state was optimized again")

    monkeypatch.setattr("editbench.editors.targets.optimizer.TargetOptimizer.run", fail)
    said = edit("b.safetensors", "--from", "a.safetensors", "--drop", "1", cache=["--no-cache"])
    assert "Target states: 5 of 5 were in a.safetensors" in said
    again = edit("c.safetensors", "--from", "b.safetensors", cache=["--no-cache"])
    assert "Target states: 5 of 5 were in b.safetensors" in again
    assert_same(tmp_path / "b.safetensors", tmp_path / "c.safetensors")


def test_another_preservation_weight_leaves_target_states_as_they_are(edit, facts, write_facts):
    edit("a.safetensors", facts=write_facts("facts.jsonl", facts))
    said = edit(
        "b.safetensors", "--from", "a.safetensors", "--set", "memit.preservation_weight=3",
        cache=["--no-cache"],
    )  # fmt: skip
    assert "Target states: 6 of 6 were in a.safetensors" in said


def test_without_target_states_they_are_found_again(edit, facts, write_facts, tmp_path):
    edit("a.safetensors", "--no-targets", facts=write_facts("facts.jsonl", facts))
    assert not any(name.startswith("targets/") for name in load_file(tmp_path / "a.safetensors"))
    said = edit("b.safetensors", "--from", "a.safetensors", cache=["--no-cache"])
    assert "Target states: 0 of 6 were in a.safetensors" in said


def test_a_new_fact_about_the_same_supersedes_the_old_one(edit, facts, write_facts, tmp_path):
    edit("a.safetensors", facts=write_facts("facts.jsonl", facts))
    revised = {**facts[0], "target": "sculptor", "case_id": "new"}
    said = edit(
        "b.safetensors", "--from", "a.safetensors", "--facts", write_facts("new.jsonl", [revised])
    )
    assert "Superseded: 1 (" in said
    assert "by new ('sculptor')" in said
    recipe = WeightEdit.load(tmp_path / "b.safetensors").recipe
    assert [request.case_id for request in recipe.requests] == ["2", "3", "4", "5", "6", "new"]


def test_what_has_expired_is_left_out(edit, facts, write_facts, tmp_path):
    facts[0]["expires"], facts[1]["expires"] = "2026-03-31", "2030-01-01"
    source = write_facts("facts.jsonl", facts)
    edit("a.safetensors", facts=source)
    said = edit("b.safetensors", "--from", "a.safetensors", "--as-of", "2026-06-01")
    assert "Expired, left out: 1 fact(s): 1" in said
    edit("c.safetensors", "--as-of", "2026-06-01", facts=source)
    assert_same(tmp_path / "b.safetensors", tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("editor", "quick"), [("memit", "n_steps=1"), ("ft-w", "n_epochs=1"), ("mend", "lr_scale=1")]
)
def test_making_an_edit_again_can_be_planned(invoke, write_facts, editor, quick):
    """Also where second moments come from the model's own text, or are not needed."""
    facts = write_facts(
        "two.jsonl",
        [
            {"case_id": name, "subject": name, "prompt": "{} works as a", "target": "painter"}
            for name in ("Mrortar", "Kvolfir")
        ],
    )
    made = invoke(
        "edit", "--model", "atlas", "--editor", editor, "--set", f"{editor}.{quick}",
        "--facts", facts, "--out", "a.safetensors",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    shown = invoke("show", "a.safetensors", "--format", "json")
    statuses = {fact["status"] for fact in json.loads(shown.stdout)["extra"]["facts"]}
    assert statuses <= {"written", "clamped", "stopped early"}
    planned = invoke("edit", "--from", "a.safetensors", "--drop", "Kvolfir", "--plan")
    assert planned.exit_code == 0, planned.output
    assert "Plan for atlas" in planned.stdout


def test_show_lists_facts_with_what_became_of_them_and_their_notes(
    edit, invoke, facts, write_facts
):
    facts[0] |= {"author": "R. Kern", "date": "2026-01-02", "source": "the register"}
    edit("a.safetensors", facts=write_facts("facts.jsonl", facts))
    shown = invoke("show", "a.safetensors")
    assert shown.exit_code == 0, shown.output
    for part in ("editor: memit", "rank 6", "made from: 6 fact(s), all at once, seed 0",
                 "6 target states kept", "R. Kern", "2026-01-02", "the register"):  # fmt: skip
        assert part in shown.stdout
    content = json.loads(invoke("show", "a.safetensors", "--format", "json").stdout)
    first = content["facts"][0]
    assert first["author"] == "R. Kern"
    assert first["status"] in {"written", "clamped", "stopped early"}
    assert len(content["facts"]) == 6


def test_diff_tells_facts_and_settings_apart(edit, invoke, facts, write_facts):
    edit("a.safetensors", facts=write_facts("facts.jsonl", facts))
    revised = {**facts[0], "target": "sculptor", "case_id": "new"}
    edit(
        "b.safetensors", "--from", "a.safetensors", "--drop", "2", "--set",
        "memit.preservation_weight=3",
        "--facts", write_facts("new.jsonl", [revised, MORE[1]]),
    )  # fmt: skip
    shown = invoke("diff", "a.safetensors", "b.safetensors")
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("- 2: ")
    assert lines[1] == "+ nora: Nora Rau works as a pilot"
    assert lines[2].startswith("~ new: ")
    assert lines[2].endswith("→ sculptor")
    assert lines[3] == "4 the same, 1 dropped, 1 added, 1 changed"
    assert lines[4].startswith("memit.preservation_weight: ")
    assert lines[4].endswith("→ 3.0")
    content = json.loads(
        invoke("diff", "a.safetensors", "a.safetensors", "--format", "json").stdout
    )
    assert content == {"dropped": [], "added": [], "changed": [], "n_same": 6, "settings": {}}


def test_bad_input_is_refused(edit, refuses, facts, write_facts, moments_file, tmp_path):
    source = write_facts("facts.jsonl", facts)
    edit("a.safetensors", facts=source)
    base = ["edit", "--from", "a.safetensors", "--second-moments", moments_file]
    out = ["--out", "b.safetensors"]
    refuses(*base, "--drop", "17", *out, says="unknown fact '17'")
    refuses("edit", "--drop", "17", "--facts", source, *out, says="without --from")
    refuses(*base, "--editor", "rome", *out, says=["made by 'memit'", "got --editor rome"])
    refuses("edit", "--from", "a.safetensors", *out, says="other second moments")
    refuses(*base, *(part for place in range(1, 7) for part in ("--drop", place)), *out,
            says="no fact is left")  # fmt: skip
    merged = WeightEdit.load(tmp_path / "a.safetensors")
    WeightEdit(merged.updates, merged.card).save(tmp_path / "old.safetensors")
    refuses("edit", "--from", "old.safetensors", "--second-moments", moments_file, *out,
            says="does not say which facts")  # fmt: skip
    bad = write_facts("bad.jsonl", [{**facts[0], "expires": "soon"}])
    refuses(*base, "--facts", bad, *out, says=["field 'expires'", "is no date, got 'soon'"])


def test_only_prefixes_that_somebody_gave_are_noted_as_inputs(edit, facts, write_facts, tmp_path):
    source = write_facts("facts.jsonl", facts)
    (tmp_path / "prefixes.json").write_text('[[""], ["Well. ", "So. "]]')
    given = ["--context-prefixes", "prefixes.json"]
    for options, noted in (([], False), (given, True)):
        edit("a.safetensors", *options, facts=source)
        edit("b.safetensors", "--from", "a.safetensors")
        edit("c.safetensors", "--from", "b.safetensors", "--drop", "1")
        inputs = [WeightEdit.load(tmp_path / f"{name}.safetensors").recipe.inputs for name in "abc"]
        assert inputs[0] == inputs[1] == inputs[2]
        assert ("context_prefixes" in inputs[0]) is noted
