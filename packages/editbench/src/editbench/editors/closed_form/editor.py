"""The closed-form loop: what to reach, what must not move, whose share it is, what is done to Δ.

MEMIT, ROME, EMMET, AlphaEdit and their kin differ in these four places only, and are presets of
`ClosedForm`:

    target          `ClosedForm.make_targets`   `HiddenTargets`, or another `Targets`
    preservation    `ClosedForm.dials`          `PreservedValues`, from second moments and history
    spreading       `ClosedForm.spread`         `spread_residuals`
    finish          `ClosedForm.finish`         nothing, RECT, PRUNE, SPHERE, REVIVE
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from editbench.costs.stage import ExpectedCache, StageCost
from editbench.editors.base import Editor, EditorConfig, Resources, Share
from editbench.editors.closed_form.config import ClosedFormConfig, derive_closed_form_defaults
from editbench.editors.closed_form.dials import Dials
from editbench.editors.closed_form.finish import finish_total, finish_update
from editbench.editors.closed_form.goals import Measured, Solved, Targets
from editbench.editors.closed_form.hidden_goals import HiddenTargets
from editbench.editors.closed_form.stream import ClosedFormStream
from editbench.editors.context_prefixes import (
    ContextPrefixes,
    expect_prefixes,
    sample_context_prefixes,
)
from editbench.editors.keys.sweep_batches import estimate_insertion
from editbench.editors.search_space import Choices, LayerWindow, SearchSpace, middle_layers
from editbench.editors.solve_estimates import estimate_null_spaces
from editbench.editors.stream import Carried
from editbench.editors.targets.batches import estimate_targets, find_unknown
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.target_hidden import choose_share
from editbench.edits.files import Update
from editbench.edits.weight_edit import WeightEdit
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest
from editbench.second_moments.obtaining import (
    estimate_second_moments,
    obtain_second_moments,
)
from memit_core import spread_residuals


class ClosedForm(Editor):
    """An editor that solves for updates in closed form, layer by layer and batch by batch.

    For each batch: targets are found on the model as edited so far. Then, for each layer from the
    lowest, keys and what is missing are measured with all updates so far on the model; the layer
    takes on its share of what is missing; the update is solved for, and finished. Subclasses fill
    in the slots, as the module's docstring lists them; without a change this is MEMIT.
    """

    config_type: ClassVar[type[EditorConfig]] = ClosedFormConfig
    config: ClosedFormConfig

    @classmethod
    def derive_defaults(cls, model: EditableModel) -> Mapping[str, Any]:
        """See `derive_closed_form_defaults`."""
        return derive_closed_form_defaults(model.architecture.n_layers, model.d_key(0))

    @classmethod
    def search_space(cls, model: EditableModel, config: EditorConfig) -> SearchSpace:
        """Layers, and how z is optimized; λ, which does not touch z."""
        assert isinstance(config, ClosedFormConfig)
        n_layers, layers = model.architecture.n_layers, config.critical_layers
        return {
            # The first layer's MLP may have seen nothing but the token itself.
            "critical_layers": LayerWindow(
                tuple(range(min(1, layers[0]), n_layers)),
                middle_layers(n_layers, layers[-1], to=0.6),
            ),
            "learning_rate": Choices.around(config.learning_rate, (0.1, 0.2, 0.5, 1, 2, 5)),
            "n_steps": Choices.of((10, 15, 20, 25, 35), config.n_steps),
            "clamp_factor": Choices.of((0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 4.0), config.clamp_factor),
            "preservation_weight": Choices.around(
                config.preservation_weight, (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30), is_cheap=True
            ),
        }

    # Slots

    @property
    def layers(self) -> Sequence[int]:
        """The layers that are written to, ascending."""
        return self.config.critical_layers

    @property
    def module(self) -> ProjectionKind:
        """Whose output projection is written to."""
        return self.config.module

    def needs_second_moments(self, model: EditableModel) -> Mapping[ProjectionKind, Sequence[int]]:
        """Those of the layers that are written to."""
        return {self.module: self.layers}

    @property
    def finds_targets_apart(self) -> bool:
        """Whether what one fact is to reach does not depend on the others."""
        config = self.config
        depends_on_weights = config.target_layers == "each"
        return not (config.share_subjects or config.warm_start or depends_on_weights)

    def dials(self) -> Dials:
        """What must not move, and how far residuals may be missed."""
        return self.config.dials

    def make_targets(
        self, model: EditableModel, prefixes: ContextPrefixes, resources: Resources
    ) -> Targets:
        """Make what finds the goals of a stream's batches."""
        return HiddenTargets(self.name, model, self.config, prefixes, resources)

    def slack(self, n_edits: int) -> float:
        """α, how far the residuals of that many facts may be missed."""
        return self.dials().slack

    def spread(self, measured: Measured, n_layers_left: int) -> Tensor:
        """One layer's share of what is missing."""
        return spread_residuals(
            measured.target,
            measured.current,
            n_layers_left=n_layers_left,
            spreading=self.dials().spreading,
        )

    def finish(self, solved: Solved) -> Update:
        """Make of the update of a layer what is written.

        It is asked for all layers when all are solved for: each is solved for with those below it
        as they were solved for. What is lost can be fed back, see `Dials`.
        """
        return finish_update(solved, self.dials())

    def finish_total(self, total: Update, weight: Tensor) -> Update:
        """Make of the sum of all updates of a layer what is handed out; the stream keeps the sum.

        Args:
            total: The sum.
            weight: The weight without it, `[d_value, d_key]`.
        """
        return finish_total(total, weight, self.dials())

    def sample_prefixes(self, model: EditableModel, seed: int) -> ContextPrefixes:
        """Sample context prefixes, where none are given."""
        return sample_context_prefixes(
            model,
            n_prefixes=self.config.n_context_prefixes,
            lengths=self.config.prefix_lengths,
            seed=seed,
        )

    # The loop

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> WeightEdit:
        """Compute the edit, as a stream of one batch; see `Editor.edit`."""
        return self._begin_stream(model, resources).write(requests)

    def _begin_stream(self, model: EditableModel, resources: Resources) -> ClosedFormStream:
        """Keep no more than batches need; see `Editor.edit_stream`."""
        return ClosedFormStream(self, model, resources)

    def open_stream(
        self, model: EditableModel, resources: Resources, carried: Carried | None = None
    ) -> ClosedFormStream:
        """Carry sums of updates, and what must not move; see `Editor.open_stream`."""
        return ClosedFormStream(self, model, resources, carried, keeps_keys=True)

    # Costs, and work that can be divided

    def estimate(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        resources: Resources,
        expected: ExpectedCache,
    ) -> Sequence[StageCost]:
        """Work out what `edit` would cost; see `Editor.estimate`."""
        config, layers, module = self.config, self.layers, self.module
        model.architecture.check_layer(layers[-1])
        prefixes = expect_prefixes(
            model.tokens,
            resources.context_prefixes,
            config.n_context_prefixes,
            config.prefix_lengths,
        )
        tokens = config.second_moment_tokens
        has_null_space = self.dials().null_space is not None
        return [
            *estimate_second_moments(model, layers, tokens, resources, expected, module),
            *([estimate_null_spaces(model, layers, module)] if has_null_space else []),
            *self.estimate_goals(model, requests, prefixes, resources, expected),
        ]

    def estimate_goals(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        prefixes: ContextPrefixes,
        resources: Resources,
        expected: ExpectedCache,
    ) -> Sequence[StageCost]:
        """Work out what finding targets and writing them costs; see `Editor.estimate`."""
        config, last = self.config, self.layers[-1]
        unknown = find_unknown(
            model,
            requests,
            last,
            config,
            prefixes.flat,
            TargetCache.of(resources),
            expected,
            share_subjects=config.share_subjects,
            warm_start=config.warm_start,
        )
        return [
            *(
                estimate_targets(model, unknown, layer, config)
                for layer in config.layers_of_targets
            ),
            *estimate_insertion(
                model, requests, prefixes, config.key_weighting, self.layers, self.module
            ),
        ]

    def prepare(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        resources: Resources,
        share: Share,
    ) -> None:
        """Collect the second moments, as the first share, or optimise a share of the z."""
        config, layers = self.config, self.layers
        model.architecture.check_layer(layers[-1])
        n_collecting = int(resources.second_moments is None)
        if share.index < n_collecting:
            obtain_second_moments(
                model, layers, config.second_moment_tokens, resources, self.module
            )
        elif self.finds_targets_apart:
            rest = Share(share.index - n_collecting, share.n - n_collecting)
            prefixes = resources.context_prefixes or self.sample_prefixes(model, resources.seed)
            own = choose_share(
                model, requests, layer=layers[-1], prefixes=prefixes.flat, share=rest
            )
            if own:
                HiddenTargets(self.name, model, config, prefixes, resources).optimize(
                    own, layers[-1]
                )
