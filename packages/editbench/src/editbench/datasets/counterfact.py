"""CounterFact (Meng et al. 2022, ROME, section 3.4): facts to be replaced by false ones."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TextIO

from editbench.datasets.base import FileDataset
from editbench.datasets.download import RemoteFile, ReportProgress
from editbench.datasets.facts import FIELDS, case_of_fact
from editbench.datasets.files import (
    DataFile,
    decode_json,
    is_json_array,
    json_records,
    record_of,
    skip_whitespace,
)
from editbench.datasets.foreign import COUNTERFACT, REWRITE, as_fact
from editbench.datasets.records import Record
from editbench.errors import DataError, shown
from editbench.files.seals import checksum_file
from editbench.requests import EditCase, EditRequest, Probe

_SNIPPETS = "attribute_snippets.json"
_N_CHARACTERS_READ = 1 << 24

SnippetKey = tuple[str, str]
"""Ids of a relation and of a target, such as ``("P103", "Q1860")``."""


class CounterFact(FileDataset):
    """CounterFact without conflicts: 20,877 false facts, the set of the MEMIT paper.

    A record in the original schema becomes one request and, for ES, PS and NS (Eqns 24-26), the
    probes: the rewritten prompt and its paraphrases, where the new target competes with the true
    one, and prompts about neighbors of the subject, where the true one must still win.
    `attribute_prompts` are not used; `pararel_idx`, the targets' `id` and `generation_prompts` may
    be absent. The file may be JSON Lines, and records may be flat, with the fields of a facts file
    or EasyEdit's; what EasyEdit calls `rephrase_prompt` is no paraphrase here (`COUNTERFACT`).

    Where the original ``attribute_snippets.json`` lies beside the data, or is given as `snippets`,
    each case gets the texts about other subjects that really have the new target: what a
    generation's consistency is measured against. Then the new target's `id` must be there, since
    the texts are filed under it.
    """

    name: ClassVar[str] = "counterfact"
    default_metrics: ClassVar[tuple[str, ...]] = (
        "success",
        "accuracy",
        "generation-entropy",
        "reference-score",
    )
    source: ClassVar[str] = "https://memit.baulab.info/data/dsets/, from an MIT repository"
    known_errors: ClassVar[str] = "paraphrases begin with unrelated sentences, some of them noise"
    remote: ClassVar[RemoteFile | None] = RemoteFile(
        url="https://memit.baulab.info/data/dsets/multi_counterfact.json",
        sha256=None,
        n_bytes=None,
    )

    def __init__(
        self,
        path: Path | None,
        cache: Path,
        *,
        snippets: Path | None = None,
        report_progress: ReportProgress | None = None,
    ) -> None:
        """Say where the data are.

        Args:
            path: The user's own file; None to use the original, downloaded if need be.
            cache: Folder for downloads, made when it is needed.
            snippets: The original ``attribute_snippets.json`` (926 MB); None for the file of this
                name in the data's folder. Without it, cases have no reference texts.
            report_progress: Told about a download.
        """
        super().__init__(path, cache, report_progress=report_progress)
        self.snippets = snippets
        self._reference: Snippets | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file's bytes, and of the snippets' where they are used."""
        fingerprint = super().fingerprint
        if self._reference is None:
            return fingerprint
        return hashlib.sha256(f"{fingerprint} {self._reference.sha256}".encode()).hexdigest()

    def records(self, file: DataFile) -> Iterable[Record]:
        """Split the file into its records, and read the snippets that they need."""
        if not is_json_array(file):
            self.understanding.form = "JSON Lines"
        beside = file.path.with_name(_SNIPPETS)
        snippets = self.snippets or (beside if beside.exists() else None)
        if snippets is None:
            return json_records(file)
        records = list(json_records(file))
        self._reference = read_snippets(snippets, set(_snippet_keys(records)))
        return records

    def case(self, record: Record, index: int) -> EditCase:
        """Make a case of one rewrite."""
        if REWRITE not in record.fields and "prompt" in record.fields:
            fact = as_fact(record, FIELDS, self.understanding, COUNTERFACT)
            return case_of_fact(fact, str(index), self.understanding)
        rewrite = record.record(REWRITE)
        target_new = rewrite.record("target_new")
        new = target_new.text("str").strip()
        true = rewrite.record("target_true").text("str").strip()
        request = EditRequest(
            case_id=record.identifier("case_id"),
            subject=rewrite.text("subject").strip(),
            prompt=rewrite.text("prompt"),
            target=new,
            relation=rewrite.text("relation_id"),
        )
        probes = (
            Probe("efficacy", request.text, new, true),
            *(
                Probe("paraphrase", prompt, new, true)
                for prompt in record.texts("paraphrase_prompts")
            ),
            *(
                Probe("neighborhood", prompt, true, new)
                for prompt in record.texts("neighborhood_prompts")
            ),
        )
        texts = None if self._reference is None else self._reference.texts.get(_snippet_key(record))
        return EditCase(
            request,
            target_true=true,
            probes=probes,
            generation_prompts=record.optional_texts("generation_prompts"),
            reference_texts=texts or (),
        )


