"""Which columns a table has, and what they are called: the conventions of those who publish."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from editbench.results.labels import MetricLabel

Style = Literal["paper", "alphaedit", "easyedit", "honest"]

_SUCCESS = ("efficacy_success", "paraphrase_success", "neighborhood_success")
_ACCURACY = ("efficacy_accuracy", "paraphrase_accuracy", "neighborhood_accuracy")
_KINDS = tuple(zip(_SUCCESS, _ACCURACY, strict=True))

# Heading, and the metrics of which the first that was measured stands below it.
_COLUMNS: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "paper": (
        ("S", ("score", "accuracy_score")),
        ("ES", _KINDS[0]),
        ("PS", _KINDS[1]),
        ("NS", _KINDS[2]),
        ("GE", ("generation_entropy",)),
        ("RS", ("reference_score",)),
    ),
    "alphaedit": (
        ("Eff.", _KINDS[0]),
        ("Gen.", _KINDS[1]),
        ("Spe.", _KINDS[2]),
        ("Flu.", ("generation_entropy",)),
        ("Consis.", ("reference_score",)),
    ),
    "easyedit": (
        ("Rel.", ("efficacy_accuracy",)),
        ("Gen.", ("paraphrase_accuracy",)),
        ("Loc.", ("neighborhood_accuracy",)),
        ("Port.", ("portability_accuracy",)),
        ("Fluency", ("generation_entropy",)),
    ),
}
_QUALITIES = ("Score", "Efficacy", "Paraphrase", "Specificity")


def style_labels(labels: Sequence[MetricLabel], style: Style) -> list[MetricLabel]:
    """The labels of a table's columns, in their order, under the names that a convention has.

    ``honest`` has all that was measured, by what it is about: every scorer of a quality beside the
    others. The others have no more than their authors print; a column that was not measured is
    left out.
    """
    if style == "honest":
        rank = {quality: place for place, quality in enumerate(_QUALITIES)}
        return sorted(labels, key=lambda label: rank.get(label.quantity, len(rank)))
    by_metric = {label.metric: label for label in labels}
    styled = []
    for heading, metrics in _COLUMNS[style]:
        found = next((by_metric[metric] for metric in metrics if metric in by_metric), None)
        if found is not None:
            styled.append(replace(found, symbol=heading, meaning=found.meaning or found.metric))
    return styled
