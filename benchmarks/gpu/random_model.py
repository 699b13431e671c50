"""Models of published sizes with random weights, and facts and text for them, all without a hub.

What work costs depends on sizes and on lengths in tokens, not on what weights and words say. A
word is one token here; facts get as many as CounterFact's have (`prompt_lengths.json`).
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPTJConfig,
    GPTNeoXConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from editbench.datasets.corpus import Corpus
from editbench.editors.memit import MemitConfig
from editbench.models.builtin_specs import BUILTIN_SPECS
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest

LENGTHS = Path(__file__).parent / "prompt_lengths.json"
_TEXT_WORDS = 500
# What context prefixes begin and end with, and what the KL term's prompt ends in.
_FIXED_WORDS = ("<unk>", "The", "Therefore", "Because", "I", "You", "is", "a", ".")


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and what it is edited with.

    Attributes:
        config: The sizes.
        memit: MEMIT's hyperparameters, but for how long it takes.
        moment_tokens: Tokens that second moments are the mean over: four for each dimension of a
            key, so that random ones are well-conditioned.
    """

    config: PreTrainedConfig
    memit: dict[str, Any]
    moment_tokens: int


def _published(name: str) -> dict[str, Any]:
    return dict(next(spec for spec in BUILTIN_SPECS if spec.name == name).defaults["memit"])


SHAPES = {
    "gptj": Shape(
        GPTJConfig(
            n_layer=28, n_embd=4096, n_inner=16384, n_head=16, rotary_dim=64, n_positions=2048,
            vocab_size=50400, bos_token_id=0, eos_token_id=0,
        ),
        _published("gpt-j-6b"),
        65_536,
    ),
    "neox": Shape(
        GPTNeoXConfig(
            num_hidden_layers=44, hidden_size=6144, intermediate_size=24576,
            num_attention_heads=64, max_position_embeddings=2048, vocab_size=50432,
            bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
        ),
        _published("gpt-neox-20b"),
        98_304,
    ),
    "tiny": Shape(
        GPTJConfig(
            n_layer=6, n_embd=32, n_inner=64, n_head=2, rotary_dim=8, n_positions=512,
            vocab_size=600, bos_token_id=0, eos_token_id=0,
        ),
        {**_published("gpt-j-6b"), "critical_layers": (1, 2, 3), "loss_layer": None},
        1_000,
    ),
}  # fmt: skip


def make_model(shape: Shape, *, dtype: torch.dtype, device: str) -> EditableModel:
    """Draw weights where they will be used."""
    with torch.random.fork_rng(devices=None if device.startswith("cuda") else []):
        torch.manual_seed(0)
        with torch.device(device):
            network = AutoModelForCausalLM.from_config(shape.config, dtype=dtype)
    words = [*_FIXED_WORDS, *(f"w{index}" for index in range(len(_FIXED_WORDS), _n_words(shape)))]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    return EditableModel(network, fast, name=f"random-{shape.config.model_type}")


def make_config(shape: Shape, *, n_steps: int | None = None) -> MemitConfig:
    """MEMIT as published for the model, but that no edit stops early: all steps are run."""
    fields = {
        **shape.memit,
        "stop_loss": -1e9,
        "second_moment_tokens": shape.moment_tokens,
        **({} if n_steps is None else {"n_steps": n_steps}),
    }
    return MemitConfig.parse(fields, "benchmark")


def make_requests(shape: Shape, n_edits: int, *, seed: int = 0) -> list[EditRequest]:
    """Facts about distinct subjects, their lengths drawn from CounterFact's."""
    chance = random.Random(seed)
    table = json.loads(LENGTHS.read_text())["rows"]
    weights = [count for *_, count in table]
    requests: list[EditRequest] = []
    subjects: set[str] = set()
    while len(requests) < n_edits:
        ((before, own, behind, target, _),) = chance.choices(table, weights)
        subject = _write(shape, own, chance)
        if subject in subjects:
            continue
        subjects.add(subject)
        parts = [_write(shape, before, chance), "{}", _write(shape, behind, chance)]
        prompt = " ".join(part for part in parts if part)
        words = _write(shape, target, chance)
        requests.append(EditRequest(str(len(requests)), subject, prompt, words))
    return requests


def make_corpus(shape: Shape) -> Corpus:
    """Endless random text."""

    def write() -> Iterator[str]:
        chance = random.Random("corpus")
        while True:
            yield _write(shape, _TEXT_WORDS, chance)

    return Corpus("random words", f"random-words/{_n_words(shape)}", write)


def _n_words(shape: Shape) -> int:
    return int(shape.config.vocab_size)


def _write(shape: Shape, n_words: int, chance: random.Random) -> str:
    first, last = len(_FIXED_WORDS), _n_words(shape) - 1
    return " ".join(f"w{chance.randint(first, last)}" for _ in range(n_words))
