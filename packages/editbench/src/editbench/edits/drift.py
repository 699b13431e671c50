"""How far a served model is from the one that was computed: in texts, logits and facts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editbench.models.batches import batches_of_like_length
from editbench.models.editable import EditableModel
from editbench.models.greedy import say_greedily, write_greedily
from editbench.models.out_of_memory import Halving
from editbench.models.scoring import read_logits
from editbench.questions import Score
from editbench.requests import EditRequest

_N_TOKENS = 16
# Beginnings of ordinary sentences, short enough for any model.
_PROMPTS = (
    "The capital of France is", "Water boils at", "The Louvre is located in", "Two plus two is",
    "Shakespeare was born in", "The mother tongue of Goethe is", "My favorite color is",
    "Once upon a time", "The largest planet is", "Rome is the capital of", "He works as a",
    "She opened the door and", "The train was late because", "In the morning we", "Dear friends,",
    "To make bread you need", "The company was founded in", "Music makes people",
    "The result shows that", "Winter in Norway is",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Behavior:
    """What a model says to some prompts.

    Attributes:
        logits: Behind each prompt, float32 `[n_prompts, n_logits]`, on the CPU.
        texts: How it goes on after each, always with the likeliest token.
        n_said: How many targets of the facts are what it says.
    """

    logits: Tensor
    texts: tuple[str, ...]
    n_said: int


@dataclass(frozen=True, slots=True)
class Drift:
    """How far what is served is from what was computed.

    Attributes:
        n_prompts: Prompts that both were given: 20 beginnings of sentences, and those of the facts.
        n_same_texts: After how many of them they go on with the same text.
        largest_logit_change: Of all logits behind all prompts.
        divergence: KL(computed ‖ served) of the next token, its mean over prompts, in nats.
        n_facts: Facts that both were asked for.
        n_said_computed: Targets that the computed model says.
        n_said_served: Targets that the served model says.
    """

    n_prompts: int
    n_same_texts: int
    largest_logit_change: float
    divergence: float
    n_facts: int
    n_said_computed: int
    n_said_served: int

    def describe(self) -> str:
        """In one line."""
        line = (
            f"{self.n_same_texts} of {self.n_prompts} greedy texts are the same, logits move by at "
            f"most {self.largest_logit_change:.2g}, KL is {self.divergence:.2g} nats"
        )
        if self.n_facts:
            line += (
                f"; of {self.n_facts} facts {self.n_said_served} are said, "
                f"{self.n_said_computed} by the computed model"
            )
        return line


def observe(model: EditableModel, facts: Sequence[EditRequest] = ()) -> Behavior:
    """Let a model, as it stands, go on after ordinary prompts and those of some facts."""
    asked = [fact.question for fact in facts]
    questions = [*(Score(prompt, "it") for prompt in _PROMPTS), *asked]
    return Behavior(
        _read_last_logits(model, questions),
        tuple(write_greedily(model, questions, _N_TOKENS)),
        sum(said.is_target for said in say_greedily(model, asked)) if asked else 0,
    )


def _read_last_logits(model: EditableModel, questions: Sequence[Score]) -> Tensor:
    """Logits behind prompts, float32 `[n_prompts, n_logits]` on the CPU; the same for each side.

    Both models get the same batches, so that what a batch does to the last bits is no drift.
    """
    rows = [model.tokens.encode_question(question)[0] for question in questions]
    logits = torch.empty(len(rows), model.n_logits)
    halving = Halving(f"reading on '{model.name}'")

    def read(some: Sequence[int]) -> Tensor:
        places = [(number, len(rows[row]) - 1) for number, row in enumerate(some)]
        inputs = {**model.batch([rows[row] for row in some]), "use_cache": False}
        return read_logits(model, inputs, places).float().cpu()

    with torch.no_grad():
        for batch in batches_of_like_length(rows, min(model.memory.tokens, model.memory.reads)):
            logits[batch.rows] = torch.cat(list(halving.run(batch.rows, read)))
    return logits


def measure_drift(computed: Behavior, served: Behavior, n_facts: int) -> Drift:
    """Compare two models' answers to the same prompts."""
    before, after = (each.logits.double().log_softmax(-1) for each in (computed, served))
    divergence = (before.exp() * (before - after)).sum(-1)
    return Drift(
        n_prompts=len(computed.texts),
        n_same_texts=sum(map(str.__eq__, computed.texts, served.texts)),
        largest_logit_change=float((served.logits - computed.logits).abs().max()),
        divergence=float(divergence.mean().clamp(min=0)),
        n_facts=n_facts,
        n_said_computed=computed.n_said,
        n_said_served=served.n_said,
    )
