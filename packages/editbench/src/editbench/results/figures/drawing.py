"""Which figures a report has, and their files."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from editbench.files.figure_files import figure_settings, render
from editbench.files.lines import lines_to_csv
from editbench.files.whole_files import write_whole
from editbench.results.figures import sweep
from editbench.results.figures.categories import draw_categories
from editbench.results.figures.dots import draw_demonstrations, draw_dots
from editbench.results.figures.mixing import draw_mixing
from editbench.results.figures.panels import Drawing
from editbench.results.figures.scorers import draw_scorers, has_scorers
from editbench.results.figures.selection import Point, Selection
from editbench.results.figures.style import SETTINGS
from editbench.results.manifest import TrialDescription
from editbench.results.report import Summary

FIGURES: Mapping[str, Callable[[Selection], Drawing]] = {
    "table1": lambda selection: draw_dots(selection, "Editors compared (as in Table 1)"),
    "table2": lambda selection: draw_dots(selection, "Editors compared (as in Table 2)"),
    "scaling": sweep.draw_scaling,
    "categories": draw_categories,
    "mixing": draw_mixing,
    "weight-decay": sweep.draw_weight_decay,
    "layers": sweep.draw_layers,
    "attention": sweep.draw_attention,
    "lambda": sweep.draw_preservation_weight,
    "demonstrations": draw_demonstrations,
    "editors": draw_dots,
}
"""Name of an experiment, or of a figure for runs that are of none, to what draws it."""

_OVER_DRAWS = {"mixing"}  # what is drawn over seeds, not once for each
_SWEPT = {
    sweep.MODULE: "attention",
    sweep.CRITICAL_LAYERS: "layers",
    sweep.PRESERVATION_WEIGHT: "lambda",
    sweep.WEIGHT_DECAY: "weight-decay",
}


@dataclass(frozen=True)
class RunFigure:
    """A figure that is yet to be drawn.

    Attributes:
        stem: What its files are called.
        draw: What draws it.
        selection: What goes into it.
    """

    stem: str
    draw: Callable[[Selection], Drawing]
    selection: Selection

    @contextmanager
    def drawn(self) -> Iterator[Drawing]:
        """Draw it, and keep matplotlib's settings for the length of a block that renders it."""
        with figure_settings(SETTINGS):
            yield self.draw(self.selection)


def draw_figures(summary: Summary, folder: Path) -> list[Path]:
    """Draw the figures of a report.

    Each experiment has its figure, and each model, dataset and seed its own of it, with a second
    one that compares scorers where texts were scored; seeds are never averaged, but for ``mixing``,
    whose draws they are. Trials that failed or have not been run are left out, and the caption
    counts them.

    Args:
        summary: The report.
        folder: Where the files go; made if missing.

    Returns:
        The files that were written: for each figure a PNG, an SVG, and a CSV of what is drawn. The
        same report gives the same bytes every time. None, if there are no numbers yet.
    """
    return [
        path for figure in choose_figures(summary) for path in _write(figure, folder / figure.stem)
    ]


def choose_figures(summary: Summary) -> Iterator[RunFigure]:
    """Which figures a report has, as `draw_figures` says; none if there are no numbers yet."""
    for name, trials in summary.experiments.items():
        known = {trial: summary.trials[trial] for trial in trials}
        kind = name if name in FIGURES else guess_figure(known.values())
        groups = _group(summary, known, by_seed=kind not in _OVER_DRAWS)
        for suffix, selection in groups:
            if selection.lines:
                stem = "_".join(filter(None, (_slug(name) or kind, suffix)))
                yield RunFigure(stem, FIGURES[kind], selection)
                if has_scorers(selection):
                    yield RunFigure(f"{stem}_scorers", draw_scorers, selection)


def guess_figure(trials: Collection[TrialDescription]) -> str:
    """The figure for trials of no known experiment: what varies between them decides."""
    trials = list(trials)
    relations = {description.relations for description in trials}
    if any(len(group) == 2 for group in relations) and len(relations) > 1:
        return "mixing"
    if len(relations) > 1:
        return "categories"
    for field, kind in _SWEPT.items():
        if _varies_within_editor(trials, field):
            return kind
    if len({description.n_edits for description in trials}) > 1:
        return "scaling"
    return "editors"


def _varies_within_editor(trials: Sequence[TrialDescription], field: str) -> bool:
    """Whether trials of one editor that agree in the number of edits differ in a field."""
    values: dict[tuple[str, int, int], set[str]] = {}
    for description in trials:
        value = description.flat().get(field)
        if value is not None:
            place = (description.editor, description.n_edits, description.seed)
            values.setdefault(place, set()).add(value)
    return any(len(distinct) > 1 for distinct in values.values())


def _group(
    summary: Summary, trials: Mapping[str, TrialDescription], *, by_seed: bool
) -> Iterable[tuple[str, Selection]]:
    """The trials of each model, dataset and seed, with what tells them apart as a file's suffix."""
    places: dict[tuple[object, ...], dict[str, TrialDescription]] = {}
    for trial, description in trials.items():
        place: tuple[object, ...] = (
            description.model,
            description.model_fingerprint,
            description.dataset,
            description.dataset_fingerprint,
            description.seed if by_seed else None,
        )
        places.setdefault(place, {})[trial] = description
    names = _name_apart(list(places))
    failed = {trial.trial for trial in summary.failed}
    for place, known in places.items():
        lines = tuple(line for line in summary.lines if line.trial in known)
        measured = {line.trial for line in lines}
        model, dataset, seed = place[0], place[2], place[4]
        about = [f"Model {model}", f"dataset {dataset}"]
        about += [f"seed {seed}"] if seed is not None else []
        yield (
            names[place],
            Selection(
                lines=lines,
                trials=known,
                metrics=summary.metrics,
                source=", ".join(about),
                n_failed=len(failed & known.keys()),
                n_missing=len(known.keys() - measured - failed),
            ),
        )


def _name_apart(places: Sequence[tuple[object, ...]]) -> dict[tuple[object, ...], str]:
    """For each place the parts in which places differ, short and fit for a file's name."""
    varying = [i for i in range(len(places[0])) if len({place[i] for place in places}) > 1]
    readable = {1: 0, 3: 2}  # a fingerprint need not be said where the name says it
    names = {}
    for place in places:
        parts = []
        for index in varying:
            name = readable.get(index)
            same_name = [p for p in places if name is None or p[name] == place[name]]
            if index == 4:
                parts.append(f"seed-{place[index]}")
            elif len({p[index] for p in same_name}) > 1:
                parts.append(_slug(str(place[index]))[: 8 if name is not None else None])
        names[place] = "_".join(parts)
    return names


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")


def _write(figure: RunFigure, stem: Path) -> list[Path]:
    with figure.drawn() as drawing:
        contents = render(drawing.figure)
        contents[".csv"] = lines_to_csv(Point, drawing.points).encode()
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, content in contents.items():
        path = stem.with_name(stem.name + suffix)
        write_whole(path, content)
        paths.append(path)
    return paths
