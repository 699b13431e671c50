"""MEMIT: thousands of facts written into several layers at once (Meng et al., 2022)."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from editbench.editors.base import Editor, EditorConfig, Resources
from editbench.editors.parts.context_prefixes import sample_context_prefixes
from editbench.editors.parts.layer_sweep import LayerSweep
from editbench.editors.parts.second_moments import obtain_second_moments
from editbench.editors.parts.target_cache import TargetCache
from editbench.editors.parts.target_hidden import optimize_target_hidden
from editbench.editors.parts.target_settings import TargetSettings
from editbench.edits.edit import Edit
from editbench.edits.weight_edit import WeightEdit, orient_for_module
from editbench.errors import EditError
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest
from memit_core import (
    MemitCoreError,
    UpdateFactors,
    solve_update_factors,
    spread_residuals,
    updated_weights,
)

STAGE = "insertion"


class MemitConfig(TargetSettings):
    """Every number of MEMIT's algorithm, with the paper's symbol and the reference's name."""

    critical_layers: tuple[int, ...] = Field(
        min_length=1, description="R: layers written to, ascending; z lives at the last (layers)"
    )
    module: ProjectionKind = Field(
        default="mlp",
        description="whose output projection is written to: mlp, or attention for the ablation",
    )
    preservation_weight: float = Field(
        gt=0, description="λ: weight of the second moment (mom2_update_weight)"
    )
    key_weighting: Literal["grouped", "uniform"] = Field(
        default="grouped",
        description="mean key over prefixes: grouped (reference) or uniform (Eqn 19)",
    )
    n_context_prefixes: int = Field(
        default=5, ge=0, description="P: prefixes sampled from the model besides the bare prompt"
    )
    context_prefix_length: int = Field(
        default=10, ge=2, description="tokens of a sampled prefix (length_params)"
    )
    second_moment_tokens: int = Field(
        default=100_000, ge=1, description="tokens of ordinary text that C is the mean over"
    )

    @model_validator(mode="after")
    def _layers_ascend(self) -> Self:
        layers = self.critical_layers
        if any(layer < 0 for layer in layers) or list(layers) != sorted(set(layers)):
            raise ValueError(f"critical_layers must ascend and not be negative, got {list(layers)}")
        return self


def derive_memit_defaults(n_layers: int, d_key: int) -> dict[str, object]:
    """Hyperparameters for a model that none were published for.

    The layers end a little above a quarter of the depth, where the published ranges end (GPT-J 8
    of 28, GPT-NeoX 10 of 44, GPT-2 XL 17 of 48). λ grows with `d_key`, because kᵀC⁻¹k does: the
    published 15,000 for 16,384 is kept as a ratio. The learning rate is relative to ‖h‖.
    """
    last = max(min(2, n_layers - 1), int(0.28 * n_layers))
    n_critical = max(1, min(5, n_layers // 4 + 1, last + 1))
    return {
        "critical_layers": tuple(range(last - n_critical + 1, last + 1)),
        "preservation_weight": round(d_key * 15_000 / 16_384, 1),
        "learning_rate": 0.1,
        "learning_rate_unit": "relative",
        "second_moment_tokens": max(25_000, 10 * d_key),
    }


class Memit(Editor):
    """Mass-editing memory in a transformer.

    The facts' target hidden states z are optimised on the unedited model. Then, for each critical
    layer from the lowest, the keys K and what is missing at the last critical layer are measured
    on the model as edited so far; the missing part is divided by the number of layers left
    (Eqn 20); and Δ = R Kᵀ (λC + K Kᵀ)⁻¹ (Eqn 14) is added to the MLP's output projection.

    With ``module="attention"`` that is attention's output projection, and K and C are of its
    inputs; all else stays the same. The paper compares the two.
    """

    name: ClassVar[str] = "memit"
    config_type: ClassVar[type[EditorConfig]] = MemitConfig
    config: MemitConfig

    @classmethod
    def derive_defaults(cls, model: EditableModel) -> Mapping[str, Any]:
        """See `derive_memit_defaults`."""
        return derive_memit_defaults(model.architecture.n_layers, model.d_key(0))

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        """Compute the edit; see `Editor.edit`."""
        config = self.config
        layers = config.critical_layers
        model.architecture.check_layer(layers[-1])
        prefixes = resources.context_prefixes or sample_context_prefixes(
            model,
            n_prefixes=config.n_context_prefixes,
            length=config.context_prefix_length,
            seed=resources.seed,
        )
        moments = obtain_second_moments(
            model, layers, config.second_moment_tokens, resources, config.module
        )
        targets = optimize_target_hidden(
            model,
            requests,
            layer=layers[-1],
            settings=config,
            prefixes=prefixes.flat,
            cache=TargetCache(resources.cache),
            report_progress=resources.report_progress,
        )
        sweep = LayerSweep(
            model,
            requests,
            prefixes,
            config.key_weighting,
            first=layers[0],
            last=layers[-1],
            module=config.module,
        )
        updates: dict[str, UpdateFactors] = {}
        target_states = targets.states.to(model.device)
        with ExitStack() as partial_edits:
            for index, layer in enumerate(layers):
                resources.report_progress(STAGE, index, len(layers), f"layer {layer}")
                keys, hidden = sweep.measure(layer)
                projection = model.architecture.projection(layer, config.module)
                name = model.architecture.weight_name(projection)
                weight = model.model.get_parameter(name)
                try:
                    updates[name] = _solve_live(
                        keys,
                        spread_residuals(target_states, hidden, n_layers_left=len(layers) - index),
                        moments[layer],
                        config.preservation_weight,
                    )
                    oriented = orient_for_module(model, name, weight, updates[name])
                    partial_edits.enter_context(updated_weights(model.model, {name: oriented}))
                except MemitCoreError as error:
                    raise EditError(f"memit on '{model.name}', layer {layer}: {error}") from error
        resources.report_progress(STAGE, len(layers), len(layers))
        return WeightEdit.build(
            model,
            editor=self.name,
            config=config,
            requests=requests,
            updates=updates,
            extra={
                "context_prefixes": [list(group) for group in prefixes.groups],
                "target_loss": round(float(targets.losses.mean()), 4),
                "target_steps": round(float(targets.n_steps.double().mean()), 2),
                "replay_failure": targets.replay_failure,
            },
        )


def _solve_live(
    keys: Tensor, residuals: Tensor, second_moment: Tensor, preservation_weight: float
) -> UpdateFactors:
    """Solve Eqn 14 without the dimensions that neither ordinary text nor an edit ever uses.

    ReLU models have neurons that never fire. They make C singular, yet nothing can depend on what
    the update says about them: of all solutions, this is the one that says nothing.
    """
    live = (second_moment.diagonal() > 0).to(keys.device) | keys.ne(0).any(dim=0)
    block = live.to(second_moment.device)
    factors = solve_update_factors(
        keys[:, live],
        residuals,
        second_moment[block][:, block],
        preservation_weight=preservation_weight,
    )
    right = factors.right.new_zeros(len(live), factors.rank)
    right[live] = factors.right
    return UpdateFactors(factors.left, right)
