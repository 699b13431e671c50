"""How much of its world a model knows."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editbench.atlas.text import Fact, write_ordinary_sentence
from editbench.atlas.world import World


@dataclass(frozen=True, slots=True)
class Recall:
    """Percentages of facts whose object the model says, token by token the most likely one.

    Attributes:
        trained: Asked in a phrasing that this fact was trained in.
        held_out: Asked in a phrasing that this fact was never trained in.
        after_sentence: As `held_out`, after an unrelated sentence.
        n_facts: How many facts were asked for.
    """

    trained: float
    held_out: float
    after_sentence: float
    n_facts: int

    def to_record(self) -> dict[str, float | int]:
        """Make the JSON form."""
        return asdict(self)


def measure_recall(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    *,
    seed: int,
    n_facts: int | None = None,
    n_rows: int = 256,
) -> Recall:
    """Ask a model for the facts of a world, each once in each of three ways.

    `n_facts` are sampled, or all are asked for, `n_rows` prompts at a time; the seed draws the
    sample, the phrasings and the unrelated sentences.
    """
    rng = random.Random(f"atlas/{seed}/recall")
    facts = list(world.facts) if n_facts is None else rng.sample(world.facts, n_facts)
    trained = [fact.prompt(rng.choice(fact.trained)) for fact in facts]
    held_out = [fact.prompt(rng.choice(fact.held_out)) for fact in facts]
    after = [f"{write_ordinary_sentence(rng)} {prompt}" for prompt in held_out]

    def measure(prompts: Sequence[str]) -> float:
        recalled = find_recalled(model, tokenizer, prompts, facts, n_rows=n_rows)
        return 100 * sum(recalled) / len(recalled)

    return Recall(measure(trained), measure(held_out), measure(after), n_facts=len(facts))


@torch.no_grad()
def find_recalled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    facts: Sequence[Fact],
    *,
    n_rows: int,
) -> list[bool]:
    """Find out, for each prompt, whether the model continues it with the fact's object."""
    questions = tokenizer(list(prompts))["input_ids"]
    answers = tokenizer([f" {fact.object}" for fact in facts])["input_ids"]
    recalled = [False] * len(facts)
    order = sorted(range(len(facts)), key=lambda index: len(questions[index] + answers[index]))
    for start in range(0, len(order), n_rows):
        chosen = order[start : start + n_rows]
        rows = [questions[index] + answers[index] for index in chosen]
        width = max(map(len, rows))
        # Padding comes last, where a causal model cannot see it.
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        said = model(input_ids=tokens.to(model.device), use_cache=False).logits.argmax(-1).tolist()
        for index, row in zip(chosen, said, strict=True):
            first = len(questions[index]) - 1
            recalled[index] = row[first : first + len(answers[index])] == answers[index]
    return recalled
