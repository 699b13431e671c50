"""Collecting second moments: one pass over ordinary text, all layers at once."""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editbench.datasets.corpus import Corpus
from editbench.errors import SecondMomentError
from editbench.files.cache_entries import read_kept
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel, of_unedited
from editbench.progress import Progress
from editbench.second_moments.collection_work import (
    STAGE,
    TOLERATED_EXCESS,
    CollectionWork,
    TokenCount,
    limit_length,
)
from editbench.second_moments.corpus_keys import WHOLE, CorpusReader, Shard, read_keys
from editbench.second_moments.moment_files import (
    SecondMomentFile,
    SecondMoments,
    load_second_moments,
    save_second_moments,
)
from memit_core import SecondMoment

WINDOW = 16  # batches' worth of texts that are sorted by length together
_N_PROBES = 256  # keys that halves of a sample are compared on
_N_PROBE_TEXTS = 32
_CHECKPOINT_SECONDS = 60.0
_WORK_FOR_EACH_WRITING = 20  # checkpoints of large models are large


@dataclass(frozen=True)
class _Place:
    """How far a collection has come in its corpus.

    Attributes:
        n_texts: Texts before the window at hand, of all shards.
        n_tokens_read: Their tokens.
        n_window: Tokens that were asked for to fill the window.
        n_texts_done: How many of its texts are done, the shortest ones.
    """

    n_texts: int = 0
    n_tokens_read: int = 0
    n_window: int = 0
    n_texts_done: int = 0


def describe_collection(
    model: EditableModel,
    corpus: Corpus,
    layers: Sequence[int],
    n_tokens: TokenCount,
    module: ProjectionKind = "mlp",
    *,
    max_length: int | None = None,
    shard: Shard = WHOLE,
) -> dict[str, Any]:
    """Everything that determines the second moments, for provenance and the cache's key."""
    description: dict[str, Any] = {
        "model_name": model.name,
        "model_fingerprint": model.fingerprint,
        "tokenizer_fingerprint": model.tokens.fingerprint,
        "model_dtype": str(model.model.dtype).removeprefix("torch."),
        "corpus": corpus.name,
        "corpus_fingerprint": corpus.fingerprint,
        "module": module,
        "layers": list(layers),
        "n_tokens": n_tokens,
        "max_length": limit_length(model, max_length),
        "dtype": "float64",
    }
    if n_tokens == "auto":
        description["tolerated_excess"] = TOLERATED_EXCESS
    if shard != WHOLE:
        description["shard"] = [shard.index, shard.n_shards]
    return description


