"""Metrics that ask the model itself: with an edit on it, and once for a run without."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from editbench.edits.card import package_versions
from editbench.edits.edit import Edit
from editbench.errors import EditbenchError
from editbench.files.cache_entries import JsonEntry, name_entry
from editbench.metrics.base import Counting, ModelMetric, find_fault
from editbench.models.editable import EditableModel
from editbench.progress import Progress
from editbench.runner.measuring import Measurement
from editbench.runner.prepare import PreparedTrial
from editbench.runner.trial import CaseBatch

_WHAT = "measurements of the unedited model"
_Values = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Examiner:
    """Lets the metrics of trials that ask the model itself do so.

    What the unedited model comes to is kept in the cache folder, and for as long as this object is
    there.

    Attributes:
        cache: The folder; None keeps nothing there.
    """

    cache: Path | None
    _known: dict[str, _Values] = field(default_factory=dict, repr=False, compare=False)

    def examine(
        self,
        trial: PreparedTrial,
        batch: CaseBatch,
        edit: Edit | None,
        on_progress: Progress,
        *,
        checkpoint: int,
    ) -> list[Measurement]:
        """Measure a batch's share of documents with an edit on the model; None is without.

        Raises:
            EditbenchError: A metric yields a name that it does not declare, a unit that it was not
                asked for, or something that is no finite number.
        """
        found: list[Measurement] = []
        for metric in trial.metrics:
            if not isinstance(metric, ModelMetric) or not batch.units[metric.name]:
                continue
            units = batch.units[metric.name]
            count = partial(on_progress, metric.name)
            if edit is None or not edit.changes_something:
                values = self._examine_unedited(metric, trial.model, units, count)
            else:
                with edit.applied(trial.model):
                    values = metric.measure(trial.model, units, count)
            for unit, name, value in _checked(metric, units, values):
                found.append(Measurement(unit, name, value, checkpoint))
        return found

    def _examine_unedited(
        self, metric: ModelMetric, model: EditableModel, units: tuple[str, ...], count: Counting
    ) -> _Values:
        content = {
            "versions": package_versions(),
            "model": model.fingerprint,
            "tokenizer": model.tokens.fingerprint,
            "device": model.device.type,
            "metric": [metric.name, metric.version, dict(metric.settings)],
            "units": units,
        }
        name = f"{name_entry('measurements', content)[:32]}.json.gz"
        if name in self._known:
            return self._known[name]
        entry = None if self.cache is None else JsonEntry(self.cache / "measurements" / name, _WHAT)
        values: _Values | None = None if entry is None else entry.read(_decode)
        if values is None:
            with model.unedited(_WHAT):
                values = metric.measure(model, units, count)
            if entry is not None and all(map(math.isfinite, _numbers(values))):
                entry.keep({unit: dict(own) for unit, own in values.items()})
        self._known[name] = values
        return values


def _checked(
    metric: ModelMetric, units: tuple[str, ...], values: _Values
) -> Iterator[tuple[str, str, float]]:
    for unit, own in values.items():
        fault = find_fault(metric, own)
        if fault is None and unit not in units:
            fault = "got a unit that it was not asked for; expected one of its units()"
        if fault is not None:
            raise EditbenchError(f"metric '{metric.name}', unit '{unit}': {fault}.")
        yield from ((unit, name, float(value)) for name, value in own.items())


def _numbers(values: _Values) -> Iterator[float]:
    return (value for own in values.values() for value in own.values())


def _decode(content: Any) -> _Values:
    return {
        str(unit): {str(name): float(value) for name, value in own.items()}
        for unit, own in content.items()
    }
