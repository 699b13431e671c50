"""What an edit is: a value that is put on a model and taken off again, and its card."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self

from editbench.edits.card import EditCard
from editbench.edits.files import write_edit_file
from editbench.errors import EditError
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest


class Edit(ABC):
    """What an editor computed: can be put on its model, taken off again, and saved.

    Attributes:
        card: Where the edit comes from, and which model it fits.
    """

    card: EditCard

    @property
    @abstractmethod
    def changes_something(self) -> bool:
        """Whether the edited model can differ from the unedited one."""

    @abstractmethod
    def applied(self, model: EditableModel) -> AbstractContextManager[None]:
        """Put the edit on `model` for the length of a ``with`` block.

        The model is back to its exact bits afterwards, also when the block raises.

        Raises:
            EditError: The edit was computed for another model, or does not fit this one.
        """

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the edit to `path`, whole or not at all.

        Raises:
            EditError: The file cannot be written.
        """

    def check_fits(self, model: EditableModel) -> None:
        """Check that the edit was computed for `model`.

        Raises:
            EditError: The fingerprints differ.
        """
        if model.fingerprint != self.card.model_fingerprint:
            raise EditError(
                f"apply edit: the edit was computed for another model, got '{model.name}' with "
                f"fingerprint {model.fingerprint}; expected '{self.card.model_name}' with "
                f"fingerprint {self.card.model_fingerprint}. Load the model, revision and dtype "
                "that the edit was made with, or compute the edit again for this one."
            )


class NoEdit(Edit):
    """The edit that leaves the model as it is."""

    def __init__(self, card: EditCard) -> None:
        self.card = card

    @classmethod
    def of(cls, model: EditableModel, requests: Sequence[EditRequest]) -> Self:
        """The unedited `model`, as an edit that answers for `requests`."""
        return cls(EditCard.of(model, editor="unedited", config={}, requests=requests))

    @property
    def changes_something(self) -> bool:
        """Always False."""
        return False

    @contextmanager
    def applied(self, model: EditableModel) -> Iterator[None]:
        """Check that the edit belongs to `model`, and change nothing."""
        self.check_fits(model)
        yield

    def save(self, path: Path) -> None:
        """Write an edit file that holds the card and no update."""
        write_edit_file(path, {}, self.card)
