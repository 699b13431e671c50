"""Streams of edits: batch after batch, each written into what those before it left."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from editbench.edits.card import EditCard, hash_requests
from editbench.edits.edit import Edit, NoEdit
from editbench.edits.edit_sequence import join_edits
from editbench.edits.files import assemble_updates, name_tensors
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import EditError
from editbench.files.tensor_files import TensorFile, write_tensors
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest, content_of, find_superseded

if TYPE_CHECKING:
    from editbench.editors.base import Editor, Resources


@dataclass(frozen=True)
class Carried:
    """All that a stream carries from batch to batch, as plain values: what it goes on from.

    Attributes:
        tensors: By name, on the CPU.
        content: The rest, as JSON values.
    """

    tensors: Mapping[str, Tensor]
    content: Mapping[str, Any]

    @property
    def requests(self) -> list[EditRequest]:
        """What was written so far."""
        return [EditRequest(**each) for each in self.content["requests"]]

    @staticmethod
    def write_requests(requests: Sequence[EditRequest]) -> dict[str, Any]:
        """The part of `content` that `requests` reads."""
        return {"requests": [content_of(each) for each in requests]}

    def save(self, path: Path, provenance: Mapping[str, Any]) -> None:
        """Write one safetensors file, whole or not at all; `provenance` is JSON.

        Raises:
            OSError: It cannot be written.
        """
        tensors = {name: each.contiguous() for name, each in self.tensors.items()}
        write_tensors(path, tensors, {"provenance": provenance, "content": self.content})

    @classmethod
    def load(cls, path: Path) -> tuple[Self, Mapping[str, Any]]:
        """Read such a file, and its provenance.

        Raises:
            OSError: It cannot be read.
            ValueError: It is not what was written.
            LookupError: Likewise.
        """
        file = TensorFile(path)
        card = file.card or {}
        # How numbers lie in memory can decide the last bits of what is made of them.
        tensors = {name: each.clone() for name, each in file.read_all().items()}
        return cls(tensors, card["content"]), card["provenance"]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with a prefix, without it."""
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


class Stream(ABC):
    """Writes batches of requests one after another; see `Editor.open_stream`.

    Between batches the model is as it was before the first one.
    """

    @abstractmethod
    def write(self, batch: Sequence[EditRequest]) -> Edit:
        """Write one more batch.

        Args:
            batch: Requests free of conflicts.

        Returns:
            All that was written so far as one edit, of the model as it was before the first batch.
        """

    def add(self, batch: Sequence[EditRequest]) -> None:
        """Write one more batch, and hand out no edit.

        Override it where an edit costs something that the next batch has no use for.
        """
        self.write(batch)

    @property
    def carried(self) -> Carried | None:
        """What a new stream can go on from, with the same bits; None if that cannot be put down."""
        return None

    def measure_drift(self, edit: Edit) -> Mapping[int, Sequence[float]]:
        """How far the keys of all facts have moved since they were written, ‖k - k₀‖ / ‖k₀‖.

        Args:
            edit: What `write` returned last.

        Returns:
            By layer that is written to, a number for each fact in its order, NaN where it was not
            written there; nothing if the editor knows no keys.
        """
        return {}


def write_batches(
    stream: Stream,
    batches: Sequence[Sequence[EditRequest]],
    on_written: Callable[[int], None] | None = None,
) -> Edit:
    """Write batches one after another.

    Args:
        stream: Where they go.
        batches: One or more.
        on_written: Told after each batch but the last how many are written.

    Returns:
        All of them as one edit.
    """
    *earlier, last = batches
    for n_written, batch in enumerate(earlier, 1):
        stream.add(batch)
        if on_written is not None:
            on_written(n_written)
    return stream.write(last)


