"""What is run: one editor on one model with one batch of cases, and grids of such trials."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Self

from editbench.datasets.base import Dataset
from editbench.editors.base import Editor, EditorConfig, Inputs
from editbench.editors.unedited import Unedited
from editbench.edits.card import package_versions
from editbench.metrics.base import AnyMetric
from editbench.models.editable import EditableModel
from editbench.questions import Before, PlainQuestion, Question
from editbench.requests import ConflictPolicy, EditCase, EditRequest
from editbench.results.manifest import Knowledge, Sample, TrialDescription
from editbench.runner.stop_rule import StopRule


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
        batch_size: Write the requests so many at a time, one batch after another into the same
            model; None writes them all at once.
        checkpoints: After how many of them all that were written so far are asked, ascending, where
            they are written in batches; after all of them, in any case.
        stop_when: When such a stream ends at a checkpoint.
        relations: Only facts of these relations, in equal shares; none means all.
        sample: Whether the cases are the dataset's first, or drawn with the seed.
        facts: Whether all facts are edited, or only those that the unedited model knows, or does
            not know.
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
    batch_size: int | None = None
    checkpoints: tuple[int, ...] = ()
    stop_when: StopRule | None = None
    relations: tuple[str, ...] = ()
    sample: Sample = "first"
    facts: Knowledge = "all"
    on_conflict: ConflictPolicy = "error"
    inputs: Inputs = field(default_factory=Inputs)

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
            batch_size=self.batch_size,
            checkpoints=self.all_checkpoints,
            stop_when=None if self.stop_when is None else str(self.stop_when),
            relations=self.relations,
            seed=self.seed,
            sample=self.sample,
            facts=self.facts,
            on_conflict=self.on_conflict,
            metrics={metric.name: metric.version for metric in self.metrics},
            metric_settings={
                metric.name: dict(metric.settings) for metric in self.metrics if metric.settings
            },
            inputs=self.inputs.content,
            versions=package_versions(),
        )

    @property
    def all_checkpoints(self) -> tuple[int, ...]:
        """The checkpoints of a stream, its end included; none where all is written at once."""
        if self.batch_size is None:
            return ()
        return tuple(sorted({*self.checkpoints, self.n_edits}))

    @property
    def hash(self) -> str:
        """The trial's content address: what a resumed run goes by."""
        return self.description.hash

    @property
    def label(self) -> str:
        """What a progress display calls the trial."""
        return self.description.label


@dataclass(frozen=True, slots=True)
class CaseBatch:
    """Cases that are edited together, and everything that is asked about them.

    Attributes:
        cases: The cases.
        texts: Held-out texts to read, each with an id; a trial's batches share them between them,
            so that each is read once, whatever the number of batches.
        questions: What the metrics ask about cases and texts, each question once.
        before: What they ask the unedited model, whatever is edited; each question once.
        unmasked: The same cases, with the portability probes that others of them make wrong.
        units: What each metric that asks the model itself is to measure, by its name; a trial's
            batches share that as they share texts.
    """

    cases: tuple[EditCase, ...]
    texts: tuple[tuple[str, str], ...]
    questions: tuple[PlainQuestion, ...]
    before: tuple[PlainQuestion, ...] = ()
    unmasked: tuple[EditCase, ...] = ()
    units: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def asking(
        cls,
        cases: Sequence[EditCase],
        texts: Sequence[tuple[str, str]],
        questions: Iterable[Question],
        unmasked: Sequence[EditCase],
        units: Mapping[str, tuple[str, ...]],
    ) -> Self:
        """Tell questions that are put to the edited model from those to the unedited one."""
        asked = list(questions)
        return cls(
            tuple(cases),
            tuple(texts),
            questions=tuple(each for each in asked if not isinstance(each, Before)),
            before=tuple(each.question for each in asked if isinstance(each, Before)),
            unmasked=tuple(unmasked),
            units=units,
        )

    @property
    def n_masked(self) -> int:
        """How many portability probes of its cases others of them make wrong."""
        whole, kept = (
            sum(len(case.portability) for case in cases) for cases in (self.unmasked, self.cases)
        )
        return whole - kept

    @property
    def requests(self) -> list[EditRequest]:
        """What an editor is given."""
        return [case.request for case in self.cases]


def grid(
    *,
    models: Sequence[EditableModel],
    datasets: Sequence[Dataset],
    editors: Callable[[EditableModel], Sequence[Editor]],
    metrics: Callable[[Dataset], Sequence[AnyMetric]],
    n_edits: Sequence[int],
    seeds: Sequence[int],
    n_batches: Callable[[int], int] = lambda n_edits: 1,
    batch_size: int | None = None,
    checkpoints: Callable[[int], Sequence[int]] = lambda n_edits: (),
    stop_when: StopRule | None = None,
    relations: Sequence[tuple[str, ...]] = ((),),
    sample: Sample = "first",
    facts: Knowledge = "all",
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
        batch_size: How many of them are written at a time; None for all at once.
        checkpoints: After how many of a number of requests all so far are asked.
        stop_when: When a stream ends at a checkpoint; that of the unedited model goes to its end.
        relations: Groups of relations to take facts of; an empty group stands for all.
        sample: Whether cases are the dataset's first, or drawn with the seed.
        facts: Whether all facts are edited, or only those that a model knows, or does not know.
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
                batch_size=batch_size,
                checkpoints=tuple(checkpoints(n)),
                stop_when=None if isinstance(editor, Unedited) else stop_when,
                relations=group,
                sample=sample,
                facts=facts,
                on_conflict=on_conflict,
                inputs=Inputs() if isinstance(editor, Unedited) else given,
            )
            trials.setdefault(trial.hash, trial)
    return list(trials.values())
