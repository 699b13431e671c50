"""A trace killed with SIGKILL at any point and resumed gives the files of an uninterrupted one."""

import json
import random
import signal
import time
from pathlib import Path

import pytest


def read_prompts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("prompts/*")}


@pytest.mark.thorough
def test_kill_at_any_point(editbench, start, tmp_path) -> None:
    options = ["trace", "--n-facts", "12", "--device", "cpu", "--no-figures"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    editbench(*options, "--out", whole)
    duration = time.monotonic() - began

    chance = random.Random(0)
    options += ["--out", str(killed), "--resume"]
    for _ in range(2):
        with start(*options) as trace:
            time.sleep(chance.uniform(0.4, 0.9) * duration)
            trace.send_signal(signal.SIGKILL)
    editbench(*options)

    assert read_prompts(killed) == read_prompts(whole)
    effects = [json.loads((folder / "effects.json").read_text()) for folder in (whole, killed)]
    assert effects[0] == effects[1]
    assert not list(killed.rglob(".unfinished-*"))


@pytest.mark.thorough
def test_the_embedded_model_keeps_its_facts_at_the_last_subject_token(editbench, tmp_path) -> None:
    result = editbench(
        "trace", "--dataset", "atlas-validation", "--n-facts", "30", "--device", "cpu",
        "--no-figures", "--format", "json", "--out", tmp_path / "trace",
    )  # fmt: skip
    content = json.loads(result.stdout)
    effect = {
        (line["kind"], line["role"], line["layer"]): line["effect"] for line in content["effects"]
    }
    n_layers = 6
    last_subject = [effect["hidden", "last_subject", layer] for layer in range(n_layers)]
    severed = {
        kind: [effect[f"severed_{kind}", "last_subject", layer] for layer in range(n_layers)]
        for kind in ("mlp", "attention")
    }
    # An early to middle site: strong in layers 1 to 3, where no other token has any.
    others = ("first_subject", "middle_subject", "further", "last")
    for layer in (1, 2, 3):
        assert last_subject[layer] > 0.7
        assert all(effect["hidden", role, layer] < 0.2 for role in others)
    assert effect["hidden", "last", n_layers - 1] > 0.7
    # Figure 3: without the MLPs above, early states lose their effect; without attention, nothing.
    gap = [have - lose for have, lose in zip(last_subject, severed["mlp"], strict=True)]
    assert max(gap[:3]) > 0.4
    assert gap[4] < 0.05
    pairs = zip(last_subject, severed["attention"], strict=True)
    assert all(have - lose < 0.15 for have, lose in pairs)
    assert content["suggested_layers"] == [1, 2, 3]
