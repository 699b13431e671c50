"""Sampled texts: many prompts at a time, each as if it were alone."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from editbench.errors import RequestError
from editbench.models.editable import EditableModel
from editbench.models.head import select_head_positions
from editbench.questions import Generate, GenerateAnswer

TOP_K = 5


@dataclass(frozen=True, slots=True)
class _Opening:
    """One prompt on its way."""

    question: Generate
    ids: list[int]

    @property
    def n_missing(self) -> int:
        """How many tokens are still to be written."""
        return self.question.n_tokens - len(self.ids)


def generate_texts(
    model: EditableModel,
    questions: Sequence[Generate],
    seed: int,
    token_budget: int,
    report: Callable[[int], None],
    *,
    top_k: int = TOP_K,
) -> dict[Generate, GenerateAnswer]:
    """Answer distinct `Generate` questions by top-k sampling.

    As in the reference: among the k most likely tokens with their probabilities renormalized, to a
    total length that counts the prompt's tokens, never stopping at an end-of-sequence token. A
    prompt of that length or longer is returned as it stands. Every prompt has a random stream of
    its own, derived from `seed` and its text.

    Args:
        model: The model as it stands.
        questions: Distinct questions.
        seed: Decides what is sampled.
        token_budget: At most how many tokens the cache of one batch holds.
        report: Called with the number of questions each batch has answered.
        top_k: How many of the most likely tokens take part; 1 is greedy.

    Raises:
        RequestError: A prompt has no token, or a text would exceed what the model takes.
    """
    answers: dict[Generate, GenerateAnswer] = {}
    openings = []
    for question in questions:
        opening = _Opening(question, model.tokens.encode(question.prompt))
        if not opening.ids:
            raise RequestError(
                f"generating: the prompt has no token, got {question.prompt!r}. Give a prompt."
            )
        if opening.n_missing <= 0:
            answers[question] = GenerateAnswer(question.prompt)
            report(1)
        else:
            model.check_length(question.n_tokens, question.prompt)
            openings.append(opening)
    for batch in _make_batches(openings, token_budget, model.max_positions):
        written = _write(model, batch, seed, top_k)
        for opening, new_ids in zip(batch, written, strict=True):
            text = model.tokens.decode([*opening.ids, *new_ids[: opening.n_missing]])
            answers[opening.question] = GenerateAnswer(text)
        report(len(batch))
    return answers


def _make_batches(
    openings: list[_Opening], token_budget: int, max_positions: int | None
) -> Iterator[list[_Opening]]:
    """Group prompts of like length and number of tokens to write, the longest first."""
    batch: list[_Opening] = []
    for opening in sorted(
        openings, key=lambda opening: (opening.n_missing, len(opening.ids)), reverse=True
    ):
        # Padding goes to the left, so the longest prompt and the longest text add up.
        longest = max([len(opening.ids), *(len(member.ids) for member in batch)])
        width = longest + max([opening.n_missing, *(member.n_missing for member in batch)])
        is_full = (len(batch) + 1) * width > token_budget
        if batch and (is_full or (max_positions is not None and width > max_positions)):
            yield batch
            batch = []
        batch.append(opening)
    if batch:
        yield batch


def _write(model: EditableModel, batch: list[_Opening], seed: int, top_k: int) -> list[list[int]]:
    """Sample the tokens that follow each prompt; a shorter text may get more than it needs."""
    n_steps = max(opening.n_missing for opening in batch)
    draws = torch.stack([_draw(seed, opening.question.prompt, n_steps) for opening in batch])
    arguments = model.batch([opening.ids for opening in batch], side="left")
    cache = DynamicCache(config=model.model.config)
    rows = torch.arange(len(batch))
    with select_head_positions(model, rows, torch.full_like(rows, -1)):
        logits = model.model(**arguments, past_key_values=cache, use_cache=True).logits[0]
    written = [_sample(logits, draws[:, 0], top_k)]
    for step in range(1, n_steps):
        arguments = _advance(arguments, written[-1])
        output = model.model(**arguments, past_key_values=cache, use_cache=True)
        written.append(_sample(output.logits[:, -1], draws[:, step], top_k))
    return torch.stack(written, dim=1).tolist()


def _advance(arguments: dict[str, torch.Tensor], new_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The arguments of the next step, whose past is in the cache."""
    mask = arguments["attention_mask"]
    advanced = {
        "input_ids": new_ids.to(mask.device)[:, None],
        "attention_mask": torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1),
    }
    if "position_ids" in arguments:
        advanced["position_ids"] = arguments["position_ids"][:, -1:] + 1
    return advanced


def _sample(logits: torch.Tensor, draws: torch.Tensor, top_k: int) -> torch.Tensor:
    """Choose one token a row by inverting the cumulative distribution of the k most likely.

    Args:
        logits: ``[n, vocab]``.
        draws: Uniform in [0, 1), float64, ``[n]``.
        top_k: How many tokens take part.
    """
    values, tokens = logits.float().topk(min(top_k, logits.shape[1]), dim=1)
    cumulative = values.double().softmax(dim=1).cumsum(dim=1)
    chosen = (cumulative <= draws.to(logits.device)[:, None]).sum(dim=1)
    chosen = chosen.clamp(max=values.shape[1] - 1)  # the sum may end a rounding short of 1
    return tokens.gather(1, chosen[:, None])[:, 0]


def _draw(seed: int, prompt: str, n_steps: int) -> torch.Tensor:
    """A prompt's own random numbers; a longer text continues a shorter one's."""
    digest = hashlib.blake2b(f"{seed}\n{prompt}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(n_steps, generator=generator, dtype=torch.float64)
