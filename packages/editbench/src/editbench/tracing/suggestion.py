"""Critical layers of a model: where MLPs at the subject's last token do their work, as traced."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from editbench.errors import TraceError
from editbench.estimates import estimate_mean
from editbench.files.cache_entries import JsonEntry, name_entry
from editbench.models.editable import EditableModel
from editbench.progress import report_nothing
from editbench.tracing.effects import average_effects
from editbench.tracing.facts import KnownFact, hash_facts
from editbench.tracing.noise import measure_spread
from editbench.tracing.prompts import choose_known
from editbench.tracing.settings import TraceSettings
from editbench.tracing.tracer import Tracer
from editbench.tracing.traces import PromptTrace

RULE = (
    "from behind the last layer where the effect of the last subject token's state, with MLPs "
    "severed, is at most a fifth of its peak, to the first layer where it is at least nine tenths; "
    "of more than six layers the six in a row over which it climbs most"
)

_WHAT = "critical layers"
_FOOT = 0.2
_TOP = 0.9
_MOST_LAYERS = 6  # published ranges have five or six


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A range of critical layers, and what it was read off.

    Attributes:
        layers: R, ascending and contiguous.
        rule: How they follow from the effects, in words.
        severed_effects: By layer, the mean effect of the last subject token's state with MLPs
            severed: what the rule looks at.
        n_prompts: How many prompts the effects are averages over.
    """

    layers: tuple[int, ...]
    rule: str
    severed_effects: tuple[float, ...]
    n_prompts: int


def suggest_range(severed_effects: Sequence[float]) -> tuple[int, ...]:
    """Apply the rule: the layers over which the effect with severed MLPs climbs.

    Restoring the last subject token's state behind a low layer helps little when the MLPs above it
    are frozen: they had work to do. Behind a layer where all of that work is done, freezing them
    changes nothing. What lies between are the layers whose MLPs complete the subject. In a model
    that does so over half its depth, an update of all of them would spread its residual thinly.

    Args:
        severed_effects: By layer, effect of the last subject token's state with MLPs severed.

    Returns:
        The range, ascending.

    Raises:
        TraceError: No layer has a positive effect.
    """
    peak = max(severed_effects)
    if not peak > 0:
        raise TraceError(
            "suggest layers: no state of the last subject token has an effect with MLPs severed, "
            f"got at most {peak:.3g}. Choose layers by other means."
        )
    last = next(layer for layer, effect in enumerate(severed_effects) if effect >= _TOP * peak)
    feet = [layer for layer in range(last) if severed_effects[layer] <= _FOOT * peak]
    first = feet[-1] + 1 if feet else 0

    def climb(start: int) -> float:
        below = severed_effects[start - 1] if start else 0.0
        return severed_effects[start + length - 1] - below

    length = min(_MOST_LAYERS, last - first + 1)
    start = max(range(first, last - length + 2), key=climb)
    return tuple(range(start, start + length))


def suggest_from_traces(traces: Sequence[PromptTrace]) -> Suggestion:
    """Suggest critical layers from traces.

    Args:
        traces: Traces of one model with severed kinds.

    Raises:
        TraceError: The traces show no site at the last subject token, or no part of MLPs in it.
    """
    effects = average_effects(traces)
    severed = effects.profile("severed_mlp", "last_subject")
    hidden = effects.profile("hidden", "last_subject")
    if not severed or not hidden:
        raise TraceError(
            "suggest layers: the traces lack what the rule looks at, got no severed MLPs; expected "
            "traces with 'severed'. Trace again with all kinds."
        )
    layers = suggest_range([line.effect for line in severed])
    site = severed[layers[-1]]
    if site.n > 1 and not site.ci_low > 0:
        raise TraceError(
            "suggest layers: the effect at the last subject token cannot be told from zero, got "
            f"{site.effect:.3g} in [{site.ci_low:.3g}, {site.ci_high:.3g}] at layer {site.layer} "
            f"over {site.n} prompts. Trace more facts, or choose layers by other means."
        )
    gaps = np.stack(
        [
            trace.scores["hidden"][trace.prompt.subject[-1]] - trace.scores["severed_mlp"]
            for trace in traces
        ]
    )
    gap = estimate_mean(gaps[:, int(gaps.mean(axis=0).argmax())])
    if gap.n > 1 and not gap.low > 0:
        raise TraceError(
            "suggest layers: severing MLPs makes no difference at the last subject token, got a "
            f"gap of {gap.value:.3g} in [{gap.low:.3g}, {gap.high:.3g}] over {gap.n} "
            "prompts. Trace more facts, or choose layers by other means."
        )
    return Suggestion(
        layers=layers,
        rule=RULE,
        severed_effects=tuple(line.effect for line in severed),
        n_prompts=len(traces),
    )


def suggest_layers(
    model: EditableModel,
    facts: Sequence[KnownFact],
    *,
    n_facts: int,
    seed: int,
    n_samples: int = 10,
    cache: Path | None = None,
    on_progress: Callable[[str, int, int], None] = report_nothing,
) -> Suggestion:
    """Trace a model's facts at their last subject tokens, and suggest critical layers.

    Args:
        model: The model, as it is: with the edits that are on it.
        facts: Facts that it may know; those that it does not predict are left out.
        n_facts: How many that it predicts are traced, at most.
        seed: Source of the noise.
        n_samples: How many noise samples an effect is the mean over.
        cache: Folder in which a suggestion is kept by content of all of the above; None keeps none.
        on_progress: Told stage, prompts done and prompts in all.

    Raises:
        TraceError: The model predicts none of the facts; the traces show no site; or the cache
            cannot be written.
    """
    content = {
        "model": model.state,
        "tokenizer": model.tokens.fingerprint_of(chat=any(fact.chat for fact in facts)),
        "facts": hash_facts(facts),
        "n_facts": n_facts,
        "seed": seed,
        "n_samples": n_samples,
        "rule": RULE,
    }
    name = f"{name_entry(_WHAT, content)}.json"
    entry = None if cache is None else JsonEntry(cache / "critical_layers" / name, _WHAT)
    if entry is not None and (kept := entry.read(_decode)) is not None:
        return kept
    known = choose_known(model, facts, limit=n_facts)
    settings = TraceSettings(
        noise_level=3 * measure_spread(model, facts),
        n_samples=n_samples,
        window=1,
        noise_source="prompt",
        seed=seed,
        kinds=("hidden",),
    )
    tracer = Tracer(model, settings)
    traces = []
    for done, prompt in enumerate(known.prompts):
        on_progress("tracing for critical layers", done, len(known.prompts))
        traces.append(tracer.trace(prompt, only_last_subject=True))
    on_progress("tracing for critical layers", len(known.prompts), len(known.prompts))
    suggestion = suggest_from_traces(traces)
    if entry is not None:
        _write(entry, suggestion)
    return suggestion


def _decode(content: dict[str, Any]) -> Suggestion:
    return Suggestion(
        layers=tuple(content["layers"]),
        rule=content["rule"],
        severed_effects=tuple(content["severed_effects"]),
        n_prompts=content["n_prompts"],
    )


def _write(entry: JsonEntry, suggestion: Suggestion) -> None:
    try:
        entry.write(asdict(suggestion))
    except OSError as error:
        raise TraceError(
            f"suggest layers: cannot write {str(entry.path)!r} ({error.strerror or error}). Free "
            "space, choose another folder with --cache, or go without by --no-cache."
        ) from error
