"""Tracing many facts of one model into a folder."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from editbench.edits.card import package_versions
from editbench.models.editable import EditableModel
from editbench.tracing.facts import KnownFact, hash_facts
from editbench.tracing.folder import TraceStore, read_traces
from editbench.tracing.manifest import Trace, TraceManifest
from editbench.tracing.noise import measure_spread
from editbench.tracing.prompts import KnownPrompts, choose_known
from editbench.tracing.settings import (
    DEFAULT_NOISE,
    REFERENCE_WINDOW,
    TraceSettings,
    default_window,
    parse_noise,
)
from editbench.tracing.tracer import Tracer

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """What can be chosen about a trace; the rest follows from the model and its facts.

    Attributes:
        noise: A number, or a multiple of the spread of the subjects' embeddings such as ``3s``.
        n_samples: How many noise samples a score is the mean over.
        window: Layers of MLP or attention outputs restored together; None takes ten as in the
            paper, and fewer in shallow models unless `as_reference` is set.
        seed: Source of the noise.
        as_reference: Draw the noise as the reference does: one fixed draw for every prompt.
    """

    noise: str = DEFAULT_NOISE
    n_samples: int = 10
    window: int | None = None
    seed: int = 0
    as_reference: bool = False


def prepare_trace(
    model: EditableModel,
    facts: Sequence[KnownFact],
    options: TraceOptions,
    *,
    source: str,
    limit: int | None,
    provenance: Mapping[str, Any],
    on_progress: OnProgress,
) -> tuple[TraceManifest, KnownPrompts]:
    """Find out which facts the model knows, and how large the noise has to be.

    Of the facts that the model predicts `limit` are traced; None traces all of them. `source` is
    what to call them.

    Raises:
        ConfigError: The noise is no level.
        TraceError: The model predicts none of the facts.
    """
    level, is_multiple = parse_noise(options.noise)
    spread = measure_spread(model, facts) if is_multiple else None
    known = choose_known(
        model,
        facts,
        limit=limit,
        on_progress=lambda done, total: on_progress("asking for facts", done, total),
    )
    n_layers = model.architecture.n_layers
    window = REFERENCE_WINDOW if options.as_reference else default_window(n_layers)
    manifest = TraceManifest(
        created=datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
        provenance={
            "versions": package_versions(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "n_threads": torch.get_num_threads(),
            "device": str(model.device),
            **provenance,
        },
        model={
            "name": model.name,
            "fingerprint": model.state,
            "tokenizer_fingerprint": model.tokens.fingerprint_of(
                chat=any(fact.chat for fact in facts)
            ),
            "dtype": str(model.model.dtype).removeprefix("torch."),
            "n_layers": n_layers,
        },
        facts={
            "source": source,
            "hash": hash_facts(facts),
            "n_facts": len(facts),
            "n_asked": known.n_asked,
            "n_skipped": known.n_skipped,
            "n_prompts": len(known.prompts),
        },
        noise=options.noise,
        spread=spread,
        settings=TraceSettings(
            noise_level=level if spread is None else level * spread,
            n_samples=options.n_samples,
            window=options.window or window,
            noise_source="reference" if options.as_reference else "prompt",
            seed=options.seed,
        ),
    )
    return manifest, known


def trace_into(
    folder: Path,
    model: EditableModel,
    manifest: TraceManifest,
    known: KnownPrompts,
    *,
    resume: bool,
    on_progress: OnProgress,
) -> Trace:
    """Trace what is prepared, prompt by prompt, and store each as soon as it is traced.

    Raises:
        TraceError: The folder cannot be used; see `TraceStore.open`.
    """
    with TraceStore.open(folder, manifest, resume=resume) as store:
        tracer = Tracer(model, store.manifest.settings)
        for number, prompt in enumerate(known.prompts):
            on_progress("tracing", number, len(known.prompts))
            if not store.is_traced(number):
                store.write(number, tracer.trace(prompt))
        on_progress("tracing", len(known.prompts), len(known.prompts))
        return Trace(store.manifest, tuple(read_traces(folder)), tracer.replay_failure)
