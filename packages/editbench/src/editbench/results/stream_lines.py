"""Lines about streams: what is left of facts by their age, and what a stream does to a model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from editbench.results.collection import Collection
from editbench.results.quantities import estimate_quantities

_N_AGES = 10


@dataclass(frozen=True, slots=True)
class RetentionLine:
    """A metric at the end of a stream, over facts of about one age.

    Attributes:
        trial: Content hash of the trial.
        metric: A row metric or a score.
        age: How many facts were written after the batches of these, on average.
        value: Mean over the facts, or a score.
        ci_low: Lower end of the 95 % confidence interval; None if there is one fact alone.
        ci_high: Upper end; None likewise.
        n: How many facts.
    """

    trial: str
    metric: str
    age: float
    value: float
    ci_low: float | None
    ci_high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class ChangeLine:
    """How far a stream has changed a model at one of its checkpoints.

    Attributes:
        trial: Content hash of the trial.
        metric: ``update_norm``, the largest ‖ΔW‖/‖W‖ of all weights; or ``key_drift``, the mean
            over batches of ‖k - k₀‖/‖k₀‖ at the highest layer that is written to.
        checkpoint: How many facts had been written.
        value: The number.
        n: How many weights, or batches.
    """

    trial: str
    metric: str
    checkpoint: int
    value: float
    n: int
    ci_low: None = None
    ci_high: None = None


def list_changes(collection: Collection) -> Iterator[ChangeLine]:
    """What the records of streams say of weights and keys."""
    for trial, record in collection.records.items():
        for each in record.checkpoints if trial in collection.values else ():
            norms = [norm for norm in each.update_norms.values() if norm is not None]
            drift = each.key_drift[max(each.key_drift, key=int)] if each.key_drift else ()
            moved = [known for known in drift if known is not None]
            if norms:
                yield ChangeLine(trial, "update_norm", each.n_written, max(norms), len(norms))
            if moved:
                mean = sum(moved) / len(moved)
                yield ChangeLine(trial, "key_drift", each.n_written, mean, len(moved))


def measure_retention(collection: Collection) -> Iterator[RetentionLine]:
    """Divide the facts of every stream by their age at its last checkpoint, into ten parts at most.

    Facts that a later one has replaced are none of them, since nobody asks for them any more.
    """
    for trial, record in collection.records.items():
        size = collection.trials[trial].batch_size
        if size is None or trial not in collection.values:
            continue
        table, n_written = collection.values[trial], max(collection.checkpoints[trial])
        batch_of = {fact.case_id: fact.batch for fact in record.facts}
        n_batches = math.ceil(n_written / size)
        n_groups = min(_N_AGES, n_batches)
        groups: list[list[int]] = [[] for _ in range(n_groups)]
        for batch in range(n_batches):
            groups[batch * n_groups // n_batches].append(batch)
        for group in groups:
            ages = [n_written - min((batch + 1) * size, n_written) for batch in group]
            cases = [case for case in table.index if batch_of.get(str(case)) in set(group)]
            own = table.loc[cases].dropna(axis="columns", how="all")
            for metric, found in estimate_quantities(own, collection.metrics[trial]):
                low, high = (None if math.isnan(e) else e for e in (found.low, found.high))
                age = sum(ages) / len(ages)
                yield RetentionLine(trial, metric, age, found.value, low, high, found.n)
