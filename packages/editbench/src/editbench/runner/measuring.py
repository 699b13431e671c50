"""From answers to numbers: metrics over cases, checked."""

import math
from collections.abc import Iterable, Sequence

from editbench.errors import EditbenchError
from editbench.metrics.base import Metric
from editbench.questions import Answers
from editbench.requests import EditCase


def measure(
    cases: Iterable[EditCase], metrics: Sequence[Metric], answers: Answers
) -> list[tuple[str, str, float]]:
    """Put the answers to all metrics of all cases.

    Returns:
        Case id, name of the row metric, and value.

    Raises:
        EditbenchError: A metric yields a name that it does not declare, or something that is no
            finite number.
    """
    measured = []
    for case in cases:
        for metric in metrics:
            for name, value in metric.values(case, answers).items():
                if name not in metric.produces or not math.isfinite(value):
                    raise EditbenchError(
                        f"metric '{metric.name}', case '{case.request.case_id}': got {value!r} for "
                        f"'{name}'; expected a finite number for one of "
                        f"{', '.join(metric.produces)}."
                    )
                measured.append((case.request.case_id, name, float(value)))
    return measured
