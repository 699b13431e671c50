"""Where the numbers come from: what each run was, and how its trials went."""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editbench.results.manifest import RunManifest, TrialDescription
from editbench.results.store import TrialRecord, finished_trials, read_manifest, read_trial

_SHOWN_APART = {"command", "versions", "models", "experiment"}
_STATUS = {"ok": "done", "no_effect": "changed nothing", "error": "failed"}
NOT_RUN = "not run yet"


@dataclass(frozen=True, slots=True)
class TrialNote:
    """How a trial went.

    Attributes:
        label: What it was.
        status: In words.
        seconds: What its stages took together; None if it has not been run.
        memory: The largest memory that was measured, in GiB; None if none was.
        finished: When; empty if it has not been run.
        message: What went wrong, if it failed.
        traceback: Where it went wrong.
        warnings: What was warned about.
    """

    label: str
    status: str
    seconds: float | None = None
    memory: float | None = None
    finished: str = ""
    message: str = ""
    traceback: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunNote:
    """What a run was.

    Attributes:
        folder: Its folder.
        created: When it was begun.
        experiment: The experiment that it is of; empty for none.
        command: The command line; empty if it is not known.
        facts: What else is known about software and machine.
        models: What is known about its models, a table's rows by field.
        versions: Package to version.
        metrics: Metric to version of its definition.
        settings: By editor, fields of the configuration and their values in this run.
        trials: Its trials, in their order.
    """

    folder: str
    created: str
    experiment: str
    command: str
    facts: Mapping[str, str]
    models: tuple[Mapping[str, str], ...]
    versions: Mapping[str, str]
    metrics: Mapping[str, int]
    settings: Mapping[str, Mapping[str, tuple[str, ...]]]
    trials: tuple[TrialNote, ...]

    @property
    def counts(self) -> Mapping[str, int]:
        """How many trials have each status."""
        return Counter(trial.status for trial in self.trials)


def describe_run(folder: Path) -> RunNote:
    """Read what a run folder says about itself.

    Raises:
        RunError: It holds no run, or is damaged.
    """
    manifest = read_manifest(folder)
    records = {t: read_trial(folder, t) for t in finished_trials(folder, manifest)}
    provenance = manifest.provenance
    command = provenance.get("command") or ()
    models = provenance.get("models") or ()
    return RunNote(
        folder=str(folder),
        created=manifest.created,
        experiment=str(provenance.get("experiment", "")),
        command=shlex.join(map(str, command)) if isinstance(command, list) else str(command),
        facts={
            key.replace("_", " ").removeprefix("n "): _write(value)
            for key, value in provenance.items()
            if key not in _SHOWN_APART
        },
        models=tuple(
            {key.replace("_", " "): _write(value) for key, value in model.items()}
            for model in models
            if isinstance(model, dict)
        ),
        versions=_versions(provenance.get("versions"), manifest.trials.values()),
        metrics={metric.name: metric.version for metric in manifest.metrics},
        settings=_settings(manifest),
        trials=tuple(
            _describe_trial(description, records.get(trial))
            for trial, description in manifest.trials.items()
        ),
    )


def _describe_trial(description: TrialDescription, record: TrialRecord | None) -> TrialNote:
    if record is None:
        return TrialNote(description.label, NOT_RUN)
    memory = max(record.peak_memory_bytes.values(), default=None)
    return TrialNote(
        label=description.label,
        status=_STATUS[record.status],
        seconds=sum(record.seconds.values()),
        memory=None if memory is None else memory / 2**30,
        finished=record.finished,
        message=record.message or "",
        traceback=record.traceback or "",
        warnings=record.warnings,
    )


def _versions(stated: object, trials: Iterable[TrialDescription]) -> Mapping[str, str]:
    if isinstance(stated, dict):
        return {str(name): str(version) for name, version in stated.items()}
    return {name: version for trial in trials for name, version in trial.versions.items()}


def _settings(manifest: RunManifest) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """By editor, what its trials were configured with, each value once."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for description in manifest.trials.values():
        of_editor = found.setdefault(description.editor, {})
        for field, value in description.flat().items():
            if field.startswith(("config.", "inputs.")):
                name = field.removeprefix("config.")
                of_editor.setdefault(name, {})[value] = None
    return {
        editor: {field: tuple(values) for field, values in fields.items()}
        for editor, fields in found.items()
        if fields
    }


def _write(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_write(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_write, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
