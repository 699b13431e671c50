"""Scores of tokens under teacher forcing, with as few forward passes as possible."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from editbench.models.batches import Batch
from editbench.models.chosen_positions import Places, find_read_modules, only_at, skipping_padding
from editbench.models.continuing import find_continuing
from editbench.models.editable import EditableModel
from editbench.models.head import select_head_positions
from editbench.models.lean_modules import lean_modules
from editbench.models.out_of_memory import Halving
from editbench.models.passages import Label, Passage, RowExtent, TokenRow, batch_rows, make_rows
from editbench.questions import Score, ScoreAnswer

# A place at which logits are read: which row, which of its branches (-1 is the row itself), and
# the position there.
_Place = tuple[int, int, int]


def score_continuations(
    model: EditableModel,
    questions: Sequence[Score],
    token_budget: int,
    report: Callable[[int], None],
) -> dict[Score, ScoreAnswer]:
    """Answer distinct `Score` questions.

    log p is taken in float32 over the whole vocabulary, with whatever the architecture does after
    its head. `argmax` compares with the largest logit. `report` is told how many questions each
    pass has answered.

    Raises:
        RequestError: A prompt or continuation has no token, or together they are too long.
    """
    answers: dict[Score, ScoreAnswer] = {}
    for scores in score_passages(model, make_passages(model, questions), token_budget):
        answers.update(scores)
        report(len(scores))
    return answers


def make_passages(model: EditableModel, questions: Iterable[Score]) -> list[Passage[Score]]:
    """Tokenize questions.

    Raises:
        RequestError: A prompt or continuation has no token, or together they are too long.
    """
    passages = []
    for question in questions:
        prompt, continuation = model.tokens.encode_question(question)
        model.check_length(len(prompt) + len(continuation) - 1, question.prompt)
        passages.append(Passage(question, prompt, continuation))
    return passages


def score_passages(
    model: EditableModel, passages: Iterable[Passage[Label]], token_budget: int
) -> Iterator[list[tuple[Label, ScoreAnswer]]]:
    """Score the targets of passages, none of them longer than the model takes.

    Yields:
        For each forward pass, the labels that it has scores of, with the scores.
    """
    halving = Halving(f"scoring on '{model.name}'")
    for batch in batch_passages(model, passages, token_budget):
        yield from halving.run(batch.rows, lambda rows: list(_score_batch(model, rows)))


def batch_passages(
    model: EditableModel, passages: Iterable[Passage[Label]], token_budget: int
) -> Iterator[Batch[TokenRow[Label], RowExtent]]:
    """The forward passes that scoring takes: what is run together, row by row."""
    rows = make_rows(passages)
    if find_continuing(model) != "padded":  # branches behind a row see its keys and values
        rows = [part for row in rows for part in (row.cut_apart() if row.branches else [row])]
    return batch_rows(
        rows,
        token_budget=token_budget,
        read_budget=model.memory.reads,
        cache_budget=model.memory.cached_tokens,
    )


def _score_batch(
    model: EditableModel, rows: Sequence[TokenRow[Label]]
) -> Iterator[tuple[Label, ScoreAnswer]]:
    wanted: list[tuple[Label, list[tuple[_Place, int]]]] = []
    for index, row in enumerate(rows):
        for label, first, targets in row.read:
            places = [(index, -1, first + offset) for offset in range(len(targets))]
            wanted.append((label, list(zip(places, targets, strict=True))))
        for number, branch in enumerate(row.branches):
            places = [(index, -1, len(row.ids) - 1)]
            places += [(index, number, offset) for offset in range(len(branch.ids))]
            wanted += [
                (label, list(zip(places, targets, strict=False))) for label, targets in branch.read
            ]
    tokens = list(dict.fromkeys(pair for _, pairs in wanted for pair in pairs))
    found = _run(model, rows, tokens)
    for label, pairs in wanted:
        log_probs, argmax = zip(*(found[pair] for pair in pairs), strict=True)
        yield label, ScoreAnswer(log_probs, argmax)


def _run(
    model: EditableModel, rows: Sequence[TokenRow[Label]], tokens: Sequence[tuple[_Place, int]]
) -> dict[tuple[_Place, int], tuple[float, bool]]:
    """Look up log p of tokens at places, and whether each is the likeliest."""
    has_branches = any(row.branches for row in rows)
    # Branches follow at once on what is run before: padding stands in front of it.
    inputs = model.batch([row.ids for row in rows], "left" if has_branches else "right")
    width = inputs["input_ids"].shape[1] if has_branches else 0
    places = [(index, -1, position) for index, row in enumerate(rows) for position in row.positions]
    shifts = [width - len(row.ids) if has_branches else 0 for row in rows]
    cache = DynamicCache(config=model.model.config) if has_branches else None
    arguments = {**inputs, "past_key_values": cache, "use_cache": has_branches}
    read = [(index, position + shifts[index]) for index, _, position in places]
    found = _look_up(model, _forward(model, arguments, read), places, tokens)
    if cache is None:
        return found
    branches = [
        (index, number, branch.ids)
        for index, row in enumerate(rows)
        for number, branch in enumerate(row.branches)
    ]
    before = torch.tensor([index for index, _, _ in branches], device=model.device)
    cache.batch_select_indices(before)
    behind = model.batch_behind(
        inputs["attention_mask"][before],
        [ids for _, _, ids in branches],
        [len(rows[index].ids) for index, _, _ in branches],
    )
    places = [
        (index, number, position) for index, number, ids in branches for position in range(len(ids))
    ]
    read = [
        (place, position)
        for place, (_, _, ids) in enumerate(branches)
        for position in range(len(ids))
    ]
    arguments = {**behind, "past_key_values": cache, "use_cache": True}
    return found | _look_up(model, _forward(model, arguments, read), places, tokens)


def _forward(
    model: EditableModel, arguments: dict[str, Any], read: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """Logits at places (row, position) of a batch, ``[n_places, vocab]``."""
    rows, positions = torch.tensor(read, device=model.device).unbind(dim=1)
    n_layers = model.architecture.n_layers
    read_modules = find_read_modules(model, n_layers - 1)
    mask = arguments["attention_mask"][:, -arguments["input_ids"].shape[1] :]
    with (
        lean_modules(model),
        skipping_padding(model, mask, range(n_layers), besides=read_modules),
        only_at(read_modules, Places(rows, positions)),
        select_head_positions(model, rows, positions),
    ):
        logits: torch.Tensor = model.model(**arguments).logits[0]
    return logits


def _look_up(
    model: EditableModel,
    logits: torch.Tensor,
    places: Sequence[_Place],
    tokens: Sequence[tuple[_Place, int]],
) -> dict[tuple[_Place, int], tuple[float, bool]]:
    """Look up those tokens whose places are among `places`, the rows of `logits`.

    In slices, so that float32 copies stay small.
    """
    rows = {place: row for row, place in enumerate(places)}
    some = [pair for pair in tokens if pair[0] in rows]
    wanted = torch.tensor([(rows[place], token) for place, token in some], device=logits.device)
    row, token = wanted.unbind(dim=1)
    slices = logits.split(model.memory.reads_in_float32)
    normalizers = torch.cat([part.float().logsumexp(dim=1) for part in slices])
    log_probs = logits[row, token].float() - normalizers[row]
    argmax = logits.argmax(dim=1)[row] == token
    return dict(zip(some, zip(log_probs.tolist(), argmax.tolist(), strict=True), strict=True))
