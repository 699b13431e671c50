"""AlphaEdit: facts written where ordinary keys hardly are (Fang et al., 2025)."""

from typing import ClassVar, Literal

from pydantic import Field

from editbench.editors.base import EditorConfig
from editbench.editors.closed_form.config import CLOSED_FORM_NAMES, ClosedFormConfig
from editbench.editors.closed_form.editor import ClosedForm
from editbench.editors.dialect import Dialect
from editbench.editors.search_space import Choices, SearchSpace
from editbench.models.editable import EditableModel

DIALECT = Dialect(
    editor="alphaedit",
    methods=("alphaedit",),
    names={
        **CLOSED_FORM_NAMES,
        "L2": lambda value, _: {"ridge": value, "ridge_unit": "absolute"},
        "nullspace_threshold": lambda value, _: {
            "null_space_threshold": value,
            "null_space_unit": "absolute",
        },
    },
    unused={},
)


class AlphaEditConfig(ClosedFormConfig):
    """Every number of AlphaEdit's algorithm, with the paper's symbol and the reference's name."""

    dialect: ClassVar[Dialect | None] = DIALECT

    history: bool = Field(
        default=True,
        description="H, the paper's K_p K_pᵀ: what was written before in a stream is preserved, "
        "too (cache_c)",
    )
    ridge: float = Field(
        default=1.0,
        ge=0,
        description="weight of ‖Δ‖², all that holds Δ back inside of the null space; 1 in the "
        "paper (L2)",
    )
    ridge_unit: Literal["absolute", "relative"] = Field(
        default="relative",
        description="relative: times the mean of C's diagonal; absolute, as the reference has it, "
        "does not carry over between models",
    )
    null_space_threshold: float | None = Field(
        default=0.5,
        gt=0,
        description="P: write only along eigenvectors of C with eigenvalues below it; null: "
        "everywhere, with λC in its place (nullspace_threshold)",
    )


class AlphaEdit(ClosedForm):
    """Null-space constrained editing: ordinary values cannot move, because updates never meet them.

    Updates act in the span of U alone, the eigenvectors of C with small eigenvalues, and keep the
    values of all that was written before: Δ = Rᵀ K U (L₂I + Uᵀ(KᵀK + H)U)⁻¹ Uᵀ. That is the
    paper's update with P = UUᵀ, in a form that is symmetric. Targets are MEMIT's.

    The authors' threshold, 0.02, is an eigenvalue, and says another share of the space for each
    model; the default here is that share. Their P comes from a float32 decomposition and is off by
    a thousandth or more; this one is exact.
    """

    name: ClassVar[str] = "alphaedit"
    config_type: ClassVar[type[EditorConfig]] = AlphaEditConfig
    config: AlphaEditConfig

    @classmethod
    def search_space(cls, model: EditableModel, config: EditorConfig) -> SearchSpace:
        """MEMIT's, with the null space and the ridge in place of λ where λ plays no part."""
        assert isinstance(config, AlphaEditConfig)
        space = dict(super().search_space(model, config))
        threshold = config.null_space_threshold
        if threshold is not None:
            del space["preservation_weight"]
            space["null_space_threshold"] = (
                Choices.of((0.3, 0.5, 0.7, 0.9), threshold, is_cheap=True)
                if config.null_space_unit == "share"
                else Choices.around(threshold, (0.1, 0.3, 1, 3, 10), is_cheap=True)
            )
        if config.ridge > 0:
            space["ridge"] = Choices.around(config.ridge, (0.01, 0.1, 0.3, 1, 3, 10), is_cheap=True)
        return space
