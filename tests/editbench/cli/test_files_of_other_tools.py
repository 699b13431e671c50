"""Whole files of other tools on the command line: what is computed, said, kept and refused."""

import json

import pytest
import yaml

from editbench.cli.overrides import read_overrides
from editbench.editors.finetune import FineTune
from editbench.editors.memit import Memit
from editbench.editors.rome import Rome
from editbench.errors import ConfigError
from editbench.testing import tiny_model

EDITORS = {"memit": Memit, "rome": Rome, "ft-w": FineTune}
MODULES = {
    "layer_module_tmp": "transformer.h.{}",
    "mlp_module_tmp": "transformer.h.{}.mlp",
    "attn_module_tmp": "transformer.h.{}.attn",
    "ln_f_module": "transformer.ln_f",
    "lm_head_module": "transformer.wte",
    "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
}
OPTIMIZED = {
    "layers": [1, 2],
    "clamp_norm_factor": 4,
    "layer_selection": "all",
    "fact_token": "subject_last",
    "v_num_grad_steps": 3,
    "v_lr": 0.25,
    "v_loss_layer": 2,
    "v_weight_decay": 1e-3,
    "kl_factor": 0.125,
    "mom2_adjustment": True,
    "mom2_dataset": "wikipedia",
    "mom2_n_samples": 100000,
    "mom2_dtype": "float32",
    **MODULES,
}
MEMIT = {**OPTIMIZED, "mom2_update_weight": 15000}
EASYEDIT = {"alg_name": "MEMIT", "model_name": "./x", "device": 0, "stats_dir": "./s", **MEMIT}
ALPHAEDIT = {**MEMIT, "alg_name": "AlphaEdit", "nullspace_threshold": "2e-2", "L2": 10}
ROME = {
    **OPTIMIZED,
    "alg_name": "ROME",
    "layers": [1],
    "context_template_length_params": [[5, 3], [8, 3]],
}
FT = {
    "layers": [2],
    "num_steps": 7,
    "lr": "5e-4",
    "weight_decay": 0,
    "kl_factor": 0,
    "norm_constraint": False,
    **MODULES,
}


def configure(tmp_path, editor, values, suffix=".yaml", sets=()):
    path = tmp_path / f"hparams{suffix}"
    path.write_text(
        json.dumps(values) if suffix == ".json" else yaml.safe_dump(values, sort_keys=False)
    )
    chosen = {editor: EDITORS[editor]}
    (setting,) = read_overrides(chosen, [str(path)], sets)[editor]
    return setting.configure(EDITORS[editor], tiny_model())[0], setting.remark


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize("values", [MEMIT, EASYEDIT, ALPHAEDIT])
def test_memit(tmp_path, values, suffix):
    config, said = configure(tmp_path, "memit", values, suffix)
    default = Memit.default_config(tiny_model())[0]
    assert config == default.updated(
        {
            "critical_layers": [1, 2],
            "n_steps": 3,
            "learning_rate": 0.25,
            "learning_rate_unit": "absolute",
            "clamp_factor": 4,
            "offset_decay": 1e-3,
            "kl_weight": 0.125,
            "loss_layer": 2,
            "preservation_weight": 15000,
        },
        "the test",
    )
    # Every field of the file is accounted for.
    for name in values:
        assert f"'{name}'" in said
    assert "'layers' as critical_layers" in said
    assert "'v_lr' as learning_rate" in said
    assert "'mom2_n_samples' (counts documents, second_moment_tokens tokens)" in said
    assert ("'L2' (of a method that this editor is not)" in said) == (values is ALPHAEDIT)
    assert "\n" not in said


def test_rome(tmp_path):
    config, said = configure(tmp_path, "rome", {**ROME, "mom2_adjustment": False})
    assert (config.critical_layers, config.n_steps, config.clamp_factor) == ((1,), 3, 4.0)
    assert (config.learning_rate, config.learning_rate_unit) == (0.25, "absolute")
    assert (config.n_context_prefixes, config.context_prefix_lengths) == (3, (5, 8))
    assert "'mom2_adjustment' (second moments are always used)" in said


