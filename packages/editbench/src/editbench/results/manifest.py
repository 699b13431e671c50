"""What a run consists of: ``run.json``, written before the first trial and never changed after."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from editbench.requests import ConflictPolicy

Sample = Literal["first", "shuffled"]
"""Whether the cases are the dataset's first, or drawn with the seed."""

Knowledge = Literal["all", "known", "unknown"]
"""Whether all facts are edited, or only those that the unedited model knows, or does not know."""

_N_HASH_DIGITS = 16
# Fields that descriptions did not always have: what they say by default was so before, too.
_LATER: dict[str, Any] = {
    "facts": "all",
    "batch_size": None,
    "checkpoints": (),
    "stop_when": None,
    "metric_settings": {},
}


class MetricDescription(BaseModel):
    """What a reader of rows must know about a metric, so that the rows can be read without it.

    Attributes:
        name: What the command line calls it.
        version: Version of its definition.
        produces: Names of the row metrics it can emit.
        aggregates: Score name to the row metrics whose means it is the harmonic mean of.
        mean: Which mean over cases a report shows.
        bounds: Smallest and largest possible value; None where there is no such bound.
        higher_is_better: Which of two values is the better one.
        of_model: Whether it asks the model about documents of its own, whichever cases are edited:
            what it yields says what an edit has done to the model besides.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    produces: tuple[str, ...]
    aggregates: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    bounds: tuple[float | None, float | None] = (0.0, 100.0)
    higher_is_better: bool = True
    of_model: bool = False


class TrialDescription(BaseModel):
    """Everything that a trial's rows depend on.

    Attributes:
        editor: Name of the editor.
        config: Its hyperparameters.
        model: What the run calls the model.
        model_fingerprint: Hash of the model's weights and configuration.
        dataset: Name of the dataset.
        dataset_fingerprint: Hash of the dataset's content.
        n_edits: How many requests are written at once.
        n_batches: How many batches of so many requests are written, each into the unedited model.
        batch_size: How many requests at a time, one batch after another into the same model; None
            writes all of a batch at once.
        checkpoints: After how many of them all that were written so far are asked, where they are
            written in batches; the last is `n_edits`.
        stop_when: At which number of a checkpoint the trial ends there.
        relations: The relations whose facts are written, in equal shares; none means all.
        seed: Source of every random choice.
        sample: Whether the cases are the dataset's first, or drawn with the seed.
        facts: Whether all facts are edited, or only those that the unedited model knows, or does
            not know.
        on_conflict: What happens to requests that contradict each other.
        metrics: Metric name to version.
        metric_settings: Metric name to what else its numbers depend on; metrics without are left
            out.
        inputs: Content of what else the editor was given: hash of the second moments, context
            prefixes, name of the corpus.
        versions: Package name to version.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    editor: str
    config: dict[str, Any]
    model: str
    model_fingerprint: str
    dataset: str
    dataset_fingerprint: str
    n_edits: int
    n_batches: int = 1
    batch_size: int | None = None
    checkpoints: tuple[int, ...] = ()
    stop_when: str | None = None
    relations: tuple[str, ...] = ()
    seed: int
    sample: Sample
    facts: Knowledge = "all"
    on_conflict: ConflictPolicy
    metrics: dict[str, int]
    metric_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    inputs: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def hash(self) -> str:
        """The trial's content address: of all fields but what the run happens to call the model."""
        unset = {name for name, value in _LATER.items() if getattr(self, name) == value}
        content = self.model_dump(mode="json", exclude={"model", *unset})
        encoded = json.dumps(content, sort_keys=True).encode()
        return hashlib.sha256(encoded).hexdigest()[:_N_HASH_DIGITS]

    @property
    def label(self) -> str:
        """What messages call the trial."""
        batches = f" in {self.n_batches} batches" if self.n_batches > 1 else ""
        if self.batch_size is not None:
            batches = f" in batches of {self.batch_size}"
        relations = f" of {' and '.join(self.relations)}" if self.relations else ""
        facts = "" if self.facts == "all" else f", {self.facts} facts"
        return (
            f"{self.editor} on {self.model}, {self.dataset}, {self.n_edits} edits{batches}"
            f"{relations}{facts}, seed {self.seed}"
        )

    def flat(self) -> dict[str, str]:
        """Every field as JSON, nested ones by dotted name (``config.n_steps``)."""
        return dict(_flattened("", self.model_dump(mode="json")))


class RunManifest(BaseModel):
    """The content of ``run.json``.

    Attributes:
        format: Version of the run folder's format.
        created: When the run was begun, ISO 8601 with time zone.
        provenance: Where and with what: packages, Python, platform, command line.
        metrics: The metrics of the run.
        trials: Trial hash to trial, in the order in which they run.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    created: str
    provenance: dict[str, Any] = Field(default_factory=dict)
    metrics: tuple[MetricDescription, ...]
    trials: dict[str, TrialDescription]

    def differences(self, other: "RunManifest") -> list[str]:
        """How the trials of `other` differ from these, one line per field; empty if they do not."""
        if self.trials.keys() == other.trials.keys():
            return []
        ours, theirs = self._values(), other._values()
        lines = [
            f"{field}: got {' | '.join(theirs.get(field, ['nothing']))}; "
            f"expected {' | '.join(ours.get(field, ['nothing']))}"
            for field in {**ours, **theirs}
            if ours.get(field) != theirs.get(field)
        ]
        return lines or [f"trials: got {len(other.trials)}; expected {len(self.trials)}"]

    def _values(self) -> dict[str, list[str]]:
        """Each field's distinct values over all trials."""
        values: dict[str, set[str]] = {}
        for trial in self.trials.values():
            for field, value in trial.flat().items():
                # Editors may share names of fields, and what a model is called does not matter.
                is_own = field.startswith("config.")
                place = field.replace("config", trial.editor, 1) if is_own else field
                if field != "model":
                    values.setdefault(place, set()).add(value)
        return {field: sorted(distinct) for field, distinct in values.items()}


def _flattened(prefix: str, content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flattened(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)
