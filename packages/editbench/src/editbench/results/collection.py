"""Everything that run folders hold, read once: what was planned, how it went, and the numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import pandas as pd

from editbench.results.frame import load_rows
from editbench.results.manifest import MetricDescription, TrialDescription
from editbench.results.store import TrialRecord, finished_trials, read_manifest, read_trial


@dataclass(frozen=True)
class Collection:
    """The content of run folders, by trial.

    Attributes:
        trials: Every trial, whether it has been run or not, in the order of the runs.
        metrics: What a trial was measured with.
        records: How the trials went that have been run.
        checkpoints: Numbers of the trials that have any, by how many facts had been written when
            they were measured, ascending: cases as index, row metrics as columns, NaN where a case
            has no value.
        experiments: The experiments that the runs are of, as their provenance names them, with
            their trials; a run that names none is of the experiment ``""``.
        tokenizers: Fingerprint of a model to that of its tokenizer, where the runs say it.
    """

    trials: Mapping[str, TrialDescription]
    metrics: Mapping[str, tuple[MetricDescription, ...]]
    records: Mapping[str, TrialRecord]
    checkpoints: Mapping[str, Mapping[int, pd.DataFrame]]
    experiments: Mapping[str, tuple[str, ...]]
    tokenizers: Mapping[str, str]

    @cached_property
    def values(self) -> Mapping[str, pd.DataFrame]:
        """The numbers of each trial at its last checkpoint."""
        return {trial: found[max(found)] for trial, found in self.checkpoints.items()}

    @property
    def distinct_metrics(self) -> tuple[MetricDescription, ...]:
        """What is known about the metrics of all trials, each once."""
        known = chain.from_iterable(self.metrics.values())
        return tuple({(metric.name, metric.produces): metric for metric in known}.values())


def collect(folders: Sequence[Path]) -> Collection:
    """Read run folders, finished or not. A trial that several of them hold counts once.

    Raises:
        RunError: A folder holds no run, or one of its files is damaged.
    """
    trials: dict[str, TrialDescription] = {}
    metrics: dict[str, tuple[MetricDescription, ...]] = {}
    records: dict[str, TrialRecord] = {}
    experiments: dict[str, dict[str, None]] = {}
    tokenizers: dict[str, str] = {}
    for folder in folders:
        manifest = read_manifest(folder)
        for model in manifest.provenance.get("models", ()):
            tokenizers[model.get("fingerprint", "")] = model.get("tokenizer_fingerprint", "")
        experiment = str(manifest.provenance.get("experiment", ""))
        experiments.setdefault(experiment, {}).update(dict.fromkeys(manifest.trials))
        for trial, description in manifest.trials.items():
            trials.setdefault(trial, description)
            metrics.setdefault(trial, manifest.metrics)
        for trial in finished_trials(folder, manifest):
            records.setdefault(trial, read_trial(folder, trial))
    checkpoints: dict[str, dict[int, pd.DataFrame]] = {}
    measured = load_rows(folders).dropna(subset=["metric"])
    for address, of_trial in measured.groupby("trial", sort=False):
        of_checkpoint = checkpoints.setdefault(str(address), {})
        for n_written in of_trial["checkpoint"].unique():
            some = of_trial[of_trial["checkpoint"] == n_written]
            wide = some.pivot(index="case_id", columns="metric", values="value")
            order = [some[name].unique() for name in ("case_id", "metric")]
            of_checkpoint[int(n_written)] = wide.loc[order[0], order[1]]
    named = {name: tuple(found) for name, found in experiments.items()}
    return Collection(trials, metrics, records, checkpoints, named, tokenizers)
