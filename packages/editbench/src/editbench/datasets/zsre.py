"""zsRE question answering (Levy et al. 2017), as MEND's evaluation split lays it out."""

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from editbench.datasets.base import FileDataset
from editbench.datasets.download import RemoteFile
from editbench.datasets.facts import FIELDS, case_of_fact, written_out_template
from editbench.datasets.files import DataFile, is_json_array, json_records
from editbench.datasets.foreign import ZSRE, as_fact
from editbench.datasets.records import Record
from editbench.requests import EditCase, EditRequest, Probe

_UNRELATED = "nq question: "


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

    `pred`, `alt` and `cond` belong to another task and are not looked at. In EasyEdit's form
    (`prompt`, `target_new`) the target is the false answer that it names. Space around answers is
    removed. The reference replaces every occurrence of the subject and then fails on prompts that
    repeat it; here `written_out_template` says which occurrence is taken.
    """

    name: ClassVar[str] = "zsre"
    default_metrics: ClassVar[tuple[str, ...]] = ("token-accuracy",)
    source: ClassVar[str] = "https://memit.baulab.info/data/dsets/ (MEND's split)"
    known_errors: ClassVar[str] = (
        "tools do not agree on what is to be written: 'answers' here and in the authors' code, "
        "'alt' in EasyEdit"
    )
    remote: ClassVar[RemoteFile | None] = RemoteFile(
        url="https://memit.baulab.info/data/dsets/zsre_mend_eval.json",
        sha256="8a371d512f8a6ab175db4ef672181d5c0e52da23298cb51e5a2eeea2f89aa9cd",
        n_bytes=8_091_864,
    )

    def records(self, file: DataFile) -> Iterable[Record]:
        """Split the file into its records."""
        if not is_json_array(file):
            self.understanding.form = "JSON Lines"
        return json_records(file)

    def case(self, record: Record, index: int) -> EditCase:
        """Make a case of one question."""
        if _is_easyedit(record):
            return self._case_of_fact(record, index)
        answers = record.texts("answers")
        if not answers:
            raise record.fail("answers", "must hold at least one answer, got an empty list.")
        target = answers[0].strip()
        subject = record.text("subject").strip()
        request = EditRequest(
            case_id=str(index),
            subject=subject,
            prompt=written_out_template(record, "src", subject),
            target=target,
        )
        probes = (
            Probe("efficacy", request.text, target),
            Probe("paraphrase", record.text("rephrase"), target),
            Probe("neighborhood", f"{record.text('loc')}?", record.text("loc_ans").strip()),
        )
        return EditCase(request, probes=probes)

    def _case_of_fact(self, record: Record, index: int) -> EditCase:
        """Make a case of a record in EasyEdit's form; probes have no alternative here either."""
        fact = as_fact(record, FIELDS, self.understanding, ZSRE)
        subject = fact.text("subject").strip()
        if "{}" not in fact.text("prompt"):
            prompt = written_out_template(fact, "prompt", subject)
            fact = replace(fact, fields={**fact.fields, "prompt": prompt})
        case = case_of_fact(fact, str(index), self.understanding)
        probes = tuple(
            replace(probe, prompt=_as_question(probe.prompt), alternative=None)
            for probe in case.probes
        )
        return replace(case, probes=probes)


def _is_easyedit(record: Record) -> bool:
    """Whether a record names its target, or has only the false answer to be one."""
    names = record.fields.keys()
    return bool({"prompt", "target_new", "target", "ans"} & names) or (
        "alt" in names and "answers" not in names
    )


def _as_question(prompt: str) -> str:
    """The prompt with the question mark that zsRE's unrelated questions lack."""
    is_bare = prompt.startswith(_UNRELATED) and not prompt.rstrip().endswith("?")
    return f"{prompt}?" if is_bare else prompt
