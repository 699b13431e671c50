"""``edit``, ``apply`` and ``stats``: files in, files out."""

import json
import re
import shutil
import warnings

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from editbench.edits.weight_edit import WeightEdit
from editbench.models.spec import ModelSpec
from editbench.plugins import hookimpl
from editbench.second_moments.moment_files import load_second_moments
from editbench.testing import tiny_model, tiny_tokenizer


@pytest.fixture
def edit_options(model_folder, facts_file, memit_options):
    return ["--model", model_folder, "--facts", facts_file, *memit_options]


def test_edit_writes_an_edit_file(invoke, edit_options, tmp_path):
    result = invoke("edit", *edit_options, "--out", "e.safetensors", "--check")
    assert result.exit_code == 0, result.output
    assert "memit wrote 6 fact(s)" in result.stdout
    assert "transformer.h.1.mlp.c_proj.weight: rank 6" in result.stdout
    assert "of 6 facts; before the edit, for" in result.stdout
    assert result.stdout.splitlines()[-1] == "Wrote e.safetensors"
    with safe_open(tmp_path / "e.safetensors", "pt") as file:
        card = json.loads(file.metadata()["editbench"])
        left = file.get_tensor("transformer.h.1.mlp.c_proj.weight.left")
        right = file.get_tensor("transformer.h.1.mlp.c_proj.weight.right")
    assert (tuple(left.shape), tuple(right.shape)) == ((24, 6), (96, 6))
    assert card["config"]["n_steps"] == 3
    assert card["n_edits"] == 6
    left_over = [path.name for path in tmp_path.iterdir() if path.name != "cache"]
    assert left_over == ["e.safetensors"]


def test_the_seed_decides(invoke, model_folder, facts_file, nudging, tmp_path):
    options = ["--model", model_folder, "--facts", facts_file, "--editor", "nudge"]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = ["--out", name, "--seed", seed]
        assert invoke("edit", *options, *out, plugins=[nudging]).exit_code == 0
    first, again, other = (WeightEdit.load(tmp_path / name) for name in "abc")
    assert first.card == again.card
    for name, update in first.updates.items():
        assert torch.equal(update, again.updates[name])
        assert not torch.equal(update, other.updates[name])


