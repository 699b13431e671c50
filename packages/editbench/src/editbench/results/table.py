"""A report as a table in the terminal."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from editbench.results.manifest import MetricDescription
from editbench.results.report import FailedTrial, Summary, SummaryLine

_SETTING: Mapping[str, Callable[[SummaryLine], str]] = {
    "model": lambda line: line.model,
    "dataset": lambda line: line.dataset,
    "relations": lambda line: line.relations,
    "edits": lambda line: str(line.n_edits),
    "seed": lambda line: str(line.seed),
}


def draw_table(summary: Summary) -> RenderableType:
    """Draw trials as rows and metrics as columns.

    Each number stands with the larger half of its 95 % interval. Within trials of the same model,
    dataset, number of edits and seed, the best number of each metric is bold. Settings in which no
    two trials differ stand in the title.
    """
    settings = {_setting(line) for line in summary.lines}
    columns = {
        name: index
        for index, name in enumerate(_SETTING)
        if len({setting[index] for setting in settings}) > 1
    }
    metrics = list(dict.fromkeys(line.metric for line in summary.lines))
    table = Table(title=_title(summary.lines, columns), title_justify="left", pad_edge=False)
    for name in columns:
        table.add_column(name)
    table.add_column("editor")
    for metric in metrics:
        table.add_column(_heading(metric), justify="right")
    for setting in dict.fromkeys(_setting(line) for line in summary.lines):
        lines = [line for line in summary.lines if _setting(line) == setting]
        best = _best(lines, summary.metrics)
        for trial in dict.fromkeys(line.trial for line in lines):
            of_trial = {line.metric: line for line in lines if line.trial == trial}
            numbers = [_number(of_trial.get(metric), best) for metric in metrics]
            first = next(iter(of_trial.values()))
            cells = [Text(setting[index]) for index in columns.values()]
            table.add_row(*cells, _name(first), *numbers)
        table.add_section()
    parts: list[RenderableType] = [table] if summary.lines else []
    return Group(*parts, *_remarks(summary))


def _setting(line: SummaryLine) -> tuple[str, ...]:
    return tuple(show(line) for show in _SETTING.values())


def _title(lines: Sequence[SummaryLine], columns: Iterable[str]) -> Text:
    if not lines:
        return Text()
    shared = [
        f"{name} {show(lines[0])}"
        for name, show in _SETTING.items()
        if name not in columns and show(lines[0])
    ]
    return Text(", ".join([*shared, "± half of the 95 % interval"]))


def _heading(metric: str) -> Text:
    return Text(metric.replace("_", "\n", 1))


def _name(line: SummaryLine) -> Text:
    name = Text(line.editor)
    if line.variant:
        name.append(f" ({line.variant})", style="dim")
    if line.status == "no_effect" and line.editor != "unedited":
        name.append(" changed nothing", style="yellow")
    return name


def _number(line: SummaryLine | None, best: Mapping[str, float]) -> Text:
    if line is None:
        return Text("–", style="dim")
    number = Text(f"{line.value:.1f}", style="bold" if line.value == best[line.metric] else "")
    if line.ci_low is None or line.ci_high is None:
        return number
    half_width = max(line.value - line.ci_low, line.ci_high - line.value)
    return number.append(f" ± {half_width:.1f}", style="not bold dim")


def _best(lines: Sequence[SummaryLine], metrics: Sequence[MetricDescription]) -> dict[str, float]:
    lower_is_better = {
        name
        for metric in metrics
        if not metric.higher_is_better
        for name in (*metric.produces, *metric.aggregates)
    }
    values: dict[str, list[float]] = {}
    for line in lines:
        values.setdefault(line.metric, []).append(line.value)
    return {
        metric: min(found) if metric in lower_is_better else max(found)
        for metric, found in values.items()
    }


def _remarks(summary: Summary) -> list[Text]:
    remarks = [Text(_failure(trial), style="red") for trial in summary.failed]
    if summary.n_missing:
        remarks.append(Text(f"{summary.n_missing} trial(s) have not been run yet.", style="yellow"))
    return remarks


def _failure(trial: FailedTrial) -> str:
    variant = f" ({trial.variant})" if trial.variant else ""
    return f"{trial.description.label}{variant} failed: {trial.message}"
