"""The cases of runs, gathered for reading: what was asked, and what each trial's model said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from editbench.results.collection import Collection
from editbench.results.labels import editor_rank
from editbench.results.manifest import TrialDescription
from editbench.results.store import finished_trials, read_manifest, transcripts_path
from editbench.results.transcript import (
    CaseTranscript,
    PortabilityTranscript,
    read_transcripts,
)
from editbench.results.variants import find_variants

SameCases = tuple[object, ...]

_SETTING = (
    "model", "model_fingerprint", "dataset", "dataset_fingerprint", "n_edits", "n_batches",
    "batch_size", "relations", "seed", "sample", "facts", "on_conflict",
)  # fmt: skip
"""What trials must have in common to be shown side by side."""


@dataclass
class BookCase:
    """One case, with the answers of every trial that has it.

    Attributes:
        fact: The case as the first of its trials tells it.
        log_probs: By trial, for each probe log p of the expected and the alternative answer.
        said: By trial, what the model wrote after each probe by itself, where it was asked.
        texts: By trial, the generated texts with their prompts.
        portability: By trial, its portability probes with what the model said.
    """

    fact: CaseTranscript
    log_probs: dict[str, list[tuple[float | None, float | None]]] = field(default_factory=dict)
    said: dict[str, list[str | None]] = field(default_factory=dict)
    texts: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    portability: dict[str, tuple[PortabilityTranscript, ...]] = field(default_factory=dict)


@dataclass
class Setting:
    """Trials about the same cases: different editors, and the unedited model.

    Attributes:
        label: What sets it apart from the other settings; empty if it is the only one.
        trials: Trials by hash, with the names of their columns, in the paper's order.
        cases: Positions in `CaseBook.cases`, in the order of the dataset.
    """

    label: str
    trials: dict[str, str]
    cases: list[int] = field(default_factory=list)


@dataclass
class CaseBook:
    """Every case of some runs.

    Attributes:
        settings: Which trials are about which cases.
        cases: The cases, each once.
        n_without: How many trials have numbers, but no record of what was asked.
    """

    settings: list[Setting]
    cases: list[BookCase]
    n_without: int


def gather_cases(folders: Sequence[Path], collection: Collection) -> CaseBook:
    """Read what was asked and answered in the trials of run folders.

    Raises:
        RunError: A file is damaged.
    """
    paths = _find_transcripts(folders)
    settings = _find_settings({t: collection.trials[t] for t in collection.trials if t in paths})
    cases: list[BookCase] = []
    places: dict[tuple[object, ...], int] = {}
    for setting in settings:
        members: dict[int, None] = {}
        for trial in setting.trials:
            description = collection.trials[trial]
            dataset = (description.dataset, description.dataset_fingerprint)
            for told in read_transcripts(paths[trial]):
                # What is asked may differ between trials, if their metrics do.
                asked = tuple((probe.kind, probe.prompt, probe.expected) for probe in told.probes)
                follows = tuple(
                    (probe.kind, tuple(query.prompt for query in probe.queries))
                    for probe in told.portability
                )
                place = places.setdefault((*dataset, told.case_id, asked, follows), len(cases))
                if place == len(cases):
                    cases.append(BookCase(told.model_copy(update={"texts": ()})))
                members[place] = None
                cases[place].log_probs[trial] = [
                    (probe.log_prob_expected, probe.log_prob_alternative) for probe in told.probes
                ]
                said = [probe.text for probe in told.probes]
                if any(text is not None for text in said):
                    cases[place].said[trial] = said
                if told.portability:
                    cases[place].portability[trial] = told.portability
                if told.texts:
                    cases[place].texts[trial] = told.texts
        setting.cases = list(members)
    n_without = sum(trial not in paths for trial in collection.values)
    return CaseBook(settings, cases, n_without)


def _find_transcripts(folders: Sequence[Path]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for folder in folders:
        for trial in finished_trials(folder, read_manifest(folder)):
            path = transcripts_path(folder, trial)
            if path.exists():
                paths.setdefault(trial, path)
    return paths


def _find_settings(trials: Mapping[str, TrialDescription]) -> list[Setting]:
    groups: dict[SameCases, dict[str, TrialDescription]] = {}
    for trial, description in trials.items():
        place = tuple(getattr(description, name) for name in _SETTING)
        groups.setdefault(place, {})[trial] = description
    variants = find_variants(trials)
    labels = _label(list(groups))
    settings = []
    for place, group in groups.items():
        ordered = sorted(group, key=lambda trial: editor_rank(group[trial].editor))
        remarks = {trial: f" ({variants[trial]})" if variants[trial] else "" for trial in ordered}
        names = {trial: f"{group[trial].editor}{remarks[trial]}" for trial in ordered}
        settings.append(Setting(labels[place], names))
    return settings


def _label(settings: Sequence[SameCases]) -> dict[SameCases, str]:
    """For each setting that in which settings differ."""
    varying = [
        index for index, found in enumerate(zip(*settings, strict=True)) if len(set(found)) > 1
    ]
    return {
        setting: ", ".join(_write_part(_SETTING[index], setting[index]) for index in varying)
        for setting in settings
    }


def _write_part(name: str, value: object) -> str:
    match name:
        case "n_edits":
            return f"{value:,} edits"
        case "n_batches":
            return f"in {value:,} batches"
        case "batch_size":
            return "all at once" if value is None else f"{value:,} at a time"
        case "seed":
            return f"seed {value}"
        case "relations":
            return " + ".join(value) if isinstance(value, tuple) and value else "all relations"
        case "sample":
            return f"{value} facts"
        case "facts":
            return f"{value} facts"
        case "on_conflict":
            return f"conflicts: {value}"
        case "model_fingerprint" | "dataset_fingerprint":
            return f"{name.removesuffix('_fingerprint')} hash {str(value)[:8]}"
        case _:
            return str(value)
