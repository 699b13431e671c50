"""What a search looks for: a score, and how much of specificity may be lost for it."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from editbench.datasets.base import Dataset
from editbench.errors import ConfigError
from editbench.metrics.base import AnyMetric
from editbench.results.statistics import harmonic_mean

SCORES: Mapping[str, str] = {"S": "score", "SA": "accuracy_score"}
"""The paper's symbols, and what metrics call the scores."""

FAILED = -1000.0
"""The value of hyperparameters with which the editor fails."""


@dataclass(frozen=True)
class Objective:
    """A number to make as large as possible, of what a trial measured.

    Attributes:
        name: ``S``, ``SA`` or ``both``.
        metrics: What has to be measured.
        scores: By symbol, the row metrics that a score is the harmonic mean of the means of.
        max_drop: How many points specificity may fall below the unedited model's; None for any.
    """

    name: str
    metrics: tuple[AnyMetric, ...]
    scores: Mapping[str, tuple[str, ...]]
    max_drop: float | None

    @classmethod
    def of(
        cls,
        name: str | None,
        metrics: Sequence[AnyMetric],
        facts: Dataset,
        max_drop: float | None,
    ) -> "Objective":
        """Find the metrics that an objective takes.

        Args:
            name: ``S``, ``SA`` or ``both``; None is S, or SA where the facts leave no S.
            metrics: The dataset's metrics.
            facts: Validation facts.
            max_drop: As for the class.

        Raises:
            ConfigError: The facts do not have what it takes.
        """
        kinds = {probe.kind for case in facts.cases() for probe in case.probes}
        if missing := {"efficacy", "paraphrase", "neighborhood"} - kinds:
            raise ConfigError(
                "tune: hyperparameters are judged by paraphrases and neighbors, too, got facts "
                f"without probes for {' and '.join(sorted(missing))}. Give facts that have them."
            )
        makers = {
            symbol: metric
            for metric in metrics
            for symbol, score in SCORES.items()
            if score in metric.aggregates
        }
        name = name or next((symbol for symbol in SCORES if symbol in makers), "S")
        wanted = tuple(SCORES) if name == "both" else (name,)
        if lacking := [symbol for symbol in wanted if symbol not in makers]:
            raise ConfigError(
                f"--objective: these facts have no {lacking[0]}, got {name!r}; expected "
                f"{' or '.join(makers) or 'facts that have a score'}."
            )
        return cls(
            name,
            tuple({makers[symbol].name: makers[symbol] for symbol in wanted}.values()),
            {symbol: makers[symbol].aggregates[SCORES[symbol]] for symbol in wanted},
            max_drop,
        )

    def value(self, measured: pd.DataFrame, unedited: pd.DataFrame) -> float:
        """The score, the mean of both where there are two; NaN where one is undefined.

        Where specificity has fallen too far it is negative, by how many points it has.

        Args:
            measured: Cases as index, row metrics as columns, percent.
            unedited: The same of the unedited model, on the same cases.
        """
        drop = max(
            (self._means(unedited, [part]) - self._means(measured, [part]))[0]
            for parts in self.scores.values()
            for part in parts
            if part.startswith("neighborhood")
        )
        if self.max_drop is not None and drop > self.max_drop:
            return self.max_drop - float(drop)
        scores = [harmonic_mean(self._means(measured, parts)) for parts in self.scores.values()]
        return float(np.mean(scores))

    def _means(self, measured: pd.DataFrame, parts: Sequence[str]) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first few facts may lack a kind of probe
            return np.array([np.nanmean(measured.get(part, np.nan)) for part in parts])