@of_unedited("second moments")
def collect_second_moments(
    model: EditableModel,
    corpus: Corpus,
    layers: Sequence[int],
    n_tokens: TokenCount,
    report_progress: Progress,
    *,
    module: ProjectionKind = "mlp",
    max_length: int | None = None,
    shard: Shard = WHOLE,
    checkpoint: Path | None = None,
) -> dict[int, SecondMoment]:
    """Collect the second moments of all `layers` in one pass over `corpus`.

    Each text is tokenized as the model expects (with BOS where its tokenizer adds one) and cut to
    length; every token counts once. Collection ends after exactly `n_tokens` tokens, or with the
    corpus.

    ``auto`` ends it when sampling costs little. Texts are counted into two halves in turns, and now
    and then `memit_core.estimate_excess` compares the halves, on keys of the texts that come next.
    That is enough when for every layer updates move ordinary text no more than `TOLERATED_EXCESS`
    more than they would with endless text.

    Args:
        model: The model. Edits on it are taken off meanwhile.
        corpus: Ordinary text.
        layers: The layers whose keys are collected.
        n_tokens: When to stop; in all shards together.
        report_progress: Told tokens done and tokens a second.
        module: Whose output projection's inputs are the keys.
        max_length: Tokens that a text is cut to; None for 2,048. Never more than the model takes.
        shard: Which of the texts to count.
        checkpoint: Where to keep, about once a minute, what has been collected, and to take up
            from.

    Raises:
        SecondMomentError: The corpus has no text, the checkpoint cannot be written, or ``auto`` is
            asked of a shard, which cannot know what the others have.
    """
    if n_tokens == "auto" and shard != WHOLE:
        raise SecondMomentError(
            "second moments: a shard cannot find out by itself when there are enough tokens, got "
            "'auto'. Give a count of tokens."
        )
    provenance = describe_collection(
        model, corpus, layers, n_tokens, module, max_length=max_length, shard=shard
    )
    widths = {layer: model.d_key(layer, module) for layer in layers}
    work = CollectionWork.of(model, list(widths.values()), n_tokens)
    stop, budget = work.stop, work.n_together
    parts = [
        {layer: SecondMoment(d_key, device=work.device) for layer, d_key in widths.items()}
        for _ in range(work.n_parts)
    ]
    reader = CorpusReader(model, corpus, work.n_tokens, limit_length(model, max_length), shard)
    place = _take_up(checkpoint, parts, provenance)
    reader.n_texts, reader.n_tokens = place.n_texts, place.n_tokens_read
    n_done = n_before = sum(_count_tokens(moments) for moments in parts)
    projections = {layer: model.architecture.projection(layer, module) for layer in layers}
    began = saved = time.monotonic()
    pause = _CHECKPOINT_SECONDS
    while True:
        n_window = place.n_window
        if not place.n_texts_done:
            n_window = WINDOW * budget
            if stop is not None:
                n_window = min(n_window, stop.count_ahead(n_done))
        place = replace(
            place, n_texts=reader.n_texts, n_tokens_read=reader.n_tokens, n_window=n_window
        )
        window = reader.take(n_window)
        if not window:
            break
        if stop is not None and n_done >= stop.next_look and not place.n_texts_done:
            few = window[:: max(1, len(window) // _N_PROBE_TEXTS)]
            if stop.look(parts, _some_keys(model, projections, few, budget), n_done):
                break
        n_known, first = place.n_texts_done, place.n_texts
        for keys, owners in read_keys(model, projections, window, budget, n_known=n_known):
            for number, moments in enumerate(parts):
                chosen = ((first + owners) % len(parts) == number).nonzero()[:, 0]
                for layer, moment in moments.items():
                    rows = keys[layer]
                    if len(chosen) < len(rows):
                        rows = rows[chosen.to(rows.device)]
                    moment.update(rows)
            n_done += len(owners)
            speed = (n_done - n_before) / max(time.monotonic() - began, 1e-9)
            _report(report_progress, n_done, work, speed)
            place = replace(place, n_texts_done=place.n_texts_done + len(owners.unique()))
            is_late = time.monotonic() - saved > pause
            if checkpoint is not None and is_late and all(_count_tokens(each) for each in parts):
                began_to_keep = time.monotonic()
                save_second_moments(checkpoint, _number(parts), {**provenance, **asdict(place)})
                saved = time.monotonic()
                pause = max(_CHECKPOINT_SECONDS, _WORK_FOR_EACH_WRITING * (saved - began_to_keep))
        place = replace(place, n_texts_done=0)
    if n_done == 0:
        raise SecondMomentError(f"second moments: corpus '{corpus.name}' holds no text.")
    if stop is not None and stop.excess > TOLERATED_EXCESS:
        warnings.warn(
            f"second moments: '{corpus.name}' was not enough, got {n_done:,} tokens and an excess "
            f"of {stop.excess:.0%} at the last look; expected at most {TOLERATED_EXCESS:.0%}",
            stacklevel=2,
        )
    for other in parts[1:]:
        for layer, moment in parts[0].items():
            moment.merge(other[layer])
    return parts[0]


def _some_keys(
    model: EditableModel,
    projections: Mapping[int, str],
    texts: Sequence[Sequence[int]],
    token_budget: int,
) -> dict[int, Tensor]:
    """For each layer about `_N_PROBES` keys of `texts`."""
    batches = [keys for keys, _ in read_keys(model, projections, texts, token_budget)]
    found = {layer: torch.cat([keys[layer] for keys in batches]) for layer in projections}
    return {layer: keys[:: max(1, len(keys) // _N_PROBES)] for layer, keys in found.items()}


def _report(report_progress: Progress, n_done: int, work: CollectionWork, speed: float) -> None:
    """Report tokens; of how many, nobody knows where the collection finds out when to end."""
    note = f"{speed:,.0f} tokens/s"
    if work.stop is None:
        report_progress(STAGE, n_done, work.n_tokens, note)
        return
    excess = "" if work.stop.excess == float("inf") else f"excess {work.stop.excess:.0%}, "
    report_progress(STAGE, n_done, 0, f"{note}, {excess}looked at after {work.stop.next_look:,}")


def _take_up(
    checkpoint: Path | None,
    parts: Sequence[Mapping[int, SecondMoment]],
    provenance: Mapping[str, Any],
) -> _Place:
    """Merge what an interrupted collection left; return how far that had come."""
    stored = None if checkpoint is None else _read_checkpoint(checkpoint)
    if stored is None:
        return _Place()
    left = dict(stored.provenance or {})
    place = {field.name: left.pop(field.name, None) for field in fields(_Place)}
    if left != provenance or None in place.values():
        return _Place()
    for number, moment in _number(parts).items():
        moment.merge(stored.moments[number])
    return _Place(**place)


def _read_checkpoint(checkpoint: Path) -> SecondMoments | None:
    """What is kept there; None if that is nothing, or damaged, and then it is begun anew."""

    def read() -> SecondMoments:
        if not SecondMomentFile(checkpoint).is_sealed:
            raise SecondMomentError("it has no checksum")
        return load_second_moments(checkpoint)

    return read_kept(checkpoint, "what an interrupted collection left", read)


def _count_tokens(moments: Mapping[int, SecondMoment]) -> int:
    return next(iter(moments.values())).n_tokens or 0


def _number(parts: Sequence[Mapping[int, SecondMoment]]) -> dict[int, SecondMoment]:
    """By layer; those of a second half are numbered on from those of the first."""
    n_numbers = 1 + max(parts[0])
    return {
        layer + place * n_numbers: moment
        for place, moments in enumerate(parts)
        for layer, moment in moments.items()
    }
