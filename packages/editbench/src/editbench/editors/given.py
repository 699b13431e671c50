"""An edit that is there already, as an editor: so that it is measured like any other."""

from collections.abc import Sequence

from editbench.costs.stage import Known, StageCost
from editbench.editors.base import Editor, EditorConfig, Resources
from editbench.edits.edit import Edit
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest


class GivenEdit(Editor):
    """Computes nothing: whatever is asked for, it answers with the same edit.

    Args:
        edit: The edit; the editor is called as the one that computed it.
    """

    def __init__(self, edit: Edit) -> None:
        super().__init__(EditorConfig())
        self.name = edit.card.editor  # type: ignore[misc]  # of this one alone
        self._edit = edit

    def estimate(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        resources: Resources,
        known: Known,
    ) -> Sequence[StageCost]:
        """Nothing; see `Editor.estimate`."""
        return []

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        """The edit; see `Editor.edit`."""
        return self._edit
