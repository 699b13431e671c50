"""MQuAKE (Zhong et al. 2023): edits, and questions over several facts that they change."""

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from editbench.datasets.base import FileDataset
from editbench.datasets.download import RemoteFile
from editbench.datasets.files import DataFile, json_records
from editbench.datasets.records import Record
from editbench.errors import DataError, SubjectError, shown
from editbench.portability import Hop, PortabilityProbe, Query
from editbench.requests import EditCase, EditRequest, Probe

_REWRITES = "requested_rewrite"
_NUMBER = "number of the rewrite"


class MQuAKE(FileDataset):
    """MQuAKE-CF-3k-v2: one to four false facts a record, and a question over two to four facts.

    Every edit of a record is a case of its own, `case_id` and the number of the edit, as ``7.2``;
    its probes are the cloze and the question about the edited fact alone. The last one has the
    question over all facts, in three wordings, of which one must be answered with `new_answer` or
    an alias. It counts where all edits of its record are written together: take cases as they come
    (``--sample first``), and enough of them.
    """

    name: ClassVar[str] = "mquake"
    default_metrics: ClassVar[tuple[str, ...]] = ("success", "accuracy", "portability")
    leaves_out_unlocated: ClassVar[bool] = True
    masks: ClassVar[bool] = False
    source: ClassVar[str] = "https://github.com/princeton-nlp/MQuAKE, MIT"
    known_errors: ClassVar[str] = (
        "33 to 76 % of questions have another answer once the edits of other records are written, "
        "or a wrong label (as the authors of MQuAKE-Remastered count)"
    )
    remote: ClassVar[RemoteFile | None] = RemoteFile(
        "https://raw.githubusercontent.com/princeton-nlp/MQuAKE/main/datasets/MQuAKE-CF-3k-v2.json"
    )

    def records(self, file: DataFile) -> Iterable[Record]:
        """Split the file into records, and these into edits."""
        for record in json_records(file):
            try:
                n_rewrites = len(record.records(_REWRITES))
                if not n_rewrites:
                    raise record.fail(_REWRITES, "must hold at least one edit, got an empty list.")
            except DataError as error:
                file.leave_out(error)
                continue
            for number in range(n_rewrites):
                yield replace(record, fields={**record.fields, _NUMBER: number})

    def case(self, record: Record, index: int) -> EditCase:
        """Make a case of one edit."""
        number = int(str(record.fields[_NUMBER]))
        rewrites = record.records(_REWRITES)
        rewrite = rewrites[number]
        case_id = record.identifier("case_id")
        prompt, new, true = (
            rewrite.text("prompt"),
            _target(rewrite, "new"),
            _target(rewrite, "true"),
        )
        if prompt.count("{}") != 1:
            problem = f"must contain '{{}}' exactly once, got {prompt!r}"
            raise SubjectError(str(rewrite.fail("prompt", problem)))
        request = EditRequest(
            case_id=case_id if len(rewrites) == 1 else f"{case_id}.{number + 1}",
            subject=rewrite.text("subject").strip(),
            prompt=prompt,
            target=new,
            relation=rewrite.text("relation_id"),
        )
        question = rewrite.optional_text("question")
        return EditCase(
            request,
            target_true=true,
            probes=(
                Probe("efficacy", request.text, new, true),
                *([] if question is None else [Probe("paraphrase", question, new, true)]),
            ),
            portability=(self._question(record),) if number == len(rewrites) - 1 else (),
        )

    def _question(self, record: Record) -> PortabilityProbe:
        answers = (record.text("new_answer"), *record.optional_texts("new_answer_alias"))
        questions = record.texts("questions")
        if not questions:
            raise record.fail("questions", "must hold at least one question, got an empty list.")
        edited = [
            Hop(
                each.text("subject").strip(),
                each.text("relation_id"),
                _target(each, "new"),
                is_edited=True,
            )
            for each in record.records(_REWRITES)
        ]
        unedited = _unedited_hops(record, edited) if self.masks else ()
        return PortabilityProbe(
            kind="multi_hop",
            queries=tuple(Query(each, tuple(dict.fromkeys(answers))) for each in questions),
            hops=(*edited, *unedited),
        )


class MQuAKERemastered(MQuAKE):
    """MQuAKE-Remastered-CF-3k: MQuAKE with labels mended, and contaminating edits masked.

    Read as `mquake`, but a question whose unedited facts another record of the same batch edits
    does not count: its authors withhold such an edit from the question, which cannot be done to
    weights. Rows of the Hugging Face hub, which have ``target_new_str`` and ``new_triples`` outside
    of `orig`, are read as well. All records are edited, whatever `split` says.
    """

    name: ClassVar[str] = "mquake-remastered"
    masks: ClassVar[bool] = True
    source: ClassVar[str] = (
        "https://github.com/henryzhongsc/MQuAKE-Remastered and "
        "https://huggingface.co/datasets/henryzhongsc/MQuAKE-Remastered, CC-BY-4.0"
    )
    known_errors: ClassVar[str] = ""
    remote: ClassVar[RemoteFile | None] = RemoteFile(
        "https://github.com/henryzhongsc/MQuAKE-Remastered/raw/main/datasets/"
        "MQuAKE-Remastered-CF-3k.json"
    )


def _target(rewrite: Record, which: str) -> str:
    """The new or true target: an object with `str`, or flat."""
    flat = f"target_{which}_str"
    if flat in rewrite.fields:
        return rewrite.text(flat).strip()
    return rewrite.record(f"target_{which}").text("str").strip()


def _unedited_hops(record: Record, edited: Iterable[Hop]) -> list[Hop]:
    """The facts of the question's chain that no edit of its own record writes."""
    holder = record.record("orig") if "orig" in record.fields else record
    ids = _triples(holder, "new_triples")
    labels = _triples(holder, "new_triples_labeled")
    if len(ids) != len(labels):
        raise holder.fail(
            "new_triples_labeled", f"must have {len(ids)} triples, got {len(labels)}."
        )
    own = {(hop.subject, hop.relation) for hop in edited}
    return [
        Hop(subject.strip(), relation, target.strip(), is_edited=False)
        for (_, relation, _), (subject, _, target) in zip(ids, labels, strict=True)
        if (subject.strip(), relation) not in own
    ]


def _triples(record: Record, field: str) -> list[tuple[str, str, str]]:
    value = record.fields.get(field)
    if not isinstance(value, list) or not all(
        isinstance(each, list) and len(each) == 3 and all(isinstance(part, str) for part in each)
        for each in value
    ):
        raise record.fail(field, f"must be a list of triples of strings, got {shown(value)}.")
    return [(subject, relation, target) for subject, relation, target in value]