def test_edit_takes_prefixes_and_configuration_from_files(
    invoke, model_folder, facts_file, moments_file, tmp_path
):
    (tmp_path / "memit.json").write_text('{"critical_layers": [2], "n_steps": 2}')
    (tmp_path / "prefixes.json").write_text('[[""], ["Well. ", "So. "]]')
    result = invoke(
        "edit", "--model", model_folder, "--facts", facts_file, "--second-moments", moments_file,
        "--config", "memit.json", "--context-prefixes", "prefixes.json", "--out", "e.safetensors",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    edit = WeightEdit.load(tmp_path / "e.safetensors")
    assert list(edit.updates) == ["transformer.h.2.mlp.c_proj.weight"]
    assert edit.card.extra["context_prefixes"] == [[""], ["Well. ", "So. "]]


def test_edit_that_changes_nothing(invoke, model_folder, facts_file, nudging, tmp_path):
    options = ["--model", model_folder, "--facts", facts_file, "--editor", "nudge"]
    options += ["--set", "nudge.size=0", "--out", "e.safetensors"]
    result = invoke("edit", *options, plugins=[nudging])
    assert (result.exit_code, result.stderr) == (0, "Warning: the edit changes nothing.\n")
    result = invoke("apply", "--model", model_folder, "--edit", "e.safetensors", "--out", "same")
    assert result.exit_code == 0
    original = (model_folder / "model.safetensors").read_bytes()
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == original


def test_edit_drops_conflicting_facts_if_told_to(invoke, model_folder, nudging, tmp_path):
    fact = {"subject": "Ana Lund", "prompt": "{} works as a"}
    facts = [{**fact, "target": target, "case_id": target} for target in ("baker", "pilot")]
    (tmp_path / "facts.jsonl").write_text("\n".join(json.dumps(fact) for fact in facts))
    options = ["--model", model_folder, "--facts", "facts.jsonl", "--editor", "nudge"]
    options += ["--on-conflict", "keep-first", "--out", "e.safetensors"]
    result = invoke("edit", *options, plugins=[nudging])
    assert result.exit_code == 0, result.output
    assert "Conflict (keep-first): 'Ana Lund'" in result.stdout
    assert "nudge wrote 1 fact(s)" in result.stdout


def test_warnings_are_lines(invoke, model_folder, facts_file, make_plugin):
    class Worries:
        @hookimpl
        def editbench_register_editors(self):
            from editbench.editors.unedited import Unedited

            class Worried(Unedited):
                name = "worried"

                def edit(self, model, requests, resources):
                    warnings.warn("this is\nno good", stacklevel=1)
                    return super().edit(model, requests, resources)

            return [Worried]

    options = ["--model", model_folder, "--facts", facts_file, "--editor", "worried"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = invoke("edit", *options, "--out", "e", plugins=[make_plugin("w", Worries())])
    assert "Warning: this is no good\n" in result.stderr


def test_interrupted_edit_leaves_no_file(invoke, edit_options, monkeypatch, tmp_path):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("editbench.files.tensor_files.save_file", interrupt)
    result = invoke("edit", *edit_options, "--out", "e.safetensors")
    assert result.exit_code == 130
    assert "no edit was written" in result.stderr
    assert str(tmp_path / "cache") in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_apply_saves_an_ordinary_folder(invoke, edit_options, model_folder, tmp_path):
    invoke("edit", *edit_options, "--out", "e.safetensors")
    result = invoke("apply", "--model", model_folder, "--edit", "e.safetensors", "--out", "edited")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    original = AutoModelForCausalLM.from_pretrained(model_folder)
    edited = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    assert AutoTokenizer.from_pretrained(tmp_path / "edited")("Ana Lund")["input_ids"]
    updates = WeightEdit.load(tmp_path / "e.safetensors").updates
    parameters = dict(edited.named_parameters())
    for name, before in original.named_parameters():
        if name in updates:
            update = updates[name].left.double() @ updates[name].right.double().T
            expected = (before.double() + update.T).float()  # Conv1D stores [d_in, d_out]
        else:
            expected = before
        torch.testing.assert_close(parameters[name], expected, rtol=1e-6, atol=1e-7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "e.safetensors", "edited"]


def test_apply_keeps_the_precision_of_the_files_and_says_what_rounding_does(
    invoke, model_folder, facts_file, nudging, tmp_path
):
    half = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
    shutil.copytree(model_folder, tmp_path / "half")
    half.save_pretrained(tmp_path / "half")
    (tmp_path / "half" / "pytorch_model.bin").write_text("the same weights once more")
    edit = ["--model", "half", "--facts", facts_file, "--editor", "nudge", "--out", "e"]
    assert invoke("edit", *edit, plugins=[nudging]).exit_code == 0
    options = ["apply", "--model", "half", "--edit", "e"]
    result = invoke(*options, "--out", "kept")
    assert result.exit_code == 0, result.output
    replaced, lost, drift, left_out, wrote = result.stdout.splitlines()
    said = (
        r"Replaced 1 of \d+ tensors, in bfloat16: rounding moves the update by 0.\d+ % of its norm"
    )
    assert re.fullmatch(said, replaced)
    assert re.fullmatch(r"  transformer\.h\.1\.mlp\.c_proj\.weight: 0.\d+ %", lost)
    assert re.fullmatch(r"Served against computed: \d+ of 26 greedy texts are the same, .*", drift)
    assert left_out.endswith("hold the weights without the edit: pytorch_model.bin")
    assert wrote == "Wrote kept: half with 6 fact(s) by nudge"
    source, kept = (tmp_path / name / "config.json" for name in ("half", "kept"))
    assert source.read_bytes() == kept.read_bytes()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "kept").dtype == torch.bfloat16
    result = invoke(*options, "--out", "whole", "--dtype", "float32")
    assert "in float32: rounding" in result.stdout
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "whole").dtype == torch.float32


def test_apply_warns_where_rounding_takes_the_update(
    invoke, model_folder, facts_file, nudging, tmp_path
):
    edit = ["--model", model_folder, "--facts", facts_file, "--editor", "nudge", "--out", "e"]
    assert invoke("edit", *edit, "--set", "nudge.size=1e-6", plugins=[nudging]).exit_code == 0
    options = ["apply", "--model", model_folder, "--edit", "e", "--dtype", "bfloat16"]
    result = invoke(*options, "--out", "x")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("Warning: little of the update is left in this precision.")


class InMemory:
    @hookimpl
    def editbench_register_models(self):
        return [ModelSpec("made", load=lambda: (tiny_model().model, tiny_tokenizer()))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_apply_to_a_model_without_a_folder(
    invoke, facts_file, nudging, make_plugin, tmp_path, dtype
):
    plugins = [nudging, make_plugin("in-memory", InMemory())]
    edit = ["--model", "made", "--facts", facts_file, "--editor", "nudge", "--dtype", dtype]
    assert invoke("edit", *edit, "--out", "e", plugins=plugins).exit_code == 0
    result = invoke("apply", "--model", "made", "--edit", "e", "--out", "x", plugins=plugins)
    assert result.exit_code == 0, result.output
    assert f"in {dtype}: rounding" in result.stdout
    edited = AutoModelForCausalLM.from_pretrained(tmp_path / "x")
    plain = tiny_model().model.to(edited.dtype)
    changed = "transformer.h.1.mlp.c_proj.weight"
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, edited.get_parameter(name)) == (name != changed)


