"""What is run: one editor on one model with one batch of cases, and grids of such trials."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from editbench.datasets.base import Dataset
from editbench.datasets.corpus import Corpus
from editbench.editors.base import Editor, EditorConfig, Resources
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.unedited import Unedited
from editbench.edits.card import package_versions
from editbench.errors import SecondMomentError
from editbench.files.seals import checksum, checksum_file
from editbench.metrics.base import AnyMetric
from editbench.models.editable import EditableModel
from editbench.progress import Progress
from editbench.requests import ConflictPolicy
from editbench.results.manifest import Sample, TrialDescription
from editbench.second_moments.npz_files import list_npz


@dataclass(frozen=True)
class Inputs:
    """What an editor is given besides model and requests, where the user supplies it.

    Attributes:
        second_moments: A file of second moments, or a folder of memit's.
        context_prefixes: Groups of context prefixes.
        corpus: Ordinary text to collect second moments from.
    """

    second_moments: Path | None = None
    context_prefixes: ContextPrefixes | None = None
    corpus: Corpus | None = None

    @cached_property
    def content(self) -> dict[str, Any]:
        """What the inputs hold, whatever their files are called: part of a trial's address.

        Raises:
            SecondMomentError: The file of second moments cannot be read.
        """
        content: dict[str, Any] = {}
        if self.second_moments is not None:
            content["second_moments"] = _hash_moments(self.second_moments)
        if self.context_prefixes is not None:
            content["context_prefixes"] = [list(group) for group in self.context_prefixes.groups]
        if self.corpus is not None:
            content["corpus"] = {"name": self.corpus.name, "fingerprint": self.corpus.fingerprint}
        return content

    def resources(self, seed: int, cache: Path | None, report_progress: Progress) -> Resources:
        """What the editor may use besides the model and the requests."""
        return Resources(
            seed=seed,
            cache=cache,
            report_progress=report_progress,
            second_moments=self.second_moments,
            context_prefixes=self.context_prefixes,
            corpus=self.corpus,
        )


@dataclass(frozen=True)
class Trial:
    """One editor on one model with one batch of cases.

    Attributes:
        editor: The editor, with its configuration.
        model: The model, unedited.
        dataset: Where the cases come from.
        n_edits: How many requests are written at once.
        seed: Source of every random choice, in editing, sampling and generation.
        metrics: What is measured.
        n_batches: How many such batches are written, each into the unedited model, and measured:
            a few edits at a time need many batches before their numbers mean anything.
        relations: Only facts of these relations, in equal shares; none means all.
        sample: Whether the cases are the dataset's first, or drawn with the seed.
        on_conflict: What happens to requests that contradict each other.
        inputs: What else the editor is given.
    """

    editor: Editor
    model: EditableModel
    dataset: Dataset
    n_edits: int
    seed: int
    metrics: tuple[AnyMetric, ...]
    n_batches: int = 1
    relations: tuple[str, ...] = ()
    sample: Sample = "first"
    on_conflict: ConflictPolicy = "error"
    inputs: Inputs = Inputs()

    @cached_property
    def description(self) -> TrialDescription:
        """Everything that the trial's rows depend on, as plain values."""
        return TrialDescription(
            editor=self.editor.name,
            config=self.editor.config.model_dump(mode="json"),
            model=self.model.name,
            model_fingerprint=self.model.fingerprint,
            dataset=self.dataset.name,
            dataset_fingerprint=self.dataset.fingerprint,
            n_edits=self.n_edits,
            n_batches=self.n_batches,
            relations=self.relations,
            seed=self.seed,
            sample=self.sample,
            on_conflict=self.on_conflict,
            metrics={metric.name: metric.version for metric in self.metrics},
            inputs=self.inputs.content,
            versions=package_versions(),
        )

    @property
    def hash(self) -> str:
        """The trial's content address: what a resumed run goes by."""
        return self.description.hash

    @property
    def label(self) -> str:
        """What a progress display calls the trial."""
        return self.description.label


def grid(
    *,
    models: Sequence[EditableModel],
    datasets: Sequence[Dataset],
    editors: Callable[[EditableModel], Sequence[Editor]],
    metrics: Callable[[Dataset], Sequence[AnyMetric]],
    n_edits: Sequence[int],
    seeds: Sequence[int],
    n_batches: Callable[[int], int] = lambda n_edits: 1,
    relations: Sequence[tuple[str, ...]] = ((),),
    sample: Sample = "first",
    on_conflict: ConflictPolicy = "error",
    inputs: Callable[[EditableModel, Dataset], Inputs] = lambda model, dataset: Inputs(),
) -> list[Trial]:
    """All combinations of what is given, each once, and the unedited model next to them.

    Args:
        models: The models.
        datasets: The datasets.
        editors: The editors for a model, whose hyperparameters may depend on it.
        metrics: The metrics for a dataset.
        n_edits: Numbers of requests to write at once.
        seeds: Seeds.
        n_batches: How many batches of a number of requests.
        relations: Groups of relations to take facts of; an empty group stands for all.
        sample: Whether cases are the dataset's first, or drawn with the seed.
        on_conflict: What happens to requests that contradict each other.
        inputs: What else editors are given, for a model and dataset.

    Returns:
        The trials, model by model, then by dataset, relations, number of edits and seed; of each
        of these combinations the unedited model first.
    """
    editors_of = {id(model): (Unedited(EditorConfig()), *editors(model)) for model in models}
    trials: dict[str, Trial] = {}
    for model, dataset in product(models, datasets):
        given = inputs(model, dataset)
        asked = tuple(metrics(dataset))
        for group, n, seed, editor in product(relations, n_edits, seeds, editors_of[id(model)]):
            trial = Trial(
                editor=editor,
                model=model,
                dataset=dataset,
                n_edits=n,
                seed=seed,
                metrics=asked,
                n_batches=n_batches(n),
                relations=group,
                sample=sample,
                on_conflict=on_conflict,
                inputs=Inputs() if isinstance(editor, Unedited) else given,
            )
            trials.setdefault(trial.hash, trial)
    return list(trials.values())


def _hash_moments(path: Path) -> str:
    if not path.is_dir():
        return _hash_file(path)
    sums = "".join(f"{_hash_file(file)}  {file.name}\n" for file in list_npz(path))
    return checksum(sums.encode())


def _hash_file(path: Path) -> str:
    try:
        return checksum_file(path)
    except OSError as error:
        raise SecondMomentError(
            f"second moments: cannot read the file, got {str(path)!r} ({error.strerror}). "
            "Check the path, or leave it out to collect second moments anew."
        ) from error
