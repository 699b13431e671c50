"""``edit --preview``: what there is to know about facts before they are written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from editbench.cli.terminal import lay_out
from editbench.requests import EditCase, Probe

if TYPE_CHECKING:
    from editbench.editors.base import Editor, Resources
    from editbench.edits.edit import Edit
    from editbench.models.editable import EditableModel
    from editbench.models.greedy import Said

_N_TOKENS = 8
_N_SHOWN = 10


@dataclass(frozen=True)
class Neighbor:
    """A prompt about something else, and how near it is to what is written.

    Attributes:
        probe: The prompt, with what must survive.
        likeness: See `compare_keys`; None for an editor that writes to no keys.
        nearest: The fact whose key is nearest.
        before: What the model writes before the edit.
    """

    probe: Probe
    likeness: float | None
    nearest: str
    before: str


def preview(
    model: "EditableModel",
    cases: Sequence[EditCase],
    said: "Sequence[Said]",
    editor: "Editor",
    resources: "Resources",
) -> tuple[list[Neighbor], str]:
    """Look at facts before they are written.

    Args:
        model: The unedited model.
        cases: The facts, with their neighbors.
        said: What the model says to each fact now.
        editor: Who is going to write them.
        resources: What it is given.

    Returns:
        The neighbors, the nearest first; and tables about facts and neighbors.
    """
    neighbors = sorted(
        _find_neighbors(model, cases, editor, resources),
        key=lambda neighbor: neighbor.likeness or 0.0,
        reverse=True,
    )
    return neighbors, _draw(cases, said, neighbors)


def describe_moved(
    model: "EditableModel", neighbors: Sequence[Neighbor], edit: "Edit"
) -> Iterator[str]:
    """Say which neighbors the model writes something else to, with the edit on."""
    if not neighbors:
        return
    with edit.applied(model):
        after = _write(model, [neighbor.probe for neighbor in neighbors])
    moved = [pair for pair in zip(neighbors, after, strict=True) if pair[0].before != pair[1]]
    yield f"{len(moved)} of {len(neighbors)} neighbors are answered otherwise than before."
    for neighbor, text in moved[:_N_SHOWN]:
        near = "" if neighbor.likeness is None else f" (likeness {neighbor.likeness:.2f})"
        yield f"  {neighbor.probe.prompt}{near}: {_line(neighbor.before)!r} → {_line(text)!r}"
    if len(moved) > _N_SHOWN:
        yield f"  and {len(moved) - _N_SHOWN} more"


def _find_neighbors(
    model: "EditableModel", cases: Sequence[EditCase], editor: "Editor", resources: "Resources"
) -> Iterator[Neighbor]:
    from editbench.editors.leaks import compare_keys
    from editbench.second_moments.obtaining import obtain_second_moments

    probes = [probe for case in cases for probe in case.probes if probe.kind == "neighborhood"]
    if not probes:
        return
    requests = [case.request for case in cases]
    texts, written = _write(model, probes), editor.needs_second_moments(model)
    if not written:
        for probe, text in zip(probes, texts, strict=True):
            yield Neighbor(probe, None, "", text)
        return
    module, layers = next(iter(written.items()))
    tokens: int | Literal["auto"] = getattr(editor.config, "second_moment_tokens", "auto")
    moments = obtain_second_moments(model, layers, tokens, resources, module)
    questions = [probe.question(probe.expected) for probe in probes]
    likeness = compare_keys(model, requests, questions, layers[-1], moments[layers[-1]], module)
    for probe, text, row in zip(probes, texts, likeness, strict=True):
        yield Neighbor(probe, float(row.max()), requests[int(row.argmax())].case_id, text)


def _write(model: "EditableModel", probes: Sequence[Probe]) -> list[str]:
    from editbench.models.greedy import write_greedily

    questions = [probe.question(probe.expected) for probe in probes]
    return write_greedily(model, questions, _N_TOKENS)


def _draw(cases: Sequence[EditCase], said: "Sequence[Said]", neighbors: Sequence[Neighbor]) -> str:
    from editbench.results.tables.model import Cell, Column, Table
    from editbench.results.tables.terminal import draw_table

    about: dict[str, list[str]] = {}
    for case in cases:
        about.setdefault(case.request.subject, []).append(case.request.case_id)
    rows = []
    for case, says in zip(cases, said, strict=True):
        request = case.request
        others = [name for name in about[request.subject] if name != request.case_id]
        texts = request.case_id, request.text, request.target, _line(says.text)
        remarks = [
            *(["known already"] if says.is_target else []),
            *([f"subject shared with {', '.join(others)}"] if others else []),
        ]
        rows.append(tuple(map(Cell, (*texts, "; ".join(remarks)))))
    names = ("case_id", "prompt", "to be written", "says now", "")
    parts = [draw_table(Table("Facts", tuple(map(Column, names)), (tuple(rows),)))]
    near = [neighbor for neighbor in neighbors if neighbor.likeness is not None][:_N_SHOWN]
    if near:
        columns = tuple(map(Column, ("neighbor", "says now", "nearest fact")))
        cells = tuple(
            (
                Cell(neighbor.probe.prompt),
                Cell(_line(neighbor.before)),
                Cell(neighbor.nearest),
                Cell(f"{neighbor.likeness:.2f}"),
            )
            for neighbor in near
        )
        table = Table(
            f"The {len(near)} of {len(neighbors)} neighbors that are nearest to what is written",
            (*columns, Column("likeness", align="right")),
            (cells,),
            ("likeness: cosine of the nearest keys under C⁻¹; at 1 a neighbor gets all of it.",),
        )
        parts.append(draw_table(table))
    return lay_out(*parts)


def _line(text: str) -> str:
    return text.strip().partition("\n")[0]
