"""A user's own facts: JSON Lines, a JSON array or CSV, in our fields or those of other tools."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self, cast, get_args

from editbench.datasets.base import FileDataset
from editbench.datasets.files import (
    DataFile,
    csv_records,
    find_delimiter,
    is_json_array,
    json_records,
)
from editbench.datasets.foreign import FLAT, as_fact, ignorable
from editbench.datasets.records import Record, Understanding
from editbench.errors import DataError, SubjectError
from editbench.portability import PortabilityKind, PortabilityProbe, Query
from editbench.requests import EditCase, EditRequest, FactNotes, Probe

NOTES = ("source", "author", "date", "note", "expires")
"""Fields that are kept and shown, and change nothing about how a fact is written."""

COLUMNS = ("subject", "prompt", "target", "target_true", "relation", "case_id", "chat", *NOTES)
"""The fields that fit into a cell: all that a CSV file may have."""

FIELDS = (*COLUMNS, "joiner", "paraphrases", "neighbors", "generation_prompts", "portability")
"""All fields of a JSON Lines file."""

_CSV_SUFFIXES = (".csv", ".tsv")
_CSV_FORMS = {";": "CSV with semicolons", "\t": "CSV with tabs"}


class Facts(FileDataset):
    """Your own facts: JSON Lines, a JSON array, or CSV if the file is called so.

    Required: `subject`, `prompt` with exactly one ``{}`` where the subject goes, or the subject
    itself exactly once, and `target`. Optional: `target_true`, `relation`, `case_id` (by default
    the line number; in a JSON array the record's number), `chat` and, in JSON only, `joiner`,
    `paraphrases`, `neighbors`, `generation_prompts` and `portability`. `source`, `author`, `date`,
    `note` and `expires` are kept beside the fact.

    Paraphrases and generation prompts are complete texts; a ``{}`` in one of them is filled with
    the subject. Each neighbor is a complete prompt about something else, with the target that must
    survive the edit; it competes with the fact's new target. `portability` lists what follows from
    the fact: a `kind` (`PortabilityKind`), a prompt, its answers, of which one is enough, and
    `conditions`, prompts with answers that the unedited model must know. `joiner` is what stands
    between each of these prompts and what is to follow, where that is not the space that belongs
    there; `chat` says that they are a user's messages, and targets the beginnings of answers.
    Space around subjects and targets is removed.

    Fields of other tools are read as well, and `remarks` says as what (`as_fact`). A field of any
    other name is an error, so that no misspelt one is ignored.
    """

    name: ClassVar[str] = "facts"
    default_metrics: ClassVar[tuple[str, ...]] = (
        "success",
        "accuracy",
        "portability",
        "generation-entropy",
    )
    needs_path: ClassVar[bool] = True
    _ids_are_lines = True

    @classmethod
    def of(cls, facts: Iterable[Mapping[str, object]]) -> Self:
        """Facts that stand in no file, as mappings with the fields of one.

        Raises:
            DataError: A value is none that JSON knows.
        """
        try:
            text = json.dumps(list(facts), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"facts: hold a value that JSON has no form for ({error}). Give texts, numbers, "
                "true or false, and lists and mappings of these."
            ) from error
        dataset = cls(Path("facts"), Path())
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        dataset._loaded = dataset._collect(DataFile(Path("facts"), text, sha256))
        return dataset

    def records(self, file: DataFile) -> Iterable[Record]:
        """Split the file into records."""
        if file.path.suffix.lower() in _CSV_SUFFIXES:
            columns = (*COLUMNS, *FLAT)
            self.understanding.form = _CSV_FORMS.get(find_delimiter(file, columns), "")
            return csv_records(file, columns, further=lambda header: ignorable(header, FIELDS))
        if is_json_array(file):
            self.understanding.form = "a JSON array"
            self._ids_are_lines = False
        return json_records(file)

    def case(self, record: Record, index: int) -> EditCase:
        """Make a case of one fact."""
        fact = as_fact(record, FIELDS, self.understanding)
        default_id = record.line if self._ids_are_lines else index + 1
        return case_of_fact(fact, str(default_id), self.understanding)


def read_facts(path: Path) -> list[EditCase]:
    """Read a facts file.

    Args:
        path: A CSV file if its name ends in ``.csv`` or ``.tsv``, else JSON Lines or a JSON array.

    Returns:
        The cases in file order.

    Raises:
        DataError: The file cannot be read or a record of it is malformed.
    """
    return list(Facts(path, path.parent).cases())


def case_of_fact(fact: Record, default_id: str, understanding: Understanding) -> EditCase:
    """Make a case of a record with the fields of a facts file.

    Args:
        fact: The record.
        default_id: Its `case_id`, where it has none.
        understanding: Told of a prompt that has the subject instead of ``{}``.

    Raises:
        DataError: A field is malformed or missing.
        RequestError: Together they make no request.
    """
    subject = fact.text("subject").strip()
    target = fact.text("target").strip()
    target_true = fact.optional_text("target_true")
    target_true = None if target_true is None else target_true.strip()
    prompt, is_written_out = template_of(fact, subject)
    if is_written_out:
        understanding.take(f"the subject in '{fact.full_name('prompt')}'", "{}")
    request = EditRequest(
        case_id=fact.optional_identifier("case_id") or default_id,
        subject=subject,
        prompt=prompt,
        target=target,
        relation=fact.optional_text("relation"),
        joiner=fact.optional_string("joiner"),
        chat=fact.optional_flag("chat"),
        notes=FactNotes(
            source=fact.optional_text("source"),
            author=fact.optional_text("author"),
            date=fact.optional_date("date"),
            note=fact.optional_text("note"),
            expires=fact.optional_date("expires"),
        ),
    )
    paraphrases = (text.replace("{}", subject) for text in fact.optional_texts("paraphrases"))
    probes = (
        Probe("efficacy", request.text, target, target_true),
        *(Probe("paraphrase", paraphrase, target, target_true) for paraphrase in paraphrases),
        *(_neighbor_probe(neighbor, target) for neighbor in fact.optional_records("neighbors")),
    )
    return EditCase(
        request,
        target_true=target_true,
        probes=tuple(replace(probe, joiner=request.joiner, chat=request.chat) for probe in probes),
        generation_prompts=tuple(
            text.replace("{}", subject) for text in fact.optional_texts("generation_prompts")
        ),
        portability=tuple(
            _portability_probe(each, request) for each in fact.optional_records("portability")
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


def _portability_probe(record: Record, request: EditRequest) -> PortabilityProbe:
    record.reject_unknown_fields(("kind", "prompt", "answers", "conditions"))
    kind = record.text("kind")
    if kind not in get_args(PortabilityKind):
        raise record.fail(
            "kind", f"is unknown, got {kind!r}; expected {', '.join(get_args(PortabilityKind))}."
        )
    return PortabilityProbe(
        kind=cast(PortabilityKind, kind),
        queries=(_query(record, request),),
        conditions=tuple(
            _query(condition, request) for condition in record.optional_records("conditions")
        ),
    )


def _query(record: Record, request: EditRequest) -> Query:
    answers = record.texts("answers")
    if not answers:
        raise record.fail("answers", "must hold at least one answer, got an empty list.")
    return Query(
        record.text("prompt").replace("{}", request.subject),
        tuple(dict.fromkeys(answer.strip() for answer in answers)),
        request.joiner,
        request.chat,
    )


def find_subject(prompt: str, subject: str) -> list[int]:
    """Character offsets at which `subject` occurs in `prompt`.

    Occurrences that are a part of a longer word count only where there is no other: "Ann" stands
    once in "Did Ann join the Annals?".
    """
    whole_words = re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)
    return [match.start() for match in whole_words] or [
        match.start() for match in re.finditer(re.escape(subject), prompt)
    ]


def cut_out(prompt: str, subject: str, start: int) -> str:
    """The prompt with ``{}`` in place of the `subject` at `start`."""
    return f"{prompt[:start]}{{}}{prompt[start + len(subject) :]}"


def written_out_template(record: Record, field: str, subject: str) -> str:
    """The prompt of a published record with ``{}`` in place of one occurrence of its subject.

    The last one is taken, preferably one that is not a part of a longer word, since only there has
    the model read the whole prompt so far.

    Raises:
        SubjectError: It does not occur.
        DataError: The prompt has a ``{}``, or is none.
    """
    prompt = record.text(field)
    if "{}" in prompt:
        raise record.fail(field, f"must be complete text, got {prompt!r}. Take out the '{{}}'.")
    found = find_subject(prompt, subject)
    if not found:
        problem = f"does not occur in the prompt: {prompt!r}, got {subject!r}"
        raise SubjectError(str(record.fail("subject", problem)))
    return cut_out(prompt, subject, found[-1])


def template_of(record: Record, subject: str) -> tuple[str, bool]:
    """The `prompt` of a record with ``{}`` where the subject goes.

    Returns:
        The template, and whether the subject was written out.

    Raises:
        DataError: It has neither, or more than one.
    """
    prompt = record.text("prompt")
    n_places = prompt.count("{}")
    if n_places == 1:
        return prompt, False
    found = find_subject(prompt, subject)
    if n_places or len(found) != 1:
        raise record.fail(
            "prompt",
            f"must contain '{{}}' exactly once, or else the subject, got {prompt!r} with '{{}}' "
            f"{_times(n_places)} and {subject!r} {_times(len(found))}. Put '{{}}' where the "
            "subject goes.",
        )
    return cut_out(prompt, subject, found[0]), True


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")
