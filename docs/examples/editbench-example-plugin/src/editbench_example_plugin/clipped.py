"""An editor out of the slots of the closed-form loop: MEMIT with history, and no large entries."""

from pydantic import Field
from torch import Tensor

from editbench.editors.closed_form.config import ClosedFormConfig
from editbench.editors.closed_form.editor import ClosedForm
from editbench.editors.closed_form.goals import Solved
from editbench.edits.weight_edit import make_dense


class ClippedConfig(ClosedFormConfig):  # noqa: D101
    history: bool = True
    bound: float = Field(default=3.0, gt=0, description="largest entry of Δ, in deviations")


class Clipped(ClosedForm):
    """No single weight may change much more than the others."""

    name, config_type = "clipped", ClippedConfig

    def finish(self, solved: Solved) -> Tensor:  # noqa: D102
        update = make_dense(solved.update)
        return update.clamp(-self.config.bound * update.std(), self.config.bound * update.std())
