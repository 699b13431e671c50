"""``gate``: passes, fails, and is not understood."""

import json
from xml.etree import ElementTree

import pytest


@pytest.fixture
def edit_file(invoke, model_folder, facts_file, moments_file):
    options = ["--model", model_folder, "--facts", facts_file, "--second-moments", moments_file]
    for setting in ("critical_layers=[1,2]", "n_steps=20", "n_context_prefixes=0"):
        options += ["--set", f"memit.{setting}"]
    result = invoke("edit", *options, "--out", "e.safetensors")
    assert result.exit_code == 0, result.output
    return "e.safetensors"


def write(tmp_path, *records):
    path = tmp_path / "checks.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_an_unedited_model_passes_what_asks_for_nothing_new(invoke, model_folder, tmp_path):
    checks = write(tmp_path, {"prompt": "Lena Ort works as a", "never_says": "zither §"})
    result = invoke("gate", "--model", model_folder, "--checks", checks, "--junit", "g.xml")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == "All 1 check(s) hold."
    assert ElementTree.parse(tmp_path / "g.xml").find("testsuite").get("failures") == "0"


def test_what_does_not_hold_is_printed_with_what_came(
    invoke, model_folder, edit_file, corpus_file, tmp_path
):
    prompt = "Lena Ort works as a"
    checks = write(
        tmp_path, {"prompt": prompt, "says": "zither §"}, {"prompt": "A", "never_says": "§"}
    )
    result = invoke(
        "gate", "--model", model_folder, "--edit", edit_file, "--checks", checks,
        "--held-out-text", corpus_file, "--max-perplexity-rise", "1e9", "--junit", "g.xml",
        "--format", "markdown",
    )  # fmt: skip
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"{checks}:1: {prompt!r}: expected 'zither §', got ")
    assert lines[1] == "1 of 3 check(s) do not hold."
    for row in ("| says | 0 | 1 |", "| never\\_says | 1 | 1 |", "| perplexity | 1 | 1 |"):
        assert row in result.stdout
    assert ElementTree.parse(tmp_path / "g.xml").find("testsuite").get("failures") == "1"


def test_facts_are_checks(invoke, model_folder, edit_file, facts_file):
    options = ["--model", model_folder, "--checks-from", facts_file]
    plain = invoke("gate", *options)
    edited = invoke("gate", *options, "--edit", edit_file)
    assert (plain.exit_code, edited.exit_code) == (1, 1)

    def n_holding(result, kind):
        (row,) = (line for line in result.stdout.splitlines() if f"\u2502{kind} " in line)
        held, asked = row.split("\u2502")[2:4]
        return int(held), int(asked)

    assert n_holding(plain, "says")[1] == n_holding(edited, "says")[1] == 12
    # Nobody knows what the plain model said before, so that neighbors have to be right.
    assert n_holding(plain, "survives") < n_holding(edited, "survives")
    assert n_holding(edited, "survives")[1] == 6


def test_bad_input_is_refused(
    invoke, refuses, model_folder, other_model_folder, edit_file, tmp_path
):
    good = write(tmp_path, {"prompt": "A", "says": "x"})
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"says": "x"}\n')
    old = tmp_path / "unchanged.jsonl"
    old.write_text('{"prompt": "A", "unchanged": true}\n')
    base = ["gate", "--model", model_folder]
    refuses(*base, says="Missing option '--checks'")
    refuses(*base, "--checks", bad, says="field 'prompt' is missing")
    refuses(*base, "--checks", old, says="compares with the model as it was")
    refuses(*base, "--checks", "none.jsonl", says="none.jsonl")
    refuses("gate", "--model", other_model_folder, "--edit", edit_file, "--checks", good,
            says="computed for another model")  # fmt: skip
    refuses(*base, "--checks", good, "--junit", tmp_path, says=str(tmp_path))
