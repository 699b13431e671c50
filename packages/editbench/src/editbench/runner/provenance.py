"""Where numbers come from: software, machine, models, data, metrics, and what they took."""

import math
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch

from editbench.edits.card import package_versions
from editbench.metrics.base import AnyMetric, ModelMetric, RowKind
from editbench.models.adapters import describe_adapters
from editbench.results.manifest import MetricDescription
from editbench.runner.trial import Trial

_N_LEFT_OUT_LISTED = 100


def gather_provenance(trials: Sequence[Trial]) -> dict[str, Any]:
    """Describe software, machine, models and data of a run, as plain JSON values."""
    models = {trial.model.fingerprint: trial.model for trial in trials}
    datasets = {trial.dataset.fingerprint: trial.dataset for trial in trials}
    return {
        "versions": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "n_processors": os.cpu_count(),
        "n_threads": torch.get_num_threads(),
        "models": [
            {
                "name": model.name,
                "fingerprint": fingerprint,
                "tokenizer_fingerprint": model.tokens.fingerprint,
                "class": type(model.model).__name__,
                "dtype": str(model.model.dtype).removeprefix("torch."),
                "device": str(model.device)
                if model.device.type != "cuda"
                else f"{model.device} ({torch.cuda.get_device_name(model.device)})",
                "n_parameters": model.model.num_parameters(),
                **({"gguf": model.gguf.describe()} if model.gguf is not None else {}),
                **({"adapters": describe_adapters(model)} if model.adapters else {}),
            }
            for fingerprint, model in models.items()
        ],
        "datasets": [
            {
                "name": dataset.name,
                "fingerprint": fingerprint,
                "n_cases": len(dataset.cases()),
                "n_left_out": len(dataset.left_out),
                "left_out": list(dataset.left_out[:_N_LEFT_OUT_LISTED]),
            }
            for fingerprint, dataset in datasets.items()
        ],
    }


def describe_metrics(trials: Sequence[Trial]) -> tuple[MetricDescription, ...]:
    """What a reader of the rows must know about the metrics of `trials`, each once."""
    metrics = {metric.name: metric for trial in trials for metric in trial.metrics}
    return tuple(each for metric in metrics.values() for each in describe_rows(metric))


def describe_rows(metric: AnyMetric) -> list[MetricDescription]:
    """What a reader of the rows must know about a metric; rows of different kinds apart."""
    alike: dict[tuple[object, ...], list[RowKind]] = {}
    for row in metric.rows:
        alike.setdefault((row.mean, row.bounds, row.higher_is_better), []).append(row)
    described = []
    for rows in alike.values():
        names = tuple(row.name for row in rows)
        scores = {name: of for name, of in metric.aggregates.items() if {*of} <= {*names}}
        of_rows = {
            "produces": names,
            "aggregates": scores,
            "mean": rows[0].mean,
            "bounds": _finite_bounds(rows[0].bounds),
            "higher_is_better": rows[0].higher_is_better,
        }
        described.append(describe_metric(type(metric)).model_copy(update=of_rows))
    return described


def describe_metric(metric: type[AnyMetric]) -> MetricDescription:
    """The same of a class of metrics, before one is made.

    Raises:
        ValidationError: Something that it says of itself is of a wrong type.
    """
    return MetricDescription(
        name=metric.name,
        version=metric.version,
        produces=metric.produces,
        aggregates=dict(metric.aggregates),
        mean=metric.mean,
        bounds=_finite_bounds(metric.bounds),
        higher_is_better=metric.higher_is_better,
        of_model=issubclass(metric, ModelMetric),
    )


def _finite_bounds(bounds: tuple[float, float]) -> tuple[float | None, float | None]:
    low, high = (bound if math.isfinite(bound) else None for bound in (bounds[0], bounds[1]))
    return low, high


class PeakMemory:
    """The most memory that something takes; begins to watch when it is made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def measure(self) -> dict[str, int]:
        """Bytes: of the whole process since it started, and of the accelerator since watching."""
        peak = {}
        if sys.platform != "win32":
            import resource

            unit = 1 if sys.platform == "darwin" else 1024
            peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        if self._device.type == "cuda":
            peak["device"] = torch.cuda.max_memory_allocated(self._device)
        return peak
