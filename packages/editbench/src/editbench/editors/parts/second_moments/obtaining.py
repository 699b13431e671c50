"""Second moments E[k kᵀ] of the critical layers' keys over ordinary text (Eqn 15).

They come from the user's file, from the cache, or from a corpus, one layer at a time. They are
uncentred, so they are no covariances. What is collected carries its provenance, and what is read is
checked against the model at hand.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor

from editbench.datasets.corpus import Corpus
from editbench.editors.base import Progress, Resources
from editbench.editors.parts.second_moments.collection import (
    TokenCount,
    collect_second_moments,
    describe_collection,
    save_moments,
)
from editbench.editors.parts.second_moments.corpus_reading import WHOLE, Shard
from editbench.errors import SecondMomentError
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel
from memit_core import MemitCoreError, SecondMoment, SecondMomentFile


class LayerMoments(Mapping[int, Tensor]):
    """Second moments by layer, each read when it is asked for, and not kept.

    Args:
        readers: For each layer what returns E[k kᵀ], `[d_key, d_key]`.
        provenance: What they are from; None if that is unknown.
    """

    def __init__(
        self,
        readers: Mapping[int, Callable[[], Tensor]],
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self._readers = readers
        self.provenance = provenance

    def __getitem__(self, layer: int) -> Tensor:
        return self._readers[layer]()

    def __iter__(self) -> Iterator[int]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def obtain_second_moments(
    model: EditableModel,
    layers: Sequence[int],
    n_tokens: TokenCount,
    resources: Resources,
    module: ProjectionKind = "mlp",
) -> LayerMoments:
    """The second moments of `layers`: from the user's file, the cache, or the corpus.

    Where they are collected and there is no cache, those of all layers stay in memory.

    Args:
        model: The unedited model.
        layers: Critical layers.
        n_tokens: Tokens to collect from where there is no file; see `collect_second_moments`.
        resources: Names the file, the cache folder and the corpus.
        module: Whose output projection's inputs are the keys.

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
    collection = (model, resources.corpus, layers, n_tokens)
    if resources.cache is None:
        found = collect_second_moments(*collection, resources.report_progress, module=module)
        return LayerMoments({layer: moment.moment for layer, moment in found.items()})
    path = cached_path(resources.cache, *collection, module)
    if not path.exists():
        with _alone(path):
            if not path.exists():
                collect_to_file(*collection, path, resources.report_progress, module)
    return read_second_moments(model, layers, path, module)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait for other trials that collect the same; they begin at once when a grid is spread."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    except OSError as error:
        raise SecondMomentError(f"second moments: cannot write {path}: {error}") from error
    try:
        yield
    finally:
        lock.release()


def cached_path(
    cache: Path,
    model: EditableModel,
    corpus: Corpus,
    layers: Sequence[int],
    n_tokens: TokenCount,
    module: ProjectionKind = "mlp",
) -> Path:
    """The file of a cache folder in which `obtain_second_moments` keeps what it collects."""
    provenance = describe_collection(model, corpus, layers, n_tokens, module)
    content = json.dumps(provenance, sort_keys=True).encode()
    name = f"{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
    return cache / "second_moments" / name


def read_second_moments(
    model: EditableModel, layers: Sequence[int], path: Path, module: ProjectionKind = "mlp"
) -> LayerMoments:
    """Open a file of second moments and check that they are this model's.

    Raises:
        SecondMomentError: The file cannot be read, lacks a layer, has another width, or states
            another model's fingerprint or keys of another module.
    """
    try:
        file = SecondMomentFile(path)
    except MemitCoreError as error:
        raise SecondMomentError(str(error)) from error
    if file.provenance is None:
        warnings.warn(
            f"second moments: {path} does not say which model it was collected from; only its "
            "shapes could be checked",
            stacklevel=2,
        )
    provenance = file.provenance or {}
    fingerprint = provenance.get("model_fingerprint")
    if fingerprint is not None and fingerprint != model.fingerprint:
        raise SecondMomentError(
            f"second moments: {path} was collected from another model, got "
            f"'{provenance.get('model_name', 'unknown')}' with fingerprint {fingerprint}; expected "
            f"'{model.name}' with fingerprint {model.fingerprint}. Collect them again with "
            "'editbench stats'."
        )
    stated = provenance.get("module", "mlp")
    if file.provenance is not None and stated != module:
        raise SecondMomentError(
            f"second moments: {path} is of other keys, got those of module '{stated}'; expected "
            f"'{module}'. Collect them with 'editbench stats --module {module}'."
        )
    if "shard" in provenance:
        raise SecondMomentError(
            f"second moments: {path} is one of {provenance['shard'][1]} shards of a collection. "
            "Merge all of them with 'editbench stats --merge'."
        )
    for layer in layers:
        if layer not in file.shapes:
            raise SecondMomentError(
                f"second moments: {path} has no layer {layer}, got layers "
                f"{sorted(file.shapes)}. Collect it with 'editbench stats --layers'."
            )
        d_key = model.d_key(layer, module)
        if file.shapes[layer] != (d_key, d_key):
            raise SecondMomentError(
                f"second moments: layer {layer} of {path} has the wrong shape, got "
                f"{file.shapes[layer]}; expected ({d_key}, {d_key}), the keys of module "
                f"'{module}' of '{model.name}'."
            )
    return LayerMoments({layer: partial(file.read, layer) for layer in layers}, file.provenance)


def collect_to_file(
    model: EditableModel,
    corpus: Corpus,
    layers: Sequence[int],
    n_tokens: TokenCount,
    path: Path,
    report_progress: Progress,
    module: ProjectionKind = "mlp",
    *,
    max_length: int | None = None,
    shard: Shard = WHOLE,
) -> dict[int, SecondMoment]:
    """Collect into `path`; what an interrupted collection had is taken up again.

    Args:
        model: See `collect_second_moments`, also for what follows.
        corpus: Ordinary text.
        layers: The layers whose keys are collected.
        n_tokens: When to stop.
        path: The file; the folders above it are made.
        report_progress: Told tokens done and tokens a second.
        module: Whose output projection's inputs are the keys.
        max_length: Tokens that a text is cut to.
        shard: Which of the texts to count.

    Raises:
        SecondMomentError: The corpus has no text, or the file cannot be written.
    """
    share: dict[str, Any] = {"max_length": max_length, "shard": shard}
    provenance = describe_collection(model, corpus, layers, n_tokens, module, **share)
    checkpoint = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    moments = collect_second_moments(
        model,
        corpus,
        layers,
        n_tokens,
        report_progress,
        module=module,
        checkpoint=checkpoint,
        **share,
    )
    save_moments(path, moments, provenance)
    checkpoint.unlink(missing_ok=True)
    return moments
