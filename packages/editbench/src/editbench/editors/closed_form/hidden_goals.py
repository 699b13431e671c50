"""Targets at the last critical layer: z by optimization, for all facts of a batch at once."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from editbench.editors.base import Resources
from editbench.editors.closed_form.config import ClosedFormConfig
from editbench.editors.closed_form.goals import Measured
from editbench.editors.closed_form.norm_behind import NormBehind
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.keys.layer_sweep import LayerSweep, SweepChecks
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


@dataclass(frozen=True)
class HiddenGoal:
    """z of a batch, and the stored forward that shows how far it is."""

    outcomes: Sequence[FinishedTarget]
    layers: Sequence[int]
    states: Tensor
    norms: Mapping[int, NormBehind | None]
    sweep: LayerSweep
    report_progress: Progress

    def describe(self, layer: int) -> str:
        """Name the layer."""
        return f"layer {layer}"

    def measure(self, layer: int) -> Measured:
        """Keys of the layer, and z and h at the last one."""
        done = self.layers.index(layer)
        self.report_progress(STAGE, done, len(self.layers), f"layer {layer}")
        keys, hidden = self.sweep.measure(layer)
        return Measured(keys, self.states, hidden, self.norms[layer])

    def finish(self) -> None:
        """Report that all layers are done."""
        self.report_progress(STAGE, len(self.layers), len(self.layers))


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
        site = OffsetSite.block_output(model, config.critical_layers[-1])
        self._optimizer = TargetOptimizer(model, site, config, replay=True)
        self._checks = SweepChecks()
        self._norms = {
            layer: NormBehind.find(model, layer, config.module) for layer in config.critical_layers
        }

    @property
    def replay_failure(self) -> str | None:
        """Why suffix replay could not be used; None where it was."""
        return self._optimizer.replay_failure

    def optimize(self, requests: Sequence[EditRequest]) -> TargetHidden:
        """Find z of some facts, and keep it in the cache."""
        config = self._config
        return optimize_target_hidden(
            self._model,
            requests,
            layer=config.critical_layers[-1],
            settings=config,
            prefixes=self._prefixes.flat,
            cache=TargetCache(self._resources.cache),
            report_progress=self._resources.report_progress,
            share_subjects=config.share_subjects,
            warm_start=config.warm_start,
            optimizer=self._optimizer,
        )

    def aim(self, requests: Sequence[EditRequest]) -> Generator[HiddenGoal, None, None]:
        """Find z of all facts of a batch."""
        config, model = self._config, self._model
        found = self.optimize(requests)
        refuse_overflowed(self._editor, model, requests, found.finite.tolist())
        sweep = LayerSweep(
            model,
            requests,
            self._prefixes,
            config.key_weighting,
            first=config.critical_layers[0],
            last=config.critical_layers[-1],
            module=config.module,
            initial=found.initial,
            checks=self._checks,
        )
        states = found.states.to(model.device)
        yield HiddenGoal(
            found.outcomes,
            config.critical_layers,
            states,
            self._norms,
            sweep,
            self._resources.report_progress,
        )
