"""Facts written where ordinary keys hardly are: AlphaEdit (Fang et al., 2025) and its kin."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from editbench.editors.base import EditorConfig
from editbench.editors.closed_form.config import CLOSED_FORM_NAMES, ClosedFormConfig
from editbench.editors.closed_form.dials import Finish
from editbench.editors.closed_form.editor import ClosedForm
from editbench.editors.dialect import Dialect
from editbench.editors.references import cite
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
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "reference": {
            "null_space_threshold": 0.02,
            "null_space_unit": "absolute",
            "ridge": 10.0,
            "ridge_unit": "absolute",
        }
    }

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
    good_for: ClassVar[str] = "streams in which ordinary text must not change at all"
    citation: ClassVar[str] = cite("fang2025alphaedit")

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


EVOEDIT_DIALECT = Dialect(
    editor="evoedit",
    methods=("evoedit", "alphaedit"),
    names={
        **DIALECT.names,
        # The authors' code adds 1e-6 of its own to the diagonal.
        "L2": lambda value, _: {"ridge": value + 1e-6, "ridge_unit": "absolute"},
    },
    unused={"apply_woodbury": "how an update is solved for is chosen by cost"},
)


class EvoEditConfig(AlphaEditConfig):
    """AlphaEdit's numbers, with a null space that shrinks in place of history."""

    dialect: ClassVar[Dialect | None] = EVOEDIT_DIALECT

    history: bool = Field(default=False, description="has nothing to add: no update meets old keys")
    null_space_shrinks: bool = Field(
        default=True,
        description="Q: what was written to before in a stream is no part of the null space any "
        "more, so that nothing later can move it",
    )


class EvoEdit(AlphaEdit):
    """EvoEdit: a null space that loses what has been written, so that no later fact can undo it.

    Δ = Rᵀ (K P Kᵀ + L₂I)⁻¹ K P, and then P ← P - QQᵀ, Q an orthonormal basis of what KP spans. A
    later fact about a subject that was written before has its key in the span of Q: it is skipped,
    and the card says so. The authors' code skips it in silence. Their projector loses a little of
    itself with every batch, in float32; this one is kept as factors in float64.
    """

    name: ClassVar[str] = "evoedit"
    published_as: ClassVar[str] = "alphaedit"
    config_type: ClassVar[type[EditorConfig]] = EvoEditConfig
    config: EvoEditConfig
    good_for: ClassVar[str] = "streams of facts about ever new subjects, where none may be lost"
    citation: ClassVar[str] = cite("lyu2026evoedit")


NAS_DIALECT = Dialect(
    editor="nas",
    methods=("nas", "alphaedit"),
    names={**DIALECT.names, "anchor_a": "norm_anchor"},
    unused={},
)


class NasConfig(AlphaEditConfig):
    """AlphaEdit's numbers, with a norm for values."""

    dialect: ClassVar[Dialect | None] = NAS_DIALECT

    norm_anchor: PositiveFloat | Literal["off"] | None = Field(
        default=None,
        description="a: the norm of every value v*; null: the mean of the first batch's, less the "
        "largest twentieth (anchor_a)",
    )


class Nas(AlphaEdit):
    """NAS: AlphaEdit whose values all get one norm, so that they do not grow with the weights.

    v* = v₀ + δ, what the last critical layer's projection is to say, becomes a v*/‖v*‖, and z moves
    along. A value beyond 2a is not written at all; the card says so. The authors measure a on a
    thousand facts of the data that they edit, unedited; without a number, the first batch is it.
    """

    name: ClassVar[str] = "nas"
    published_as: ClassVar[str] = "alphaedit"
    config_type: ClassVar[type[EditorConfig]] = NasConfig
    config: NasConfig
    good_for: ClassVar[str] = "very long streams, one fact at a time"
    citation: ClassVar[str] = cite("liu2026nas")


class SphereConfig(AlphaEditConfig):
    """AlphaEdit's numbers, with what SPHERE protects."""

    finish: Finish = Field(
        default="sphere", description="what is done to Δ: the rows' main directions are damped"
    )
    protection: float = Field(
        default=0.5, ge=0, le=1, description="γ: how much of Δ in these directions is taken away"
    )


class Sphere(AlphaEdit):
    """SPHERE: AlphaEdit whose updates are turned away from where the weight's rows mostly point.

    Δ ← Δ (I - γUUᵀ), U the main directions of W's rows at unit length, taken from the weights that
    each batch finds.
    """

    name: ClassVar[str] = "sphere"
    published_as: ClassVar[str] = "alphaedit"
    config_type: ClassVar[type[EditorConfig]] = SphereConfig
    config: SphereConfig
    good_for: ClassVar[str] = "streams, with rows of weights kept evenly spread"
    citation: ClassVar[str] = cite("liu2026sphere")
