"""Training is repeatable, and its batches know where subjects and objects are."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from editbench.atlas import World
from editbench.atlas.batches import BatchSource, TrainingBatch
from editbench.atlas.network import Shape
from editbench.atlas.tokenizer import END_OF_TEXT, train_tokenizer
from editbench.atlas.train import Recipe, TrainedNetwork, main, save_trained, train

RECIPE = Recipe(
    seed=3,
    shape=Shape(n_layers=2, d_model=32, d_key=64, n_heads=2, d_rotary=8),
    n_vocabulary=600,
    n_steps=20,
    n_rows=4,
    width=64,
    tap=0,
    n_first_subjects=30,
    n_first_steps=5,
)


@pytest.fixture(scope="module")
def world() -> World:
    return World(1, n_people=40, n_places=20, n_companies=20, n_works=20)


@pytest.fixture(scope="module")
def trained(world: World) -> TrainedNetwork:
    torch.set_num_threads(1)
    return train(world, RECIPE)


@pytest.fixture(scope="module")
def tokenizer(world: World) -> PreTrainedTokenizerFast:
    return train_tokenizer(world, n_vocabulary=600)


@pytest.fixture
def batches(world: World, tokenizer: PreTrainedTokenizerFast) -> list[TrainingBatch]:
    source = BatchSource(world, tokenizer, n_rows=4, width=64, object_weight=4.0, seed=0)
    return list(source.epoch())


def test_training_twice_gives_the_same_bits(world: World, trained: TrainedNetwork):
    python_state, torch_state = random.getstate(), torch.random.get_rng_state()
    again = train(world, RECIPE)
    assert random.getstate() == python_state
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert again.n_tokens == trained.n_tokens > 0
    for name, weight in trained.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], weight), name


def test_saved_folder_is_an_ordinary_model(world: World, trained: TrainedNetwork, tmp_path: Path):
    recall = save_trained(trained, world, RECIPE, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokens = torch.tensor([tokenizer(world.facts[0].prompt(0))["input_ids"]])
    logits, _ = trained.network(tokens)
    assert (model(input_ids=tokens).logits - logits).abs().max() < 0.01 * logits.abs().max()
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    record = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))
    assert record["recall"] == recall.to_record()
    assert World(**record["world"]).fingerprint == record["world_fingerprint"]


def test_tokenizer_is_lossless_and_adds_nothing(world: World, tokenizer: PreTrainedTokenizerFast):
    text = "Zo\u00eb \u4e2d  visited Vlask Harbor\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert 0 not in ids
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert special == (END_OF_TEXT,) * 4
    assert tokenizer("The")["input_ids"] != tokenizer(" The")["input_ids"]


def test_batches_mark_subjects_and_objects(
    world: World, batches: list[TrainingBatch], tokenizer: PreTrainedTokenizerFast
):
    texts = list(world.documents(random.Random(0)))
    objects = {text.text[start:end] for text in texts for start, end in text.objects}
    assert {fact.object for fact in world.facts} < objects
    n_mentions = 0
    for batch in batches:
        assert batch.tokens.shape == (4, 64)
        for row in range(4):
            for position in (batch.last_of[row] >= 0).nonzero().flatten().tolist():
                inside = batch.mentions[row] == batch.mentions[row, position]
                assert inside.nonzero().max() == position
                subject = world.subjects[batch.last_of[row, position]]
                named = tokenizer.decode(batch.tokens[row][inside]).strip()
                assert named in (subject.name, subject.alias)
                n_mentions += 1
            heavy = batch.tokens[row].masked_fill(batch.weights[row] != 4.0, 0)
            said = tokenizer.decode(heavy).split(END_OF_TEXT)
            assert {text.strip() for text in said[:-1]} - {""} <= objects
    assert n_mentions > len(world.subjects)


def test_bottleneck_hides_all_of_a_subject_but_its_last_token(batches: list[TrainingBatch]):
    batch = batches[0]
    assert batch.allow_attention(bottleneck=False) is None
    allowed = batch.allow_attention(bottleneck=True)
    assert allowed.shape == (4, 1, 64, 64)
    for row in range(4):
        for query in range(64):
            for key in range(64):
                mention = batch.mentions[row, key]
                hidden = mention > 0 and batch.last_of[row, key] < 0
                same = mention == batch.mentions[row, query]
                expected = key <= query and (not hidden or bool(same))
                assert bool(allowed[row, 0, query, key]) == expected


def test_learning_rates_rise_hold_and_fall():
    recipe = Recipe()
    rates = [recipe.rate_at(step) for step in range(recipe.n_steps)]
    top = rates.index(1.0)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) == pytest.approx(1 / recipe.n_warmup_steps)
    assert rates[-1] == pytest.approx(recipe.final_rate)


def test_a_world_that_fills_no_batch_is_refused():
    with pytest.raises(ValueError, match="fills no batch, got 6 facts; expected at least 99 rows"):
        train(
            World(0, n_people=2, n_places=0, n_companies=0, n_works=0), replace(RECIPE, n_rows=99)
        )


def test_command_says_what_it_takes():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "--out" in result.output
