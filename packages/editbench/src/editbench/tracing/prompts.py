"""From facts to prompts in tokens, and which of them a model completes with the true object."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from editbench.errors import TraceError
from editbench.models.batches import NO_ROWS, batches
from editbench.models.editable import EditableModel
from editbench.models.head import select_head_positions
from editbench.models.out_of_memory import Halving
from editbench.models.tokens import Tokens
from editbench.tracing.facts import KnownFact
from editbench.tracing.traces import TracedPrompt


@dataclass(frozen=True, slots=True)
class KnownPrompts:
    """The facts of a source that a model predicts.

    Attributes:
        prompts: Their prompts, in the order of the source.
        n_asked: How many facts the model was asked for; the rest of the source was not needed.
    """

    prompts: tuple[TracedPrompt, ...]
    n_asked: int

    @property
    def n_skipped(self) -> int:
        """How many of them the model completes with something else."""
        return self.n_asked - len(self.prompts)


def choose_known(
    model: EditableModel,
    facts: Sequence[KnownFact],
    *,
    limit: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> KnownPrompts:
    """Keep the facts whose object the model says: its most likely token is the object's first.

    Args:
        model: The model.
        facts: Facts that it may know.
        limit: Stop once so many are found; None asks for all facts.
        on_progress: Told how many of the wanted facts are found, or of all are asked.

    Raises:
        TraceError: The model predicts none of them.
        DeviceMemoryError: There is not enough memory for a single prompt.
    """
    found: list[TracedPrompt] = []
    halving = Halving(f"asking '{model.name}' for facts")
    n_asked = 0
    rows = (tuple(model.tokens.encode(fact.prompt, chat=fact.chat)) for fact in facts)
    asked = iter(facts)
    n_tokens = model.memory.tokens
    for batch in batches(rows, NO_ROWS, lambda extent: extent.n_padded > n_tokens):
        parts = halving.run(batch.rows, lambda rows: _first_choices(model, rows))
        choices = [choice for part in parts for choice in part]
        for ids, choice in zip(batch.rows, choices, strict=True):
            if limit is not None and len(found) == limit:
                break
            n_asked += 1
            fact = next(asked)
            _, wanted = model.tokens.encode_continuation(
                fact.prompt, fact.object, joiner=fact.joiner, chat=fact.chat
            )
            if wanted[0] == choice:
                found.append(_make_prompt(model, fact, ids, choice))
        if on_progress is not None:
            on_progress(*((len(found), limit) if limit is not None else (n_asked, len(facts))))
        if limit is not None and len(found) == limit:
            break
    if not found:
        raise TraceError(
            f"trace '{model.name}': the model predicts none of the facts, got {n_asked} whose "
            "object is not its first choice. Choose facts that the model knows."
        )
    return KnownPrompts(tuple(found), n_asked)


def prompt_of(model: EditableModel, fact: KnownFact) -> TracedPrompt:
    """A fact's prompt with whatever the model completes it with, true or not."""
    ids = tuple(model.tokens.encode(fact.prompt, chat=fact.chat))
    (choice,) = _first_choices(model, [ids])
    return _make_prompt(model, fact, ids, choice)


def _make_prompt(
    model: EditableModel, fact: KnownFact, ids: tuple[int, ...], answer: int
) -> TracedPrompt:
    return TracedPrompt(
        fact=fact,
        token_ids=ids,
        subject=model.tokens.locate_all(
            fact.prompt, fact.subject_start, fact.subject_end, chat=fact.chat
        ),
        answer=answer,
        texts=tuple(_show(model.tokens, token) for token in ids),
        answer_text=_show(model.tokens, answer),
    )


def _show(tokens: Tokens, token: int) -> str:
    return tokens.decode([token]).replace("\ufffd", "·") or "‹›"


def _first_choices(model: EditableModel, sequences: Sequence[Sequence[int]]) -> list[int]:
    """The most likely next token of each sequence."""
    rows = torch.arange(len(sequences))
    last = torch.tensor([len(sequence) - 1 for sequence in sequences])
    with torch.no_grad(), select_head_positions(model, rows, last):
        logits = model.model(**model.batch(sequences), use_cache=False).logits[0]
    return logits.argmax(dim=-1).tolist()
