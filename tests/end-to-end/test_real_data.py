"""Real weights, a real tokenizer and real data, though the model knows none of the facts."""

import json

import pytest


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("dataset", "file", "metrics"),
    [
        (
            "counterfact",
            "counterfact/counterfact-700.json",
            {
                "efficacy_success",
                "paraphrase_success",
                "neighborhood_success",
                "score",
                "efficacy_accuracy",
                "paraphrase_accuracy",
                "neighborhood_accuracy",
                "accuracy_score",
                "generation_entropy",  # no reference score: snippets are a file of their own
            },
        ),
        (
            "zsre",
            "zsre/zsre-1000.json",
            {
                "efficacy_accuracy",
                "paraphrase_accuracy",
                "neighborhood_accuracy",
                "accuracy_score",
            },
        ),
    ],
)
def test_memit_on_a_model_with_bos_and_byte_fallback(
    editbench, report, shared, cache, tmp_path, dataset: str, file: str, metrics: set[str]
) -> None:
    out = tmp_path / "run"
    done = editbench(
        "run",
        *("--editor", "memit"),
        *("--model", shared / "data" / "stories260k"),
        *("--dataset", f"{dataset}={shared / 'data' / file}"),
        *("--n-edits", 10),
        *("--out", out),
        *("--cache", cache),
    )
    assert "derived from 5 layers" in done.stdout
    rows = report(out)
    for editor in ("memit", "unedited"):
        assert {metric for name, metric in rows if name == editor} == metrics
    assert all(entry["n"] == 10 for entry in rows.values())
    statuses = {
        record["edits"][0]["editor"]: record["status"]
        for record in (json.loads(file.read_text()) for file in out.glob("trials/*/trial.json"))
    }
    assert statuses == {"memit": "ok", "unedited": "ok"}  # not "no_effect"
