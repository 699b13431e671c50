"""One collection divided among several workers, who share a cache folder."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editbench.datasets.corpus import Corpus
from editbench.editors.base import Progress, Share
from editbench.editors.second_moments.collection import TokenCount, describe_collection
from editbench.editors.second_moments.collection_files import (
    alone,
    collect_to_file,
    is_collected,
    name_checkpoint,
)
from editbench.editors.second_moments.corpus_reading import WHOLE, Shard
from editbench.editors.second_moments.shards import merge_shards
from editbench.errors import SecondMomentError
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel


@dataclass(frozen=True, eq=False)
class DividedCollection:
    """A collection whose shards lie in a folder next to the file that they are joined into.

    The folder's name says how many they are, and whoever comes later keeps to that: trials that are
    divided among different numbers of workers share the same shards.

    Attributes:
        path: The file of the whole.
        model: See `collect_second_moments`, also for what follows.
        corpus: Ordinary text.
        layers: The layers whose keys are collected.
        n_tokens: When to stop; in all shards together.
        module: Whose output projection's inputs are the keys.
    """

    path: Path
    model: EditableModel
    corpus: Corpus
    layers: Sequence[int]
    n_tokens: TokenCount
    module: ProjectionKind

    def collect_share(self, share: Share, report_progress: Progress) -> None:
        """Collect a share of the shards, except those that are there or whose whole is.

        Args:
            share: Which part; there are as many shards as shares if this is the first of them.
            report_progress: Told tokens done and tokens a second.

        Raises:
            SecondMomentError: A shard has no text, or nothing can be written.
            OSError: The folder cannot be made, or the corpus not be read.
        """
        if self.is_collected():
            return
        with alone(self.path, report_progress):
            n_shards = self._find_n_shards() or share.n
            if not self.path.exists():
                self._folder(n_shards).mkdir(exist_ok=True)
        for index in range(share.index, n_shards, share.n):
            if not self.path.exists():
                self._collect(Shard(index, n_shards), report_progress)

    def join(self, report_progress: Progress) -> bool:
        """Write the file of the whole from its shards, of which missing and damaged ones are made.

        To be called by one process at a time, under the file's lock.

        Args:
            report_progress: Told tokens done and tokens a second, where something was missing.

        Returns:
            Whether the file is there now: not if nobody has divided the collection, and not if its
            shards make no whole.
        """
        n_shards = self._find_n_shards()
        if n_shards is None:
            return False
        try:
            shards = [Shard(index, n_shards) for index in range(n_shards)]
            merge_shards([self._collect(shard, report_progress) for shard in shards], self.path)
        except SecondMomentError:
            self.remove()  # the whole will need their room
            return False
        name_checkpoint(self.path).unlink(missing_ok=True)  # of an attempt without shards
        return True

    def is_collected(self) -> bool:
        """Whether the file of the whole is there, and is what was written."""
        return is_collected(self.path, self._describe(WHOLE))

    def remove(self) -> None:
        """Remove the shards, and what interrupted ones have left."""
        for folder in self._list_folders():
            shutil.rmtree(folder, ignore_errors=True)

    def _collect(self, shard: Shard, report_progress: Progress) -> Path:
        """Collect a shard, unless it is there; wait for another worker that is just doing so."""
        path = self._folder(shard.n_shards) / f"{shard.index + 1}.safetensors"
        with alone(path, report_progress):
            if not self.path.exists() and not is_collected(path, self._describe(shard)):
                collect_to_file(
                    self.model,
                    self.corpus,
                    self.layers,
                    self.n_tokens,
                    path,
                    report_progress,
                    self.module,
                    shard=shard,
                )
        return path

    def _describe(self, shard: Shard) -> dict[str, Any]:
        return describe_collection(
            self.model, self.corpus, self.layers, self.n_tokens, self.module, shard=shard
        )

    def _folder(self, n_shards: int) -> Path:
        return self.path.with_name(f"{self.path.stem}.{n_shards}-shards")

    def _find_n_shards(self) -> int | None:
        """How many shards somebody has divided the collection into; None if nobody has."""
        return next(iter(self._list_folders().values()), None)

    def _list_folders(self) -> dict[Path, int]:
        """Folders of shards, one at most, and how many shards belong into them."""
        name = re.compile(rf"{re.escape(self.path.stem)}\.([1-9]\d*)-shards")
        matches = {each: name.fullmatch(each.name) for each in self.path.parent.glob("*-shards")}
        return {folder: int(match[1]) for folder, match in matches.items() if match is not None}
