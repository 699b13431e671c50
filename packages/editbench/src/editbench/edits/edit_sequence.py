"""One edit after another, as one edit."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from editbench.edits.card import EditCard
from editbench.edits.edit import Edit, NoEdit
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import EditError
from editbench.models.editable import EditableModel


class EditSequence(Edit):
    """Edits of any kind that are put on in their order.

    Attributes:
        edits: What is put on, each computed with those before it on the model.
    """

    def __init__(self, edits: tuple[Edit, ...], card: EditCard) -> None:
        self.edits = edits
        self.card = card

    @property
    def changes_something(self) -> bool:
        """Whether any of the edits does."""
        return any(edit.changes_something for edit in self.edits)

    @contextmanager
    def applied(self, model: EditableModel) -> Iterator[None]:
        """Put all edits on `model` for the length of a ``with`` block."""
        self.check_fits(model)
        with ExitStack() as stack:
            for edit in self.edits:
                stack.enter_context(edit.applied(model))
            yield

    def save(self, path: Path) -> None:
        """Refuse: there is no file for edits that are no sums of updates.

        Raises:
            EditError: Always.
        """
        raise EditError(
            f"save edit: it is {len(self.edits)} edits that are put on one after another, and not "
            "all of them change weights alone, got no sum to write. Save them one by one."
        )


def join_edits(first: Edit, later: Edit, card: EditCard) -> Edit:
    """One edit that does what two do, of which the second was computed with the first one on.

    Updates of weights are summed up, see `WeightEdit.merge`; `first` may be joined itself.
    """
    if isinstance(first, WeightEdit) and isinstance(later, WeightEdit):
        return WeightEdit(WeightEdit.merge([first, later]).updates, card)
    if isinstance(first, NoEdit) and isinstance(later, NoEdit):
        return NoEdit(card)
    on_top = copy.copy(later)  # which of the edits are on before it is seen to here
    on_top.card = later.card.model_copy(update={"edits_on": ()})
    earlier = first.edits if isinstance(first, EditSequence) else (first,)
    return EditSequence((*earlier, on_top), card)
