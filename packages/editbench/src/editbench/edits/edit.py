"""What an edit is: a value that is put on a model and taken off again, and its card."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any, ClassVar, Self

from editbench.edits.card import EditCard
from editbench.edits.files import write_edit_file
from editbench.edits.recipe import EditRecipe
from editbench.errors import EditError
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest


class Edit(ABC):
    """What an editor computed: can be put on its model, taken off again, and saved.

    Subclasses implement `changes_something`, `applied` and `save`. While `applied` is on, the model
    knows of it: that is seen to here, whatever a subclass does.

    Attributes:
        card: Where the edit comes from, and which model it fits.
        recipe: What the edit was made from, where that is known.
        changes_weights_alone: Whether all that `applied` does is to change values of weights, so
            that these tell the model's state. Hooks and other modules are more than that. A class
            that implements `applied` has to say so itself.
    """

    card: EditCard
    recipe: EditRecipe | None = None
    changes_weights_alone: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "applied" in vars(cls):
            # What was inherited is about another `applied`.
            if "changes_weights_alone" not in vars(cls):
                cls.changes_weights_alone = False
            if "identity" not in vars(cls):
                cls.identity = Edit.identity  # type: ignore[method-assign]
            cls.applied = _noted(cls.applied)  # type: ignore[method-assign]

    @property
    def identity(self) -> str:
        """What tells the edit from those that do something else to the model, as a hash or name.

        It stands in the cards of edits that are computed while this one is on. Unless a subclass
        derives it from all that the edit does, it is this object's alone, and such an edit cannot
        be used in another process.
        """
        return self._own_identity

    @cached_property
    def _own_identity(self) -> str:
        return uuid.uuid4().hex

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
        """Check that the edit was computed for `model` as it is.

        An edit of the unedited model may be put on besides others.

        Raises:
            EditError: The fingerprints differ, or other edits are on the model than were then.
        """
        if model.fingerprint != self.card.model_fingerprint:
            raise EditError(
                f"apply edit: the edit was computed for another model, got '{model.name}' with "
                f"fingerprint {model.fingerprint}; expected '{self.card.model_name}' with "
                f"fingerprint {self.card.model_fingerprint}. Load the model, revision and dtype "
                "that the edit was made with, or compute the edit again for this one."
            )
        if (expected := self.card.edits_on) and model.edits_on != expected:
            raise EditError(
                f"apply edit: the edit was computed on '{model.name}' with other edits on it, got "
                f"{_list(model.edits_on)}; expected {_list(expected)}. Put these on before it, in "
                "this order, or merge it with them."
            )


def _noted(applied: Callable[[Any, EditableModel], AbstractContextManager[None]]) -> Any:
    """Let the model know what is put on it."""

    @wraps(applied)
    def put_on(edit: Edit, model: EditableModel) -> AbstractContextManager[None]:
        if not edit.changes_something:
            return applied(edit, model)
        return model.put_on(
            partial(applied, edit, model),
            identity=lambda: edit.identity,
            changes_weights_alone=edit.changes_weights_alone,
        )

    return put_on


def _list(identities: Sequence[str]) -> str:
    return ", ".join(identities) or "none"


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
        write_edit_file(path, {}, self.card, self.recipe)
