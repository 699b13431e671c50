"""Facts that a model may know: what is traced."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from editbench.datasets.files import json_records, read_data_file
from editbench.datasets.records import Record
from editbench.errors import DataError
from editbench.requests import EditCase, content_of


@dataclass(frozen=True, slots=True)
class KnownFact:
    """A prompt that a model may complete with a true object.

    Attributes:
        fact_id: Identifies the fact within its source.
        subject: s, as it stands in the prompt.
        prompt: Complete text; the object is what comes next.
        subject_start: Character offset of the subject in `prompt`.
        object: o, without the space that joins it to the prompt.
        joiner: What stands between prompt and object; see `EditRequest`.
        chat: Whether the prompt is a user's message; see `EditRequest`.
    """

    fact_id: str
    subject: str
    prompt: str
    subject_start: int
    object: str
    joiner: str | None = None
    chat: bool = False

    @property
    def subject_end(self) -> int:
        """One past the subject's last character in `prompt`."""
        return self.subject_start + len(self.subject)


def read_known_facts(path: Path, left_out: list[DataError] | None = None) -> list[KnownFact]:
    """Read a file of known facts, as published with ROME (``known_1000.json``).

    A JSON array, or JSON Lines, of objects with `subject`, `attribute` and `prompt`, and optionally
    `known_id`; other fields are left alone. The published `template` often differs from the prompt,
    so the prompt is what is traced.

    Args:
        path: The file.
        left_out: Takes up why records are left out; without it, the first that cannot be used is an
            error.

    Returns:
        The facts in file order.

    Raises:
        DataError: The file cannot be read, or a record is malformed.
    """
    file = read_data_file(path, left_out)
    facts: list[KnownFact] = []
    for record in json_records(file):
        try:
            facts.append(_read_fact(record, len(facts) + len(left_out or ())))
        except DataError as error:
            file.leave_out(error)
    if not facts and left_out:
        raise DataError(f"{path}: no record can be used. The first: {left_out[0]}")
    if not facts:
        raise DataError(f"{path}: holds no records. Check the path.")
    return facts


def facts_of_cases(cases: Iterable[EditCase]) -> list[KnownFact]:
    """Take the facts that edit cases are about to overwrite.

    Args:
        cases: Cases of a dataset; those whose true object is not known are left out.

    Returns:
        One fact for each case that has a true object, in order.
    """
    return [
        KnownFact(
            fact_id=case.request.case_id,
            subject=case.request.subject,
            prompt=case.request.text,
            subject_start=case.request.subject_start,
            object=case.target_true.strip(),
            joiner=case.request.joiner,
            chat=case.request.chat,
        )
        for case in cases
        if case.target_true is not None and case.target_true.strip()
    ]


def hash_facts(facts: Sequence[KnownFact]) -> str:
    """Content address of facts, in order: SHA-256, hexadecimal."""
    content = json.dumps([content_of(fact) for fact in facts], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _read_fact(record: Record, index: int) -> KnownFact:
    subject = record.text("subject").strip()
    prompt = record.text("prompt").rstrip()
    start = prompt.find(subject)
    if start < 0:
        raise record.fail("subject", f"does not occur in the prompt, got {prompt!r}. Mend it.")
    return KnownFact(
        fact_id=record.optional_identifier("known_id") or str(index),
        subject=subject,
        prompt=prompt,
        subject_start=start,
        object=record.text("attribute").strip(),
    )
