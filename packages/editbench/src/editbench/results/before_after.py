"""What edits have done to a model's general ability: before, after, and whether that is noise."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from editbench.estimates import Floats
from editbench.results.collection import Collection
from editbench.results.comparison import CommonCases, Difference, are_comparable, compare_trials
from editbench.results.labels import UNEDITED
from editbench.results.variants import find_variants

FEWEST_CHANGED = 6
"""Documents that tell: five that all change for the worse do so by chance once in 16 times
(two-sided sign test), six once in 32, which is below 5 %."""


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """One metric of the unedited and the edited model, over the same documents.

    Attributes:
        difference: Both values, and how far they are apart, by the paired bootstrap that
            ``--compare`` uses.
        error: Standard error of the edited model's value; None if there is one document alone.
        error_before: That of the unedited model's value; None likewise.
        n_changed: How many documents have another value than before.
    """

    difference: Difference
    error: float | None
    error_before: float | None
    n_changed: int

    @property
    def verdict(self) -> str:
        """The difference in words.

        It is noise where the 95 % interval of the difference has zero in it: other documents like
        these could as well have shown none. So it is where fewer than `FEWEST_CHANGED` documents
        have changed, of which a bootstrap is surer than it should be.
        """
        if not self.n_changed:
            return "unchanged"
        if not self.is_clear:
            return "within the noise"
        return "worse" if self.difference.better == UNEDITED else "better"

    @property
    def is_clear(self) -> bool:
        """Whether the difference is more than noise."""
        return self.difference.better is not None and self.n_changed >= FEWEST_CHANGED


def list_before_after(collection: Collection) -> Iterator[BeforeAfter]:
    """Every trial beside that of the unedited model, in the metrics that ask about the model."""
    trials, variants = collection.trials, find_variants(collection.trials)
    unedited = [trial for trial in collection.values if trials[trial].editor == UNEDITED]
    edited = [trial for trial in collection.values if trials[trial].editor != UNEDITED]
    for trial, base in product(edited, unedited):
        metrics = [metric for metric in collection.metrics[trial] if metric.of_model]
        if not metrics or not are_comparable(trials[trial], trials[base]):
            continue
        common = CommonCases.of(collection, trial, base, metrics)
        geometric = {name for each in metrics if each.mean == "geometric" for name in each.produces}
        for difference in compare_trials(collection, variants, trial, base, metrics):
            name = difference.metric
            both = [table[name].to_numpy(np.float64) for table in (common.ours, common.theirs)]
            present = np.isfinite(both[0]) & np.isfinite(both[1])
            ours, theirs = (values[present] for values in both)
            scales = (
                (difference.value, difference.baseline_value) if name in geometric else (1.0, 1.0)
            )
            yield BeforeAfter(
                difference,
                error=_standard_error(ours, scales[0]),
                error_before=_standard_error(theirs, scales[1]),
                n_changed=int((ours != theirs).sum()),
            )


def _standard_error(values: Floats, scale: float) -> float | None:
    """Of the mean of values, times `scale`: of a geometric mean that is right to first order."""
    if len(values) < 2:
        return None
    return scale * float(np.std(values, ddof=1)) / math.sqrt(len(values))
