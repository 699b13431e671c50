"""What a reader must know of how numbers came about, in one paragraph: it goes with every table."""

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Sequence

from editbench.results.collection import Collection
from editbench.results.labels import UNEDITED
from editbench.results.manifest import TrialDescription
from editbench.results.store import TrialRecord

_N_DIGITS = 8


def disclose(collection: Collection, some: Container[str] | None = None) -> str:
    """Say what trials that have numbers have in common, or how they differ; empty for none.

    Those of `some` hashes, or else all.

    Batch, protocol, which facts and how many of them the unedited model knew, conflicts, shared
    subjects, context prefixes, tokenizer, and the versions of the scorers.
    """
    measured = [trial for trial in collection.values if some is None or trial in some]
    trials = [collection.trials[trial] for trial in measured]
    records = [collection.records[trial] for trial in measured]
    if not trials:
        return ""
    tokenizers = [collection.tokenizers.get(each.model_fingerprint, "") for each in trials]
    edited = [each for each in trials if each.editor != UNEDITED] or trials
    sizes = _list(f"{each.n_edits:,}" for each in trials)
    shared = _list(f"{each.n_shared_subjects:,}" for each in records)
    parts = [
        f"batches of {sizes}, each written into the unedited model and asked when it is written",
        f"facts: {_list(map(_describe_facts, trials, records))}",
        *_describe_known(collection, measured),
        f"conflicts: {_list(map(_describe_conflicts, trials, records))}",
        f"cases that share their subject with another: {shared}",
        f"context prefixes: {_list(map(_describe_prefixes, edited))}",
        f"tokenizer: {_list(each[:_N_DIGITS] or 'not said' for each in tokenizers)}",
        f"scorers: {_list(f'{n} {v}' for each in trials for n, v in each.metrics.items())}",
    ]
    return f"How: {'; '.join(parts)}."


def _list(values: Iterable[str]) -> str:
    """Distinct values, in their order."""
    return ", ".join(dict.fromkeys(values))


def _describe_facts(trial: TrialDescription, record: TrialRecord) -> str:
    drawn = "the first" if trial.sample == "first" else "drawn"
    if trial.facts == "all" or record.n_known is None:
        return f"{drawn}, known to the model or not"
    n_known, n_asked = record.n_known
    return (
        f"{drawn} that are {trial.facts} to the unedited model, which knew {n_known:,} of "
        f"{n_asked:,} ({100 * n_known / n_asked:.1f} %)"
    )


def _describe_known(collection: Collection, trials: Iterable[str]) -> Iterator[str]:
    """How often the unedited model says the new object already, where that was measured."""
    shares = [
        f"{collection.values[trial]['efficacy_accuracy'].mean():.1f} %"
        for trial in trials
        if collection.trials[trial].editor == UNEDITED
        and "efficacy_accuracy" in collection.values[trial]
    ]
    if shares:
        yield f"the unedited model says the new object already in {_list(shares)} of the cases"


def _describe_conflicts(trial: TrialDescription, record: TrialRecord) -> str:
    return "none" if trial.on_conflict == "error" else f"{trial.on_conflict} ({record.n_conflicts})"


def _describe_prefixes(trial: TrialDescription) -> str:
    given: Sequence[Sequence[str]] | None = trial.inputs.get("context_prefixes")
    if given is None:
        return f"sampled with seed {trial.seed}"
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()[:_N_DIGITS]
