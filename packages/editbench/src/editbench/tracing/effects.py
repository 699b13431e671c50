"""Traces of many prompts averaged: by role of the token, kind and layer, with 95 % intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from editbench.estimates import Estimate, Floats, estimate_mean
from editbench.tracing.settings import KINDS, SEVERED_KINDS, Kind, SeveredKind
from editbench.tracing.traces import PromptTrace

Role = Literal[
    "first_subject", "middle_subject", "last_subject", "first_subsequent", "further", "last"
]
"""What a token is in its prompt; those before the subject have no role, and no effect."""

ROLES: tuple[Role, ...] = get_args(Role)
ROLE_NAMES: Mapping[Role, str] = {
    "first_subject": "first subject token",
    "middle_subject": "middle subject tokens",
    "last_subject": "last subject token",
    "first_subsequent": "first subsequent token",
    "further": "further tokens",
    "last": "last token",
}


@dataclass(frozen=True, slots=True)
class EffectLine:
    """The average indirect effect of one kind of state, at tokens of one role, in one layer.

    Attributes:
        kind: What was restored.
        role: Where.
        layer: In which layer, or the window around it.
        effect: Mean score less mean low score: how much probability of the answer came back.
        ci_low: Lower end of its 95 % confidence interval.
        ci_high: Upper end.
        n: How many prompts have a token of this role.
    """

    kind: Kind | SeveredKind
    role: Role
    layer: int
    effect: float
    ci_low: float
    ci_high: float
    n: int


@dataclass(frozen=True)
class Effects:
    """Averages over traces.

    Attributes:
        n_layers: How deep the model is.
        clean: Probability of the answer in the clean run.
        corrupted: The same with the subject corrupted: the mean low score.
        lines: One for each kind, role and layer.
    """

    n_layers: int
    clean: Estimate
    corrupted: Estimate
    lines: tuple[EffectLine, ...]

    def profile(self, kind: Kind | SeveredKind, role: Role) -> list[EffectLine]:
        """The lines of one kind and role, by layer; empty where no token has that role."""
        return [line for line in self.lines if line.kind == kind and line.role == role]


def token_roles(n_tokens: int, subject: range) -> dict[Role, range]:
    """Which tokens of a prompt have which role.

    A subject of one token is its own first and last; a single token after the subject is the first
    subsequent and the last one. Where the subject ends the prompt, its last token is the last.
    """
    roles: dict[Role, range] = {
        "first_subject": subject[:1],
        "middle_subject": subject[1:-1],
        "last_subject": subject[-1:],
        "first_subsequent": range(subject.stop, min(subject.stop + 1, n_tokens)),
        "further": range(subject.stop + 1, n_tokens - 1),
        "last": range(n_tokens - 1, n_tokens),
    }
    return {role: tokens for role, tokens in roles.items() if len(tokens)}


def average_effects(traces: Sequence[PromptTrace]) -> Effects:
    """Average traces of one model.

    The effect of a role in a prompt is the mean over its tokens; prompts weigh the same, however
    many tokens they have, and the interval is over prompts.

    Args:
        traces: Traces of the same kinds; at least one.
    """
    (n_layers,) = {scores.shape[-1] for trace in traces for scores in trace.scores.values()}
    lines: list[EffectLine] = []
    for kind in (*KINDS, *SEVERED_KINDS):
        for role in ROLES:
            rows = [row for trace in traces if (row := _effect_of(trace, kind, role)) is not None]
            if not rows:
                continue
            effects = np.stack(rows)
            for layer in range(n_layers):
                mean = estimate_mean(effects[:, layer])
                lines.append(EffectLine(kind, role, layer, mean.value, mean.low, mean.high, mean.n))
    return Effects(
        n_layers=n_layers,
        clean=estimate_mean(np.array([trace.high_score for trace in traces])),
        corrupted=estimate_mean(np.array([trace.low_score for trace in traces])),
        lines=tuple(lines),
    )


def _effect_of(trace: PromptTrace, kind: Kind | SeveredKind, role: Role) -> Floats | None:
    """By layer, the mean effect over a prompt's tokens of a role; None if there are none."""
    if kind not in trace.scores:
        return None
    scores = trace.scores[kind] - trace.low_score
    if scores.ndim == 1:  # severed kinds are traced at the last subject token alone
        return scores if role == "last_subject" else None
    tokens = token_roles(len(scores), trace.prompt.subject).get(role)
    if tokens is None or np.isnan(scores[tokens.start : tokens.stop]).any():
        return None
    return scores[tokens.start : tokens.stop].mean(axis=0)
