"""ROME: one fact at a time, written into one MLP exactly (Meng, Bau, Andonian, Belinkov, 2022)."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import Tensor

from editbench.costs.stage import Known, StageCost
from editbench.editors.base import EditorConfig, Progress, Resources, Share
from editbench.editors.closed_form.editor import ClosedForm
from editbench.editors.closed_form.goals import Measured, Solved
from editbench.editors.closed_form.preserved_values import Dials
from editbench.editors.context_prefixes import (
    ContextPrefixes,
    expect_prefixes,
    sample_context_prefixes,
)
from editbench.editors.dialect import (
    TARGET_NAMES,
    Dialect,
    read_fact_token,
    read_prefix_lengths,
    read_single_layer,
    refuse_input_projection,
)
from editbench.editors.keys.reading import ProjectionReading, read_projections
from editbench.editors.keys.sweep_batches import estimate_insertion
from editbench.editors.references import cite
from editbench.editors.second_moments.obtaining import (
    estimate_second_moments,
    prepare_second_moments,
)
from editbench.editors.solve_estimates import estimate_solve
from editbench.editors.targets.batches import estimate_targets
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.optimizer import (
    FinishedTarget,
    TargetOptimizer,
    refuse_overflowed,
)
from editbench.editors.targets.settings import TargetSettings
from editbench.editors.targets.tasks import TargetTask, make_tasks
from editbench.edits.files import Update
from editbench.models.editable import EditableModel
from editbench.replay.offset_forward import OffsetSite
from editbench.requests import EditRequest
from memit_core import UpdateFactors

STAGE = "edits"


def _read_prefixes(value: Any, _values: Mapping[str, Any]) -> Mapping[str, Any]:
    lengths, number = read_prefix_lengths(value)
    return {"n_context_prefixes": number, "context_prefix_lengths": lengths}


def _read_module(value: Any, _values: Mapping[str, Any]) -> Mapping[str, Any]:
    refuse_input_projection(str(value).removesuffix(".weight"))
    return {}


DIALECT = Dialect(
    editor="rome",
    methods=("rome",),
    names={
        **TARGET_NAMES,
        "layers": read_single_layer,
        "context_template_length_params": _read_prefixes,
        "rewrite_module_tmp": _read_module,
        "fact_token": read_fact_token,
    },
    unused={"mom2_adjustment": "second moments are always used"},
)


class RomeConfig(TargetSettings):
    """Every number of ROME's algorithm; in brackets the reference's names."""

    dialect: ClassVar[Dialect | None] = DIALECT
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"reference": {"keys": "reference"}}

    layer: int = Field(ge=0, description="the layer that is written to (layers)")
    n_steps: int = Field(
        default=20,
        ge=1,
        description="iterations of the optimizer; the last one only measures (v_num_grad_steps)",
    )
    clamp_factor: float = Field(
        default=4.0, gt=0, description="‖δ‖ ≤ factor·‖m‖, m the MLP's output (clamp_norm_factor)"
    )
    keys: Literal["consistent", "reference"] = Field(
        default="consistent",
        description="consistent: the mean key over prefixes throughout; reference: the mean key "
        "for the update's direction, but the bare prompt's for its size",
    )
    n_context_prefixes: int = Field(
        default=10, ge=0, description="prefixes sampled of each length, besides the bare prompt"
    )
    context_prefix_lengths: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        default=(5, 10),
        description="tokens of the sampled prefixes (context_template_length_params)",
    )
    second_moment_tokens: PositiveInt | Literal["auto"] = Field(
        default=100_000,
        description="tokens of ordinary text that C is the mean over; auto: as many as it takes",
    )


def derive_rome_defaults(n_layers: int, d_key: int) -> dict[str, object]:
    """Hyperparameters for a model that none were published for.

    The layer lies at a third of the depth, as published (GPT-2 XL 17 of 48, large 12 of 36, medium
    8 of 24, GPT-NeoX 15 of 44; GPT-J's 5 of 28 is lower). The learning rate is relative to ‖m‖, and
    such that the optimizer's 19 steps can just reach the bound of 4‖m‖.
    """
    return {
        "layer": min(n_layers - 1, round(n_layers / 3)),
        "learning_rate": 0.2,
        "learning_rate_unit": "relative",
        "second_moment_tokens": "auto",
    }


class Rome(ClosedForm):
    """Rank-one model editing: the closed-form loop with one fact at a time and no slack.

    For each fact in turn, on the model as edited so far: an offset δ on the MLP's output m at the
    subject's last token is optimized until the model says the target; then the weight gets the
    rank-one update that makes its output m + δ for the fact's key k, and moves the values of
    ordinary keys least: Δ = (m + δ − W k)(C⁻¹k)ᵀ / (kᵀC⁻¹k) (ROME, Eqn 2). Dimensions of keys that
    ordinary text never uses, which make C singular, are left out.

    k is the mean over context prefixes. The reference implementation takes it for C⁻¹k alone, and
    the bare prompt's key and value for W k and for the other k in the denominator, so that neither
    key maps to m + δ exactly; where the two keys differ much, the update becomes very large and
    the model collapses (Gupta et al., 2024, arXiv 2403.07175). ``keys="reference"`` does the same.

    What has been optimized is kept in the cache under the weights that it was optimized on, which
    are what the earlier requests made of them: a longer list of requests reuses what a shorter one
    with the same beginning has computed.
    """

    name: ClassVar[str] = "rome"
    config_type: ClassVar[type[EditorConfig]] = RomeConfig
    config: RomeConfig  # type: ignore[assignment]
    good_for: ClassVar[str] = "single facts, exactly; each costs a solve of its own"
    citation: ClassVar[str] = cite("meng2022rome")
    module = "mlp"

    @classmethod
    def derive_defaults(cls, model: EditableModel) -> Mapping[str, Any]:
        """See `derive_rome_defaults`."""
        return derive_rome_defaults(model.architecture.n_layers, model.d_key(0))

    @property
    def layers(self) -> Sequence[int]:
        """The one layer."""
        return (self.config.layer,)

    def dials(self) -> Dials:
        """C alone, and residuals that are met exactly."""
        return Dials(slack=0)

    def make_targets(
        self, model: EditableModel, prefixes: ContextPrefixes, resources: Resources
    ) -> "_ValueTargets":
        """Targets at the MLP's output."""
        return _ValueTargets(self.name, model, self.config, prefixes, resources)

    def finish(self, solved: Solved) -> Update:
        """For ``keys="reference"``, give the update the size that the bare prompt's key wants."""
        update, goal = solved.update, solved.goal
        if self.config.keys == "consistent":
            return update
        assert isinstance(goal, _ValueGoal)
        assert isinstance(update, UpdateFactors)
        # C⁻¹k / (kᵀC⁻¹k) → C⁻¹k / (k₀ᵀC⁻¹k), with k₀ the bare prompt's key.
        bare_key = goal.reading.keys[0].to(update.right)
        return UpdateFactors(update.left, update.right / (bare_key @ update.right))

    def sample_prefixes(self, model: EditableModel, seed: int) -> ContextPrefixes:
        """Sample prefixes of all lengths."""
        config = self.config
        texts: list[str] = []
        for index, length in enumerate(config.context_prefix_lengths):
            sampled = sample_context_prefixes(
                model,
                n_prefixes=config.n_context_prefixes,
                length=length,
                seed=seed + index * config.n_context_prefixes,
            )
            texts += [text for text in sampled.flat if text]
        groups = (("",), tuple(dict.fromkeys(texts)))
        return ContextPrefixes(tuple(group for group in groups if group))

    def estimate(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        resources: Resources,
        known: Known,
    ) -> Sequence[StageCost]:
        """Estimate what `edit` costs, with an empty cache of targets; see `Editor.estimate`."""
        config = self.config
        layers = (config.layer,)
        model.architecture.check_layer(config.layer)
        lengths = config.context_prefix_lengths
        prefixes = expect_prefixes(
            model.tokens, resources.context_prefixes, config.n_context_prefixes, lengths
        )
        tasks = make_tasks(model.tokens, requests, prefixes.flat)
        keys, _ = estimate_insertion(model, requests, prefixes, "uniform", layers)
        tokens = config.second_moment_tokens
        return [
            *estimate_second_moments(model, layers, tokens, resources, known),
            estimate_targets(model, tasks, config.layer, config, token_budget=1),  # one by one
            keys,
            estimate_solve(model, len(requests), layers, one_by_one=True),
        ]

    def prepare(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        resources: Resources,
        share: Share,
    ) -> None:
        """Collect a share of the second moments; facts are optimized one after another."""
        config = self.config
        model.architecture.check_layer(config.layer)
        tokens = config.second_moment_tokens
        prepare_second_moments(model, (config.layer,), tokens, resources, "mlp", share)


@dataclass(frozen=True)
class _ValueGoal:
    """The value that one fact's key is to have; row 0 of `reading` is the bare prompt's."""

    request: EditRequest
    outcome: FinishedTarget
    reading: ProjectionReading
    is_consistent: bool
    report: Callable[[], None]

    @property
    def outcomes(self) -> Sequence[FinishedTarget]:
        """What came of the one fact's target."""
        return (self.outcome,)

    refused: ClassVar[Mapping[int, str]] = {}

    def describe(self, layer: int) -> str:
        """Quote the fact."""
        return f"'{self.request.text}'"

    def measure(self, layer: int) -> Measured:
        """The mean key over prefixes, and what its value is to be and is."""
        keys, values = self.reading.keys.double(), self.reading.values.double()
        current = values[1:].mean(dim=0) if self.is_consistent else values[0]
        target = self.outcome.state.to(values)
        return Measured(keys[1:].mean(dim=0)[None], target[None], current[None])

    def finish(self) -> None:
        """Report the fact."""
        self.report()


class _ValueTargets:
    """Finds m + δ of one fact after another, each with the facts before it on the model."""

    def __init__(
        self,
        editor: str,
        model: EditableModel,
        config: RomeConfig,
        prefixes: ContextPrefixes,
        resources: Resources,
    ) -> None:
        self._editor = editor
        self._model = model
        self._config = config
        self._prefixes = prefixes.flat
        self._cache = TargetCache(resources.cache)
        self._report_progress: Progress = resources.report_progress
        self._site = OffsetSite.mlp_output(model, config.layer)
        self._optimizer = TargetOptimizer(model, self._site, config, replay=True)

    @property
    def replay_failure(self) -> str | None:
        """Why suffix replay could not be used; None where it was."""
        return self._optimizer.replay_failure

    def aim(self, requests: Sequence[EditRequest]) -> Generator[_ValueGoal, None, None]:
        """Find the value of one fact after another."""
        config, model = self._config, self._model
        readings = read_projections(model, requests, ("", *self._prefixes), config.layer)
        written = model.architecture.weight_name(self._site.module)
        with self._cache.writing_now_and_then() as keep:
            for index, request in enumerate(requests):

                def report(loss: float, n_done: int = index) -> None:
                    note = f"loss {loss:.3f}"
                    self._report_progress(STAGE, n_done, len(requests), note)

                reading = next(readings)
                # Of the model with all facts before this one.
                key = self._cache.key(
                    model,
                    request,
                    config.layer,
                    config,
                    self._prefixes,
                    site=self._site.module,
                    changed=[written] if index else None,
                )
                found = self._cache.read([key]).get(0)
                if found is None:
                    found = self._optimize(request, reading.values[:1], report)
                    keep(key, found)
                yield _ValueGoal(
                    request,
                    found,
                    reading,
                    config.keys == "consistent",
                    partial(report, found.loss, index + 1),
                )

    def _optimize(
        self, request: EditRequest, initial: Tensor, report: Callable[[float], None]
    ) -> FinishedTarget:
        task = TargetTask.of(self._model.tokens, 0, request, self._prefixes)
        (found,) = self._optimizer.run(
            [task], lambda step, n_finished, loss: report(loss), initial=initial
        )
        # What follows depends on it, so there is no going on without it.
        refuse_overflowed(self._editor, self._model, [request], [found.is_finite])
        return found
