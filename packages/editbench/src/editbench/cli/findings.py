"""``edit``: what is found out about an edit once it is written, for the terminal and its card."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from editbench.cli.fact_check import check_facts, describe_check
from editbench.cli.progress import ProgressDisplay
from editbench.cli.terminal import lay_out

if TYPE_CHECKING:
    from editbench.cli.preview import Neighbor
    from editbench.edits.edit import Edit
    from editbench.models.editable import EditableModel
    from editbench.requests import EditCase


@dataclass(frozen=True)
class Findings:
    """What the model says with an edit and without it.

    Attributes:
        lines: For the terminal.
        measured: The sums of it, for the card.
    """

    lines: Sequence[str]
    measured: Sequence[str]

    @classmethod
    def of(
        cls,
        edit: "Edit",
        model: "EditableModel",
        cases: "Sequence[EditCase]",
        *,
        with_check: bool,
        with_texts: bool,
        neighbors: "Sequence[Neighbor]",
        display: ProgressDisplay,
    ) -> Self:
        """Ask the model, before and after.

        Args:
            edit: What was written.
            model: The model without it.
            cases: The facts that the edited model should say.
            with_check: Whether it is asked for each.
            with_texts: Whether its texts are wanted side by side, of paraphrases and neighbors too.
            neighbors: What was looked at before, and may have been moved.
            display: Told about the work.
        """
        from editbench.cli.preview import describe_moved
        from editbench.cli.side_by_side import compare_texts

        lines: list[str] = []
        measured: list[str] = []
        if with_check:
            requests = [case.request for case in cases]
            checked = list(describe_check(requests, *check_facts(model, requests, edit, display)))
            lines += checked
            measured += checked[:1]
        if with_texts:
            comparison = compare_texts(model, cases, edit)
            lines.append(lay_out(*comparison).rstrip("\n"))
            measured += map(str, comparison[1:])
        moved = list(describe_moved(model, neighbors, edit))
        return cls([*lines, *moved], [*measured, *moved[:1]])

    def note_on_card(self, edit: "Edit") -> bool:
        """Put the sums on the edit's card; say whether there are any."""
        from editbench.edits.card import MEASURED

        if self.measured:
            extra = {**edit.card.extra, MEASURED: list(self.measured)}
            edit.card = edit.card.model_copy(update={"extra": extra})
        return bool(self.measured)
