"""The command line reproduces the reference's updates from the same inputs."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

FIELDS = {
    "critical_layers": "layers",
    "preservation_weight": "mom2_update_weight",
    "n_steps": "v_num_grad_steps",
    "learning_rate": "v_lr",
    "clamp_factor": "clamp_norm_factor",
    "offset_decay": "v_weight_decay",
    "kl_weight": "kl_factor",
    "loss_layer": "v_loss_layer",
}


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_edit_command_reproduces_the_updates(editbench, shared, tmp_path, family: str) -> None:
    golden = shared / "reference" / "golden" / family
    records = json.loads((golden / "requests.json").read_text())
    with (tmp_path / "facts.jsonl").open("w") as facts:
        for record in records:
            rewrite = record["requested_rewrite"]
            fact = {
                "case_id": record["case_id"],
                "subject": rewrite["subject"],
                "prompt": rewrite["prompt"],
                "target": rewrite["target_new"]["str"],
                "relation": rewrite["relation_id"],
            }
            facts.write(json.dumps(fact) + "\n")
    used = json.loads((golden / "hparams.json").read_text())["memit"]
    config = {name: used[reference_name] for name, reference_name in FIELDS.items()}
    (tmp_path / "memit.yaml").write_text(yaml.safe_dump(config))
    groups = json.loads((golden / "context_templates.json").read_text())
    prefixes = [[text.removesuffix("{}") for text in group] for group in groups]
    (tmp_path / "prefixes.json").write_text(json.dumps(prefixes))
    stored = load_file(golden / "covariance.safetensors")
    moments = {f"layers.{layer}": stored[f"layer.{layer}.moment"] for layer in used["layers"]}
    save_file(moments, tmp_path / "moments.safetensors")

    editbench(
        "edit",
        *("--model", golden / "model"),
        *("--facts", tmp_path / "facts.jsonl"),
        *("--editor", "memit"),
        *("--config", tmp_path / "memit.yaml"),
        *("--second-moments", tmp_path / "moments.safetensors"),
        *("--context-prefixes", tmp_path / "prefixes.json"),
        *("--out", tmp_path / "edit.safetensors"),
        "--no-cache",
    )

    edit = load_file(tmp_path / "edit.safetensors")
    expected = load_file(golden / "memit.safetensors")
    for layer in used["layers"]:
        name = f"{used['rewrite_module_tmp'].format(layer)}.weight"
        found = edit[f"{name}.left"].double() @ edit[f"{name}.right"].double().T
        update = expected[f"layer.{layer}.update"]
        update = update.T if family == "gpt2" else update  # Conv1D stores [d_in, d_out]
        assert torch.linalg.norm(found - update) < 1e-3 * torch.linalg.norm(update)
