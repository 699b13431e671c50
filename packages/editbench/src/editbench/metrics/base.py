"""What a metric is: something is asked about, questions come out; answers go in, numbers come out.

Most metrics ask about edit cases (`Metric`). Some ask about ordinary text that no case is about, to
see what an edit has done to the rest of the model (`TextMetric`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, ClassVar, Generic, Literal, TypeVar

from editbench.questions import Answers, Question
from editbench.requests import EditCase

Unit = TypeVar("Unit")
"""What a metric asks about, one at a time: the unit that means and intervals are over."""

Mean = Literal["arithmetic", "geometric"]


class BaseMetric(ABC, Generic[Unit]):
    """A pure function from a model's answers to numbers; subclass `Metric` or `TextMetric`.

    Attributes:
        name: What the command line calls it.
        version: Raised whenever the definition changes, so that old rows stay tellable apart.
        produces: Names of the row metrics it can emit (``efficacy_success`` and so on).
        aggregates: Scores over all cases, as name → the produced metrics whose harmonic mean it
            is: the harmonic mean of their means over cases, not a mean of cases' harmonic means.
        mean: Which mean a table shows; a geometric one needs positive values.
        bounds: The smallest and largest value there can be; confidence intervals end there.
        higher_is_better: Which of two values a table shows as the better one.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    produces: ClassVar[tuple[str, ...]]
    aggregates: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    mean: ClassVar[Mean] = "arithmetic"
    bounds: ClassVar[tuple[float, float]] = (0.0, 100.0)
    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def questions(self, unit: Unit, /) -> tuple[Question, ...]:
        """The questions whose answers `values` needs; none if the unit defines no value."""

    @abstractmethod
    def values(self, unit: Unit, answers: Answers, /) -> dict[str, float]:
        """The unit's numbers; a metric that it cannot define is left out.

        Args:
            unit: A case, or a text.
            answers: Answers to at least the questions that `questions` names for it.

        Returns:
            Name out of `produces` to a finite number; rates in percent.
        """


class Metric(BaseMetric[EditCase]):
    """A metric of edit cases: ``questions(case)`` and ``values(case, answers)``."""

    def fitted(self, cases: Sequence[EditCase]) -> "Metric":
        """The metric as it measures one dataset; by default it is the same for all.

        For a metric that must know the whole dataset, whichever of its cases are edited: how rare
        a word is, say. Called once before anything is asked, so that expensive work is better left
        until it is needed.

        Args:
            cases: All cases of the dataset.

        Returns:
            The metric that is asked for `questions` and `values`; this one stays as it is.
        """
        return self


class TextMetric(BaseMetric[str]):
    """A metric of held-out texts: ``questions(text)`` and ``values(text, answers)``.

    Its units are the texts of `Dataset.held_out_texts`, whichever cases are edited.
    """


AnyMetric = Metric | TextMetric
"""What can be measured."""


def find_fault(metric: BaseMetric[Any], values: Mapping[str, Any]) -> str | None:
    """What is wrong with what `values` returned: a name or a number; None if nothing is."""
    for name, value in values.items():
        if name not in metric.produces or not _is_finite(value):
            return (
                f"got {value!r} for {name!r}; expected a finite number for one of "
                f"{', '.join(metric.produces)}"
            )
    return None


def _is_finite(value: Any) -> bool:
    try:
        return isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False
