"""Second moments E[k kᵀ] of the critical layers' keys over ordinary text (Eqn 15).

They come from the user's file, from the cache, or from a corpus, one layer at a time. They are
uncentred, so they are no covariances. What is collected carries its provenance, and what is read is
checked against the model at hand.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from editbench.costs.stage import ExpectedCache, StageCost
from editbench.datasets.corpus import Corpus
from editbench.errors import SecondMomentError
from editbench.files.seals import checksum_json
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel
from editbench.progress import Progress
from editbench.second_moments.collection import collect_second_moments, describe_collection
from editbench.second_moments.collection_files import (
    alone,
    collect_to_file,
    is_collected,
)
from editbench.second_moments.collection_work import TokenCount, estimate_collection
from editbench.second_moments.moment_files import SecondMomentFile
from editbench.second_moments.npz_files import is_npz, read_npz_moments


class Sources(Protocol):
    """Where second moments may come from; what surrounds an edit (`Resources`) says so."""

    @property
    def second_moments(self) -> Path | None:
        """A file to read them from; None if they are to be collected."""

    @property
    def corpus(self) -> Corpus | None:
        """Text to collect them from."""

    @property
    def cache(self) -> Path | None:
        """Where they are kept."""

    @property
    def report_progress(self) -> Progress:
        """Told about the collection."""


class LayerMoments(Mapping[int, Tensor]):
    """Second moments by layer, each read when it is asked for, and not kept.

    Args:
        readers: For each layer what returns E[k kᵀ], `[d_key, d_key]`.
        provenance: What they are from; None if that is unknown.
        source: Where they are read from, for messages.
    """

    def __init__(
        self,
        readers: Mapping[int, Callable[[], Tensor]],
        provenance: Mapping[str, Any] | None = None,
        source: str = "",
    ) -> None:
        self._readers = readers
        self.provenance = provenance
        self.source = source

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
    sources: Sources,
    module: ProjectionKind = "mlp",
) -> LayerMoments:
    """The second moments of `layers`: from the user's file, the cache, or the corpus.

    Where they are collected and there is no cache, those of all layers stay in memory.

    Args:
        model: The model. They are of the unedited one, whatever edits are on it.
        layers: Critical layers.
        n_tokens: Tokens to collect from where there is no file; see `collect_second_moments`.
        sources: Names the file, the cache folder and the corpus.
        module: Whose output projection's inputs are the keys.

    Raises:
        SecondMomentError: The file does not fit the model, or there is nothing to collect from.
        ModelError: Something else than an edit has changed the model.
    """
    model.check_known("second moments")
    if sources.second_moments is not None:
        return read_second_moments(model, layers, sources.second_moments, module)
    if sources.corpus is None:
        raise SecondMomentError(
            f"second moments: no file and no corpus to collect them from for '{model.name}'. "
            "Give --second-moments FILE (made by 'editbench stats') or --corpus FILE."
        )
    collection = (model, sources.corpus, layers, n_tokens)
    if sources.cache is not None:
        path = cached_path(sources.cache, *collection, module)
        provenance = describe_collection(*collection, module)
        if not is_collected(path, provenance) and not path.exists():
            with alone(path, sources.report_progress):
                if not is_collected(path, provenance):
                    collect_to_file(*collection, path, sources.report_progress, module)
        if is_collected(path, provenance):
            return read_second_moments(model, layers, path, module)
    # There is no cache, or something stands in it that can be neither used nor put aside.
    found = collect_second_moments(*collection, sources.report_progress, module=module)
    readers = {layer: moment.moment for layer, moment in found.items()}
    return LayerMoments(readers, source=f"corpus '{sources.corpus.name}'")


def estimate_second_moments(
    model: EditableModel,
    layers: Sequence[int],
    n_tokens: TokenCount,
    sources: Sources,
    expected: ExpectedCache,
    module: ProjectionKind = "mlp",
) -> list[StageCost]:
    """What `obtain_second_moments` costs: nothing if they are in a file or in the cache.

    Args:
        model: The model, with weights or without.
        layers: Critical layers.
        n_tokens: Tokens to collect from; see `collect_second_moments`.
        sources: Names the file, the cache folder and the corpus.
        expected: What earlier work leaves in the cache; these are added.
        module: Whose output projection's inputs are the keys.
    """
    if sources.second_moments is not None:
        return []
    if sources.cache is not None:
        if not expected.add("second moments", model.fingerprint, tuple(layers), n_tokens, module):
            return []
        corpus = sources.corpus  # an estimate without weights does without
        if corpus is not None and (
            cached_path(sources.cache, model, corpus, layers, n_tokens, module).exists()
        ):
            return []
    return [estimate_collection(model, layers, n_tokens, module)]


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
    return cache / "second_moments" / f"{checksum_json(provenance)[:32]}.safetensors"


def read_second_moments(
    model: EditableModel, layers: Sequence[int], path: Path, module: ProjectionKind = "mlp"
) -> LayerMoments:
    """Open second moments and check that they are this model's, and can be second moments.

    Args:
        model: The model.
        layers: The layers that are wanted.
        path: A file as `save_second_moments` writes it; or memit's ``.npz``, or a folder of these.
        module: Whose output projection's inputs the keys have to be.

    Raises:
        SecondMomentError: A file cannot be read, is damaged, lacks a layer, has another width,
            states another model's fingerprint or keys of another module, or holds numbers that are
            no second moment.
    """
    if is_npz(path):
        return LayerMoments(read_npz_moments(model, layers, path, module), source=str(path))
    file = SecondMomentFile(path)
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
    if missing := [layer for layer in layers if layer not in file.shapes]:
        noun = "layer" if len(missing) == 1 else "layers"
        raise SecondMomentError(
            f"second moments: {path} has no {noun} {', '.join(map(str, missing))}, got layers "
            f"{sorted(file.shapes)}. Collect what is missing with 'editbench stats --layers'."
        )
    for layer in layers:
        d_key = model.d_key(layer, module)
        if file.shapes[layer] != (d_key, d_key):
            raise SecondMomentError(
                f"second moments: layer {layer} of {path} has the wrong shape, got "
                f"{file.shapes[layer]}; expected ({d_key}, {d_key}), the keys of module "
                f"'{module}' of '{model.name}'."
            )
        file.check(layer)
    readers = {layer: partial(file.read, layer) for layer in layers}
    return LayerMoments(readers, file.provenance, str(path))
