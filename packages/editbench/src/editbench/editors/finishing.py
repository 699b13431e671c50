"""Editors that do something to an update before it is written: RECT, PRUNE, SPHERE, REVIVE."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from editbench.editors.alphaedit import AlphaEdit, AlphaEditConfig
from editbench.editors.base import EditorConfig
from editbench.editors.closed_form.finish import Finish
from editbench.editors.memit import Memit, MemitConfig, MemitHistory, MemitHistoryConfig
from editbench.editors.references import cite


class RectConfig(MemitConfig):
    """MEMIT's numbers, with RECT's share."""

    finish: Finish = Field(
        default="rect", description="what is done to Δ: entries that change their weight most stay"
    )


class Rect(Memit):
    """RECT: of each update only those entries are written that change their own weight most.

    An entry stays if |Δ / (W + 1e-8)| is among the largest `keep_share`, 40 % in the authors' code.
    """

    name: ClassVar[str] = "rect"
    published_as: ClassVar[str] = "memit"
    config_type: ClassVar[type[EditorConfig]] = RectConfig
    config: RectConfig
    good_for: ClassVar[str] = "few facts; a stream without error feedback falls"
    citation: ClassVar[str] = cite("gu2024rect")


class PruneConfig(MemitConfig):
    """MEMIT's numbers, with PRUNE's restraint."""

    finish: Finish = Field(
        default="prune",
        description="what is done to Δ: singular values beyond the weight's own shrink",
    )


class Prune(Memit):
    """PRUNE: the sum of all updates may not stretch a weight further than it already does.

    Singular values σ of W_T - W₀ from σ_max(W₀) on become ln σ - ln σ_max + σ_max, once, when the
    edit is handed out; the result is added to W₀. Several comparisons add it to W_T instead, which
    hardly changes anything: their PRUNE is another one.
    """

    name: ClassVar[str] = "prune"
    published_as: ClassVar[str] = "memit"
    config_type: ClassVar[type[EditorConfig]] = PruneConfig
    config: PruneConfig
    good_for: ClassVar[str] = "saving general abilities after a stream, at the price of its facts"
    citation: ClassVar[str] = cite("ma2025prune")


class OteRectConfig(MemitHistoryConfig):
    """The numbers of MEMIT with history, with RECT and its errors."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "reference": {"ridge": 1.0, "ridge_unit": "absolute"}
    }

    ridge: float = Field(default=1.0, ge=0, description="+1·I of the authors' code, absolute")
    finish: Finish = Field(
        default="rect", description="what is done to Δ: entries that change their weight most stay"
    )
    keep_share: float = Field(
        default=0.2, gt=0, le=1, description="k: the share of Δ's entries that rect keeps"
    )
    error_feedback: bool = Field(
        default=True,
        description="E: what a finish takes from an update is asked for again with the next batch",
    )


class OteRect(MemitHistory):
    """RECT aligned with batch editing: what was cut from an update is asked for with the next one.

    Δ = (RᵀK - E)(λC + H + KᵀK + I)⁻¹, and E is what the finish has lost of Δ, in the units of the
    right-hand side. A stream then comes to what one batch comes to, but for its last cut.
    """

    name: ClassVar[str] = "ote-rect"
    config_type: ClassVar[type[EditorConfig]] = OteRectConfig
    config: OteRectConfig
    good_for: ClassVar[str] = "streams of which each update touches few weights"
    citation: ClassVar[str] = cite("wang2026labyrinth")


class OtePruneConfig(OteRectConfig):
    """The numbers of MEMIT with history, with PRUNE of every update and its errors."""

    finish: Finish = Field(
        default="prune",
        description="what is done to Δ: singular values beyond the weight's own shrink",
    )


class OtePrune(OteRect):
    """PRUNE aligned with batch editing: each update is restrained, and its loss asked for again.

    As `OteRect`, with PRUNE in place of RECT. Bounds are those of the weights that a batch finds.
    """

    name: ClassVar[str] = "ote-prune"
    config_type: ClassVar[type[EditorConfig]] = OtePruneConfig
    config: OtePruneConfig
    good_for: ClassVar[str] = "streams whose single updates would be too large"


class ReviveConfig(MemitConfig):
    """MEMIT's numbers, with what REVIVE protects."""

    finish: Finish = Field(
        default="revive",
        description="what is done to Δ: the weight's main directions are taken out",
    )


class Revive(Memit):
    """REVIVE: the unedited weight's main singular directions are closed to every update.

    Δ ← (I - UUᵀ) Δ (I - VVᵀ), U and V the fewest directions of W₀ that hold more than
    `protected_share` of its energy. There is no code of the authors' to compare with.
    """

    name: ClassVar[str] = "revive"
    published_as: ClassVar[str] = "memit"
    config_type: ClassVar[type[EditorConfig]] = ReviveConfig
    config: ReviveConfig
    good_for: ClassVar[str] = "streams that must not touch general abilities"
    citation: ClassVar[str] = cite("zhang2026revive")


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
