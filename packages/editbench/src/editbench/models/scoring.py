"""What follows prompts: scores of tokens under teacher forcing, and what a model writes by itself.

With as few forward passes as possible: what is asked about one prompt shares its keys and values,
and so do prompts that begin with the same long text.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from editbench.errors import RequestError
from editbench.models.batches import Batch
from editbench.models.chosen_positions import Places, find_read_modules, only_at, skipping_padding
from editbench.models.continuing import find_continuing
from editbench.models.editable import EditableModel
from editbench.models.head import select_head_positions
from editbench.models.lean_modules import lean_modules
from editbench.models.out_of_memory import Halving
from editbench.models.passages import (
    Label,
    Opening,
    Passage,
    RowExtent,
    TokenRow,
    batch_rows,
    make_rows,
)
from editbench.models.prefix_groups import group_by_prefix
from editbench.models.shared_prefix import LatestPrefix, SharedPrefix
from editbench.models.writing import Writer
from editbench.questions import Score, ScoreAnswer, Write, WriteAnswer

# A place at which logits are read: which row, which of its branches (-1 is the row itself), and
# the position there.
_Place = tuple[int, int, int]


def follow_prompts(
    model: EditableModel,
    questions: Sequence[Score | Write],
    token_budget: int,
    report: Callable[[int], None],
) -> dict[Score | Write, ScoreAnswer | WriteAnswer]:
    """Answer distinct `Score` and `Write` questions.

    log p is taken in float32 over the whole vocabulary, with whatever the architecture does after
    its head. `argmax` compares with the largest logit. `report` is told how many questions each
    pass has answered.

    Raises:
        RequestError: A prompt or continuation has no token, or together they are too long.
    """
    answers: dict[Score | Write, ScoreAnswer | WriteAnswer] = {}
    passages = make_passages(model, [each for each in questions if isinstance(each, Score)])
    openings = make_openings(model, [each for each in questions if isinstance(each, Write)])
    for found in run_passages(model, passages, token_budget, openings):
        answers.update(found)
        report(len(found))
    return answers


def make_passages(model: EditableModel, questions: Iterable[Score]) -> list[Passage[Score | Write]]:
    """Tokenize questions.

    Raises:
        RequestError: A prompt or continuation has no token, or together they are too long.
    """
    passages: list[Passage[Score | Write]] = []
    for question in questions:
        prompt, continuation = model.tokens.encode_question(question)
        model.check_length(len(prompt) + len(continuation) - 1, question.prompt)
        passages.append(Passage(question, prompt, continuation))
    return passages


def make_openings(model: EditableModel, questions: Iterable[Write]) -> list[Opening[Score | Write]]:
    """Tokenize prompts to write behind; a text ends where the model takes no more.

    Raises:
        RequestError: A prompt has no token, or is too long.
    """
    openings: list[Opening[Score | Write]] = []
    for question in questions:
        prompt = model.tokens.encode(question.prompt, chat=question.chat)
        if not prompt:
            raise RequestError(
                f"writing: the prompt has no token, got {question.prompt!r}. Give a prompt."
            )
        n_tokens = question.n_tokens
        if model.max_positions is not None:
            model.check_length(len(prompt), question.prompt)
            n_tokens = max(1, min(n_tokens, model.max_positions - len(prompt)))
        openings.append(Opening(question, prompt, n_tokens, question.sentence))
    return openings


def run_passages(
    model: EditableModel,
    passages: Iterable[Passage[Label]],
    token_budget: int,
    openings: Iterable[Opening[Label]] = (),
) -> Iterator[list[tuple[Label, ScoreAnswer | WriteAnswer]]]:
    """Score the targets of passages and write behind openings, none longer than the model takes.

    Yields:
        For each forward pass, the labels that it has answers of, with the answers.
    """
    halving = Halving(f"scoring on '{model.name}'")
    writer, latest = Writer(model), LatestPrefix(model)
    for batch in batch_passages(model, passages, token_budget, openings):
        prefix = latest.get(batch.extent.prefix)

        def run(
            rows: Sequence[TokenRow[Label]], prefix: SharedPrefix = prefix
        ) -> list[tuple[Label, ScoreAnswer | WriteAnswer]]:
            return list(_run_batch(writer, prefix, rows))

        yield from halving.run(batch.rows, run)


def batch_passages(
    model: EditableModel,
    passages: Iterable[Passage[Label]],
    token_budget: int,
    openings: Iterable[Opening[Label]] = (),
) -> Iterator[Batch[TokenRow[Label], RowExtent]]:
    """The forward passes that scoring takes: what is run together, row by row.

    Batches of rows that share a prefix follow each other.
    """
    rows = make_rows(passages, openings)
    if find_continuing(model) != "padded":  # branches behind a row see its keys and values
        rows = [part for row in rows for part in (row.cut_apart() if row.branches else [row])]
    for group in group_by_prefix(model, rows, lambda row: row.beginning, token_budget):
        yield from batch_rows(
            group.rows,
            token_budget=token_budget,
            read_budget=model.memory.reads,
            cache_budget=model.memory.cached_tokens,
            prefix=group.prefix,
            copy_budget=model.memory.copied_tokens,
        )


def _run_batch(
    writer: Writer, prefix: SharedPrefix, rows: Sequence[TokenRow[Label]]
) -> Iterator[tuple[Label, ScoreAnswer | WriteAnswer]]:
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
    found, written = _run(writer, prefix, rows, tokens)
    for label, pairs in wanted:
        log_probs, argmax = zip(*(found[pair] for pair in pairs), strict=True)
        yield label, ScoreAnswer(log_probs, argmax)
    for row, ids in zip((row for row in rows if row.openings), written, strict=True):
        for opening in row.openings:
            yield opening.label, WriteAnswer(writer.text(opening, ids))


def _run(
    writer: Writer,
    prefix: SharedPrefix,
    rows: Sequence[TokenRow[Label]],
    tokens: Sequence[tuple[_Place, int]],
) -> tuple[dict[tuple[_Place, int], tuple[float, bool]], list[list[int]]]:
    """Look up log p of tokens at places, and whether each is the likeliest; and write.

    What is written is listed for the rows with openings, in their order.
    """
    model = writer.model
    is_kept = any(row.is_trunk for row in rows) and find_continuing(model) == "padded"
    # Branches follow at once on what is run before: padding stands in front of it.
    inputs = prefix.inputs([row.ids for row in rows], "left" if is_kept else "right")
    width = inputs["input_ids"].shape[1] + len(prefix.ids)
    places = [(index, -1, position) for index, row in enumerate(rows) for position in row.positions]
    # From a position in a row to its place among what is run.
    shifts = [(width - len(row.ids) if is_kept else 0) - len(prefix.ids) for row in rows]
    cache = prefix.cache() if is_kept or prefix.ids else None
    arguments = {**inputs, "past_key_values": cache, "use_cache": cache is not None}
    read = [(index, position + shifts[index]) for index, _, position in places]
    logits = read_logits(model, arguments, read)
    found = _look_up(model, logits, places, tokens)
    written: list[list[int]] = []
    opened = [index for index, row in enumerate(rows) if row.openings]
    if opened:
        number_of = {place: number for number, place in enumerate(places)}
        last = [number_of[index, -1, len(rows[index].ids) - 1] for index in opened]
        written = writer.go_on(
            [rows[index].openings for index in opened],
            logits[last].argmax(dim=1).tolist(),
            cache if is_kept else None,
            inputs["attention_mask"],
            opened,
        )
    del logits
    branches = [
        (index, number, branch.ids)
        for index, row in enumerate(rows)
        for number, branch in enumerate(row.branches)
    ]
    if cache is None or not branches:
        return found, written
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
    return found | _look_up(model, read_logits(model, arguments, read), places, tokens), written


def read_logits(
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
    if not some:
        return {}
    wanted = torch.tensor([(rows[place], token) for place, token in some], device=logits.device)
    row, token = wanted.unbind(dim=1)
    slices = logits.split(model.memory.reads_in_float32)
    normalizers = torch.cat([part.float().logsumexp(dim=1) for part in slices])
    log_probs = logits[row, token].float() - normalizers[row]
    argmax = logits.argmax(dim=1)[row] == token
    return dict(zip(some, zip(log_probs.tolist(), argmax.tolist(), strict=True), strict=True))
