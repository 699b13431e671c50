"""Targets in the residual stream: z by optimization, for all facts of a batch at once."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from editbench.editors.base import Resources
from editbench.editors.closed_form.config import ClosedFormConfig
from editbench.editors.closed_form.goals import Measured
from editbench.editors.closed_form.norm_behind import NormBehind
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.keys.layer_sweep import LayerSweep, SweepChecks
from editbench.editors.keys.reading import read_at_subjects
from editbench.editors.subject_tokens import key_row
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.optimizer import (
    FinishedTarget,
    TargetOptimizer,
    refuse_overflowed,
)
from editbench.editors.targets.target_hidden import TargetHidden, optimize_target_hidden
from editbench.models.editable import EditableModel
from editbench.progress import Progress
from editbench.replay.offset_forward import OffsetSite
from editbench.requests import EditRequest

STAGE = "insertion"
_DROPPED_NORMS = 0.05  # of all, the largest
_FARTHEST = 2.0  # times the anchor: from there on a value is an outlier, and not written


@dataclass(frozen=True)
class _Aim:
    """z of some facts at one layer, and the stored forward that shows how far it is."""

    found: TargetHidden
    states: Tensor
    refused: Mapping[int, str]
    norms: Mapping[int, NormBehind | None]
    sweep: LayerSweep


class HiddenGoal:
    """z of a batch: at the last layer for all of them, or at each for itself.

    Args:
        aim: Finds z at a layer, on the model as it is.
        layers: The layers.
        at_each: Whether each has a z of its own.
        report_progress: Told about layers.
    """

    def __init__(
        self, aim: "_AimAt", layers: Sequence[int], *, at_each: bool, report_progress: Progress
    ) -> None:
        self._aim_at = aim
        self._layers = layers
        self._at_each = at_each
        self._report_progress = report_progress
        self._aimed_at = layers[0] if at_each else layers[-1]
        self._aim = aim(self._aimed_at, self._aimed_at if at_each else layers[0])

    @property
    def outcomes(self) -> Sequence[FinishedTarget]:
        """What came of each fact's target, the last one's where there are several."""
        return self._aim.found.outcomes

    @property
    def refused(self) -> Mapping[int, str]:
        """See `Goal.refused`."""
        return self._aim.refused

    def describe(self, layer: int) -> str:
        """Name the layer."""
        return f"layer {layer}"

    def measure(self, layer: int) -> Measured:
        """Keys of the layer, and z and h."""
        done = self._layers.index(layer)
        self._report_progress(STAGE, done, len(self._layers), f"layer {layer}")
        if self._at_each and layer != self._aimed_at:
            self._aim, self._aimed_at = self._aim_at(layer, layer), layer
        keys, hidden = self._aim.sweep.measure(layer)
        return Measured(keys, self._aim.states, hidden, self._aim.norms[layer])

    def finish(self) -> None:
        """Report that all layers are done."""
        self._report_progress(STAGE, len(self._layers), len(self._layers))


class _AimAt(Protocol):
    def __call__(self, layer: int, first: int) -> _Aim:
        """Find z at `layer`, for keys from layer `first` on."""


@dataclass
class _Known:
    """What has been found out about one layer, and holds a stream."""

    optimizer: TargetOptimizer
    checks: SweepChecks = field(default_factory=SweepChecks)


class HiddenTargets:
    """Finds z of batches, see `optimize_target_hidden`.

    Args:
        editor: The editor's name, for messages.
        model: The model.
        config: How z is optimized, and the layers.
        prefixes: Context prefixes.
        resources: Cache and progress.
    """

    def __init__(
        self,
        editor: str,
        model: EditableModel,
        config: ClosedFormConfig,
        prefixes: ContextPrefixes,
        resources: Resources,
    ) -> None:
        self._editor = editor
        self._model = model
        self._config = config
        self._prefixes = prefixes
        self._resources = resources
        self._anchor = config.norm_anchor
        self._known = {
            layer: _Known(
                TargetOptimizer(model, OffsetSite.block_output(model, layer), config, replay=True)
            )
            for layer in config.layers_of_targets
        }
        self._norms = {
            layer: NormBehind.find(model, layer, config.module) for layer in config.critical_layers
        }

    @property
    def replay_failure(self) -> str | None:
        """Why suffix replay could not be used; None where it was."""
        return next(iter(self._known.values())).optimizer.replay_failure

    def optimize(self, requests: Sequence[EditRequest], layer: int) -> TargetHidden:
        """Find z of some facts at a layer, and keep it in the cache."""
        config = self._config
        return optimize_target_hidden(
            self._model,
            requests,
            layer=layer,
            settings=config,
            prefixes=self._prefixes.flat,
            cache=TargetCache.of(self._resources),
            report_progress=self._resources.report_progress,
            share_subjects=config.share_subjects,
            warm_start=config.warm_start,
            optimizer=self._known[layer].optimizer,
        )

    def aim(self, requests: Sequence[EditRequest]) -> Generator[HiddenGoal, None, None]:
        """Find z of all facts of a batch."""

        def aim_at(layer: int, first: int) -> _Aim:
            return self._aim_at(requests, layer, first)

        yield HiddenGoal(
            aim_at,
            self._config.critical_layers,
            at_each=self._config.target_layers == "each",
            report_progress=self._resources.report_progress,
        )

    def _aim_at(self, requests: Sequence[EditRequest], layer: int, first: int) -> _Aim:
        config, model = self._config, self._model
        found = self.optimize(requests, layer)
        refuse_overflowed(self._editor, model, requests, found.finite.tolist())
        states, refused = self._anchored(requests, layer, found)
        sweep = LayerSweep(
            model,
            requests,
            self._prefixes,
            config.key_weighting,
            first=first,
            last=layer,
            module=config.module,
            initial=found.initial,
            checks=self._known[layer].checks,
        )
        return _Aim(found, states.to(model.device), refused, self._norms, sweep)

    def _anchored(
        self, requests: Sequence[EditRequest], layer: int, found: TargetHidden
    ) -> tuple[Tensor, Mapping[int, str]]:
        """z, and with a norm anchor a: v₀ + δ brought to it, see `anchor_norms`."""
        if self._anchor == "off":
            return found.states, {}
        model = self._model
        path = model.architecture.projection(layer, self._config.module)
        rows = [key_row(model.tokens, request, "") for request in requests]
        width, operation = model.architecture.d_model, f"values on '{model.name}'"
        plain = read_at_subjects(model, rows, width, operation, output_of=path)
        if (norm := self._norms[layer]) is not None:
            plain = norm(plain).to(plain)
        plain = plain.cpu()
        values = plain + found.states - found.initial
        if self._anchor is None:
            self._anchor = find_norm_anchor(values)
        anchored, is_near = anchor_norms(plain, values, self._anchor)
        why = (
            f"its value is more than {_FARTHEST:g} times as long as the anchor, {self._anchor:.4g}"
        )
        refused = {place: why for place, near in enumerate(is_near.tolist()) if not near}
        return found.initial - plain + anchored, refused


def find_norm_anchor(values: Tensor) -> float:
    """NAS's anchor: the mean norm of values v* `[n_edits, d_value]`, less the largest twentieth."""
    norms = values.norm(dim=1).sort().values
    return float(norms[: len(norms) - int(_DROPPED_NORMS * len(norms))].mean())


def anchor_norms(plain: Tensor, values: Tensor, anchor: float) -> tuple[Tensor, Tensor]:
    """Give values the norm of an anchor (NAS): v* ← a v*/‖v*‖, or v₀ where ‖v*‖ > 2a.

    Args:
        plain: v₀, values as they are, `[n_edits, d_value]`.
        values: v*, values as they are wanted.
        anchor: a.

    Returns:
        v*, and whether it is not an outlier, bool `[n_edits]`.
    """
    norms = values.norm(dim=1, keepdim=True)
    is_near = norms <= _FARTHEST * anchor
    return torch.where(is_near, anchor * values / norms, plain), is_near[:, 0]
