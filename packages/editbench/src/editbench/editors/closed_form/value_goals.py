"""Targets at an MLP's output: the value of one fact after another, ROME's."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from editbench.editors.base import Resources
from editbench.editors.closed_form.config import LayerConfig
from editbench.editors.closed_form.goals import Measured
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.keys.reading import ProjectionReading, read_projections
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.optimizer import (
    FinishedTarget,
    TargetOptimizer,
    refuse_overflowed,
)
from editbench.editors.targets.tasks import TargetTask
from editbench.models.editable import EditableModel
from editbench.progress import Progress
from editbench.replay.offset_forward import OffsetSite
from editbench.requests import EditRequest

STAGE = "edits"


@dataclass(frozen=True)
class ValueGoal:
    """The value that one fact's key is to have; row 0 of `reading` is the bare prompt's."""

    request: EditRequest
    outcome: FinishedTarget
    reading: ProjectionReading
    is_consistent: bool
    report: Callable[[], None]

    @property
    def outcomes(self) -> Sequence[FinishedTarget]:
        """What came of the one fact's target."""
        return (self.outcome,)

    refused: ClassVar[Mapping[int, str]] = {}

    def describe(self, layer: int) -> str:
        """Quote the fact."""
        return f"'{self.request.text}'"

    def measure(self, layer: int) -> Measured:
        """The mean key over prefixes, and what its value is to be and is."""
        keys, values = self.reading.keys.double(), self.reading.values.double()
        current = values[1:].mean(dim=0) if self.is_consistent else values[0]
        target = self.outcome.state.to(values)
        return Measured(keys[1:].mean(dim=0)[None], target[None], current[None])

    def finish(self) -> None:
        """Report the fact."""
        self.report()


class ValueTargets:
    """Finds m + δ of one fact after another, each with the facts before it on the model.

    Args:
        editor: The editor's name, for messages.
        model: The model.
        config: How δ is optimized, and the one layer.
        prefixes: Context prefixes.
        resources: Cache and progress.
        is_consistent: Whether values, too, are means over prefixes, as keys are; else they are
            those of the bare prompt.
    """

    def __init__(
        self,
        editor: str,
        model: EditableModel,
        config: LayerConfig,
        prefixes: ContextPrefixes,
        resources: Resources,
        *,
        is_consistent: bool,
    ) -> None:
        self._editor = editor
        self._model = model
        self._config = config
        (self._layer,) = config.critical_layers
        self._is_consistent = is_consistent
        self._prefixes = prefixes.flat
        self._cache = TargetCache.of(resources)
        self._report_progress: Progress = resources.report_progress
        self._site = OffsetSite.mlp_output(model, self._layer)
        self._optimizer = TargetOptimizer(model, self._site, config, replay=True)

    @property
    def replay_failure(self) -> str | None:
        """Why suffix replay could not be used; None where it was."""
        return self._optimizer.replay_failure

    def aim(self, requests: Sequence[EditRequest]) -> Generator[ValueGoal, None, None]:
        """Find the value of one fact after another."""
        config, model = self._config, self._model
        readings = read_projections(model, requests, ("", *self._prefixes), self._layer)
        written = model.architecture.weight_name(self._site.module)
        with self._cache.writing_now_and_then() as keep:
            for index, request in enumerate(requests):

                def report(loss: float, n_done: int = index) -> None:
                    note = f"loss {loss:.3f}"
                    self._report_progress(STAGE, n_done, len(requests), note)

                reading = next(readings)
                # Of the model with all facts before this one.
                key = self._cache.key(
                    model,
                    request,
                    self._layer,
                    config,
                    self._prefixes,
                    site=self._site.module,
                    changed=[written] if index else None,
                )
                found = self._cache.read([key]).get(0)
                if found is None:
                    found = self._optimize(request, reading.values[:1], report)
                    keep(key, found)
                yield ValueGoal(
                    request,
                    found,
                    reading,
                    self._is_consistent,
                    partial(report, found.loss, index + 1),
                )

    def _optimize(
        self, request: EditRequest, initial: Tensor, report: Callable[[float], None]
    ) -> FinishedTarget:
        task = TargetTask.of(self._model.tokens, 0, request, self._prefixes)
        (found,) = self._optimizer.run(
            [task], lambda step, n_finished, loss: report(loss), initial=initial
        )
        # What follows depends on it, so there is no going on without it.
        refuse_overflowed(self._editor, self._model, [request], [found.is_finite])
        return found
