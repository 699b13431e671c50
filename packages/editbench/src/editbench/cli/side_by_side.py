"""``edit --side-by-side``: what the model writes before and after, fact by fact."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from editbench.models.greedy import write_greedily
from editbench.requests import EditCase, Probe
from editbench.results.tables.model import Cell, Column, Table
from editbench.results.tables.terminal import draw_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from editbench.edits.edit import Edit
    from editbench.models.editable import EditableModel

_N_TOKENS = 8
_COLUMNS = (Column(""), Column("prompt"), Column("before"), Column("after"))
_ROLES = {"efficacy": "fact", "paraphrase": "paraphrase", "neighborhood": "neighbor"}
_PLURALS = {"efficacy": "facts", "paraphrase": "paraphrases", "neighborhood": "neighbors"}


def compare_texts(
    model: "EditableModel", cases: Sequence[EditCase], edit: "Edit"
) -> "list[RenderableType]":
    """Let a model go on from all prompts of some cases, with an edit and without it.

    Args:
        model: The model without the edit.
        cases: The facts that were written, with their probes.
        edit: What was written.

    Returns:
        A table with a section for each fact, and how many texts begin with what they should.
    """
    probes = [list(_probes_of(case)) for case in cases]
    questions = [probe.question(probe.expected) for section in probes for probe in section]
    expected = {probe.expected for section in probes for probe in section}
    lengths = [len(model.tokens.encode(f" {text.strip()}")) for text in expected]
    n_tokens = max([_N_TOKENS, *lengths])  # so that none is cut before it is said
    before = iter(write_greedily(model, questions, n_tokens))
    with edit.applied(model):
        after = iter(write_greedily(model, questions, n_tokens))
    counts: dict[str, Counter[str]] = {}
    sections = []
    for section in probes:
        rows = []
        for probe in section:
            texts = next(before), next(after)
            right = [int(text.lstrip().startswith(probe.expected.strip())) for text in texts]
            count = counts.setdefault(probe.kind, Counter())
            count.update(asked=1, before=right[0], after=right[1], same=int(texts[0] == texts[1]))
            said = map(_show, texts, map(bool, right))
            rows.append((Cell(_ROLES[probe.kind]), Cell(probe.prompt), *said))
        sections.append(tuple(rows))
    return [draw_table(Table("", _COLUMNS, tuple(sections))), *_summarize(counts)]


def _probes_of(case: EditCase) -> Iterator[Probe]:
    """The fact itself first, whether or not the dataset asks for it."""
    request = case.request
    yield Probe("efficacy", request.text, request.target, joiner=request.joiner, chat=request.chat)
    yield from (probe for probe in case.probes if probe.kind != "efficacy")


def _summarize(counts: dict[str, Counter[str]]) -> Iterator[str]:
    for kind, count in counts.items():
        line = (
            f"{_PLURALS[kind]} with the expected text: {count['before']} of {count['asked']} "
            f"before, {count['after']} after"
        )
        yield f"{line}; {count['same']} unchanged" if kind == "neighborhood" else line


def _show(text: str, is_right: bool) -> Cell:
    """What is written up to the end of its line: more is rarely about the prompt."""
    return Cell(text.strip().partition("\n")[0], bold=is_right)
