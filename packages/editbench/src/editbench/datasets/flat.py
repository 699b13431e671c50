"""Published sets of flat records, whose prompts have the subject written out."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar

from editbench.datasets.base import FileDataset
from editbench.datasets.download import RemoteFile
from editbench.datasets.facts import FIELDS, case_of_fact, written_out_template
from editbench.datasets.files import DataFile, is_json_array, json_records
from editbench.datasets.foreign import FOREIGN, Reading, as_fact
from editbench.datasets.records import Record
from editbench.requests import EditCase


class FlatDataset(FileDataset):
    """A published set whose records `as_fact` reads; `case_id` is a record's index, from 0.

    A record whose prompt does not have its subject, letter by letter, is left out and told; of
    several occurrences `written_out_template` says which one counts.

    Attributes:
        readings: How its fields are read.
    """

    leaves_out_unlocated: ClassVar[bool] = True
    default_metrics: ClassVar[tuple[str, ...]] = ("success", "accuracy", "portability")
    readings: ClassVar[Mapping[str, Reading]] = FOREIGN

    def records(self, file: DataFile) -> Iterable[Record]:
        """Split the file into its records."""
        if not is_json_array(file):
            self.understanding.form = "JSON Lines"
        return json_records(file)

    def case(self, record: Record, index: int) -> EditCase:
        """Make a case of one record."""
        fact = as_fact(record, FIELDS, self.understanding, self.readings)
        subject = fact.text("subject").strip()
        if "{}" not in fact.text("prompt"):
            prompt = written_out_template(fact, "prompt", subject)
            fact = replace(fact, fields={**fact.fields, "prompt": prompt})
        return case_of_fact(fact, str(index), self.understanding)


class QAEditDataset(FlatDataset):
    """QAEdit: questions as people ask them, with five unrelated ones each (WILD; 19,249 records).

    `target` is the answer to `prompt`, `rephrase` a paraphrase, and each of `locality` a question
    that must go on being answered with `loc_ans`. No true answer is given, so that only neighbors
    have a competitor; nor is there anything that follows from an edit. `id` is not
    unique, so it does not become `case_id`.
    """

    name: ClassVar[str] = "qaedit"
    needs_path: ClassVar[bool] = True
    source: ClassVar[str] = (
        "https://github.com/WanliYoung/Revisit-Editing-Evaluation and "
        "https://huggingface.co/datasets/WenDingY/QAEdit, Apache-2.0"
    )
    known_errors: ClassVar[str] = (
        "some targets have a trailing ' *' or are whole sentences; an id may stand at two records"
    )


class WikiBigEditDataset(FlatDataset):
    """WikiBigEdit: what changed in Wikidata from February to July 2024 (eight files, > 500,000).

    `update` is the question, `ans` its new answer, `rephrase` a paraphrase, `loc` with `loc_ans` a
    neighbor, and `mhop` with `mhop_ans`, where there is one, a question over two facts. `personas`
    are not asked. The flat form of other projects (`prompt`, `target_new`, `locality_prompt`) is
    read as well.
    """

    name: ClassVar[str] = "wikibigedit"
    needs_path: ClassVar[bool] = True
    source: ClassVar[str] = (
        "https://huggingface.co/datasets/lukasthede/WikiBigEdit, Apache-2.0 (code: "
        "https://github.com/ExplainableML/WikiBigEdit)"
    )
    known_errors: ClassVar[str] = (
        "questions are generated, and some have not the subject's name as it is given"
    )


class KnowEditDataset(FlatDataset):
    """KnowEdit: Wikidata counterfacts and recent facts, zsRE and WikiBio with what follows.

    `portability` says what follows (`Reasoning` and `Logical_Generalization`, `Subject_Aliasing`),
    `locality` what must stay (`Relation_Specificity`, `Forgetfulness`). Any of the answers that
    stand in `ground_truth`, however nested, counts for portability, and the first for locality.
    WikiBio's `concept`, `text` and `labels` are subject, prompt and target.
    """

    name: ClassVar[str] = "knowedit"
    source: ClassVar[str] = "https://huggingface.co/datasets/zjunlp/KnowEdit, MIT"
    known_errors: ClassVar[str] = (
        "made from RippleEdits without its conditions, so that some of what shall follow rests on "
        "facts that a model does not know; sizes differ from those stated"
    )
    remote: ClassVar[RemoteFile | None] = RemoteFile(
        "https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/main/benchmark/wiki_counterfact/"
        "test_cf.json"
    )
    readings: ClassVar[Mapping[str, Reading]] = {
        **FOREIGN,
        "concept": Reading("subject", "subject", Record.text),
        "text": Reading("prompt", "prompt", Record.text),
        "labels": Reading("target", "target", Record.text),
    }
