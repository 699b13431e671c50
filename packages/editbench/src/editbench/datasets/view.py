"""A dataset seen in another way: as a chat, with other held-out text, or what stands of it."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from editbench.datasets.base import Dataset
from editbench.datasets.corpus import Corpus
from editbench.errors import DataError
from editbench.portability import Query
from editbench.requests import EditCase, standing_cases


class DatasetView(Dataset):
    """The cases of another dataset under its name, with a fingerprint of their own."""

    def __init__(
        self,
        viewed: Dataset,
        *,
        as_chat: bool = False,
        held_out: Corpus | None = None,
        n_standing: int | None = None,
    ) -> None:
        """Say what is different.

        Args:
            viewed: The dataset.
            as_chat: Whether each prompt is a user's message, and what follows the answer to it.
            held_out: Ordinary text in place of the dataset's own; lines of one word are left out.
            n_standing: Only the facts that stand once so many are written in batches, from the
                first on: none that a later one of them contradicts. None keeps all there are.
        """
        super().__init__(None, Path())  # it reads no file of its own
        self.name = viewed.name  # type: ignore[misc]
        self.default_metrics = viewed.default_metrics  # type: ignore[misc]
        self._viewed, self._as_chat, self._held_out = viewed, as_chat, held_out
        self._n_standing = n_standing

    def cases(self) -> Sequence[EditCase]:
        """The cases, in their order."""
        return self._cases

    def held_out_texts(self) -> Sequence[str]:
        """The user's own text, or else the dataset's."""
        return self._texts

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the dataset's, and of what is different."""
        content = f"{self._viewed.fingerprint} {'as chat' if self._as_chat else ''}"
        if self._held_out is not None:
            content += f" {self._held_out.fingerprint}"
        if self._n_standing is not None:
            content += f" standing of {self._n_standing}"
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def left_out(self) -> Sequence[str]:
        """Why records were left out."""
        return self._viewed.left_out

    @property
    def remarks(self) -> Sequence[str]:
        """What to tell the user about how the data were read."""
        return self._viewed.remarks

    @cached_property
    def _cases(self) -> Sequence[EditCase]:
        cases = self._viewed.cases()
        if self._n_standing is not None:
            cases = standing_cases(cases[: self._n_standing])
        return tuple(map(_ask_as_chat, cases)) if self._as_chat else cases

    @cached_property
    def _texts(self) -> Sequence[str]:
        if self._held_out is None:
            return self._viewed.held_out_texts()
        texts = tuple(text for text in self._held_out.texts() if len(text.split()) > 1)
        if not texts:
            raise DataError(
                f"held-out text: no line has two words, got {self._held_out.name}. Give ordinary "
                "text, one text a line."
            )
        return texts


def _ask_as_chat(case: EditCase) -> EditCase:
    def ask(queries: Iterable[Query]) -> tuple[Query, ...]:
        return tuple(replace(query, chat=True) for query in queries)

    return replace(
        case,
        request=replace(case.request, chat=True),
        probes=tuple(
            replace(probe, chat=True, conditions=ask(probe.conditions)) for probe in case.probes
        ),
        portability=tuple(
            replace(probe, queries=ask(probe.queries), conditions=ask(probe.conditions))
            for probe in case.portability
        ),
    )
