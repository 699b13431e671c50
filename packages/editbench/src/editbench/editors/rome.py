"""ROME: one fact at a time, written into one MLP exactly (Meng, Bau, Andonian, Belinkov, 2022)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from editbench.costs.stage import Known, StageCost
from editbench.editors.base import Editor, EditorConfig, Resources, Share
from editbench.editors.parts.borrowed_weights import growing_update
from editbench.editors.parts.context_prefixes import ContextPrefixes, sample_context_prefixes
from editbench.editors.parts.expected_prefixes import expect_prefixes
from editbench.editors.parts.keys.insertion_costs import (
    plan_insertion,
    plan_second_moments,
    plan_solve,
)
from editbench.editors.parts.keys.projection_reading import read_projections
from editbench.editors.parts.replay.offset_forward import OffsetSite
from editbench.editors.parts.second_moments.factors import (
    require_factor,
)
from editbench.editors.parts.second_moments.obtaining import (
    obtain_second_moments,
    prepare_second_moments,
)
from editbench.editors.parts.targets.cache import TargetCache
from editbench.editors.parts.targets.chunks import make_tasks
from editbench.editors.parts.targets.costs import plan_targets
from editbench.editors.parts.targets.optimizer import FinishedTarget, TargetOptimizer, TargetTask
from editbench.editors.parts.targets.overflow import is_finite, refuse_overflowed
from editbench.editors.parts.targets.settings import TargetSettings
from editbench.edits.edit import Edit
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import EditError
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest
from memit_core import MemitCoreError, Preservation, UpdateFactors, solve_edits

STAGE = "edits"


class RomeConfig(TargetSettings):
    """Every number of ROME's algorithm; in brackets the reference's names."""

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


class Rome(Editor):
    """Rank-one model editing.

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
    config: RomeConfig

    @classmethod
    def derive_defaults(cls, model: EditableModel) -> Mapping[str, Any]:
        """See `derive_rome_defaults`."""
        return derive_rome_defaults(model.architecture.n_layers, model.d_key(0))

    def plan(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        resources: Resources,
        known: Known,
    ) -> Sequence[StageCost]:
        """Work out what `edit` would cost, with an empty cache of targets; see `Editor.plan`."""
        config = self.config
        layers = (config.layer,)
        model.architecture.check_layer(config.layer)
        lengths = config.context_prefix_lengths
        prefixes = expect_prefixes(model.tokens, resources, config.n_context_prefixes, lengths)
        tasks = make_tasks(model.tokens, requests, prefixes.flat)
        keys, _ = plan_insertion(model, requests, prefixes, "uniform", layers)
        tokens = config.second_moment_tokens
        return [
            *plan_second_moments(model, layers, tokens, resources, known),
            plan_targets(model, tasks, config.layer, config, token_budget=1),  # one by one
            keys,
            plan_solve(model, len(requests), layers, one_by_one=True),
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

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        """Compute the edit; see `Editor.edit`."""
        config = self.config
        site = OffsetSite.mlp_output(model, config.layer)
        prefixes = resources.context_prefixes or _sample_prefixes(model, config, resources.seed)
        moments = obtain_second_moments(
            model, (config.layer,), config.second_moment_tokens, resources
        )
        cache = TargetCache(resources.cache)
        second_moment = require_factor(moments, config.layer, resources.cache, model.device)
        optimizer = TargetOptimizer(model, site, config, replay=True)
        weight_name = model.architecture.weight_name(site.module)
        targets: list[FinishedTarget] = []
        updates: list[UpdateFactors] = []
        with (
            growing_update(model, weight_name) as add_to_weight,
            cache.writing_now_and_then() as keep,
        ):
            rows = ("", *prefixes.flat)
            readings = read_projections(model, requests, rows, config.layer)
            for index, (request, reading) in enumerate(zip(requests, readings, strict=True)):

                def on_step(step: int, n_finished: int, loss: float, index: int = index) -> None:
                    resources.report_progress(STAGE, index, len(requests), f"loss {loss:.3f}")

                # Of the model with all facts before this one.
                key = cache.key(
                    model, request, config.layer, config, prefixes.flat, site=site.module
                )
                found = cache.read([key]).get(0)
                if found is None:
                    task = TargetTask.of(model.tokens, index, request, prefixes.flat)
                    (found,) = optimizer.run([task], on_step, initial=reading.values[:1])
                    # What follows depends on it, so there is no going on without it.
                    refuse_overflowed(self.name, model, [request], [is_finite(found)])
                    keep(key, found)
                target = found.state.to(model.device)
                try:
                    update = self._solve(reading.keys, reading.values, target, second_moment)
                except MemitCoreError as error:
                    raise EditError(f"rome on '{model.name}', '{request.text}': {error}") from error
                add_to_weight(update)
                targets.append(found)
                updates.append(update.to("cpu"))
                note = f"loss {found.loss:.3f}"
                resources.report_progress(STAGE, index + 1, len(requests), note)
        return WeightEdit.build(
            model,
            editor=self.name,
            config=config,
            requests=requests,
            updates={weight_name: _stack(updates)} if updates else {},
            extra={
                "context_prefixes": [list(group) for group in prefixes.groups],
                "target_loss": _mean([target.loss for target in targets]),
                "target_steps": _mean([target.n_steps for target in targets]),
                "replay_failure": optimizer.replay_failure,
            },
        )

    def _solve(
        self,
        keys: Tensor,
        values: Tensor,
        target: Tensor,
        second_moment: Preservation,
    ) -> UpdateFactors:
        """The rank-one update; row 0 of `keys` and `values` is the bare prompt, then prefixes."""
        mean_key = keys[1:].double().mean(dim=0)
        if self.config.keys == "consistent":
            residual = target.double() - values[1:].double().mean(dim=0)
            factors = solve_edits(mean_key[None], residual[None], second_moment, slack=0)
            assert isinstance(factors, UpdateFactors)
            return factors
        residual = target.double() - values[0].double()
        factors = solve_edits(mean_key[None], residual[None], second_moment, slack=0)
        assert isinstance(factors, UpdateFactors)
        # C⁻¹k / (kᵀC⁻¹k) → C⁻¹k / (k₀ᵀC⁻¹k), with k₀ the bare prompt's key.
        return UpdateFactors(factors.left, factors.right / (keys[0].double() @ factors.right))


def _sample_prefixes(model: EditableModel, config: RomeConfig, seed: int) -> ContextPrefixes:
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


def _stack(updates: Sequence[UpdateFactors]) -> UpdateFactors:
    """The sum of updates, as one of higher rank."""
    return UpdateFactors(
        torch.cat([update.left for update in updates], dim=1),
        torch.cat([update.right for update in updates], dim=1),
    )


def _mean(numbers: Sequence[float]) -> float | None:
    return round(sum(numbers) / len(numbers), 4) if numbers else None
