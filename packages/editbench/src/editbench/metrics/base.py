"""What a metric is: something is asked about, questions come out; answers go in, numbers come out.

Most metrics ask about edit cases (`Metric`). Some ask about ordinary text that no case is about, to
see what an edit has done to the rest of the model (`TextMetric`). And some are given the model
itself, since they know by themselves how to ask it (`ModelMetric`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from editbench.questions import Answers, Question
from editbench.requests import EditCase

if TYPE_CHECKING:
    from editbench.models.editable import EditableModel

Unit = TypeVar("Unit")
"""What a metric asks about, one at a time: the unit that means and intervals are over."""

Mean = Literal["arithmetic", "geometric"]

Counting = Callable[[int, int], None]
"""Is told how many steps are done, and of how many."""


@dataclass(frozen=True, slots=True)
class RowKind:
    """What is known of the numbers under one name.

    Attributes:
        name: The row metric, such as ``efficacy_success``.
        mean: Which mean a table shows.
        bounds: The smallest and largest value there can be.
        higher_is_better: Which of two values a table shows as the better one.
    """

    name: str
    mean: Mean = "arithmetic"
    bounds: tuple[float, float] = (0.0, 100.0)
    higher_is_better: bool = True


class BaseMetric(ABC):
    """What all metrics say about themselves; subclass `Metric`, `TextMetric` or `ModelMetric`.

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

    @property
    def rows(self) -> tuple[RowKind, ...]:
        """What it can emit; a metric whose rows depend on how it was made says so here."""
        about = (self.mean, self.bounds, self.higher_is_better)
        return tuple(RowKind(name, *about) for name in self.produces)

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of all that it gives numbers for: its rows, and scores of them."""
        return (*(row.name for row in self.rows), *self.aggregates)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What its numbers depend on besides its version, as plain JSON values; often nothing."""
        return {}


class AskingMetric(BaseMetric, Generic[Unit]):
    """A pure function from a model's answers to numbers."""

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


class Metric(AskingMetric[EditCase]):
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


class TextMetric(AskingMetric[str]):
    """A metric of held-out texts: ``questions(text)`` and ``values(text, answers)``.

    Its units are the texts of `Dataset.held_out_texts`, whichever cases are edited.
    """


class ModelMetric(BaseMetric):
    """A metric that is given the model itself, edited or not, and asks it in its own way.

    For what cannot be put as questions: an evaluation harness, say. Its units are documents of its
    own, whichever cases are edited, so that rows, intervals and comparisons on the same documents
    are those of all metrics. It must leave the model and the global random state as they were, and
    draw nothing at random, or always the same.
    """

    @abstractmethod
    def units(self) -> Sequence[str]:
        """Ids of its documents, each once, the same for every model.

        Where a trial writes several batches, each into the unedited model, each has its share.
        """

    @abstractmethod
    def measure(
        self, model: "EditableModel", units: Sequence[str], on_progress: Counting, /
    ) -> Mapping[str, Mapping[str, float]]:
        """Measure some of its documents.

        Args:
            model: The model as it stands; edits are on it.
            units: Ids out of `units()`.
            on_progress: To be told how many steps are done, and of how many.

        Returns:
            For each unit, name out of `rows` to a finite number; rates in percent. What cannot be
            defined is left out.
        """


AnyMetric = Metric | TextMetric | ModelMetric
"""What can be measured."""


def find_fault(metric: BaseMetric, values: Mapping[str, Any]) -> str | None:
    """What is wrong with what `values` returned: a name or a number; None if nothing is."""
    known = [row.name for row in metric.rows]
    for name, value in values.items():
        if name not in known or not _is_finite(value):
            return (
                f"got {value!r} for {name!r}; expected a finite number for one of "
                f"{', '.join(known)}"
            )
    return None


def _is_finite(value: Any) -> bool:
    try:
        return isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False
