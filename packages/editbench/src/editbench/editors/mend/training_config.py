"""Every number of a hypernetwork's training."""

from pydantic import Field

from editbench.editors.base import EditorConfig
from editbench.models.editable import EditableModel

DEFAULTS_KEY = "mend-training"
"""Under which a `ModelSpec` holds these settings among its defaults."""


class MendTraining(EditorConfig):
    """Every number of a hypernetwork's training; in brackets the reference's names."""

    blocks: tuple[int, ...] | None = Field(
        default=None,
        min_length=1,
        description="blocks whose MLP matrices are edited, all of them; null: the last three "
        "(inner_params)",
    )
    rank: int = Field(default=1920, ge=1, description="rank of the network's maps (rank)")
    learning_rate: float = Field(default=1e-6, gt=0, description="Adam's, for the network (lr)")
    rate_learning_rate: float = Field(
        default=1e-4, gt=0, description="Adam's, for the learned rates α (lr_lr)"
    )
    initial_rate: float = Field(
        default=1e-4, gt=0, description="what the learned rates start with (edit_lr)"
    )
    edit_weight: float = Field(default=0.1, ge=0, description="c_edit, weight of L_edit (cedit)")
    locality_weight: float = Field(default=1.0, ge=0, description="c_loc, weight of L_loc (cloc)")
    batch_size: int = Field(
        default=10, ge=1, description="edits a step, over which the gradient is accumulated"
    )
    edits_at_once: int = Field(
        default=1,
        ge=1,
        description="how many of them are made together, in one model; divides batch_size",
    )
    n_neighbors: int = Field(
        default=1, ge=1, description="unrelated prompts drawn for each edit in a step"
    )
    clip_norm: float = Field(
        default=100.0, gt=0, description="longest gradient of the network (grad_clip)"
    )
    max_steps: int = Field(
        default=100_000, ge=1, description="steps after which training ends at the latest"
    )
    validation_interval: int = Field(
        default=500, ge=1, description="steps between validations (val_interval)"
    )
    validation_cases: int = Field(
        default=200, ge=1, description="cases that a validation edits at most (val_steps)"
    )
    validation_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="share of the subjects held out, where no validation dataset is given",
    )
    patience: int = Field(
        default=10,
        ge=1,
        description="validations without improvement after which training ends "
        "(early_stop_patience)",
    )


def configure_training(model: EditableModel) -> tuple[MendTraining, str]:
    """The settings to start from on a model, and a sentence on where they come from."""
    spec = model.spec
    if spec is not None and DEFAULTS_KEY in spec.defaults:
        config = MendTraining.parse(spec.defaults[DEFAULTS_KEY], f"defaults of '{model.name}'")
        return config, spec.source_of("mend-training")
    return MendTraining(), (
        "as published for GPT-J; none are published for this model, so look at the validation"
    )
