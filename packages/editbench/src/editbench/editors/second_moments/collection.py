"""Collecting second moments: one pass over ordinary text, all layers at once."""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from editbench.cache_entries import read_kept
from editbench.costs.stage import Forward, StageCost
from editbench.datasets.corpus import Corpus
from editbench.editors.base import Progress
from editbench.editors.second_moments.corpus_reading import WHOLE, CorpusReader, Shard
from editbench.editors.second_moments.sampling_stop import TOLERATED_EXCESS, SamplingStop
from editbench.editors.second_moments.text_keys import read_keys
from editbench.errors import SecondMomentError
from editbench.models.architecture import ProjectionKind
from editbench.models.batches import Padded
from editbench.models.editable import EditableModel
from editbench.models.unedited import of_unedited
from memit_core import (
    DamagedError,
    MemitCoreError,
    SecondMoment,
    SecondMomentFile,
    SecondMoments,
    load_second_moments,
    save_second_moments,
)

STAGE = "second moments"
TokenCount = int | Literal["auto"]

WINDOW = 16  # batches' worth of texts that are sorted by length together
MAX_LENGTH = 2_048  # tokens that a text is cut to, if nobody says
_TYPICAL_LENGTH = 512  # tokens of a text of a corpus
_WIDENED = 2**23  # numbers of keys that are in float64 at once
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


@dataclass(frozen=True)
class CollectionWork:
    """How second moments are collected: what running and estimating go by.

    Attributes:
        stop: When to end, if the collection itself finds that out.
        n_tokens: Tokens to collect from, at most.
        n_parts: Into how many parts texts are counted, each with matrices of its own.
        device: Where the matrices are.
        n_together: Tokens that run at once.
    """

    stop: SamplingStop | None
    n_tokens: int
    n_parts: int
    device: torch.device
    n_together: int

    @classmethod
    def of(cls, model: EditableModel, widths: Sequence[int], n_tokens: TokenCount) -> Self:
        """Decide for keys of so many dimensions, layer by layer."""
        stop = SamplingStop(max(widths)) if n_tokens == "auto" else None
        n_parts = 1 if stop is None else 2
        n_bytes = n_parts * len(widths) * max(widths) ** 2 * torch.float64.itemsize
        n_captured = (len(widths) + 1) * max(widths)  # of one layer there are two for a moment
        device, n_together = model.memory.place_beside_text(n_bytes, n_captured=n_captured)
        n_most = stop.end if stop is not None else int(n_tokens)
        return cls(stop, n_most, n_parts, device, n_together)


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
        "max_length": _limit_length(model, max_length),
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
    reader = CorpusReader(model, corpus, work.n_tokens, _limit_length(model, max_length), shard)
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
            _report(report_progress, n_done, n_tokens, stop, speed)
            place = replace(place, n_texts_done=place.n_texts_done + len(owners.unique()))
            is_late = time.monotonic() - saved > pause
            if checkpoint is not None and is_late and all(_count_tokens(each) for each in parts):
                began_to_keep = time.monotonic()
                save_moments(checkpoint, _number(parts), {**provenance, **asdict(place)})
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


def estimate_collection(
    model: EditableModel, layers: Sequence[int], n_tokens: TokenCount, module: ProjectionKind
) -> StageCost:
    """What collecting costs, if the corpus has enough text.

    Args:
        model: The model, with weights or without.
        layers: The layers whose keys are collected.
        n_tokens: When to stop; ``auto`` is taken to stop where it usually does.
        module: Whose output projection's inputs are the keys.
    """
    size, d_key = model.size, model.d_key(layers[0], module)
    work = CollectionWork.of(model, [d_key] * len(layers), n_tokens)
    n_usual = work.n_tokens if work.stop is None else work.stop.usual_end
    length = min(_limit_length(model, None), _TYPICAL_LENGTH)
    n_together = min(work.n_together, n_usual)
    n_passes = -(-n_usual // n_together)
    batch = Padded(max(1, n_together // length), length, n_together)
    forward = Forward(batch, max(layers) + 1, n_times=n_passes).cost(size)
    is_on_device = work.device == model.device
    matrices = work.n_parts * len(layers) * d_key**2 * torch.float64.itemsize
    keys = n_together * (len(layers) + 1) * d_key * size.itemsize
    widened = min(n_together * d_key, _WIDENED) * torch.float64.itemsize
    n_peak = forward.n_peak_bytes + keys + widened + (matrices if is_on_device else 0)
    place = "" if is_on_device else ", matrices in main memory"
    until = "" if work.stop is None else f", until sampling costs little: {work.n_tokens:,} at most"
    return replace(
        forward,
        name=STAGE,
        n_tokens=n_usual,
        n_double_flops=len(layers) * n_usual * d_key**2,  # one triangle
        n_peak_bytes=n_peak,
        chunks=f"{n_passes:,} batches of at most {n_together:,} tokens{place}{until}",
    )


def save_moments(
    path: Path, moments: Mapping[int, SecondMoment], provenance: Mapping[str, Any]
) -> None:
    """Write second moments to a file, whole or not at all.

    Raises:
        SecondMomentError: The file cannot be written.
    """
    try:
        save_second_moments(path, moments, provenance)
    except MemitCoreError as error:
        raise SecondMomentError(f"second moments: cannot write {path}: {error}") from error


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


def _report(
    report_progress: Progress,
    n_done: int,
    n_tokens: TokenCount,
    stop: SamplingStop | None,
    speed: float,
) -> None:
    note = f"{speed:,.0f} tokens/s"
    if n_tokens != "auto" or stop is None:
        report_progress(STAGE, n_done, int(n_tokens), note)
    elif stop.excess < float("inf"):
        report_progress(STAGE, n_done, stop.next_look, f"{note}, excess {stop.excess:.0%}")
    else:
        report_progress(STAGE, n_done, stop.next_look, note)


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
            raise DamagedError("it has no checksum")
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


def _limit_length(model: EditableModel, max_length: int | None) -> int:
    return min(max_length or MAX_LENGTH, model.max_positions or MAX_LENGTH)
