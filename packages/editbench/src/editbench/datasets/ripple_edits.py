"""RippleEdits (Cohen et al. 2024): facts, and what else must change with them, or must not."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

from editbench.datasets.base import FileDataset
from editbench.datasets.download import RemoteFile
from editbench.datasets.files import DataFile, json_records
from editbench.datasets.records import Record
from editbench.errors import SubjectError
from editbench.portability import PortabilityKind, PortabilityProbe, Query
from editbench.requests import EditCase, EditRequest, Probe

_FOLLOWING: Mapping[str, PortabilityKind] = {
    "Logical_Generalization": "reasoning",
    "Compositionality_I": "multi_hop",
    "Compositionality_II": "multi_hop",
    "Subject_Aliasing": "aliasing",
}
_STAYING = ("Relation_Specificity", "Relation_Specifity", "Forgetfulness")
_FIELDS = ("example_type", "edit", *_FOLLOWING, *_STAYING)

_WORDINGS: Mapping[str, str] = {
    "SIBLING": "siblings of {} are",
    "NUMBER_OF_CHILDREN": "number of children {} has is",
    "SEX_OR_GENDER": "gender of {} is",
    "COUNTRY": "country which {} is associated with is",
    "POSITION_HELD": "position held by {} is",
    "MEMBER_OF_SPORTS_TEAM": "sports team which {} is a member of is",
    "LEAGUE": "league which {} plays in is",
    "NATIVE_LANGUAGE": "mother tongue of {} is",
    "AWARD_RECEIVED": "award {} won is",
    "FOLLOWS": "{} follows",
    "FOLLOWED_BY": "{} is followed by",
    "ETHNIC_GROUP": "ethnic group which {} is associated with is",
    "RELIGION": "religion which {} is associated with is",
    "IS_ALIVE": "Is {} still alive?",
    "CONTINENT": "continent which {} is part of is",
    "CAPITAL": "capital city of {} is",
    "CURRENCY": "currency in {} is",
    "LIKELY_ANTHEM": "anthem that is most likely to be performed in {} is",
    "CAPITAL_OF": "country which {} is the capital of is",
    "CAST_MEMBER": "cast members of {} are",
}
"""How the format words relations, behind "The", "The name of the" or "The names of the"; the
others are their own name: "mother of {} is"."""


class RippleEditsDataset(FileDataset):
    """RippleEdits (recent): facts new to Wikidata, and what follows from them and what does not.

    A record says in one sentence what is to be written, and in which relation of Wikidata; how the
    format words each relation tells where subject and target stand. Where that is not the one way
    to read the sentence the record is left out and told. `case_id` is its index, from 0.

    `Logical_Generalization` (reasoning), `Compositionality_I` and `II` (multi-hop) and
    `Subject_Aliasing` (aliasing) become portability probes: of the test queries one (``OR``) or all
    (``AND``) must be answered, with the value or an alias of any of the answers. A test counts only
    if the unedited model answers all its condition queries. Of `Relation_Specificity` and
    `Forgetfulness` each query becomes a neighbor with the same conditions. The authors take means
    over facts that were written with success alone; here all count.
    """

    name: ClassVar[str] = "ripple-edits"
    default_metrics: ClassVar[tuple[str, ...]] = ("accuracy", "portability")
    leaves_out_unlocated: ClassVar[bool] = True
    source: ClassVar[str] = (
        "https://github.com/edenbiran/RippleEdits (also random.json and popular.json), MIT"
    )
    known_errors: ClassVar[str] = (
        "answers are Wikidata's, which is incomplete; facts of 'recent' may be known by now"
    )
    remote: ClassVar[RemoteFile | None] = RemoteFile(
        "https://github.com/edenbiran/RippleEdits/raw/main/data/benchmark/recent.json",
        sha256="bc71807ea72280e2587bd1974fc79ae7e23aa24b1d5887bcdced40d448910547",
        n_bytes=19_658_316,
    )

    def records(self, file: DataFile) -> Iterable[Record]:
        """Split the file into its records."""
        return json_records(file)

    def case(self, record: Record, index: int) -> EditCase:
        """Make a case of one edit."""
        record.reject_unknown_fields(_FIELDS)
        edit = record.record("edit")
        tests = {axis: record.optional_records(axis) for axis in (*_FOLLOWING, *_STAYING)}
        prompt, subject, target = _locate(edit)
        request = EditRequest(str(index), subject, prompt, target, edit.text("relation"))
        true = _original_target(edit, request.text)
        probes = [Probe("efficacy", request.text, target, true)]
        for axis in _STAYING:
            for test in tests[axis]:
                probes += [
                    Probe(
                        "neighborhood",
                        query.prompt,
                        first,
                        aliases=tuple(others),
                        conditions=self._queries(test, "condition_queries"),
                    )
                    for query in self._queries(test, "test_queries")
                    for first, *others in [query.answers]
                ]
        return EditCase(
            request,
            target_true=true,
            probes=tuple(dict.fromkeys(probes)),
            portability=tuple(
                probe
                for axis, kind in _FOLLOWING.items()
                for probe in self._follow(tests[axis], kind)
            ),
        )

    def _follow(self, tests: Iterable[Record], kind: PortabilityKind) -> Iterator[PortabilityProbe]:
        for test in tests:
            joined = test.text("test_condition")
            if joined not in ("OR", "AND"):
                raise test.fail(
                    "test_condition", f"is unknown, got {joined!r}; expected OR or AND."
                )
            if queries := self._queries(test, "test_queries"):
                conditions = self._queries(test, "condition_queries")
                yield PortabilityProbe(kind, queries, joined == "AND", conditions)

    def _queries(self, test: Record, field: str) -> tuple[Query, ...]:
        """The queries that have an answer."""
        queries = []
        for each in test.records(field):
            answers = [
                text.strip()
                for answer in each.records("answers")
                for text in (answer.optional_string("value"), *_aliases(answer))
                if text and (len(text.strip()) > 1 or text.strip().isdigit())
            ]
            if answers:
                queries.append(Query(each.text("prompt"), tuple(dict.fromkeys(answers))))
            else:
                self.understanding.ignore(f"'{field}' without an answer", "nothing to ask for")
        return tuple(queries)


def _aliases(answer: Record) -> list[str]:
    """Other names; blank ones, which Wikidata has, are no answer."""
    value = answer.fields.get("aliases")
    kept = [item for item in value if item != ""] if isinstance(value, list) else value
    return list(
        Record(answer.place, answer.line, {"aliases": kept}, answer.parent).texts("aliases")
    )


def _locate(edit: Record) -> tuple[str, str, str]:
    """The prompt with ``{}``, subject and target of the sentence that says what is to be written.

    Raises:
        SubjectError: The sentence is not worded as the relation is, or can be read in two ways.
    """
    sentence, relation = edit.text("prompt").strip(), edit.text("relation")
    words = relation.lower().replace("_", " ")
    wording = _WORDINGS.get(relation, f"{words} of {{}} is")
    before, after = map(re.escape, wording.split("{}"))
    pattern = rf"(?P<opening>(?:The (?:names? of the )?)?{before})(?P<rest>.+)"
    found = re.fullmatch(pattern, sentence.removesuffix("."))
    rest = found["rest"] if found else ""
    splits = [(rest[: cut.start()], rest[cut.end() :]) for cut in re.finditer(f"{after} ", rest)]
    splits = [(subject, target) for subject, target in splits if subject.strip() and target.strip()]
    if found is None or len(splits) != 1:
        problem = (
            f"must be '… {wording}' with subject and target in one way, got {sentence!r} with "
            f"{len(splits)} ways"
        )
        raise SubjectError(str(edit.fail("prompt", problem)))
    ((subject, target),) = splits
    prompt = found["opening"] + "{}" + wording.split("{}")[1]
    return prompt, subject.strip(), target.strip()


def _original_target(edit: Record, prompt: str) -> str | None:
    """What the fact said before, where the record knows."""
    if edit.fields.get("original_fact") is None:
        return None
    original = edit.record("original_fact")
    sentence = original.text("prompt").strip()
    if not sentence.startswith(f"{prompt} "):
        raise original.fail(
            "prompt", f"must begin as the edit's does, got {sentence!r}; expected {prompt!r}."
        )
    return original.text("prompt").strip().removesuffix(".")[len(prompt) :].strip()
