"""Sampled texts: many prompts at a time, each as if it were alone."""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from editbench.errors import RequestError
from editbench.models.batches import NO_ROWS, Batch, Padded, batches
from editbench.models.continuing import find_continuing
from editbench.models.editable import EditableModel
from editbench.models.head import select_head_positions
from editbench.models.lean_modules import lean_modules
from editbench.models.out_of_memory import Halving
from editbench.models.prefix_groups import group_by_prefix
from editbench.models.shared_prefix import LatestPrefix, SharedPrefix
from editbench.questions import Generate, GenerateAnswer

TOP_K = 5


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """One prompt on its way."""

    question: Generate
    ids: list[int]
    n_missing: int  # tokens that are still to be written


@dataclass(frozen=True, slots=True)
class PromptExtent:
    """How large prompts and what is written behind them are together.

    Attributes:
        prefix: What all prompts begin with, which has been run.
        prompts: The prompts, without it. Padding goes to their left, so that the longest prompt and
            the longest text add up.
        n_missing: Tokens that are written behind each.
    """

    prefix: tuple[int, ...] = ()
    prompts: Padded = NO_ROWS
    n_missing: int = 0

    def grown(self, prompt: EncodedPrompt) -> "PromptExtent":
        """The extent with one prompt more."""
        own = range(len(self.prefix), len(prompt.ids))
        n_missing = max(self.n_missing, prompt.n_missing)
        return PromptExtent(self.prefix, self.prompts.grown(own), n_missing)

    @property
    def width(self) -> int:
        """Tokens of a row in the end, without the prefix."""
        return self.prompts.width + self.n_missing

    @property
    def n_copied(self) -> int:
        """Tokens that the prefix is copied with, for each row, while a block runs."""
        return self.prompts.n_rows * (len(self.prefix) + self.width) if self.prefix else 0


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
    prompt of that length or longer is returned as it stands. Where the model takes fewer tokens
    than that, texts end there, with a warning. Every prompt has a random stream of its own, derived
    from `seed` and its text.

    Args:
        model: The model as it stands.
        questions: Distinct questions.
        seed: Decides what is sampled.
        token_budget: At most how many tokens the cache of one batch holds, where so many take more
            than 128 MiB.
        report: Called with the number of questions each batch has answered.
        top_k: How many of the most likely tokens take part; 1 is greedy.

    Raises:
        RequestError: A prompt has no token, or is longer than the model takes.
    """
    answers: dict[Generate, GenerateAnswer] = {}
    halving = Halving(f"generating on '{model.name}'")
    latest = LatestPrefix(model)
    for batch in batch_prompts(model, questions, token_budget):
        found: list[list[int]] = []
        write = partial(_write, model, latest.get(batch.extent.prefix), seed=seed, top_k=top_k)
        with lean_modules(model):
            for written in halving.run(batch.rows, write):
                found += written
        for prompt, new_ids in zip(batch.rows, found, strict=True):
            text = model.tokens.decode([*prompt.ids, *new_ids[: prompt.n_missing]])
            answers[prompt.question] = GenerateAnswer(text)
        report(len(batch.rows))
    for question in questions:
        if question not in answers:  # its prompt is long enough
            answers[question] = GenerateAnswer(question.prompt)
            report(1)
    return answers


def batch_prompts(
    model: EditableModel, questions: Iterable[Generate], token_budget: int
) -> Iterator[Batch[EncodedPrompt, PromptExtent]]:
    """What generation writes together: prompts, tokenized, of which something is missing.

    Those of like length and number of tokens to write, the longest first. Batches of prompts that
    share a prefix follow each other.
    """
    prompts = [_encode(model, question) for question in questions]
    missing = [prompt for prompt in prompts if prompt.n_missing > 0]
    missing.sort(key=lambda prompt: (prompt.n_missing, len(prompt.ids)), reverse=True)
    n_cached, n_copied = model.memory.text_tokens(token_budget), model.memory.copied_tokens
    may_differ = find_continuing(model) != "alike"

    def is_full(extent: PromptExtent) -> bool:
        is_large = extent.prompts.n_rows * extent.width > n_cached
        is_large = is_large or extent.n_copied > n_copied
        width = len(extent.prefix) + extent.width
        is_long = model.max_positions is not None and width > model.max_positions
        is_mixed = not may_differ and extent.prompts.n_tokens < extent.prompts.n_padded
        return is_large or is_long or is_mixed

    for group in group_by_prefix(model, missing, lambda prompt: prompt.ids[:-1], token_budget):
        yield from batches(group.rows, PromptExtent(group.prefix), is_full)


def _encode(model: EditableModel, question: Generate) -> EncodedPrompt:
    """Tokenize a prompt, and count what is to be written after it."""
    ids = model.tokens.encode(question.prompt, chat=question.chat)
    if not ids:
        raise RequestError(
            f"generating: the prompt has no token, got {question.prompt!r}. Give a prompt."
        )
    n_tokens = question.n_tokens
    if model.max_positions is not None and len(ids) < n_tokens > model.max_positions:
        model.check_length(len(ids), question.prompt)
        n_tokens = model.max_positions
        warnings.warn(
            f"generating: '{model.name}' takes {n_tokens} tokens, so texts are no longer than "
            f"that, got {question.n_tokens} wanted. Do not compare them with longer ones.",
            stacklevel=2,
        )
    return EncodedPrompt(question, ids, n_tokens - len(ids))


def _write(
    model: EditableModel,
    prefix: SharedPrefix,
    batch: Sequence[EncodedPrompt],
    *,
    seed: int,
    top_k: int,
) -> list[list[int]]:
    """Sample the tokens that follow each prompt; a shorter text may get more than it needs."""
    n_steps = max(prompt.n_missing for prompt in batch)
    draws = torch.stack([_draw(seed, prompt.question.prompt, n_steps) for prompt in batch])
    prompts = [prompt.ids for prompt in batch]
    written: list[torch.Tensor] = []
    if find_continuing(model) == "never":
        steps = _read_whole_rows(model, prompts, written)
    else:
        steps = _read_from_cache(model, prefix, prompts, n_steps, written)
    # Each step reads what the ones before it have written.
    for step, logits in zip(range(n_steps), steps, strict=False):
        written.append(_sample(logits, draws[:, step], top_k))
    return torch.stack(written, dim=1).tolist()


def _read_from_cache(
    model: EditableModel,
    prefix: SharedPrefix,
    prompts: Sequence[Sequence[int]],
    n_steps: int,
    written: Sequence[torch.Tensor],
) -> Iterator[torch.Tensor]:
    """Logits behind each row, ``[n, vocab]``, step by step."""
    arguments = prefix.inputs(prompts, "left")
    cache = prefix.cache(arguments["input_ids"].shape[1] + n_steps)
    rows = torch.arange(len(prompts))
    with select_head_positions(model, rows, torch.full_like(rows, -1)):
        logits = model.model(**arguments, past_key_values=cache, use_cache=True).logits[0]
    yield logits
    while True:
        mask = arguments["attention_mask"]
        advanced = {
            "input_ids": written[-1].to(mask.device)[:, None],
            "attention_mask": torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1),
        }
        if "position_ids" in arguments:
            advanced["position_ids"] = arguments["position_ids"][:, -1:] + 1
        arguments = advanced
        output = model.model(**arguments, past_key_values=cache, use_cache=True)
        yield output.logits[:, -1]


def _read_whole_rows(
    model: EditableModel,
    prompts: Sequence[Sequence[int]],
    written: Sequence[torch.Tensor],
) -> Iterator[torch.Tensor]:
    """The same where nothing is kept from step to step: every one runs whole rows."""
    whole = [list(prompt) for prompt in prompts]
    rows = torch.arange(len(whole))
    while True:
        arguments = model.batch(whole)
        last = torch.tensor([len(row) - 1 for row in whole])
        with select_head_positions(model, rows, last):
            logits = model.model(**arguments, use_cache=False).logits[0]
        yield logits
        for row, token in zip(whole, written[-1].tolist(), strict=True):
            row.append(token)


def _sample(logits: torch.Tensor, draws: torch.Tensor, top_k: int) -> torch.Tensor:
    """Choose one token a row by inverting the cumulative distribution of the k most likely.

    Of logits `[n, vocab]`, by draws that are uniform in [0, 1), float64, `[n]`.
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
