"""Second moments E[k kᵀ] of the critical layers' keys over ordinary text (Eqn 15).

All layers are collected in one pass. They are uncentred, so they are no covariances. What is
collected carries its provenance, and what is read is checked against the model at hand.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editbench.datasets.corpus import Corpus
from editbench.editors.base import Progress, Resources
from editbench.editors.parts.row_batches import length_sorted_batches
from editbench.errors import SecondMomentError
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel
from memit_core import (
    MemitCoreError,
    SecondMoment,
    capture,
    load_second_moments,
    save_second_moments,
)

STAGE = "second moments"
_WINDOW = 16  # batches that are sorted by length together
_MAX_LENGTH = 2_048
_CHECKPOINT_SECONDS = 60.0


def obtain_second_moments(
    model: EditableModel,
    layers: Sequence[int],
    n_tokens: int,
    resources: Resources,
    module: ProjectionKind = "mlp",
) -> dict[int, Tensor]:
    """The second moments of `layers`: from the user's file, the cache, or the corpus.

    Args:
        model: The unedited model.
        layers: Critical layers.
        n_tokens: Tokens to collect from where there is no file.
        resources: Names the file, the cache folder and the corpus.
        module: Whose output projection's inputs are the keys.

    Returns:
        For each layer, E[k kᵀ], `[d_key, d_key]`.

    Raises:
        SecondMomentError: The file does not fit the model, or there is nothing to collect from.
    """
    if resources.second_moments is not None:
        return read_second_moments(model, layers, resources.second_moments, module)
    if resources.corpus is None:
        raise SecondMomentError(
            f"second moments: no file and no corpus to collect them from for '{model.name}'. "
            "Give --second-moments FILE (made by 'editbench stats') or --corpus FILE."
        )
    provenance = describe_collection(model, resources.corpus, layers, n_tokens, module)
    collection = (model, resources.corpus, layers, n_tokens)
    if resources.cache is None:
        found = collect_second_moments(*collection, resources.report_progress, module=module)
        return {layer: moment.moment() for layer, moment in found.items()}
    content = json.dumps(provenance, sort_keys=True).encode()
    name = f"{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
    path = resources.cache / "second_moments" / name
    if not path.exists():
        collect_to_file(*collection, path, resources.report_progress, module)
    return read_second_moments(model, layers, path, module)


def read_second_moments(
    model: EditableModel, layers: Sequence[int], path: Path, module: ProjectionKind = "mlp"
) -> dict[int, Tensor]:
    """Read second moments and check that they are this model's.

    Raises:
        SecondMomentError: The file cannot be read, lacks a layer, has another width, or states
            another model's fingerprint or keys of another module.
    """
    try:
        stored = load_second_moments(path)
    except MemitCoreError as error:
        raise SecondMomentError(str(error)) from error
    if stored.provenance is None:
        warnings.warn(
            f"second moments: {path} does not say which model it was collected from; only its "
            "shapes could be checked",
            stacklevel=2,
        )
    provenance = stored.provenance or {}
    fingerprint = provenance.get("model_fingerprint")
    if fingerprint is not None and fingerprint != model.fingerprint:
        raise SecondMomentError(
            f"second moments: {path} was collected from another model, got "
            f"'{provenance.get('model_name', 'unknown')}' with fingerprint {fingerprint}; expected "
            f"'{model.name}' with fingerprint {model.fingerprint}. Collect them again with "
            "'editbench stats'."
        )
    stated = provenance.get("module", "mlp")
    if stored.provenance is not None and stated != module:
        raise SecondMomentError(
            f"second moments: {path} is of other keys, got those of module '{stated}'; expected "
            f"'{module}'. Collect them with 'editbench stats --module {module}'."
        )
    found = {}
    for layer in layers:
        if layer not in stored.moments:
            raise SecondMomentError(
                f"second moments: {path} has no layer {layer}, got layers "
                f"{sorted(stored.moments)}. Collect it with 'editbench stats --layers'."
            )
        moment = stored.moments[layer].moment()
        d_key = model.d_key(layer, module)
        if moment.shape[0] != d_key:
            raise SecondMomentError(
                f"second moments: layer {layer} of {path} has the wrong shape, got "
                f"{tuple(moment.shape)}; expected ({d_key}, {d_key}), the keys of module "
                f"'{module}' of '{model.name}'."
            )
        found[layer] = moment
    return found


def describe_collection(
    model: EditableModel,
    corpus: Corpus,
    layers: Sequence[int],
    n_tokens: int,
    module: ProjectionKind,
) -> dict[str, Any]:
    """Everything that determines the second moments, for provenance and the cache's key."""
    return {
        "model_name": model.name,
        "model_fingerprint": model.fingerprint,
        "tokenizer_fingerprint": model.tokens.fingerprint,
        "model_dtype": str(model.model.dtype).removeprefix("torch."),
        "corpus": corpus.name,
        "corpus_fingerprint": corpus.fingerprint,
        "module": module,
        "layers": list(layers),
        "n_tokens": n_tokens,
        "max_length": _max_length(model),
        "dtype": "float64",
    }


