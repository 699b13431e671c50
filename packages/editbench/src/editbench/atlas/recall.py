"""How much of its world a model knows, and of what follows."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editbench.atlas.text import write_ordinary_sentence
from editbench.atlas.world import World
from editbench.portability import PortabilityKind


@dataclass(frozen=True, slots=True)
class Recall:
    """Percentages of what the model says, token by token the most likely one.

    Attributes:
        trained: Facts, asked for in a phrasing that each was trained in.
        held_out: Facts, asked for in a phrasing that each was never trained in.
        after_sentence: As `held_out`, after an unrelated sentence.
        portability: Portability probes of the cases that count, as the model says all that their
            conditions ask for, by kind. Kinds that no case has are missing.
        n_facts: How many facts were asked for.
    """

    trained: float
    held_out: float
    after_sentence: float
    portability: dict[str, float]
    n_facts: int

    def __str__(self) -> str:
        shares = {
            "trained": self.trained,
            "held out": self.held_out,
            "after a sentence": self.after_sentence,
            **self.portability,
        }
        return "recall " + ", ".join(f"{share:.1f} % {name}" for name, share in shares.items())

    def to_record(self) -> dict[str, object]:
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
    """Ask a model for the facts of a world, each once in each of three ways, and for what follows.

    `n_facts` facts and as many cases are sampled, or all are asked for, `n_rows` prompts at a
    time; the seed draws the samples, the phrasings and the unrelated sentences.
    """
    rng = random.Random(f"atlas/{seed}/recall")
    facts = list(world.facts) if n_facts is None else rng.sample(world.facts, n_facts)
    objects = [fact.object for fact in facts]
    trained = [fact.prompt(rng.choice(fact.trained)) for fact in facts]
    held_out = [fact.prompt(rng.choice(fact.held_out)) for fact in facts]
    after = [f"{write_ordinary_sentence(rng)} {prompt}" for prompt in held_out]
    cases = world.cases()
    if n_facts is not None:
        cases = rng.sample(cases, min(n_facts, len(cases)))
    probes = [probe for case in cases for probe in case.portability]
    conditions = list(dict.fromkeys(query for probe in probes for query in probe.conditions))

    def ask(prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
        return find_recalled(model, tokenizer, prompts, answers, n_rows=n_rows)

    known = ask([each.prompt for each in conditions], [each.answers[0] for each in conditions])
    is_known = dict(zip(conditions, known, strict=True))
    counts: dict[str, list[bool]] = {kind: [] for kind in get_args(PortabilityKind)}
    for probe in probes:
        counts[probe.kind].append(all(is_known[query] for query in probe.conditions))

    return Recall(
        _percent(ask(trained, objects)),
        _percent(ask(held_out, objects)),
        _percent(ask(after, objects)),
        {kind: _percent(each) for kind, each in counts.items() if each},
        n_facts=len(facts),
    )


def _percent(answers: Sequence[bool]) -> float:
    return 100 * sum(answers) / len(answers)


@torch.no_grad()
def find_recalled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    n_rows: int,
) -> list[bool]:
    """Find out, for each prompt, whether the model continues it with its answer."""
    questions = tokenizer(list(prompts))["input_ids"]
    expected = tokenizer([f" {answer}" for answer in answers])["input_ids"]
    recalled = [False] * len(questions)
    order = sorted(range(len(questions)), key=lambda index: len(questions[index] + expected[index]))
    for start in range(0, len(order), n_rows):
        chosen = order[start : start + n_rows]
        rows = [questions[index] + expected[index] for index in chosen]
        width = max(map(len, rows))
        # Padding comes last, where a causal model cannot see it.
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        said = model(input_ids=tokens.to(model.device), use_cache=False).logits.argmax(-1).tolist()
        for index, row in zip(chosen, said, strict=True):
            first = len(questions[index]) - 1
            recalled[index] = row[first : first + len(expected[index])] == expected[index]
    return recalled
