"""The cases as data for the page's script: an index that is searched, and pages of the book.

The index is small and unpacked at once; what a case is about in full is unpacked when somebody
opens it, together with its neighbors.
"""

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from editbench.results.collection import Collection
from editbench.results.html.case_book import BookCase, CaseBook, Setting
from editbench.results.labels import explain_symbols, label_metrics
from editbench.results.transcript import PortabilityTranscript, QueryTranscript

CASES_PER_SHEET = 64
"""How many cases are unpacked together."""

KINDS = ("efficacy", "paraphrase", "neighborhood")
_JUDGES = {
    "success": "success: likelier than its rival",
    "accuracy": "accuracy: the likeliest of all",
    "generation": "generation: said by itself",
}
_N_DIGITS = 4


def write_index(book: CaseBook, collection: Collection) -> Markup:
    """What can be searched, filtered and sorted, in columns."""
    relations = list(dict.fromkeys(case.fact.relation or "" for case in book.cases))
    numbers = {relation: number for number, relation in enumerate(relations)}
    facts = [case.fact for case in book.cases]
    return pack(
        {
            "perSheet": CASES_PER_SHEET,
            "kinds": KINDS,
            "relations": relations,
            "cases": {
                "id": [fact.case_id for fact in facts],
                "subject": [fact.subject for fact in facts],
                "relation": [numbers[fact.relation or ""] for fact in facts],
                "prompt": [fact.prompt for fact in facts],
                "target": [fact.target for fact in facts],
                "old": [fact.target_true or "" for fact in facts],
            },
            "settings": [_write_setting(setting, book, collection) for setting in book.settings],
        }
    )


def write_sheets(book: CaseBook) -> Iterator[Markup]:
    """The cases in full, `CASES_PER_SHEET` at a time, in the order of the book."""
    for start in range(0, len(book.cases), CASES_PER_SHEET):
        cases = book.cases[start : start + CASES_PER_SHEET]
        yield pack([_write_case(case) for case in cases])


def pack(content: Any) -> Markup:
    """Gzipped JSON in base64, for a ``<script type="application/gzip">`` element.

    None of its characters means anything to HTML: no text in `content` can end the element or
    begin another. Equal content gives equal text.
    """
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    packed = gzip.compress(text.encode("ascii"), mtime=0)
    return Markup(base64.b64encode(packed).decode("ascii"))


def _write_setting(setting: Setting, book: CaseBook, collection: Collection) -> dict[str, Any]:
    metrics = collection.distinct_metrics
    ids = [book.cases[place].fact.case_id for place in setting.cases]
    values = {
        trial: collection.values[trial].reindex(ids)
        for trial in setting.trials
        if trial in collection.values
    }
    present = [name for table in values.values() for name in table.columns]
    labels = label_metrics(map(str, present), metrics)
    return {
        "label": setting.label,
        "cases": setting.cases,
        "judges": [
            {"name": name, "label": label, "metrics": [f"{kind}_{name}" for kind in KINDS]}
            for name, label in _JUDGES.items()
            if any(f"{kind}_{name}" in present for kind in KINDS)
        ],
        "metrics": [{"name": label.metric, "heading": label.heading} for label in labels],
        "explanation": explain_symbols(labels, metrics),
        "trials": [
            {
                "trial": trial,
                "name": name,
                "editor": collection.trials[trial].editor,
                "values": _write_values(values.get(trial)),
                "statuses": _write_statuses(collection.records[trial].fact_statuses, ids),
            }
            for trial, name in setting.trials.items()
        ],
    }


def _write_values(table: pd.DataFrame | None) -> Mapping[str, list[float | int | None]]:
    if table is None:
        return {}
    return {str(name): [_shorten(value) for value in table[name]] for name in table.columns}


def _write_statuses(statuses: Mapping[str, str], ids: Sequence[str]) -> list[str | None]:
    """What became of facts; nothing where that is known of none."""
    return [statuses.get(case_id) for case_id in ids] if statuses else []


def _write_case(case: BookCase) -> dict[str, Any]:
    return {
        "probes": [
            [probe.kind, probe.prompt, probe.expected, probe.alternative]
            for probe in case.fact.probes
        ],
        "logProbs": {
            trial: [[_shorten(value) for value in pair] for pair in pairs]
            for trial, pairs in case.log_probs.items()
        },
        "said": case.said,
        "follows": [_write_portability(probe) for probe in case.fact.portability],
        "followed": {
            trial: [_write_outcome(probe) for probe in probes]
            for trial, probes in case.portability.items()
        },
        "texts": case.texts,
    }


def _write_portability(probe: PortabilityTranscript) -> dict[str, Any]:
    """What is asked, which is the same in every trial."""
    return {
        "kind": probe.kind,
        "needsAll": probe.needs_all,
        "queries": [[query.prompt, query.answers] for query in probe.queries],
        "conditions": [[query.prompt, query.answers] for query in probe.conditions],
    }


def _write_outcome(probe: PortabilityTranscript) -> dict[str, Any]:
    """What a trial's model said, and the unedited one to the conditions."""
    return {
        "isMasked": probe.is_masked,
        "accuracy": probe.accuracy,
        "generation": probe.generation,
        "queries": [_write_said(query) for query in probe.queries],
        "conditions": [_write_said(query) for query in probe.conditions],
    }


def _write_said(query: QueryTranscript) -> list[Any]:
    likeliest = (query.answer, _shorten(query.log_prob), query.is_likeliest)
    return [*likeliest, query.text, query.is_written]


def _shorten(value: float | None) -> float | int | None:
    if value is None or value != value:
        return None
    rounded = round(float(value), _N_DIGITS)
    return int(rounded) if rounded.is_integer() else rounded
