"""CounterFact (Meng et al. 2022, ROME, section 3.4): facts to be replaced by false ones."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from editbench.datasets.base import FileDataset
from editbench.datasets.download import RemoteFile, ReportProgress
from editbench.datasets.facts import FIELDS, case_of_fact
from editbench.datasets.files import DataFile, is_json_array, json_records
from editbench.datasets.foreign import COUNTERFACT, REWRITE, as_fact
from editbench.datasets.records import Record
from editbench.datasets.snippets import SnippetKey, Snippets, read_snippets
from editbench.errors import DataError
from editbench.requests import EditCase, EditRequest, Probe

_SNIPPETS = "attribute_snippets.json"


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
