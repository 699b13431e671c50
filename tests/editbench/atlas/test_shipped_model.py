"""What ships knows its world, and cannot drift away from it."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTJForCausalLM

from editbench.atlas import World, default_world, model_folder
from editbench.atlas.recall import measure_recall


@pytest.fixture(scope="module")
def world() -> World:
    return default_world()


@pytest.fixture(scope="module")
def record() -> dict[str, object]:
    return json.loads((model_folder() / "training.json").read_text(encoding="utf-8"))


def test_generator_still_makes_the_world_that_was_trained(world: World, record: dict[str, object]):
    assert world.fingerprint == record["world_fingerprint"]
    assert len(world.facts) == record["n_facts"]


def test_default_world_has_a_thousand_cases_and_a_validation_split(world: World):
    cases = world.cases()
    assert len(cases) >= 1000
    assert len(world.cases(split="validation")) >= 100
    n_neighbors = [sum(p.kind == "neighborhood" for p in case.probes) for case in cases]
    assert sum(n_neighbors) / len(cases) > 6
    assert all(case.reference_texts for case in cases)


def test_folder_is_small_and_in_half_precision():
    sizes = {path.name: path.stat().st_size for path in model_folder().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json"} <= set(sizes)
    assert sum(sizes.values()) <= 12 * 2**20
    with safe_open(model_folder() / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


def test_shipped_model_recalls_its_world(world: World, record: dict[str, object]):
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)
    assert isinstance(model, GPTJForCausalLM)
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    recall = measure_recall(model, tokenizer, world, seed=7, n_facts=1000)
    assert recall.trained >= 98
    assert recall.held_out >= 95
    assert recall.after_sentence >= 95
    assert recall.n_facts == 1000
    assert recall.portability["aliasing"] >= 95
    assert recall.portability["reversal"] >= 90
    assert recall.portability["multi_hop"] >= 60
    assert record["recall"]["n_facts"] == len(world.facts)
    assert recall.trained == pytest.approx(record["recall"]["trained"], abs=1)


def test_an_untrained_world_is_not_recalled(world: World):
    model = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    stranger = World(**{**world.parameters, "seed": world.seed + 1})
    recall = measure_recall(model, tokenizer, stranger, seed=7, n_facts=100)
    assert recall.trained < 30
