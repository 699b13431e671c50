"""What a metric is: a case goes in, questions come out; answers go in, numbers come out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from editbench.questions import Answers, Question
from editbench.requests import EditCase


class Metric(ABC):
    """A pure function from a model's answers to one case's numbers.

    Attributes:
        name: What the command line calls it.
        version: Raised whenever the definition changes, so that old rows stay tellable apart.
        produces: Names of the row metrics it can emit (``efficacy_success`` and so on).
        aggregates: Scores over all cases, as name → the produced metrics whose harmonic mean it
            is: the harmonic mean of their means over cases, not a mean of cases' harmonic means.
        bounds: The smallest and largest value there can be; confidence intervals end there.
        higher_is_better: Which of two values a table shows as the better one.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    produces: ClassVar[tuple[str, ...]]
    aggregates: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    bounds: ClassVar[tuple[float, float]] = (0.0, 100.0)
    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def questions(self, case: EditCase) -> tuple[Question, ...]:
        """The questions whose answers `values` needs; none if the case defines no value."""

    @abstractmethod
    def values(self, case: EditCase, answers: Answers) -> dict[str, float]:
        """The case's numbers; a metric that the case cannot define is left out.

        Args:
            case: A case.
            answers: Answers to at least the questions that `questions` names for it.

        Returns:
            Name out of `produces` to a finite number; rates in percent.
        """
