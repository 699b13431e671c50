"""What tables and figures call metrics, and the order in which the paper lists things."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from editbench.results.manifest import MetricDescription

EDITOR_ORDER = ("unedited", "ft-w", "mend", "rome", "memit")
"""As in the paper's tables; other editors come after these."""

UNEDITED = "unedited"

_PERCENT = (0.0, 100.0)


@dataclass(frozen=True, slots=True)
class MetricLabel:
    """How a metric is written.

    Attributes:
        metric: Its name in rows and lines.
        symbol: The paper's abbreviation, or the name of a metric that the paper does not have.
        quantity: What it is about, as the paper's tables head it; empty if the paper has none.
        meaning: What the symbol stands for.
        unit: Its unit; empty for a bare number.
        higher_is_better: Which of two values is the better one.
    """

    metric: str
    symbol: str
    quantity: str
    meaning: str
    unit: str
    higher_is_better: bool

    @property
    def heading(self) -> str:
        """Symbol and the paper's arrow: where better is."""
        return f"{self.symbol} {'↑' if self.higher_is_better else '↓'}"

    @property
    def axis(self) -> str:
        """Symbol and unit."""
        return f"{self.symbol} ({self.unit})" if self.unit else self.symbol

    @property
    def axis_heading(self) -> str:
        """Symbol, unit and arrow."""
        return f"{self.axis} {self.heading[-1]}"

    @property
    def is_rate(self) -> bool:
        """Whether it goes from 0 to 100 %."""
        return self.unit == "%"


# In the order of the paper's tables: metric, symbol, quantity, meaning, unit (None: see bounds).
_KNOWN = (
    ("score", "S", "Score", "editing score", None),
    ("efficacy_success", "ES", "Efficacy", "efficacy success", None),
    ("paraphrase_success", "PS", "Paraphrase", "paraphrase success", None),
    ("neighborhood_success", "NS", "Specificity", "neighborhood success", None),
    ("accuracy_score", "SA", "Score", "score of accuracies", None),
    ("efficacy_accuracy", "EA", "Efficacy", "efficacy accuracy", None),
    ("paraphrase_accuracy", "PA", "Paraphrase", "paraphrase accuracy", None),
    ("neighborhood_accuracy", "NA", "Specificity", "neighborhood accuracy", None),
    ("portability_accuracy", "PoA", "Portability", "accuracy of what follows", None),
    ("portability_generation", "PoG", "Portability", "what follows in own words", None),
    ("reasoning_accuracy", "RA", "Reasoning", "accuracy of inferences", None),
    ("aliasing_accuracy", "AA", "Aliasing", "accuracy under other names of the subject", None),
    ("reversal_accuracy", "RevA", "Reversal", "accuracy of reversed facts", None),
    ("multi_hop_accuracy", "MHA", "Multi-hop", "accuracy over further facts", None),
    ("generation_score", "SG", "Score", "score of generations", None),
    ("efficacy_generation", "EG", "Efficacy", "efficacy in own words", None),
    ("paraphrase_generation", "PG", "Paraphrase", "paraphrase in own words", None),
    ("neighborhood_generation", "NG", "Specificity", "neighborhood in own words", None),
    ("generation_exact_score", "SX", "Score", "score of exact generations", None),
    ("efficacy_generation_exact", "EX", "Efficacy", "efficacy in the very words", None),
    ("paraphrase_generation_exact", "PX", "Paraphrase", "paraphrase in the very words", None),
    ("neighborhood_generation_exact", "NX", "Specificity", "neighborhood in the very words", None),
    ("neighborhood_plus_success", "NS+", "Specificity", "NS behind the edited sentence", "%"),
    ("neighborhood_plus_margin", "NM+", "Specificity", "P(true) − P(new) there", "points"),
    ("neighborhood_divergence", "NKL", "Specificity", "divergence on neighbors", "nats"),
    ("text_divergence", "TKL", "Divergence", "divergence on held-out text", "nats"),
    ("generation_entropy", "GE", "Fluency", "generation entropy", "bits × 100"),
    ("reference_score", "RS", "Consistency", "reference score", "cosine × 100"),
    ("perplexity", "PPL", "Perplexity", "perplexity of held-out text", ""),
)


def label_metrics(
    present: Iterable[str], metrics: Sequence[MetricDescription]
) -> list[MetricLabel]:
    """Labels of row metrics and scores, in the order of the paper's tables; others come last.

    Where what a model writes by itself is among them, all that measures one quality stands
    together: how likely the answer is, whether it is the likeliest, whether it is said.
    """
    names = list(dict.fromkeys(present))
    known = {entry[0]: entry[1:] for entry in _KNOWN}
    ordered = [name for name in known if name in names]
    if any("_generation" in name for name in names):
        qualities = list(dict.fromkeys(entry[2] for entry in _KNOWN))
        ordered.sort(key=lambda name: qualities.index(known[name][1]))
    ordered += [name for name in names if name not in known]
    labels = []
    for name in ordered:
        description = _describe(name, metrics)
        is_rate = description is not None and description.bounds == _PERCENT
        symbol, quantity, meaning, unit = known.get(name, (name, "", "", None))
        labels.append(
            MetricLabel(
                metric=name,
                symbol=symbol,
                quantity=quantity,
                meaning=meaning,
                unit=("%" if is_rate else "") if unit is None else unit,
                higher_is_better=description is None or description.higher_is_better,
            )
        )
    return labels


def choose_score(present: Iterable[str]) -> str | None:
    """The metric that sums up an editor: a score if there is one, else the first metric."""
    names = list(present)
    scores = (name for name in ("score", "accuracy_score") if name in names)
    return next(scores, names[0] if names else None)


def editor_rank(editor: str) -> int:
    """Where an editor stands among others, for sorting."""
    return EDITOR_ORDER.index(editor) if editor in EDITOR_ORDER else len(EDITOR_ORDER)


def explain_symbols(labels: Iterable[MetricLabel], metrics: Sequence[MetricDescription]) -> str:
    """One sentence that says what the symbols stand for, in which units, and where better is."""
    labels = list(labels)
    symbols = {label.metric: label.symbol for label in labels}
    parts = []
    for label in labels:
        if not label.meaning:
            continue
        description = _describe(label.metric, metrics)
        of = description.aggregates.get(label.metric, ()) if description else ()
        meaning = label.meaning
        if of:
            meaning = f"harmonic mean of {', '.join(symbols.get(part, part) for part in of)}"
        unit = f" ({label.unit})" if label.unit and not label.is_rate else ""
        parts.append(f"{label.symbol}: {meaning}{unit}")
    if not parts:
        return ""
    rates = " Rates in %." if any(label.is_rate for label in labels) else ""
    return f"{'; '.join(parts)}.{rates}"


def _describe(name: str, metrics: Sequence[MetricDescription]) -> MetricDescription | None:
    found = (m for m in metrics if name in m.produces or name in m.aggregates)
    return next(found, None)
