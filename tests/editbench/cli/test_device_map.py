"""``--device-map``: models that wait on disk, through every command that loads one."""

import json

import pytest
from safetensors.torch import load_file

PLACES = {"transformer": "disk", "lm_head": "disk"}


@pytest.fixture
def places():
    return ["--device-map", json.dumps(PLACES)]


def test_edit_and_apply(invoke, model_folder, facts_file, memit_options, places, tmp_path):
    facts = ["--facts", facts_file, *memit_options]
    for name, options in (("plain", []), ("moved", places)):
        shared = ["--model", model_folder, *options]
        edited = invoke("edit", *shared, *facts, "--no-cache", "--out", f"{name}.safetensors")
        assert edited.exit_code == 0, edited.output
        assert "offload" not in edited.output
        applied = invoke("apply", *shared, "--edit", f"{name}.safetensors", "--out", name)
        assert applied.exit_code == 0, applied.output
    edits = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("plain", "moved")]
    assert edits[0] == edits[1]
    first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("plain", "moved")
    )
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_run(invoke, model_folder, facts_file, memit_options, places):
    lines = []
    for name, options in (("plain", []), ("moved", places)):
        result = invoke(
            "run", "--model", model_folder, *options, "--dataset", f"facts={facts_file}",
            "--editor", "memit", "--n-edits", 2, *memit_options, "--no-cache", "--out", name,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        report = invoke("report", name, "--format", "json")
        lines.append(json.loads(report.stdout))
    assert lines[0] == lines[1]
    assert {line["editor"] for line in lines[0]} == {"unedited", "memit"}


def test_stats(invoke, model_folder, corpus_file, places, tmp_path):
    for name, options in (("plain", []), ("moved", places)):
        result = invoke(
            "stats", "--model", model_folder, *options, "--corpus", corpus_file, "--layers", "1",
            "--n-tokens", 300, "--out", name,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    first, second = (load_file(tmp_path / name) for name in ("plain", "moved"))
    assert first["layers.1"].equal(second["layers.1"])


def test_bad_maps_are_refused(refuses, model_folder, corpus_file):
    refuses(
        "stats", "--model", model_folder, "--corpus", corpus_file, "--out", "moments",
        "--device-map", '{"transformer": ', says="option 'device_map': malformed JSON",
    )  # fmt: skip
    refuses(
        "stats", "--model", model_folder, "--corpus", corpus_file, "--out", "moments",
        "--device-map", '{"lm_head": "disk"}', says="the weights cannot be loaded",
    )  # fmt: skip
