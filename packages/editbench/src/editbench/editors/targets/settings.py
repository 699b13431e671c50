"""The hyperparameters of z, shared by every editor that optimizes a target hidden state."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field

from editbench.editors.base import EditorConfig


class TargetSettings(EditorConfig):
    """How z is optimized; in brackets the reference's names."""

    n_steps: int = Field(
        default=25,
        ge=1,
        description="iterations of the z optimizer; the last one only measures (v_num_grad_steps)",
    )
    learning_rate: float = Field(default=0.5, gt=0, description="Adam's, for δ (v_lr)")
    learning_rate_unit: Literal["absolute", "relative"] = Field(
        default="absolute", description="relative: times ‖h‖/√d, so that it suits any model"
    )
    clamp_factor: float = Field(
        default=0.75, gt=0, description="‖δ‖ ≤ factor·‖h‖ (clamp_norm_factor)"
    )
    offset_decay: float = Field(
        default=0.5, ge=0, description="weight of ‖δ‖/‖h‖² in the loss (v_weight_decay)"
    )
    kl_weight: float = Field(
        default=0.0625,
        ge=0,
        description="weight of KL(edited ‖ original) right after the subject (kl_factor)",
    )
    stop_loss: float = Field(
        default=0.05, description="an edit with a total loss below it is finished, before the step"
    )
    stop_at: Literal["loss", "argmax"] = Field(
        default="loss",
        description="argmax: an edit is finished, too, once its target is the likeliest "
        "continuation after every prefix; faster, and weaker edits",
    )
    stop_after: int = Field(
        default=1,
        ge=1,
        description="of stop_at argmax: how many times that has to be so, in a row or not",
    )
    stop_rule: Literal["every-prompt", "prefixed", "reference"] = Field(
        default="every-prompt",
        description="of stop_at argmax, what has to be right: every token of every prompt; of "
        "those behind a prefix, the bare prompt left aside; or of these exactly five tokens, "
        "however many there are (reference)",
    )
    loss_layer: int | None = Field(
        default=None, ge=0, description="block whose output is read out; null: last (v_loss_layer)"
    )

    def updated_from_file(self, values: Mapping[str, Any], source: str) -> Self:
        """A file that gives a learning rate and no unit means the reference's: absolute."""
        if "learning_rate" in values:
            values = {"learning_rate_unit": "absolute", **values}
        return self.updated(values, source)

    def of_targets(self) -> dict[str, Any]:
        """All that z depends on, by name; the rules of an early stop only where there is one."""
        values = {name: getattr(self, name) for name in TargetSettings.model_fields}
        for name in ("stop_after", "stop_rule"):
            # Whatever was kept before there were these fields is found by their defaults.
            if self.stop_at == "loss" or values[name] == TargetSettings.model_fields[name].default:
                del values[name]
        return values

    def reads_last_layer(self, n_layers: int) -> bool:
        """Whether the loss is of the ordinary logits of a model with `n_layers` blocks."""
        return self.loss_layer in (None, n_layers - 1)
