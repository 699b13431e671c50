"""Critical layers of a model: traced once, and kept."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from editbench.errors import TraceError
from editbench.files.cache_entries import JsonEntry, name_entry
from editbench.models.editable import EditableModel
from editbench.tracing.facts import KnownFact, hash_facts
from editbench.tracing.noise import measure_spread
from editbench.tracing.prompts import choose_known
from editbench.tracing.settings import TraceSettings
from editbench.tracing.suggestion import Suggestion, suggest_from_traces
from editbench.tracing.tracer import Tracer

_WHAT = "critical layers"


def suggest_layers(
    model: EditableModel,
    facts: Sequence[KnownFact],
    *,
    n_facts: int,
    seed: int,
    n_samples: int = 10,
    cache: Path | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
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
    entry = None if cache is None else _find_entry(cache, model, facts, n_facts, seed, n_samples)
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
        if on_progress is not None:
            on_progress("tracing for critical layers", done, len(known.prompts))
        traces.append(tracer.trace(prompt, only_last_subject=True))
    if on_progress is not None:
        on_progress("tracing for critical layers", len(known.prompts), len(known.prompts))
    suggestion = suggest_from_traces(traces)
    if entry is not None:
        _write(entry, suggestion)
    return suggestion


def _find_entry(
    cache: Path,
    model: EditableModel,
    facts: Sequence[KnownFact],
    n_facts: int,
    seed: int,
    n_samples: int,
) -> JsonEntry:
    content = {
        "model": model.state,
        "tokenizer": model.tokens.fingerprint_of(chat=any(fact.chat for fact in facts)),
        "facts": hash_facts(facts),
        "n_facts": n_facts,
        "seed": seed,
        "n_samples": n_samples,
    }
    name = f"{name_entry(_WHAT, content)}.json"
    return JsonEntry(cache / "critical_layers" / name, _WHAT)


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
