"""Records in the formats of published sets, from a file to a table."""

import json

import pytest
from tests.editbench.datasets.test_flat import KNOWEDIT, QAEDIT, WIKIBIGEDIT
from tests.editbench.datasets.test_mquake import OTHER, RECORD, TWO_EDITS
from tests.editbench.datasets.test_ripple_edits import RECORD as RIPPLE

from editbench.results.frame import load_rows

ASKED = {"portability_accuracy", "portability_generation"}


@pytest.mark.parametrize(
    ("name", "records", "n_edits", "asked"),
    [
        ("qaedit", [QAEDIT], 1, set()),
        ("wikibigedit", [WIKIBIGEDIT], 1, {*ASKED, "multi_hop_accuracy"}),
        ("knowedit", [KNOWEDIT], 1, {*ASKED, "reasoning_accuracy", "aliasing_accuracy"}),
        ("mquake", [TWO_EDITS], 2, {*ASKED, "multi_hop_accuracy"}),
        ("mquake-remastered", [RECORD, OTHER], 2, {*ASKED, "multi_hop_accuracy"}),
        # The embedded model knows nothing of Ann Moor's children, so their conditions fail.
        ("ripple-edits", [RIPPLE], 1, {*ASKED, "aliasing_accuracy", "multi_hop_accuracy"}),
    ],
)
def test_a_run_to_the_end(invoke, tmp_path, name, records, n_edits, asked):
    (tmp_path / "data.json").write_text(json.dumps(records), encoding="utf-8")
    result = invoke(
        "run", "--editor", "in-context", "--dataset", f"{name}=data.json", "--n-edits", n_edits,
        "--metrics", "accuracy,portability", "--out", "here",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = load_rows([tmp_path / "here"])
    assert set(rows.editor) == {"unedited", "in-context"}
    assert set(rows.metric) >= {"efficacy_accuracy"}
    assert {each for each in rows.metric if "neighborhood" not in each} & {
        *ASKED, "multi_hop_accuracy", "reasoning_accuracy", "aliasing_accuracy",
    } == asked  # fmt: skip
    assert ("'portability' has nothing to ask about 'qaedit': left out" in result.output) == (
        name == "qaedit"
    )
    assert ("1 probes do not count" in result.output) == (name == "mquake-remastered")


def test_what_is_left_out_is_told(invoke, tmp_path):
    records = [QAEDIT, {**QAEDIT, "subject": "Nobody"}]
    (tmp_path / "data.json").write_text(json.dumps(records), encoding="utf-8")
    result = invoke("run", "--editor", "unedited", "--dataset", "qaedit=data.json", "--out", "here")
    assert result.exit_code == 0, result.output
    assert "data.json: left out 1 of 2 records:" in result.stderr
    assert "field 'subject' does not occur in the prompt" in result.stderr


def test_an_edit_of_prompts_is_refused_where_it_would_be_saved(refuses, tmp_path):
    fact = {"subject": "Ida Moor", "prompt": "{} lives in", "target": "Velm"}
    (tmp_path / "facts.jsonl").write_text(json.dumps(fact), encoding="utf-8")
    refuses(
        "edit", "--model", "atlas", "--facts", "facts.jsonl", "--editor", "in-context",
        "--out", "edit.safetensors",
        "--quiet",
        says="editor 'in-context' puts facts before prompts and changes no weight",
    )  # fmt: skip