class CounterFactFull(CounterFact):
    """CounterFact with its conflicts: all 21,919 false facts, some about the same relation.

    About 339 groups of records ask for different targets of the same subject and relation, so a
    run over all of it needs a conflict policy.
    """

    name: ClassVar[str] = "counterfact-full"
    remote: ClassVar[RemoteFile | None] = RemoteFile(
        url="https://memit.baulab.info/data/dsets/counterfact.json",
        sha256="d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f",
        n_bytes=45_108_470,
    )


def _snippet_keys(records: Iterable[Record]) -> Iterator[SnippetKey]:
    for record in records:
        with suppress(DataError):  # whoever makes a case of it meets the same error
            yield _snippet_key(record)


def _snippet_key(record: Record) -> SnippetKey:
    rewrite = record.record(REWRITE)
    return rewrite.text("relation_id"), rewrite.record("target_new").text("id")


@dataclass(frozen=True, slots=True)
class Snippets:
    """Some of the texts of an ``attribute_snippets.json``.

    Attributes:
        texts: For each relation and target that was wanted and found, its texts in file order.
        sha256: SHA-256 of the whole file, in hexadecimal.
    """

    texts: Mapping[SnippetKey, tuple[str, ...]]
    sha256: str


def read_snippets(path: Path, wanted: Collection[SnippetKey]) -> Snippets:
    """Read the texts of the wanted relations and targets.

    The original has 926 MB, so the file is streamed: no more of it is held at once than the
    wanted texts, one element, and 16 million characters.

    Args:
        path: A JSON array of ``{"relation_id", "target_id", "samples": [{"text", …}, …]}``.
        wanted: Keys of the texts to keep.

    Raises:
        DataError: The file cannot be read or is malformed.
    """
    texts: dict[SnippetKey, list[str]] = {}
    try:
        sha256 = checksum_file(path)
        with path.open(encoding="utf-8-sig") as file:
            for record in _stream_records(file, path):
                key = (record.text("relation_id"), record.text("target_id"))
                if key in wanted:
                    texts.setdefault(key, []).extend(
                        sample.text("text")
                        for sample in record.records("samples")
                        if sample.fields.get("text") != ""
                    )
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: cannot be read: {reason}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8: {error.reason}. Fetch the file again.") from error
    return Snippets({key: tuple(found) for key, found in texts.items()}, sha256)


def _stream_records(file: TextIO, path: Path) -> Iterator[Record]:
    """Yield the objects of a JSON array without holding the whole of it."""
    decoder = json.JSONDecoder()
    text, position, n_records = file.read(_N_CHARACTERS_READ), 0, 0
    while True:
        place = f"{path}: record {n_records + 1}"
        position = skip_whitespace(text, position)
        opening = text[position : position + 1]
        if n_records and opening == "]":
            return
        if opening and opening != ("," if n_records else "["):
            raise DataError(
                f"{place}: must stand in a JSON array, got {shown(text[position:][:200])}."
            )
        start = skip_whitespace(text, position + 1)
        try:
            value, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            # Either malformed or cut off by the end of what was read: read on to find out. Reading
            # at least as much again keeps the work linear for an element of any size.
            more = file.read(max(_N_CHARACTERS_READ, len(text) - position))
            if more:
                text, position = text[position:] + more, 0
                continue
            value, end = decode_json(text, start, place)
        n_records += 1
        yield record_of(value, place, line=1)
        position = end
