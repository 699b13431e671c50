"""Hyperparameters of the closed-form loop; an editor's name fixes their defaults, no more."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from editbench.editors.closed_form.dials import Dials, Finish
from editbench.editors.dialect import (
    TARGET_NAMES,
    Convert,
    read_fact_token,
    read_prefix_lengths,
    refuse_input_projection,
)
from editbench.editors.targets.settings import TargetSettings
from editbench.models.architecture import ProjectionKind
from memit_core.spread import Spreading


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


CLOSED_FORM_NAMES: Mapping[str, str | Convert] = {
    **TARGET_NAMES,
    "layers": "critical_layers",
    "mom2_update_weight": "preservation_weight",
    "context_template_length_params": _read_prefixes,
    "rewrite_module_tmp": _read_module,
    "fact_token": read_fact_token,
}
"""What other tools call the fields that all closed-form editors have."""


class LayerConfig(TargetSettings):
    """What every closed-form editor has: layers, and keys to preserve there."""

    critical_layers: tuple[int, ...] = Field(
        min_length=1, description="R: layers written to, ascending; z lives at the last (layers)"
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


class ClosedFormConfig(LayerConfig):
    """Every number of MEMIT's algorithm and its kin's, with the paper's symbol and its name."""

    module: ProjectionKind = Field(
        default="mlp",
        description="whose output projection is written to: mlp, or attention for the ablation",
    )
    preservation_weight: float = Field(
        gt=0, description="λ: weight of the second moment (mom2_update_weight)"
    )
    key_weighting: Literal["grouped", "uniform"] | Annotated[float, Field(ge=0, le=1)] = Field(
        default="grouped",
        description="mean key over prefixes: grouped (reference), uniform (Eqn 19), or the bare "
        "prompt's share of it",
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
    history: bool = Field(
        default=False,
        description="H: what was written before in a stream weighs like ordinary text (cache_c)",
    )
    slack: float = Field(
        default=1.0,
        ge=0,
        description="α: how far residuals may be missed; 1 is MEMIT, 0 meets them exactly",
    )
    ridge: float = Field(
        default=0.0,
        ge=0,
        description="λₙ: added to the diagonal of what is preserved (update_norm_lambda)",
    )
    ridge_unit: Literal["absolute", "relative"] = Field(
        default="absolute",
        description="relative: times the mean of C's diagonal; absolute, as the reference has it, "
        "does not carry over between models",
    )
    null_space_threshold: float | None = Field(
        default=None,
        gt=0,
        description="write only where ordinary keys hardly are: eigenvectors of C with eigenvalues "
        "below it, in place of λC; null: everywhere (nullspace_threshold)",
    )
    null_space_unit: Literal["absolute", "share"] = Field(
        default="share",
        description="of that threshold: absolute, an eigenvalue (reference), or share, of all "
        "dimensions",
    )
    null_space_shrinks: bool = Field(
        default=False,
        description="Q: what was written to before in a stream is no part of the null space any "
        "more, so that nothing later can move it; history then has nothing to add",
    )
    target_layers: Literal["last", "each"] = Field(
        default="last",
        description="where z lives: at the last critical layer, or one z at each of them, on the "
        "model with the layers before it written",
    )
    norm_anchor: PositiveFloat | Literal["off"] | None = Field(
        default="off",
        description="a: every fact's value v*, what the last critical layer says of it with δ, "
        "gets this norm; null: the mean of the first batch's, less the largest twentieth",
    )
    spreading: Spreading = Field(
        default="even",
        description="a layer's share of what is missing: even, what is missing divided by the "
        "layers left (Eqn 20); root, by their square root; or whole",
    )
    finish: Finish = Field(
        default="none",
        description="what is done to Δ: rect keeps the entries that change their weight most; "
        "prune restrains singular values beyond the weight's own, of the sum of all updates, with "
        "error_feedback of each; sphere and revive take it out of the weight's main directions",
    )
    keep_share: float = Field(
        default=0.4, gt=0, le=1, description="k: the share of Δ's entries that rect keeps"
    )
    protected_share: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="η, τ: main directions of sphere and revive hold this share of the weight's "
        "energy",
    )
    protection: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="γ: how much of Δ in these directions is taken away",
    )
    error_feedback: bool = Field(
        default=False,
        description="E: what a finish takes from an update is asked for again with the next batch",
    )

    @field_validator("norm_anchor", mode="before")
    @classmethod
    def _read_off(cls, value: object) -> object:
        """YAML reads a bare off as false."""
        return "off" if value is False else value

    @model_validator(mode="after")
    def _null_space_has_a_price(self) -> Self:
        if self.null_space_threshold is not None and self.ridge == 0:
            raise ValueError(
                "a null space needs a ridge above 0: it is all that is preserved there"
            )
        if self.null_space_shrinks and self.null_space_threshold is None:
            raise ValueError("null_space_shrinks needs a null_space_threshold")
        return self

    @model_validator(mode="after")
    def _errors_can_be_fed_back(self) -> Self:
        if self.error_feedback and self.slack == 0:
            raise ValueError("error_feedback needs a slack above 0")
        return self

    @property
    def layers_of_targets(self) -> tuple[int, ...]:
        """Where z lives."""
        return self.critical_layers if self.target_layers == "each" else self.critical_layers[-1:]

    @property
    def prefix_lengths(self) -> tuple[int, ...]:
        """Tokens of sampled prefixes: all have one length."""
        return (self.context_prefix_length,)

    @property
    def dials(self) -> Dials:
        """What must not move, and how far residuals may be missed."""
        null_space = None
        if self.null_space_threshold is not None:
            null_space = (self.null_space_threshold, self.null_space_unit)
        return Dials(
            weight=self.preservation_weight,
            slack=self.slack,
            ridge=self.ridge,
            ridge_unit=self.ridge_unit,
            history=self.history,
            null_space=null_space,
            null_space_shrinks=self.null_space_shrinks,
            error_feedback=self.error_feedback,
            spreading=self.spreading,
            finish=self.finish,
            keep_share=self.keep_share,
            protected_share=self.protected_share,
            protection=self.protection,
        )


def derive_closed_form_defaults(n_layers: int, d_key: int) -> dict[str, object]:
    """Hyperparameters for a model that none were published for.

    The layers end a little above a quarter of the depth, where the published ranges end (GPT-J 8
    of 28, GPT-NeoX 10 of 44, GPT-2 XL 17 of 48). λ grows with `d_key`, because kᵀC⁻¹k does: the
    published 15,000 for 16,384 is kept as a ratio. The learning rate is relative to ‖h‖: the first
    step is half as long as h. On a real model 0.1 takes 23 of 25 steps and 0.5 takes 16, for the
    same scores.
    """
    last = max(min(2, n_layers - 1), int(0.28 * n_layers))
    n_critical = max(1, min(5, n_layers // 4 + 1, last + 1))
    return {
        "critical_layers": tuple(range(last - n_critical + 1, last + 1)),
        "preservation_weight": round(d_key * 15_000 / 16_384, 1),
        "learning_rate": 0.5,
        "learning_rate_unit": "relative",
        "second_moment_tokens": "auto",
    }
