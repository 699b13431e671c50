"""The closed-form loop: what to reach, what must not move, whose share it is, what is done to Δ.

MEMIT, ROME, EMMET, AlphaEdit and their kin differ in these four places only, and are presets of
`ClosedForm`:

    target          `ClosedForm.make_targets`   `HiddenTargets`, or another `Targets`
    preservation    `ClosedForm.dials`          `PreservedValues`, from second moments and history
    spreading       `ClosedForm.spread`         `spread_residuals`
    finish          `ClosedForm.finish`         nothing, RECT, PRUNE, SPHERE, REVIVE
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, ClassVar

from torch import Tensor

from editbench.costs.stage import ExpectedCache, StageCost
from editbench.editors.base import Editor, EditorConfig, Resources, Share
from editbench.editors.closed_form.config import ClosedFormConfig, derive_closed_form_defaults
from editbench.editors.closed_form.dials import Dials
from editbench.editors.closed_form.finish import finish_total, finish_update
from editbench.editors.closed_form.goals import Goal, Measured, Solved, Targets, judge_target
from editbench.editors.closed_form.hidden_goals import HiddenTargets
from editbench.editors.closed_form.solving import PreservedValues
from editbench.editors.context_prefixes import (
    ContextPrefixes,
    expect_prefixes,
    sample_context_prefixes,
)
from editbench.editors.keys.sweep_batches import estimate_insertion
from editbench.editors.search_space import Choices, LayerWindow, SearchSpace, middle_layers
from editbench.editors.solve_estimates import estimate_null_spaces
from editbench.editors.targets.batches import estimate_targets, find_unknown
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.target_hidden import choose_share
from editbench.edits.card import EditCard
from editbench.edits.files import Update
from editbench.edits.weight_edit import (
    WeightEdit,
    orient_for_edit,
    orient_for_module,
    sum_updates,
)
from editbench.errors import EditError
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel
from editbench.models.offload import in_memory, updated_weights
from editbench.requests import EditRequest
from editbench.second_moments.obtaining import (
    estimate_second_moments,
    obtain_second_moments,
)
from memit_core import MemitCoreError, spread_residuals


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
        return next(self.edit_stream(model, [requests], resources))

    def edit_stream(
        self,
        model: EditableModel,
        batches: Iterable[Sequence[EditRequest]],
        resources: Resources,
    ) -> Iterator[WeightEdit]:
        """Write batches one after another; see `Editor.edit_stream`."""
        stream = _Stream(self, model, resources)
        for batch in batches:
            yield stream.write(batch)

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


_CLOSED = (
    "its key lies outside of the null space at every layer, or where earlier facts were written, "
    "so that nothing can be written"
)


class _Stream:
    """What a stream of edits carries from batch to batch."""

    def __init__(self, editor: ClosedForm, model: EditableModel, resources: Resources) -> None:
        for layer in editor.layers:
            model.architecture.check_layer(layer)
        self._editor = editor
        self._model = model
        self._prefixes = resources.context_prefixes or editor.sample_prefixes(model, resources.seed)
        moments = obtain_second_moments(
            model, editor.layers, editor.config.second_moment_tokens, resources, editor.module
        )
        self._preserved = PreservedValues(moments, editor.dials(), resources.cache)
        self._targets = editor.make_targets(model, self._prefixes, resources)
        self._requests: list[EditRequest] = []
        self._updates: dict[str, Update] = {}  # the sums, as factors or in float64
        self._kept: dict[str, dict[str, Any]] = {}
        self._facts: list[dict[str, str]] = []
        self._losses: list[float] = []
        self._n_steps: list[int] = []

    def write(self, batch: Sequence[EditRequest]) -> WeightEdit:
        """Write one more batch, and return all that was written so far as one edit."""
        card = EditCard.of(
            self._model, editor=self._editor.name, config=self._editor.config, requests=batch
        )
        rest = list(batch)
        with closing(self._targets.aim(batch)) as goals:
            while rest:
                with WeightEdit(self._updates, card).applied(self._model):
                    goal = next(goals)
                    self._insert(goal, rest[: len(goal.outcomes)])
                del rest[: len(goal.outcomes)]
        self._requests += batch
        updates = {
            name: self._editor.finish_total(total, weight)
            for name, total in self._updates.items()
            for weight in [self._weight(name)]
        }
        return WeightEdit.build(
            self._model,
            editor=self._editor.name,
            config=self._editor.config,
            requests=self._requests,
            updates=updates,
            extra={
                "context_prefixes": [list(group) for group in self._prefixes.groups],
                "target_loss": _mean(self._losses, 4),
                "target_steps": _mean(self._n_steps, 2),
                "replay_failure": self._targets.replay_failure,
                "facts": list(self._facts),
            },
        )

    def _insert(self, goal: Goal, requests: Sequence[EditRequest]) -> None:
        """Write what a goal asks for into all layers, one after another."""
        editor, model, layers = self._editor, self._model, self._editor.layers
        found: list[tuple[int, str, Update]] = []
        is_open = [False] * len(requests)
        with ExitStack() as partial_edits:
            for index, layer in enumerate(layers):
                measured = goal.measure(layer)
                if self._preserved.is_exhausted(
                    layer, measured.keys, measured.target, measured.current
                ):
                    break
                projection = model.architecture.projection(layer, editor.module)
                name = model.architecture.weight_name(projection)
                try:
                    residuals = editor.spread(measured, len(layers) - index)
                    if measured.norm is not None:
                        said = model.model.get_submodule(projection)(
                            measured.keys.to(model.model.dtype)
                        )
                        residuals = measured.norm.pull_back(said, residuals)
                    update = self._preserved.solve(
                        layer, measured.keys, residuals, editor.slack(len(requests))
                    )
                    if index < len(layers) - 1:
                        weight = model.model.get_parameter(name)
                        oriented = orient_for_module(model, name, weight, update)
                        partial_edits.enter_context(updated_weights(model.model, {name: oriented}))
                        del oriented
                except MemitCoreError as error:
                    where = f"{editor.name} on '{model.name}', {goal.describe(layer)}"
                    raise EditError(f"{where}: {error}") from error
                found.append((layer, name, update.to("cpu")))
                del update
                opened = self._preserved.is_open(layer, measured.keys).tolist()
                is_open = [one or other for one, other in zip(is_open, opened, strict=True)]
                self._preserved.add(layer, measured.keys)
        for layer, name, update in found:
            earlier, kept = self._updates.get(name), self._kept.setdefault(name, {})
            weight = self._weight(name)
            finished = editor.finish(Solved(layer, update, weight, earlier, goal, kept))
            self._preserved.feed_back(layer, update, finished)
            whole = finished if earlier is None else sum_updates(name, earlier, finished)
            self._updates[name] = whole
        goal.finish()
        for place, (request, outcome) in enumerate(zip(requests, goal.outcomes, strict=True)):
            self._losses.append(outcome.loss)
            self._n_steps.append(outcome.n_steps)
            fact = {"case_id": request.case_id, "status": judge_target(outcome, editor.config)}
            why = goal.refused.get(place) or (None if is_open[place] else _CLOSED)
            self._facts.append({**fact, "status": "skipped", "why": why} if why else fact)

    def _weight(self, name: str) -> Tensor:
        """A weight as it is now, `[d_value, d_key]`, on the CPU where it is offloaded."""
        with in_memory(self._model.model, [name]):
            parameter = self._model.model.get_parameter(name).detach()
            return orient_for_edit(self._model, name, parameter)


def _mean(numbers: Sequence[float], n_digits: int) -> float | None:
    return round(sum(numbers) / len(numbers), n_digits) if numbers else None
