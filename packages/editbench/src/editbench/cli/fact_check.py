"""``edit --check``: what a model says to the facts, before and after."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from editbench.cli.progress import ProgressDisplay
from editbench.requests import EditRequest

if TYPE_CHECKING:
    from editbench.edits.edit import Edit
    from editbench.models.editable import EditableModel
    from editbench.models.greedy import Said

_N_SHOWN = 10
_N_SHOWN_CHARACTERS = 60


def check_facts(
    model: "EditableModel", requests: Sequence[EditRequest], edit: "Edit", display: ProgressDisplay
) -> "tuple[list[Said], list[Said]]":
    """What the model says to every fact, before and after."""
    from editbench.models.greedy import say_greedily

    questions = [request.question for request in requests]
    display("check", 0, 2)
    before = say_greedily(model, questions)
    display("check", 1, 2)
    with edit.applied(model):
        after = say_greedily(model, questions)
    display("check", 2, 2)
    return before, after


def describe_check(
    requests: Sequence[EditRequest], before: "Sequence[Said]", after: "Sequence[Said]"
) -> Iterator[str]:
    """How many facts the model says, and what it says instead of the first of the others."""
    n_before, n_after = (sum(each.is_target for each in said) for said in (before, after))
    yield (
        f"The model's own continuation is the target for {n_after} of {len(requests)} facts; "
        f"before the edit, for {n_before}."
    )
    failed = [pair for pair in zip(requests, after, strict=True) if not pair[1].is_target]
    for request, said in failed[:_N_SHOWN]:
        yield (
            f"  Not {request.case_id}: after {_show(request.text, from_end=True)} it says "
            f"{_show(said.text)} instead of {_show(request.target)}."
        )
    if len(failed) > _N_SHOWN:
        yield f"  Nor {len(failed) - _N_SHOWN} more."


def _show(text: str, *, from_end: bool = False) -> str:
    line = " ".join(text.split())
    if len(line) <= _N_SHOWN_CHARACTERS:
        return repr(line)
    rest = line[-_N_SHOWN_CHARACTERS:] if from_end else line[:_N_SHOWN_CHARACTERS]
    return repr(f"…{rest}" if from_end else f"{rest}…")
