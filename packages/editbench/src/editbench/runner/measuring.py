"""From answers to numbers: metrics over cases and texts, checked."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from editbench.errors import EditbenchError
from editbench.metrics.base import AnyMetric, BaseMetric, Metric, TextMetric, find_fault
from editbench.questions import Answers
from editbench.runner.plan import Batch

Unit = TypeVar("Unit")


def measure(
    batch: Batch, metrics: Sequence[AnyMetric], answers: Answers
) -> list[tuple[str, str, float]]:
    """Put the answers to all metrics of all cases and texts.

    Returns:
        Id of the case or text, name of the row metric, and value.

    Raises:
        EditbenchError: A metric yields a name that it does not declare, or something that is no
            finite number.
    """
    cases = [(case.request.case_id, case) for case in batch.cases]
    of_cases = [metric for metric in metrics if isinstance(metric, Metric)]
    of_texts = [metric for metric in metrics if isinstance(metric, TextMetric)]
    return [*_measure(cases, of_cases, answers), *_measure(batch.texts, of_texts, answers)]


def _measure(
    units: Iterable[tuple[str, Unit]], metrics: Sequence[BaseMetric[Unit]], answers: Answers
) -> Iterator[tuple[str, str, float]]:
    for unit_id, unit in units:
        for metric in metrics:
            values = metric.values(unit, answers)
            if fault := find_fault(metric, values):
                raise EditbenchError(f"metric '{metric.name}', case '{unit_id}': {fault}.")
            yield from ((unit_id, name, float(value)) for name, value in values.items())
