"""What goes into one figure, and what comes out of it as numbers."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from editbench.results.labels import (
    UNEDITED,
    MetricLabel,
    choose_score,
    editor_rank,
    label_metrics,
)
from editbench.results.manifest import MetricDescription, TrialDescription
from editbench.results.report import SummaryLine
from editbench.results.stream_lines import ChangeLine, RetentionLine

_OVER_TEXTS = "perplexity"
_NOT_A_SERIES = {"n_batches", "model", "versions"}
"""Fields that may differ along a line without making it two lines."""


@dataclass(frozen=True, slots=True)
class Point:
    """A number as it is drawn, and a line of the CSV file beside the figure.

    Attributes:
        panel: The panel's title.
        series: The series, as the legend names it.
        x: Where it is drawn, if that is not the series or the value itself.
        metric: A row metric or a score.
        value: The number.
        ci_low: Lower end of its confidence interval; None if there is none.
        ci_high: Upper end; None likewise.
        n: How many cases, or draws, it is over.
    """

    panel: str
    series: str
    x: float | str
    metric: str
    value: float
    ci_low: float | None
    ci_high: float | None
    n: int


@dataclass(frozen=True)
class Selection:
    """What goes into one figure.

    Attributes:
        lines: Numbers of its trials; of streams, at all of their checkpoints.
        trials: Every trial that belongs into it by hash, whether it has numbers or not.
        metrics: What is known about the metrics.
        source: Model, dataset and seed in words.
        n_failed: How many of the trials failed.
        n_missing: How many have not been run yet.
        retention: Numbers by the age of facts, of streams.
        changes: What streams do to weights and keys.
    """

    lines: tuple[SummaryLine, ...]
    trials: Mapping[str, TrialDescription]
    metrics: tuple[MetricDescription, ...]
    source: str
    n_failed: int
    n_missing: int
    retention: tuple[RetentionLine, ...] = ()
    changes: tuple[ChangeLine, ...] = ()

    @property
    def labels(self) -> list[MetricLabel]:
        """The metrics that there are numbers of, in the paper's order."""
        return label_metrics((line.metric for line in self.lines), self.metrics)

    def label(self, metric: str) -> MetricLabel:
        """The label of one metric."""
        return label_metrics([metric], self.metrics)[0]

    def of_metric(self, metric: str) -> list[SummaryLine]:
        """The lines of one metric, editors in the paper's order."""
        lines = [line for line in self.lines if line.metric == metric]
        return sorted(lines, key=lambda line: editor_rank(line.editor))

    @property
    def measured_on(self) -> str:
        """Over how many cases the numbers are, and over how many texts where that differs."""
        score = choose_score(line.metric for line in self.lines)
        n_cases = describe_range(line.n for line in self.lines if line.metric == score)
        n_texts = describe_range(line.n for line in self.lines if line.metric == _OVER_TEXTS)
        texts = f" (PPL on {n_texts} texts)" if n_texts not in ("0", n_cases) else ""
        return f"measured on {n_cases} cases{texts}"

    @property
    def n_edits(self) -> str:
        """How many edits were made at once: a number or a range."""
        return describe_range(line.n_edits for line in self.lines)

    def order(self, series: Mapping[str, str]) -> list[str]:
        """Series that there are numbers of: editors in the paper's order, the unedited model last.

        Its last editor comes first, so that what is drawn later does not cover it.
        """
        rank: dict[str, tuple[bool, int]] = {}
        present = {line.trial for line in self.lines}
        for trial, name in series.items():
            if trial in present:
                editor = self.trials[trial].editor
                rank.setdefault(name, (editor == UNEDITED, -editor_rank(editor)))
        return sorted(rank, key=lambda name: rank[name])

    def describe(self, *sentences: str, how: str = "") -> str:
        """The caption: n, the figure's own sentences, where it is from, what is missing.

        `how` says how the edits were made and measured, where that has to be said in other words.
        """
        edits = f"n = {self.n_edits} edits{how or f' at once, {self.measured_on}.'}"
        gaps = [
            f"{number} of {len(self.trials)} trials {what}"
            for number, what in ((self.n_failed, "failed"), (self.n_missing, "not run yet"))
            if number
        ]
        missing = f"{', '.join(gaps)}." if gaps else ""
        return " ".join(filter(None, [edits, *sentences, f"{self.source}.", missing]))


def describe_range(numbers: Iterable[int]) -> str:
    """A number, or the smallest and largest of several."""
    distinct = sorted(set(numbers))
    if not distinct:
        return "0"
    low, high = distinct[0], distinct[-1]
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def name_series(trials: Mapping[str, TrialDescription], swept: Collection[str]) -> dict[str, str]:
    """What a legend calls the line that each trial is a point of.

    It is the editor's name. Where an editor has several trials at the same place, what differs
    between them is added. The unedited model has no settings. `swept` are the fields that tell
    places apart, as in `TrialDescription.flat`.
    """
    flat = {trial: description.flat() for trial, description in trials.items()}
    places: defaultdict[tuple[object, ...], list[dict[str, str]]] = defaultdict(list)
    for trial, description in trials.items():
        place = tuple(flat[trial].get(field) for field in swept)
        places[(description.editor, *place)].append(flat[trial])
    differing: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for (editor, *_), group in places.items():
        if editor == UNEDITED:
            continue
        for field in dict.fromkeys(field for content in group for field in content):
            known = field.split(".")[0] in _NOT_A_SERIES
            if not known and len({content.get(field) for content in group}) > 1:
                differing[str(editor)][field] = None
    return {
        trial: ", ".join(
            [
                description.editor,
                *(_write_field(f, flat[trial].get(f)) for f in differing[description.editor]),
            ]
        )
        for trial, description in trials.items()
    }


def make_points(
    lines: Sequence[SummaryLine],
    panel: str,
    series: Mapping[str, str],
    x: Callable[[SummaryLine], float | str] = lambda line: "",
) -> list[Point]:
    """Points for the lines of a panel, in the series of their trials."""
    return [
        Point(
            panel,
            series[line.trial],
            x(line),
            line.metric,
            line.value,
            line.ci_low,
            line.ci_high,
            line.n,
        )
        for line in lines
    ]


def _write_field(field: str, value: str | None) -> str:
    if value is None:
        return f"{field.removeprefix('config.')} unset"
    if field == "n_edits":
        return f"{int(value):,} edits"
    return f"{field.removeprefix('config.').replace('_', ' ')} {value.strip(chr(34))}"
