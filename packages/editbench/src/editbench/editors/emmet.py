"""EMMET: residuals of many facts met almost exactly (Gupta, Sajnani, Anumanchipalli, 2024)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from editbench.editors.base import EditorConfig
from editbench.editors.closed_form.config import CLOSED_FORM_NAMES, ClosedFormConfig
from editbench.editors.closed_form.editor import ClosedForm
from editbench.editors.dialect import Dialect
from editbench.editors.references import cite
from editbench.editors.search_space import Choices, SearchSpace
from editbench.models.editable import EditableModel

DIALECT = Dialect(
    editor="emmet",
    methods=("emmet",),
    names={
        **CLOSED_FORM_NAMES,
        "emmet_lambda": "slack",
        "update_norm_lambda": lambda value, _: {"ridge": value, "ridge_unit": "absolute"},
    },
    unused={},
)


class EmmetConfig(ClosedFormConfig):
    """Every number of EMMET's algorithm, with the paper's symbol and the reference's name."""

    dialect: ClassVar[Dialect | None] = DIALECT

    slack: float = Field(
        default=0.1,
        ge=0,
        description="α: how far residuals may be missed; 1 is MEMIT, 0 meets them exactly, as is "
        "done for a batch of one fact in any case (emmet_lambda)",
    )


class Emmet(ClosedForm):
    """Equality-constrained mass model editing: ROME's exactness for batches of facts.

    MEMIT with a slack of α in place of 1: Δ = Rᵀ (K (λC)⁻¹ Kᵀ + αI)⁻¹ K (λC)⁻¹. As α → 0 every
    residual is met, which takes keys that are linearly independent; facts about one subject often
    share their key. A batch of one fact has no slack, as in the authors' code, and then is ROME's
    update with MEMIT's targets.
    """

    name: ClassVar[str] = "emmet"
    config_type: ClassVar[type[EditorConfig]] = EmmetConfig
    config: EmmetConfig
    good_for: ClassVar[str] = "batches whose targets must be met almost exactly"
    citation: ClassVar[str] = cite("gupta2024emmet")

    @classmethod
    def derive_defaults(cls, model: EditableModel) -> Mapping[str, Any]:
        """MEMIT's, but for the last critical layer alone, as EMMET's are published."""
        defaults = super().derive_defaults(model)
        return {**defaults, "critical_layers": defaults["critical_layers"][-1:]}

    @classmethod
    def search_space(cls, model: EditableModel, config: EditorConfig) -> SearchSpace:
        """MEMIT's, and α."""
        assert isinstance(config, EmmetConfig)
        slacks = Choices.of((0.01, 0.03, 0.1, 0.3, 1.0), config.slack, is_cheap=True)
        return {**super().search_space(model, config), "slack": slacks}

    def slack(self, n_edits: int) -> float:
        """α; none for one fact alone, unless errors are fed back, which takes some."""
        is_exact = n_edits == 1 and not self.config.error_feedback
        return 0.0 if is_exact else self.config.slack