def collect_to_file(
    model: EditableModel,
    corpus: Corpus,
    layers: Sequence[int],
    n_tokens: int,
    path: Path,
    report_progress: Progress,
    module: ProjectionKind = "mlp",
) -> dict[int, SecondMoment]:
    """Collect into `path`; what an interrupted collection had is taken up again.

    Raises:
        SecondMomentError: The corpus has no text, or the file cannot be written.
    """
    provenance = describe_collection(model, corpus, layers, n_tokens, module)
    partial = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    moments = collect_second_moments(
        model, corpus, layers, n_tokens, report_progress, module=module, checkpoint=partial
    )
    _save(path, moments, provenance)
    partial.unlink(missing_ok=True)
    return moments


def collect_second_moments(
    model: EditableModel,
    corpus: Corpus,
    layers: Sequence[int],
    n_tokens: int,
    report_progress: Progress,
    *,
    module: ProjectionKind = "mlp",
    checkpoint: Path | None = None,
) -> dict[int, SecondMoment]:
    """Collect the second moments of all `layers` in one pass over `corpus`.

    Each text is tokenized as the model expects (with BOS where its tokenizer adds one) and cut to
    the model's length; every token counts once. Collection ends after exactly `n_tokens` tokens, or
    with the corpus.

    Args:
        model: The unedited model.
        corpus: Ordinary text.
        layers: The layers whose keys are collected.
        n_tokens: When to stop.
        report_progress: Told tokens done and tokens a second.
        module: Whose output projection's inputs are the keys.
        checkpoint: Where to keep, about once a minute, what has been collected, and to take up
            from.

    Raises:
        SecondMomentError: The corpus has no text, or the checkpoint cannot be written.
    """
    projections = {model.architecture.projection(layer, module): layer for layer in layers}
    moments = {
        layer: SecondMoment(model.d_key(layer, module), device=model.device) for layer in layers
    }
    provenance = describe_collection(model, corpus, layers, n_tokens, module)
    n_texts, n_before = _take_up(checkpoint, moments, provenance)
    budget = model.token_budget
    began = saved = time.monotonic()
    n_done = n_before
    for window in _windows(model, corpus, n_texts, budget * _WINDOW, n_tokens - n_done):
        lengths = [len(ids) for ids in window]
        for batch in length_sorted_batches(lengths, budget):
            inputs = model.batch([window[index] for index in batch])
            with (
                torch.no_grad(),
                capture(model.model, inputs_of=list(projections), stop=True) as seen,
            ):
                model.model(**inputs, use_cache=False)
            real = inputs["attention_mask"].bool()
            for projection, layer in projections.items():
                keys = seen.inputs[projection].reshape(*real.shape, -1)  # OPT's MLP flattens
                moments[layer].update(keys[real.to(keys.device)])
            n_done += int(real.sum())
            speed = (n_done - n_before) / max(time.monotonic() - began, 1e-9)
            report_progress(STAGE, n_done, n_tokens, f"{speed:,.0f} tokens/s")
        n_texts += len(window)
        if checkpoint is not None and time.monotonic() - saved > _CHECKPOINT_SECONDS:
            _save(checkpoint, moments, {**provenance, "n_texts": n_texts, "n_tokens_done": n_done})
            saved = time.monotonic()
    if n_done == 0:
        raise SecondMomentError(f"second moments: corpus '{corpus.name}' holds no text.")
    return moments


def _windows(
    model: EditableModel, corpus: Corpus, n_skipped: int, n_window: int, n_wanted: int
) -> Iterator[list[list[int]]]:
    """Tokenized texts, as many at a time as are sorted by length together, `n_wanted` tokens."""
    window: list[list[int]] = []
    n_held = 0
    for text in islice(corpus.texts(), n_skipped, None):
        if n_wanted <= 0:
            break
        ids = model.tokens.encode(text)[: min(_max_length(model), n_wanted)]
        n_wanted -= len(ids)
        n_held += len(ids)
        window.append(ids)
        if n_held >= n_window:
            yield window
            window, n_held = [], 0
    if n_held:
        yield window


def _take_up(
    checkpoint: Path | None, moments: dict[int, SecondMoment], provenance: dict[str, Any]
) -> tuple[int, int]:
    """Merge what an interrupted collection left; return how many texts and tokens it had read."""
    if checkpoint is None or not checkpoint.exists():
        return 0, 0
    try:
        stored = load_second_moments(checkpoint)
    except MemitCoreError:
        return 0, 0  # it will be written anew
    left = dict(stored.provenance or {})
    n_texts, n_tokens = left.pop("n_texts", 0), left.pop("n_tokens_done", 0)
    if left != provenance:
        return 0, 0
    for layer, moment in moments.items():
        moment.merge(stored.moments[layer])
    return int(n_texts), int(n_tokens)


def _save(path: Path, moments: dict[int, SecondMoment], provenance: dict[str, Any]) -> None:
    try:
        save_second_moments(path, moments, provenance)
    except MemitCoreError as error:
        raise SecondMomentError(f"second moments: cannot write {path}: {error}") from error


def _max_length(model: EditableModel) -> int:
    return min(model.max_positions or _MAX_LENGTH, _MAX_LENGTH)
