"""MEMIT: thousands of facts written into several layers at once (Meng et al., 2022)."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from editbench.costs.stage import Known, StageCost
from editbench.editors.base import Editor, EditorConfig, Resources, Share
from editbench.editors.dialect import (
    TARGET_NAMES,
    Dialect,
    read_fact_token,
    read_prefix_lengths,
    refuse_input_projection,
)
from editbench.editors.parts.context_prefixes import ContextPrefixes, sample_context_prefixes
from editbench.editors.parts.expected_prefixes import expect_prefixes
from editbench.editors.parts.keys.insertion_costs import plan_insertion, plan_second_moments
from editbench.editors.parts.keys.layer_sweep import LayerSweep
from editbench.editors.parts.second_moments.factors import solve_layer
from editbench.editors.parts.second_moments.obtaining import (
    obtain_second_moments,
    prepare_second_moments,
)
from editbench.editors.parts.targets.cache import TargetCache
from editbench.editors.parts.targets.costs import find_unknown, plan_targets
from editbench.editors.parts.targets.overflow import refuse_overflowed
from editbench.editors.parts.targets.settings import TargetSettings
from editbench.editors.parts.targets.target_hidden import (
    TargetHidden,
    choose_share,
    optimize_target_hidden,
)
from editbench.edits.edit import Edit
from editbench.edits.weight_edit import WeightEdit, orient_for_module
from editbench.errors import EditError
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest
from memit_core import (
    MemitCoreError,
    UpdateFactors,
    spread_residuals,
    updated_weights,
)

STAGE = "insertion"


def _read_prefixes(value: Any, _values: Mapping[str, Any]) -> Mapping[str, Any]:
    lengths, number = read_prefix_lengths(value)
    if len(lengths) != 1:
        raise ValueError("must be one pair, since all prefixes have one length here")
    return {"n_context_prefixes": number, "context_prefix_length": lengths[0]}


def _read_module(value: Any, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Whose output projection is written to; which module that is, the model itself says."""
    attention = values.get("attn_module_tmp")
    inside = str(value).removesuffix(".weight")
    if isinstance(attention, str) and inside.startswith(f"{attention}."):
        return {"module": "attention"}
    refuse_input_projection(inside)
    return {"module": "mlp"}


DIALECT = Dialect(
    editor="memit",
    methods=("memit", "memit_seq", "alphaedit"),
    names={
        **TARGET_NAMES,
        "layers": "critical_layers",
        "mom2_update_weight": "preservation_weight",
        "context_template_length_params": _read_prefixes,
        "rewrite_module_tmp": _read_module,
        "fact_token": read_fact_token,
    },
    unused={},
)


class MemitConfig(TargetSettings):
    """Every number of MEMIT's algorithm, with the paper's symbol and the reference's name."""

    dialect: ClassVar[Dialect | None] = DIALECT

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
    share_subjects: bool = Field(
        default=False,
        description="optimize one offset for all facts about a subject, instead of one for each",
    )
    warm_start: bool = Field(
        default=False,
        description="start from the mean offset of finished edits with the same target; what "
        "is found depends on the order",
    )
    second_moment_tokens: PositiveInt | Literal["auto"] = Field(
        default=100_000,
        description="tokens of ordinary text that C is the mean over; auto: as many as it takes",
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
        "second_moment_tokens": "auto",
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

    def plan(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        resources: Resources,
        known: Known,
    ) -> Sequence[StageCost]:
        """Work out what `edit` would cost; see `Editor.plan`."""
        config = self.config
        layers = config.critical_layers
        model.architecture.check_layer(layers[-1])
        lengths = (config.context_prefix_length,)
        prefixes = expect_prefixes(model.tokens, resources, config.n_context_prefixes, lengths)
        unknown = find_unknown(
            model,
            requests,
            layers[-1],
            config,
            prefixes.flat,
            resources.cache,
            known,
            share_subjects=config.share_subjects,
            warm_start=config.warm_start,
        )
        return [
            *plan_second_moments(
                model, layers, config.second_moment_tokens, resources, known, config.module
            ),
            plan_targets(model, unknown, layers[-1], config),
            *plan_insertion(model, requests, prefixes, config.key_weighting, layers, config.module),
        ]

    def prepare(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        resources: Resources,
        share: Share,
    ) -> None:
        """Collect a share of the second moments, and optimise a share of the z."""
        config = self.config
        layers = config.critical_layers
        model.architecture.check_layer(layers[-1])
        rest = prepare_second_moments(
            model, layers, config.second_moment_tokens, resources, config.module, share
        )
        depends_on_others = config.share_subjects or config.warm_start
        if rest is not None and not depends_on_others:
            prefixes = self._prefixes(model, resources)
            own = choose_share(
                model, requests, layer=layers[-1], prefixes=prefixes.flat, share=rest
            )
            if own:
                self._optimize(model, own, prefixes, resources)

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        """Compute the edit; see `Editor.edit`."""
        config = self.config
        layers = config.critical_layers
        model.architecture.check_layer(layers[-1])
        prefixes = self._prefixes(model, resources)
        moments = obtain_second_moments(
            model, layers, config.second_moment_tokens, resources, config.module
        )
        targets = self._optimize(model, requests, prefixes, resources)
        refuse_overflowed(self.name, model, requests, targets.finite.tolist())
        sweep = LayerSweep(
            model,
            requests,
            prefixes,
            config.key_weighting,
            first=layers[0],
            last=layers[-1],
            module=config.module,
            initial=targets.initial,
        )
        updates: dict[str, UpdateFactors | Tensor] = {}
        target_states = targets.states.to(model.device)
        with ExitStack() as partial_edits:
            for index, layer in enumerate(layers):
                resources.report_progress(STAGE, index, len(layers), f"layer {layer}")
                keys, hidden = sweep.measure(layer)
                projection = model.architecture.projection(layer, config.module)
                name = model.architecture.weight_name(projection)
                weight = model.model.get_parameter(name)
                try:
                    update = solve_layer(
                        keys,
                        spread_residuals(target_states, hidden, n_layers_left=len(layers) - index),
                        moments,
                        layer,
                        config.preservation_weight,
                        resources.cache,
                    )
                    oriented = orient_for_module(model, name, weight, update)
                    partial_edits.enter_context(updated_weights(model.model, {name: oriented}))
                except MemitCoreError as error:
                    raise EditError(f"memit on '{model.name}', layer {layer}: {error}") from error
                updates[name] = update.to("cpu")
                del update, oriented
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

    def _prefixes(self, model: EditableModel, resources: Resources) -> ContextPrefixes:
        return resources.context_prefixes or sample_context_prefixes(
            model,
            n_prefixes=self.config.n_context_prefixes,
            length=self.config.context_prefix_length,
            seed=resources.seed,
        )

    def _optimize(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        prefixes: ContextPrefixes,
        resources: Resources,
    ) -> TargetHidden:
        return optimize_target_hidden(
            model,
            requests,
            layer=self.config.critical_layers[-1],
            settings=self.config,
            prefixes=prefixes.flat,
            cache=TargetCache(resources.cache),
            report_progress=resources.report_progress,
            share_subjects=self.config.share_subjects,
            warm_start=self.config.warm_start,
        )
