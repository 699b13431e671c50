"""The slot of targets: what a batch is to reach, and how far from it the model is at each layer."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from editbench.editors.closed_form.norm_behind import NormBehind
from editbench.editors.targets.optimizer import FinishedTarget
from editbench.editors.targets.settings import TargetSettings
from editbench.edits.files import Update
from editbench.requests import EditRequest

_ON_THE_BALL = 1 - 1e-4  # of the bound on ‖δ‖: what lies beyond was projected


@dataclass(frozen=True)
class Measured:
    """What a layer is to do for a batch, with the weights as they are now; a row is a fact.

    Attributes:
        keys: K `[n_edits, d_key]`.
        target: What is wanted, `[n_edits, d_value]`.
        current: What there is instead, likewise.
        norm: The norm that what a weight adds goes through before it counts as `current`.
    """

    keys: Tensor
    target: Tensor
    current: Tensor
    norm: NormBehind | None = None


class Goal(Protocol):
    """What some facts are to reach, layer by layer."""

    @property
    def outcomes(self) -> Sequence[FinishedTarget]:
        """What came of each fact's target."""

    @property
    def refused(self) -> Mapping[int, str]:
        """Why a target asks for nothing, where one does, by the fact's place."""

    def describe(self, layer: int) -> str:
        """Say what is being written where, for messages."""

    def measure(self, layer: int) -> Measured:
        """Measure what a layer is to do; layers are asked for in ascending order."""

    def finish(self) -> None:
        """Note that all layers have been written to."""


@dataclass(frozen=True)
class Solved:
    """The update of one layer as it was solved for, before anything is done to it.

    Attributes:
        layer: The layer.
        update: Δ `[d_value, d_key]`.
        weight: The weight as it was before the batch, likewise.
        earlier: The sum of all updates of earlier batches; None if there were none.
        goal: What Δ is for.
        kept: What a finish keeps of this layer from batch to batch; empty at the first one.
    """

    layer: int
    update: Update
    weight: Tensor
    earlier: Update | None
    goal: Goal
    kept: dict[str, Any]


class Targets(Protocol):
    """Finds goals, on the model as edited so far; what it has found out about it holds a stream."""

    @property
    def replay_failure(self) -> str | None:
        """Why suffix replay could not be used; None where it was."""

    @property
    def carried(self) -> Mapping[str, Any]:
        """What later batches depend on besides the model, as JSON values."""

    def go_on_from(self, carried: Mapping[str, Any]) -> None:
        """Take `carried` of an earlier stream back."""

    def measure_keys(self, requests: Sequence[EditRequest]) -> Mapping[int, Tensor]:
        """K `[n_edits, d_key]` of facts by layer, as goals measure it, on the model as it is."""

    def aim(self, requests: Sequence[EditRequest]) -> Generator[Goal, None, None]:
        """Find what a batch is to reach: all facts at once, or one part after another.

        What a part of them changes is on the model before the next one is asked for.

        Raises:
            EditError: A target is not finite.
        """


def judge_target(outcome: FinishedTarget, settings: TargetSettings) -> str:
    """What became of a fact's target: ``written``, ``clamped`` or ``stopped early``."""
    if outcome.n_steps < settings.n_steps:
        return "stopped early"
    bound = settings.clamp_factor * outcome.initial.norm()
    is_clamped = bool((outcome.state - outcome.initial).norm() >= _ON_THE_BALL * bound)
    return "clamped" if is_clamped else "written"
