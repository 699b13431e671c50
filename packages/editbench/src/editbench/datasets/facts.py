"""A user's own facts, as JSON Lines or CSV."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from editbench.datasets.base import FileDataset, collect_cases
from editbench.datasets.files import DataFile, csv_records, json_lines_records, read_data_file
from editbench.datasets.records import Record
from editbench.requests import EditCase, EditRequest, Probe

COLUMNS = ("subject", "prompt", "target", "target_true", "relation", "case_id", "chat")
"""The fields that fit into a cell: all that a CSV file may have."""

FIELDS = (*COLUMNS, "joiner", "paraphrases", "neighbors", "generation_prompts")
"""All fields of a JSON Lines file."""


class Facts(FileDataset):
    """Your own facts: JSON Lines, or CSV if the file is called so (docs: file formats).

    Required: `subject`, `prompt` with exactly one ``{}`` where the subject goes, and `target`.
    Optional: `target_true`, `relation`, `case_id` (by default the line number), `chat` and, in JSON
    Lines only, `joiner`, `paraphrases`, `neighbors` and `generation_prompts`.

    Paraphrases and generation prompts are complete texts; a ``{}`` in one of them is filled with
    the subject. Each neighbor is a complete prompt about something else, with the target that must
    survive the edit; it competes with the fact's new target. `joiner` is what stands between each
    of these prompts and what is to follow, where that is not the space that belongs there; `chat`
    says that they are a user's messages, and targets the beginnings of answers. Space around
    subjects and targets is removed. A field of any other name is an error, so that no misspelt one
    is ignored.
    """

    name: ClassVar[str] = "facts"
    default_metrics: ClassVar[tuple[str, ...]] = ("success", "accuracy", "generation-entropy")
    needs_path: ClassVar[bool] = True

    def records(self, file: DataFile) -> Iterable[Record]:
        """Split the file into records."""
        return _records(file)

    def case(self, record: Record, index: int) -> EditCase:
        """Make a case of one fact."""
        return _case(record, index)


def read_facts(path: Path) -> list[EditCase]:
    """Read a facts file.

    Args:
        path: A CSV file if its name ends in ``.csv``, else JSON Lines.

    Returns:
        The cases in file order.

    Raises:
        DataError: The file cannot be read or a line of it is malformed.
    """
    return list(collect_cases(_records(read_data_file(path)), _case, path))


def _records(file: DataFile) -> Iterable[Record]:
    if file.path.suffix.lower() == ".csv":
        return csv_records(file, COLUMNS)
    return json_lines_records(file)


def _case(record: Record, _index: int) -> EditCase:
    record.reject_unknown_fields(FIELDS)
    subject = record.text("subject").strip()
    target = record.text("target").strip()
    true = record.optional_text("target_true")
    target_true = None if true is None else true.strip()
    request = EditRequest(
        case_id=record.optional_identifier("case_id") or str(record.line),
        subject=subject,
        prompt=record.text("prompt"),
        target=target,
        relation=record.optional_text("relation"),
        joiner=record.optional_string("joiner"),
        chat=record.optional_flag("chat"),
    )
    paraphrases = (text.replace("{}", subject) for text in record.optional_texts("paraphrases"))
    probes = (
        Probe("efficacy", request.text, target, target_true),
        *(Probe("paraphrase", paraphrase, target, target_true) for paraphrase in paraphrases),
        *(_neighbor_probe(neighbor, target) for neighbor in record.optional_records("neighbors")),
    )
    return EditCase(
        request,
        target_true=target_true,
        probes=tuple(replace(probe, joiner=request.joiner, chat=request.chat) for probe in probes),
        generation_prompts=tuple(
            text.replace("{}", subject) for text in record.optional_texts("generation_prompts")
        ),
    )


def _neighbor_probe(neighbor: Record, target: str) -> Probe:
    neighbor.reject_unknown_fields(("prompt", "target"))
    prompt = neighbor.text("prompt")
    if "{}" in prompt:
        raise neighbor.fail(
            "prompt",
            f"must be complete text, got {prompt!r}. A neighbor is about another subject: name it.",
        )
    return Probe("neighborhood", prompt, neighbor.text("target").strip(), target)
