"""zsRE question answering (Levy et al. 2017), as MEND's evaluation split lays it out."""

import re
from collections.abc import Iterable
from typing import ClassVar

from editbench.datasets.base import FileDataset
from editbench.datasets.download import RemoteFile
from editbench.datasets.files import DataFile, json_array_records
from editbench.datasets.records import Record
from editbench.requests import EditCase, EditRequest, Probe


class ZsRE(FileDataset):
    """zsRE: 19,086 questions whose true answers are written (evaluation split of MEND).

    A record becomes a case as in the reference implementation:

    - The request's prompt is `src` with its subject taken out, its target the first of `answers`
      (the true answer: zsRE writes what the model should have known). `case_id` is the record's
      index in the file, from 0.
    - The paraphrase probe is `rephrase` with the same target.
    - The neighborhood probe is an unrelated question, `loc` and a question mark, which must go on
      being answered with `loc_ans`; its prefix ``nq question: `` stays.
    - No probe has an alternative: zsRE knows accuracy only (Eqns 21-23).

    `pred`, `alt` and `cond` belong to another task and are not looked at. Space around answers is
    removed. The reference replaces every occurrence of the subject and then fails on prompts that
    repeat it; here the last occurrence is taken, preferably one that is not a part of a longer
    word, since only there has the model read the whole question so far.
    """

    name: ClassVar[str] = "zsre"
    default_metrics: ClassVar[tuple[str, ...]] = ("token-accuracy",)
    remote: ClassVar[RemoteFile | None] = RemoteFile(
        url="https://memit.baulab.info/data/dsets/zsre_mend_eval.json",
        sha256="8a371d512f8a6ab175db4ef672181d5c0e52da23298cb51e5a2eeea2f89aa9cd",
        n_bytes=8_091_864,
    )

    def records(self, file: DataFile) -> Iterable[Record]:
        """Split the JSON array into its records."""
        return json_array_records(file)

    def case(self, record: Record, index: int) -> EditCase:
        """Make a case of one question."""
        answers = record.texts("answers")
        if not answers:
            raise record.fail("answers", "must hold at least one answer, got an empty list.")
        target = answers[0].strip()
        request = EditRequest(
            case_id=str(index),
            subject=record.text("subject").strip(),
            prompt=_prompt_template(record),
            target=target,
        )
        probes = (
            Probe("efficacy", request.text, target),
            Probe("paraphrase", record.text("rephrase"), target),
            Probe("neighborhood", f"{record.text('loc')}?", record.text("loc_ans").strip()),
        )
        return EditCase(request, probes=probes)


def _prompt_template(record: Record) -> str:
    """The question with ``{}`` in place of one occurrence of its subject."""
    question, subject = record.text("src"), record.text("subject").strip()
    if "{}" in question:
        raise record.fail("src", f"must be complete text, got {question!r}. Take out the '{{}}'.")
    whole_words = re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", question)
    start = max((match.start() for match in whole_words), default=question.rfind(subject))
    if start < 0:
        raise record.fail("subject", f"does not occur in the prompt: {question!r}, got {subject!r}")
    return f"{question[:start]}{{}}{question[start + len(subject) :]}"
