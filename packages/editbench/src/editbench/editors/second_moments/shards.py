"""Joining second moments that several machines or processes have collected shares of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editbench.editors.second_moments.collection import save_moments
from editbench.errors import SecondMomentError
from memit_core import MemitCoreError, SecondMoment, SecondMomentFile


def merge_shards(paths: Sequence[Path], path: Path) -> dict[int, SecondMoment]:
    """Join the shards of one collection into the file that it would have made without shards.

    Args:
        paths: Files of all its shards, in any order.
        path: The file to write.

    Raises:
        SecondMomentError: A file cannot be read, is no shard, or is of another collection; a shard
            is missing or given twice; or the file cannot be written.
    """
    files: dict[int, SecondMomentFile] = {}
    collection: dict[str, Any] | None = None
    n_shards = 0
    for each in paths:
        try:
            file = SecondMomentFile(each)
        except MemitCoreError as error:
            raise SecondMomentError(str(error)) from error
        provenance = dict(file.provenance or {})
        if "shard" not in provenance:
            raise SecondMomentError(
                f"merge shards: {each} is no shard. Collect shards with 'editbench stats --shard'."
            )
        index, n_shards = provenance.pop("shard")
        collection = collection or {**provenance, "n_shards": n_shards}
        provenance["n_shards"] = n_shards
        for name in {*collection, *provenance}:
            if collection.get(name) != provenance.get(name):
                raise SecondMomentError(
                    f"merge shards: {each} is of another collection than {paths[0]}, got {name} "
                    f"{provenance.get(name)!r}; expected {collection.get(name)!r}."
                )
        if index in files:
            raise SecondMomentError(
                f"merge shards: shard {index + 1}/{n_shards} is there twice, got {each} and "
                f"{files[index].path}."
            )
        files[index] = file
    missing = [f"{index + 1}/{n_shards}" for index in range(n_shards) if index not in files]
    if missing or collection is None:
        raise SecondMomentError(
            f"merge shards: not all shards are there, missing {', '.join(missing) or 'all'}."
        )
    del collection["n_shards"]
    first, *others = (files[index] for index in sorted(files))
    merged: dict[int, SecondMoment] = {}
    try:
        for layer in first.shapes:
            merged[layer] = first.load(layer)
            for other in others:
                merged[layer].merge(other.load(layer))
    except MemitCoreError as error:
        raise SecondMomentError(str(error)) from error
    save_moments(path, merged, collection)
    return merged