def test_rome_s_layer_as_it_was_called_before(tmp_path):
    config, said = configure(tmp_path, "rome", {"layer": 1, "n_steps": 2})
    assert (config.critical_layers, config.n_steps) == ((1,), 2)
    assert "'layer' as critical_layers" in said


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {"parameters": "mlp-projection", "weight_decay": 0.0, "norm_constraint": None}),
        ({"norm_constraint": "5e-5"}, {"norm_constraint": 5e-5}),
        ({"weight_decay": False}, {"weight_decay": 0.0}),
        (
            {"weight_decay": False, "wd_power_law": [-0.87028798, 0.15589562]},
            {"weight_decay": "power-law"},
        ),
        ({"rewrite_module_tmp": "transformer.h.{}"}, {"parameters": "block"}),
        ({"rewrite_module_tmp": "transformer.h.{}.mlp.c_proj.weight"}, {"parameters": "mlp-proje"}),
        ({"objective_optimization": "prompt_last"}, {"scoring": "last-position"}),
        ({"objective_optimization": "target_new"}, {"scoring": "teacher-forced"}),
        ({"batch_size": 3}, {"batch_size": 3}),
    ],
)
def test_fine_tuning(tmp_path, change, expected):
    config, _ = configure(tmp_path, "ft-w", {**FT, **change})
    assert (config.layer, config.n_epochs, config.learning_rate) == (2, 7, 5e-4)
    for name, value in expected.items():
        found = getattr(config, name)
        assert found == value or str(found).startswith(str(value))


def test_memit_on_attention(tmp_path):
    values = {**MEMIT, "rewrite_module_tmp": "transformer.h.{}.attn.c_proj"}
    assert configure(tmp_path, "memit", values)[0].module == "attention"


def test_one_of_their_names_among_ours_is_read(tmp_path):
    config, said = configure(tmp_path, "memit", {"layers": [1], "n_steps": 4})
    assert (config.critical_layers, config.n_steps) == ((1,), 4)
    assert said.endswith("another tool's hyperparameters; 'layers' as critical_layers.")


def test_our_own_file_needs_no_remark(tmp_path):
    for editor, values in (("memit", {"n_steps": 4}), ("ft-w", {"weight_decay": 0.1})):
        assert configure(tmp_path, editor, values)[1] is None


