"""``edit --batch-size``: a later batch takes the place of an earlier one, as in ``run``."""

import json
from pathlib import Path

import pytest

from editbench.editors.closed_form.stream import ClosedFormStream
from editbench.edits.weight_edit import WeightEdit
from editbench.testing import toy_cases

SAID = "Superseded by later batches: 1 fact(s): 1 by 5"


@pytest.fixture
def facts_file(tmp_path):
    """Five facts, of which the last is about the same as the first."""
    requests = [case.request for case in toy_cases(4)]
    facts = [
        {"case_id": str(place), "subject": each.subject, "prompt": each.prompt, "target": target}
        for place, (each, target) in enumerate(
            [*((each, each.target) for each in requests), (requests[0], "sculptor")], 1
        )
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    return path


@pytest.fixture
def edit(invoke, model_folder, facts_file, memit_options):
    """Runs ``edit`` on the facts; returns what it printed, and the edit."""

    def run(out, *options, base=None, editor="memit-history"):
        settings = [each.replace("memit.", f"{editor}.") for each in map(str, memit_options)]
        source = ["--from", base, *memit_options[:2]] if base else [
            "--model", model_folder, "--facts", facts_file, "--editor", editor, *settings
        ]  # fmt: skip
        result = invoke("edit", *source, *options, "--out", out)
        assert result.exit_code == 0, result.output
        return result.output, WeightEdit.load(Path(out))

    return run


def statuses(invoke, path):
    content = json.loads(invoke("show", path, "--format", "json").stdout)
    return {
        fact["case_id"]: (fact["status"], fact.get("superseded_by")) for fact in content["facts"]
    }


def test_edit_and_run_write_the_same(
    edit, invoke, model_folder, facts_file, memit_options, monkeypatch
):
    said, edited = edit("e.safetensors", "--batch-size", 2)
    assert SAID in said
    totals = []
    write = ClosedFormStream.write
    monkeypatch.setattr(
        ClosedFormStream, "write", lambda *given: totals.append(write(*given)) or totals[-1]
    )
    settings = [each.replace("memit.", "memit-history.") for each in map(str, memit_options)]
    result = invoke(
        "run", "--model", model_folder, "--dataset", f"facts={facts_file}", *settings,
        "--editor", "memit-history", "--batch-size", 2, "--metrics", "accuracy", "--out", "here",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert totals[-1].identity == edited.identity
    assert totals[-1].card == edited.card
    trials = [json.loads(path.read_text()) for path in (facts_file.parent).rglob("trial.json")]
    (facts,) = [
        trial["facts"] for trial in trials if trial["edits"][0]["editor"] == "memit-history"
    ]
    assert statuses(invoke, "e.safetensors") == {
        fact["case_id"]: (fact["status"], fact["superseded_by"]) for fact in facts
    }


@pytest.mark.parametrize("editor", ["memit", "memit-history"])
def test_making_it_again_gives_the_same_bits(edit, invoke, editor):
    _, first = edit("a.safetensors", "--batch-size", 2, editor=editor)
    assert first.card.extra["facts"][0]["status"] == "superseded"
    found = statuses(invoke, "a.safetensors")
    assert found.pop("1") == ("superseded", "5")
    assert all(status != "superseded" and later is None for status, later in found.values())
    said, again = edit("b.safetensors", base="a.safetensors")
    assert SAID in said
    assert again.identity == first.identity
    assert again.card == first.card
    assert again.recipe.requests == first.recipe.requests
    _, other = edit("c.safetensors", "--drop", "1", base="a.safetensors")
    assert other.identity != first.identity


def test_in_one_batch_the_older_one_is_left_out_of_what_is_made_again(edit):
    edit("a.safetensors", "--batch-size", 2)
    said, again = edit("b.safetensors", "--batch-size", 5, base="a.safetensors")
    assert "Superseded: 1 (" in said
    assert "by 5 ('sculptor')" in said
    assert [request.case_id for request in again.recipe.requests] == ["2", "3", "4", "5"]


@pytest.mark.parametrize("size", [[], ["--batch-size", 5]])
def test_in_one_batch_they_are_a_conflict(
    refuses, model_folder, facts_file, memit_options, moments_file, size
):
    refuses(
        "edit", "--model", model_folder, "--facts", facts_file, *memit_options, *size,
        "--out", "e.safetensors", says=["conflicting requests: 1 group(s)", "'sculptor' (5)"],
    )  # fmt: skip


def test_only_what_stands_is_checked(edit):
    said, _ = edit("e.safetensors", "--batch-size", 2, "--check")
    assert "of 4 facts" in said


def test_a_policy_that_drops_facts_looks_at_the_whole_file(edit):
    said, made = edit("e.safetensors", "--batch-size", 2, "--on-conflict", "keep-first")
    assert "Conflict (keep-first)" in said
    assert "Superseded" not in said
    assert [request.case_id for request in made.recipe.requests] == ["1", "2", "3", "4"]
