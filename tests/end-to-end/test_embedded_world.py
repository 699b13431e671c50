"""The main job: 100 facts of the embedded world, edited and measured without any option."""

import pytest

KEYS = {
    "editor", "model", "dataset", "n_edits", "seed", "metric", "value", "ci_low", "ci_high", "n",
}  # fmt: skip


def test_memit_edits_what_the_model_knows(editbench, report, cache, tmp_path) -> None:
    out = tmp_path / "run"
    done = editbench("run", "--out", out, "--cache", cache)
    assert "memit" in done.stdout
    assert "unedited" in done.stdout
    rows = report(out)
    assert all(entry.keys() >= KEYS for entry in rows.values())
    assert rows["memit", "efficacy_success"]["n"] == 100
    assert rows["memit", "efficacy_success"]["value"] >= 99
    assert rows["memit", "paraphrase_success"]["value"] >= 95
    assert rows["memit", "neighborhood_success"]["value"] >= 97
    assert rows["unedited", "efficacy_success"]["value"] <= 5
    assert rows["memit", "score"]["ci_low"] <= rows["memit", "score"]["value"]


def test_what_follows_is_asked_of_all_kinds(editbench, report, cache, tmp_path) -> None:
    out = tmp_path / "run"
    editbench("run", "--metrics", "portability", "--n-edits", 60, "--out", out, "--cache", cache)
    rows = report(out)
    kinds = ("aliasing", "multi_hop", "reversal")
    before, after = (
        {kind: rows[editor, f"{kind}_accuracy"]["value"] for kind in kinds}
        for editor in ("unedited", "memit")
    )
    assert before["aliasing"] == before["multi_hop"] == 0
    assert after["aliasing"] >= 70  # not where the other name is no pronoun
    assert after["multi_hop"] >= 40
    assert after["reversal"] <= before["reversal"] + 25  # an edit has one direction


@pytest.mark.thorough
def test_an_edit_survives_the_way_through_files(editbench, cache, tmp_path) -> None:
    """Facts in, edit file out, edit file onto the model, saved; then plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from editbench.plugins.atlas import AtlasDataset

    case = AtlasDataset(None, cache).cases()[0]
    facts = tmp_path / "facts.csv"
    request = case.request
    facts.write_text(
        f"subject,prompt,target\n{request.subject},{request.prompt},{request.target}\n"
    )
    edit, folder = tmp_path / "edit.safetensors", tmp_path / "edited"
    editbench("edit", "--model", "atlas", "--facts", facts, "--out", edit, "--cache", cache)
    editbench("apply", "--model", "atlas", "--edit", edit, "--out", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer(request.text, return_tensors="pt")
    text = tokenizer.decode(model.generate(**prompt, max_new_tokens=5, do_sample=False)[0])
    assert text.startswith(f"{request.text} {request.target}")
    assert model.dtype == torch.float16  # as the files of the source hold it
