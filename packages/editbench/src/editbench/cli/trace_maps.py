"""Traces as heat maps of the HTML report."""

from collections.abc import Iterator
from pathlib import Path

from editbench.results.html.heat_map import HeatMap, HeatMapGroup
from editbench.tracing.effects import ROLE_NAMES, ROLES, Effects, average_effects
from editbench.tracing.folder import read_manifest, read_traces
from editbench.tracing.settings import KINDS, Kind, SeveredKind
from editbench.tracing.traces import PromptTrace

_MOST_PROMPTS = 20
_KIND_NAMES: dict[Kind | SeveredKind, str] = {
    "hidden": "hidden state",
    "mlp": "MLP outputs",
    "attention": "attention outputs",
    "severed_mlp": "hidden state, MLPs severed",
    "severed_attention": "hidden state, attention severed",
}


def map_trace(folder: Path) -> Iterator[HeatMapGroup]:
    """The averages of a trace folder, then its first prompts one by one.

    Nothing, if no prompt has been traced yet.

    Raises:
        TraceError: The folder is damaged.
    """
    manifest = read_manifest(folder)
    traces = read_traces(folder)
    if not traces:
        return
    planned = manifest.facts.get("n_prompts", len(traces))
    yield HeatMapGroup(
        title=f"{manifest.model['name']}: {len(traces)} prompts ({folder})",
        caption=(
            "Average indirect effect: how much of the answer's probability comes back when a "
            "state is restored in a run whose subject is corrupted, by role of the token and "
            f"layer (MLP and attention outputs: in a window of {manifest.settings.window} layers "
            "around it)."
            + (f" {len(traces)} of {planned} prompts are traced." if planned > len(traces) else "")
        ),
        maps=tuple(_map_averages(average_effects(traces))),
        is_open=True,
    )
    for trace in traces[:_MOST_PROMPTS]:
        yield HeatMapGroup(
            title=f"{''.join(trace.prompt.texts)} → {trace.prompt.answer_text}",
            caption=(
                f"Probability of the answer after restoring; {trace.high_score:.3f} in the clean "
                f"run, {trace.low_score:.3f} with the subject (marked *) corrupted."
            ),
            maps=tuple(_map_prompt(trace)),
            is_open=False,
        )


def _map_averages(effects: Effects) -> Iterator[HeatMap]:
    for kind in KINDS:
        profiles = {role: effects.profile(kind, role) for role in ROLES}
        rows = [role for role in ROLES if profiles[role]]
        if rows:
            yield HeatMap(
                title=f"Restored: {_KIND_NAMES[kind]}",
                row_heading="token",
                rows=tuple(ROLE_NAMES[role] for role in rows),
                column_heading="layer",
                columns=_layers(effects.n_layers),
                values=tuple(tuple(line.effect for line in profiles[role]) for role in rows),
                unit="effect",
            )
    kinds: tuple[Kind | SeveredKind, ...] = ("hidden", "severed_mlp", "severed_attention")
    severed = {kind: effects.profile(kind, "last_subject") for kind in kinds}
    if all(severed.values()):
        yield HeatMap(
            title="At the last subject token, with modules severed",
            row_heading="restored",
            rows=tuple(_KIND_NAMES[kind] for kind in kinds),
            column_heading="layer",
            columns=_layers(effects.n_layers),
            values=tuple(tuple(line.effect for line in severed[kind]) for kind in kinds),
            unit="effect",
        )


def _map_prompt(trace: PromptTrace) -> Iterator[HeatMap]:
    for kind in KINDS:
        if kind in trace.scores:
            scores = trace.scores[kind]
            yield HeatMap(
                title=f"Restored: {_KIND_NAMES[kind]}",
                row_heading="token",
                rows=tuple(
                    f"{text}*" if index in trace.prompt.subject else text
                    for index, text in enumerate(trace.prompt.texts)
                ),
                column_heading="layer",
                columns=_layers(scores.shape[1]),
                values=tuple(
                    tuple(None if value != value else float(value) for value in row)
                    for row in scores
                ),
                unit="probability",
            )


def _layers(n_layers: int) -> tuple[str, ...]:
    return tuple(map(str, range(n_layers)))