def test_apply_adds_edits_up(invoke, model_folder, facts_file, nudging, tmp_path):
    options = ["--model", model_folder, "--facts", facts_file, "--editor", "nudge"]
    for layer in (1, 2):
        out = ["--set", f"nudge.layer={layer}", "--out", f"{layer}.safetensors"]
        assert invoke("edit", *options, *out, plugins=[nudging]).exit_code == 0
    both = ["--edit", "1.safetensors", "--edit", "2.safetensors"]
    result = invoke("apply", "--model", model_folder, *both, "--out", "edited")
    assert result.exit_code == 0, result.output
    assert "with 12 fact(s) by nudge" in result.stdout
    original = AutoModelForCausalLM.from_pretrained(model_folder).state_dict()
    edited = AutoModelForCausalLM.from_pretrained(tmp_path / "edited").state_dict()
    changed = {name for name in original if not torch.equal(original[name], edited[name])}
    assert changed == {f"transformer.h.{layer}.mlp.c_proj.weight" for layer in (1, 2)}


def test_stats_writes_what_edit_reads(invoke, model_folder, corpus_file, tmp_path):
    result = invoke(
        "stats", "--model", model_folder, "--corpus", corpus_file, "--layers", "0-1,3",
        "--n-tokens", 500, "--out", "s.safetensors",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "layers 0, 1, 3, 500 tokens" in result.stdout
    with safe_open(tmp_path / "s.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["layers.0", "layers.1", "layers.3"]
        assert file.get_tensor("layers.0").shape == (96, 96)
        assert "n_tokens" in json.loads(file.metadata()["editbench"])


def test_stats_of_attention_serve_edits_of_attention(
    invoke, model_folder, corpus_file, facts_file, tmp_path
):
    result = invoke(
        "stats", "--model", model_folder, "--corpus", corpus_file, "--module", "attention",
        "--n-tokens", 500, "--out", "s.safetensors",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    with safe_open(tmp_path / "s.safetensors", "pt") as file:
        assert file.get_tensor("layers.1").shape == (24, 24)
    options = ["--model", model_folder, "--facts", facts_file, "--second-moments", "s.safetensors"]
    options += ["--set", "memit.n_steps=3", "--no-cache", "--out", "e.safetensors"]
    result = invoke("edit", *options)
    assert result.exit_code == 2
    assert "got those of module 'attention'; expected 'mlp'" in result.stderr
    result = invoke("edit", *options, "--set", "memit.module=attention")
    assert result.exit_code == 0, result.output
    assert "transformer.h.1.attn.c_proj.weight: rank 6" in result.stdout


def test_finished_stats_are_not_collected_again(invoke, model_folder, corpus_file, tmp_path):
    options = ["--model", model_folder, "--corpus", corpus_file, "--out", "s.safetensors"]
    invoke("stats", *options, "--n-tokens", 200)
    content = (tmp_path / "s.safetensors").read_bytes()
    assert "nothing to do" in invoke("stats", *options, "--n-tokens", 200).stdout
    assert (tmp_path / "s.safetensors").read_bytes() == content
    assert "300 tokens" in invoke("stats", *options, "--n-tokens", 300).stdout
    (tmp_path / "s.safetensors").write_bytes(content[:-9])
    assert "300 tokens" in invoke("stats", *options, "--n-tokens", 300).stdout


def test_interrupted_stats_say_what_is_kept(invoke, model_folder, corpus_file, monkeypatch):
    from editbench.second_moments import collection as second_moment_collection

    def interrupt(*arguments):
        raise KeyboardInterrupt

    options = ["--model", model_folder, "--corpus", corpus_file, "--out", "s.safetensors"]
    options += ["--n-tokens", 20000]
    monkeypatch.setattr(second_moment_collection, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(second_moment_collection, "_WORK_FOR_EACH_WRITING", 0)
    with monkeypatch.context() as once:
        once.setattr(second_moment_collection, "save_second_moments", interrupt)
        result = invoke("stats", *options)
    assert result.exit_code == 130
    assert "nothing had been kept yet" in result.stderr


def test_stats_by_default_collects_the_layers_that_memit_edits(invoke, model_folder, corpus_file):
    options = ["--model", model_folder, "--corpus", corpus_file, "--n-tokens", 200]
    assert "layers 1, 2, 200" in invoke("stats", *options, "--out", "a").stdout
    assert (
        "layers 0, 1, 2, 3, 200"
        in invoke("stats", *options, "--layers", "all", "--out", "b").stdout
    )


def test_stats_says_when_the_corpus_is_short(invoke, model_folder, tmp_path):
    (tmp_path / "short.txt").write_text("Ana Lund works as a baker.\n")
    result = invoke(
        "stats",
        *("--model", model_folder, "--corpus", "short.txt", "--out", "s.safetensors"),
        *("--n-tokens", 1000),
    )
    assert result.exit_code == 0
    assert "Warning: the corpus ended before 1,000 tokens" in result.stderr


def test_stats_stop_by_themselves(invoke, model_folder):
    options = ["--model", model_folder, "--corpus", "atlas", "--out", "s.safetensors"]
    result = invoke("stats", *options)
    assert result.exit_code == 0, result.output
    n_tokens = int(re.search(r"([\d,]+) tokens of atlas", result.stdout)[1].replace(",", ""))
    assert 5 * 96 < n_tokens < 50 * 96
    assert "nothing to do" in invoke("stats", *options).stdout


def test_stats_of_shards_are_merged(invoke, model_folder, corpus_file):
    options = ["stats", "--model", model_folder, "--corpus", corpus_file, "--n-tokens", 700]
    options += ["--max-length", 9]
    assert ", 700 tokens" in invoke(*options, "--out", "whole").stdout
    for shard in (1, 2):
        assert invoke(*options, "--shard", f"{shard}/2", "--out", f"part-{shard}").exit_code == 0
    merged = invoke("stats", "--merge", "part-1", "--merge", "part-2", "--out", "merged")
    assert merged.stdout == "Wrote merged: layers 1, 2, 700 tokens of 2 shards\n"
    whole, joined = load_second_moments("whole"), load_second_moments("merged")
    assert whole.provenance == joined.provenance
    assert whole.provenance["max_length"] == 9
    torch.testing.assert_close(whole.moments[1].moment(), joined.moments[1].moment())


def test_stats_refuse_what_makes_no_sense(refuses, model_folder, corpus_file):
    options = ["stats", "--model", model_folder, "--corpus", corpus_file, "--out", "s"]
    refuses(*options, "--n-tokens", "many", says="--n-tokens: no count of tokens, got 'many'")
    refuses(*options, "--n-tokens", 0, says="--n-tokens: no count of tokens, got '0'")
    refuses(*options, "--shard", "2", says="--shard: no shard, got '2'; expected I/N")
    refuses(*options, "--shard", "3/2", says="no such shard, got 3/2")
    refuses(*options, "--shard", "1/2", says="got 'auto'. Give a count of tokens")
    refuses("stats", "--corpus", corpus_file, "--out", "s", says="--model and --corpus are needed")
    refuses("stats", "--merge", "none", "--out", "s", says="cannot be read")


def test_list_names_everything_and_where_it_comes_from(invoke):
    result = invoke("list")
    assert result.exit_code == 0
    for name in ("memit", "counterfact", "token-accuracy", "gpt-j-6b"):
        (line,) = [line for line in result.stdout.splitlines() if line.split()[:1] == [name]]
        assert "builtin" in line
    listing = json.loads(invoke("list", "--format", "json").stdout)
    assert {"name", "description", "plugin"} == set(listing["editors"][0])
    assert all(each["description"] for kind in listing.values() for each in kind)
    assert set(json.loads(invoke("list", "editors", "--format", "json").stdout)) == {
        "editors",
        "problems",
    }


def test_list_datasets_says_where_they_are_from_and_what_is_wrong_with_them(invoke):
    listed = " ".join(invoke("list", "datasets").stdout.split())
    assert "From https://github.com/princeton-nlp/MQuAKE, MIT. Known errors: 33 to 76 %" in listed
    (qaedit,) = (
        each
        for each in json.loads(invoke("list", "datasets", "--format", "json").stdout)["datasets"]
        if each["name"] == "qaedit"
    )
    assert "Apache-2.0" in qaedit["source"]
    assert "trailing ' *'" in qaedit["known_errors"]
    assert "Known errors" not in invoke("list").stdout


class BreaksTheContract:
    @hookimpl
    def editbench_register_editors(self):
        from editbench.editors.unedited import Unedited

        class Scribbler(Unedited):
            name = "scribbler"

            def edit(self, model, requests, resources):
                next(model.model.parameters()).data.add_(1)
                return super().edit(model, requests, resources)

        return [Scribbler]


def test_check_passes_a_sound_editor_and_finds_what_another_breaks(invoke, make_plugin, nudging):
    result = invoke("check", "nudge", plugins=[nudging])
    assert result.exit_code == 0, result.output
    assert "FAILED" not in result.stdout
    assert result.stdout.splitlines()[-1] == "nudge keeps the contract of an editor."
    result = invoke("check", "scribbler", plugins=[make_plugin("mine", BreaksTheContract())])
    assert result.exit_code == 1
    assert "FAILED  leaves the model bit-identical" in result.stdout
