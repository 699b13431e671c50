"""What is left of facts of a stream, by how many were written after them."""

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
