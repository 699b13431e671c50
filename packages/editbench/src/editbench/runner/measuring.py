"""From answers to numbers: metrics over cases and texts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from editbench.edits.card import EditCard
from editbench.errors import EditbenchError
from editbench.metrics.base import AnyMetric, AskingMetric, Metric, TextMetric, find_fault
from editbench.questions import Answers
from editbench.runner.trial import CaseBatch

Unit = TypeVar("Unit")


class Measurement(NamedTuple):
    """One number, as a row keeps it.

    Attributes:
        unit_id: Id of the case, held-out text or document.
        metric: The row metric.
        value: The number.
        checkpoint: How many facts had been written.
        fact_status: What had become of the case's fact, where the editor says.
    """

    unit_id: str
    metric: str
    value: float
    checkpoint: int
    fact_status: str | None = None


def measure(
    batch: CaseBatch,
    metrics: Sequence[AnyMetric],
    answers: Answers,
    *,
    checkpoint: int,
    card: EditCard | None = None,
) -> list[Measurement]:
    """Put the answers to all metrics of all cases and texts.

    Args:
        batch: Cases and texts.
        metrics: The metrics.
        answers: To all of their questions.
        checkpoint: How many facts had been written.
        card: The edit's, if there is one.

    Raises:
        EditbenchError: A metric yields a name that it does not declare, or something that is no
            finite number.
    """
    cases = [(case.request.case_id, case) for case in batch.cases]
    of_cases = [metric for metric in metrics if isinstance(metric, Metric)]
    of_texts = [metric for metric in metrics if isinstance(metric, TextMetric)]
    statuses = {fact["case_id"]: fact["status"] for fact in (facts_of(card) if card else ())}
    return [
        Measurement(unit_id, name, value, checkpoint, statuses.get(unit_id))
        for unit_id, name, value in (
            *_measure(cases, of_cases, answers),
            *_measure(batch.texts, of_texts, answers),
        )
    ]


def facts_of(card: EditCard) -> list[Mapping[str, str]]:
    """What became of facts, as the card of an edit says; nothing where it does not say."""
    facts = card.extra.get("facts")
    if not isinstance(facts, list):  # what a third party's card has under that name
        return []
    return [fact for fact in facts if isinstance(fact, dict) and {"case_id", "status"} <= {*fact}]


def _measure(
    units: Iterable[tuple[str, Unit]], metrics: Sequence[AskingMetric[Unit]], answers: Answers
) -> Iterator[tuple[str, str, float]]:
    for unit_id, unit in units:
        for metric in metrics:
            values = metric.values(unit, answers)
            if fault := find_fault(metric, values):
                raise EditbenchError(f"metric '{metric.name}', case '{unit_id}': {fault}.")
            yield from ((unit_id, name, float(value)) for name, value in values.items())