class TotalStream(Stream):
    """Asks an editor for an edit of each batch, with all earlier ones on the model."""

    def __init__(
        self,
        editor: "Editor",
        model: EditableModel,
        resources: "Resources",
        carried: Carried | None = None,
    ) -> None:
        self._editor = editor
        self._model = model
        self._resources = resources
        self._written = WrittenFacts()
        self._cards: list[EditCard] = []
        self._total: Edit | None = None
        if carried is not None:
            self._written = WrittenFacts(carried.requests)
            self._cards = [EditCard.model_validate(each) for each in carried.content["cards"]]
            self._total = NoEdit(self._cards[0])
            if carried.content["changes_weights"]:
                updates = assemble_updates(Path("stream"), carried.tensors)
                self._total = WeightEdit(updates, self._cards[0])
            self._total.card = self._card(self._total)

    def write(self, batch: Sequence[EditRequest]) -> Edit:
        """Ask for one more edit; see `Stream.write`."""
        self._written.add(batch)
        earlier = self._total
        if earlier is None:
            self._total = self._editor.edit(self._model, batch, self._resources)
            self._cards.append(self._total.card)
            return self._total
        with earlier.applied(self._model):
            found = self._editor.edit(self._model, batch, self._resources)
        self._cards.append(found.card)
        self._total = join_edits(earlier, found, self._cards[0])
        self._total.card = self._card(self._total)
        return self._total

    @property
    def carried(self) -> Carried | None:
        """The total, and the cards of all batches."""
        total = self._total
        if type(total) not in (WeightEdit, NoEdit):
            return None
        updates = total.updates if isinstance(total, WeightEdit) else {}
        return Carried(
            name_tensors(updates),
            {
                **Carried.write_requests(self._written.requests),
                "cards": [card.model_dump(mode="json") for card in self._cards],
                "changes_weights": isinstance(total, WeightEdit),
            },
        )

    def _card(self, total: Edit) -> EditCard:
        """The card of everything so far, which one batch alone has."""
        first = self._cards[0]
        if len(self._cards) == 1:
            return first
        extra: dict[str, Any] = {"batches": [card.extra for card in self._cards]}
        if isinstance(total, WeightEdit):
            extra["updates"] = total.describe_updates(self._model)
        if all("facts" in card.extra for card in self._cards):
            facts = [fact for card in self._cards for fact in card.extra["facts"]]
            extra["facts"] = self._written.tell(facts)
        changes = {
            "requests_hash": hash_requests(self._written.requests),
            "n_edits": len(self._written.requests),
            "extra": extra,
        }
        return first.model_copy(update=changes)


class DrivenStream(Stream):
    """The stream of an editor with an `edit_stream` of its own, which keeps what it carries."""

    def __init__(self, editor: "Editor", model: EditableModel, resources: "Resources") -> None:
        self._name = editor.name
        self._waiting: deque[Sequence[EditRequest]] = deque()
        self._edits = iter(editor.edit_stream(model, self._hand_out(), resources))

    def write(self, batch: Sequence[EditRequest]) -> Edit:
        """Hand a batch over, and wait for the edit; see `Stream.write`."""
        self._waiting.append(batch)
        for edit in self._edits:
            return edit
        raise EditError(
            f"editor '{self._name}': edit_stream() has ended before the stream did, got a batch of "
            f"{len(batch)} facts and no edit. It must take one batch at a time, and yield an edit "
            "after each."
        )

    def _hand_out(self) -> Iterator[Sequence[EditRequest]]:
        while self._waiting:
            yield self._waiting.popleft()


def tell_written(requests: Sequence[EditRequest]) -> list[dict[str, str]]:
    """What a card says became of facts that are all written: training and prompts skip none."""
    return [{"case_id": request.case_id, "status": "written"} for request in requests]


class WrittenFacts:
    """The facts of a stream, and which of them later ones have taken the places of.

    A batch is compared with what is about the same subjects alone, not with all that was written.

    Attributes:
        requests: All so far, in their order.
    """

    def __init__(self, requests: Sequence[EditRequest] = ()) -> None:
        self.requests: list[EditRequest] = []
        self._places: dict[str, list[int]] = {}  # by subject
        self._superseded: set[int] = set()
        self.add(requests)

    def add(self, batch: Sequence[EditRequest]) -> list[int]:
        """Take up a batch.

        Returns:
            The places of earlier facts that contradict it, and are superseded now.
        """
        n_earlier = len(self.requests)
        for place, request in enumerate(batch, n_earlier):
            self._places.setdefault(request.subject, []).append(place)
        self.requests += batch
        subjects = {request.subject for request in batch}
        places = sorted(place for subject in subjects for place in self._places[subject])
        found = {places[one] for one in find_superseded([self.requests[place] for place in places])}
        self._superseded.difference_update(places)  # an older fact can hold again
        self._superseded |= found
        return sorted(place for place in found if place < n_earlier)

    def tell(self, facts: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        """What became of the facts, given what became of each as it was written."""
        return [
            {**fact, "status": "superseded"} if place in self._superseded else dict(fact)
            for place, fact in enumerate(facts)
        ]
