"""The editor that does nothing: what every other editor is compared with."""

from collections.abc import Sequence
from typing import ClassVar

from editbench.editors.base import Editor, Resources
from editbench.edits.edit import Edit, NoEdit
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest


class Unedited(Editor):
    """Leaves the model as it is."""

    name: ClassVar[str] = "unedited"
    computes_nothing: ClassVar[bool] = True

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        """Return an edit that changes nothing."""
        return NoEdit.of(model, requests)