@pytest.mark.parametrize(
    ("editor", "values", "message"),
    [
        ("rome", EASYEDIT, "is for the method 'MEMIT', got editor 'rome'. Choose --editor memit,"),
        ("memit", ROME, "is for the method 'ROME', got editor 'memit'. Choose --editor rome,"),
        ("memit", {**MEMIT, "alg_name": "KN"}, "the method 'KN', got editor 'memit'. Choose anot"),
        ("memit", FT, "field 'num_steps' is of another method, got editor 'memit'. Choose --edito"),
        ("ft-w", MEMIT, "'clamp_norm_factor' is of another method, got editor 'ft-w'. Choose"),
        (
            "rome",
            MEMIT,
            "field 'layers' must be one layer, since this editor writes to one",
        ),
        ("memit", {**MEMIT, "fact_token": "last"}, "'fact_token' must be 'subject_last', where"),
        ("memit", {**MEMIT, "critical_layers": [1]}, "'critical_layers' and 'layers' both give 'c"),
        ("memit", {**MEMIT, "v_num_grad_step": 3}, "Did you mean 'v_num_grad_steps'?"),
        ("memit", {**MEMIT, "layers": [2, 9]}, "field 'layers' names layer 9, got model 'tiny'"),
        ("memit", {**MEMIT, "v_loss_layer": 31}, "field 'v_loss_layer' names layer 31, got model"),
        ("rome", {**ROME, "layers": 31}, "field 'layers' names layer 31"),
        ("memit", {**MEMIT, "layers": [2, 1]}, "critical_layers must ascend"),
        (
            "memit",
            {**MEMIT, "rewrite_module_tmp": "transformer.h.{}.mlp.c_fc"},
            "field 'rewrite_module_tmp' goes into the MLP",
        ),
        (
            "memit",
            {**MEMIT, "context_template_length_params": [[5, 10], [10, 10]]},
            "'context_template_length_params' must be one pair",
        ),
        (
            "rome",
            {**ROME, "context_template_length_params": [[5, 10], [10, 3]]},
            "must be pairs of a length and a number, which is the same in all",
        ),
        (
            "rome",
            {**ROME, "context_template_length_params": [[5, [10]], [10, [3]]]},
            "must be pairs of a length and a number, which is the same in all",
        ),
        ("ft-w", {**FT, "wd_power_law": [-1, 1]}, "'wd_power_law' must be the authors'"),
        ("ft-w", {**FT, "objective_optimization": "all"}, "must be one of prompt_last, target_new"),
        ("ft-w", {**FT, "rewrite_module_tmp": "transformer.h.{}.attn.c_attn"}, "is in attention"),
        ("ft-w", {**FT, "layers": [1, 2]}, "field 'layers' must be one layer"),
    ],
)
def test_what_contradicts_the_editor_is_refused(tmp_path, editor, values, message):
    with pytest.raises(ConfigError) as caught:
        configure(tmp_path, editor, values)
    assert str(caught.value).startswith(str(tmp_path / "hparams.yaml"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_invalid_value_is_named_as_the_file_has_it(tmp_path):
    with pytest.raises(ConfigError, match="field 'n_steps'") as caught:
        configure(tmp_path, "memit", {**MEMIT, "v_num_grad_steps": 0})
    assert caught.value.__notes__ == ["(The file calls 'n_steps' 'v_num_grad_steps'.)"]


def test_set_chooses_layers_that_the_model_has(tmp_path):
    values = {**MEMIT, "layers": [30, 31], "v_loss_layer": 31}
    sets = ["memit.critical_layers=[1]", "memit.loss_layer=null"]
    assert configure(tmp_path, "memit", values, sets=sets)[0].critical_layers == (1,)


class TestCommands:
    @pytest.fixture
    def facts(self, facts_file, tmp_path):
        """The six facts in EasyEdit's fields, and two that cannot be used."""
        records = [json.loads(line) for line in facts_file.read_text().splitlines()]
        theirs = [
            {
                "case_id": record["case_id"],
                "subject": record["subject"],
                "prompt": record["prompt"].replace("{}", record["subject"]),
                "target_new": {"str": record["target"]},
                "ground_truth": [record["target_true"]],
                "relation_id": record["relation"],
                "rephrase_prompt": record["paraphrases"],
                "locality": {
                    "near": [
                        {"prompt": each["prompt"], "ground_truth": each["target"]}
                        for each in record["neighbors"]
                    ]
                },
            }
            for record in records
        ]
        whole, damaged = tmp_path / "edits.json", tmp_path / "damaged.json"
        whole.write_text(json.dumps(theirs))
        damaged.write_text(json.dumps([{"subject": "Ana"}, *theirs, 3], indent=0))
        return whole, damaged

    @pytest.fixture
    def hparams(self, tmp_path):
        path = tmp_path / "memit.json"
        path.write_text(json.dumps(EASYEDIT))
        return path

    def test_an_edit_of_theirs_is_that_of_ours(
        self, invoke, model_folder, moments_file, facts_file, facts, hparams, tmp_path
    ):
        whole, damaged = facts
        ours = tmp_path / "ours.yaml"
        config = configure(tmp_path, "memit", EASYEDIT)[0].model_dump(mode="json")
        ours.write_text(yaml.safe_dump(config))
        edits = []
        for file, settings in (
            (facts_file, ours),
            (whole, hparams),
            (damaged, hparams),
        ):
            options = ["--model", model_folder, "--facts", file, "--config", settings]
            options += ["--second-moments", moments_file, "--out", "e.safetensors"]
            options += ["--set", "memit.n_context_prefixes=1"]
            result = invoke("edit", *options, *(["--skip-invalid"] if file == damaged else []))
            assert result.exit_code == 0, result.output
            edits.append((tmp_path / "e.safetensors").read_bytes())
            said = result.stderr.splitlines()
            if file != facts_file:
                assert said[0].startswith(f"{hparams}: read as another tool's hyperparameters; ")
                assert said[1].startswith(f"{file}: read as a JSON array; 'target_new' as target")
        assert edits[0] == edits[1] == edits[2]
        assert said[2] == f"{damaged}: left out 2 of 8 records:"
        assert said[3].startswith(f"  {damaged}:2: field 'target' is missing")

    def test_a_bad_record_is_one_line(self, refuses, model_folder, facts):
        _, damaged = facts
        options = ["--model", model_folder, "--out", "out"]
        says = [f"{damaged}:2: field 'target' is missing"]
        refuses("edit", *options, "--facts", damaged, says=says)
        refuses("run", *options, "--dataset", f"facts={damaged}", says=says)

    def test_a_run_keeps_what_was_left_out(self, invoke, model_folder, nudging, facts, tmp_path):
        manifests = []
        for name, file in (("a", facts[0]), ("b", facts[1])):
            options = ["--model", model_folder, "--dataset", f"facts={file}", "--editor", "nudge"]
            options += ["--n-edits", 2, "--metrics", "accuracy", "--skip-invalid", "--out", name]
            result = invoke("run", *options, plugins=[nudging])
            assert result.exit_code == 0, result.output
            manifests.append(json.loads((tmp_path / name / "run.json").read_text()))
        (whole,), (damaged,) = (each["provenance"]["datasets"] for each in manifests)
        assert (whole["n_cases"], whole["n_left_out"], whole["left_out"]) == (6, 0, [])
        assert (damaged["n_cases"], damaged["n_left_out"]) == (6, 2)
        assert damaged["left_out"][0].startswith(f"{facts[1]}:2: field 'target' is missing")
        assert not manifests[0]["trials"].keys() & manifests[1]["trials"].keys()

    def test_a_trace_leaves_out(self, invoke, refuses, model_folder, tmp_path):
        path = tmp_path / "known.json"
        path.write_text(json.dumps([{"subject": "Ana"}]))
        options = ["--model", model_folder, "--facts", path, "--out", "traces"]
        refuses("trace", *options, says="field 'prompt' is missing")
        refuses("trace", *options, "--skip-invalid", says="no record can be used. The first: ")
