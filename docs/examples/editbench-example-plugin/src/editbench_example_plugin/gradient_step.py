"""An editor in its simplest form: gradient descent on one weight."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from editbench.editors.base import Editor, EditorConfig, Resources
from editbench.edits.edit import Edit
from editbench.edits.weight_edit import WeightEdit
from editbench.models.architecture import weight_is_transposed
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest

_IGNORED = -100  # what cross_entropy takes for "no label here"


class GradientStepConfig(EditorConfig):
    """Hyperparameters; each can be set with ``--set gradient-step.FIELD=VALUE``."""

    layer: int | None = Field(default=None, ge=0, description="layer to write to; null: the middle")
    n_steps: int = Field(default=20, ge=1, description="how many steps to take at most")
    step_size: float = Field(default=0.02, gt=0, description="‖step‖ / ‖weight‖")


class GradientStep(Editor):
    """Gradient steps on one MLP output projection, until the model says every target.

    The loss is the mean of -log p over the tokens of all targets. A step has a fixed length,
    relative to the weight's norm, so that one setting does for every model.
    """

    name: ClassVar[str] = "gradient-step"
    config_type: ClassVar[type[EditorConfig]] = GradientStepConfig
    config: GradientStepConfig

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        """Compute the edit. The model's own weight is never written to."""
        config = self.config
        layer = model.architecture.n_layers // 2 if config.layer is None else config.layer
        model.architecture.check_layer(layer)
        projection = model.architecture.mlp_projections[layer]
        name = model.architecture.weight_name(projection)
        weight = model.model.get_parameter(name)
        inputs, labels = _make_batch(model, requests)
        step_length = config.step_size * weight.norm()
        update = torch.zeros_like(weight)
        for step in range(config.n_steps):
            update.requires_grad_()
            with torch.enable_grad():
                edited = {name: weight + update}
                logits = functional_call(model.model, edited, kwargs=inputs).logits[:, :-1]
                loss = cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
                if _says_all_targets(logits, labels):
                    break
                (gradient,) = torch.autograd.grad(loss, update)
            update = (update - step_length * gradient / gradient.norm()).detach()
            resources.report_progress("steps", step + 1, config.n_steps, f"loss {loss:.3f}")
        update = update.detach()
        if weight_is_transposed(model.model.get_submodule(projection)):
            update = update.T  # an edit holds [d_out, d_in], whatever the module stores
        return WeightEdit.build(
            model,
            editor=self.name,
            config=config,
            requests=requests,
            updates={name: update.contiguous()},
        )


def _make_batch(
    model: EditableModel, requests: Sequence[EditRequest]
) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs, and for each position but the last the target token that follows it, if any."""
    pairs = [model.tokens.encode_question(each.question) for each in requests]
    inputs = model.batch([prompt + target for prompt, target in pairs])
    labels = torch.full_like(inputs["input_ids"], _IGNORED)
    for row, (prompt, target) in enumerate(pairs):
        labels[row, len(prompt) : len(prompt) + len(target)] = torch.tensor(target)
    return inputs, labels[:, 1:]


def _says_all_targets(logits: Tensor, labels: Tensor) -> bool:
    return bool((logits.argmax(dim=-1) == labels)[labels != _IGNORED].all())
