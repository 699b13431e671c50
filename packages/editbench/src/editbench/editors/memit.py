"""MEMIT (Meng et al., 2022) and its kin: history, ENCORE, BLUE, and what is done to its updates."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from editbench.editors.base import EditorConfig
from editbench.editors.closed_form.config import CLOSED_FORM_NAMES, ClosedFormConfig
from editbench.editors.closed_form.dials import Finish
from editbench.editors.closed_form.editor import ClosedForm
from editbench.editors.dialect import Dialect
from editbench.editors.references import cite
from editbench.models.editable import EditableModel
from memit_core.spread import Spreading

DIALECT = Dialect(
    editor="memit",
    methods=("memit", "memit_seq", "memit_rect", "memit_prune", "alphaedit"),
    names=CLOSED_FORM_NAMES,
    unused={},
)


class MemitConfig(ClosedFormConfig):
    """Every number of MEMIT's algorithm, with the paper's symbol and the reference's name."""

    dialect: ClassVar[Dialect | None] = DIALECT


class Memit(ClosedForm):
    """Mass-editing memory in a transformer.

    The facts' target hidden states z are optimised on the model as it is. Then, for each critical
    layer from the lowest, the keys K and what is missing at the last critical layer are measured
    on the model as edited so far; the missing part is divided by the number of layers left
    (Eqn 20); and Δ = R Kᵀ (λC + K Kᵀ)⁻¹ (Eqn 14) is added to the MLP's output projection.

    Facts about one subject often have one key, and cannot then have several values: with
    `share_subjects` they get one offset that suits them all, as MEMIT-Merge gives them
    (arXiv 2502.07322).

    With ``module="attention"`` that is attention's output projection, and K and C are of its
    inputs; all else stays the same. The paper compares the two.
    """

    name: ClassVar[str] = "memit"
    config_type: ClassVar[type[EditorConfig]] = MemitConfig
    config: MemitConfig
    good_for: ClassVar[str] = "many facts at once; facts about few subjects with share_subjects"
    citation: ClassVar[str] = cite("meng2023memit")


class MemitHistoryConfig(MemitConfig):
    """MEMIT's numbers, with history."""

    history: bool = Field(
        default=True,
        description="H: what was written before in a stream weighs like ordinary text (cache_c)",
    )


class MemitHistory(Memit):
    """MEMIT that remembers: keys of what was written before are preserved like ordinary text.

    Δ = Rᵀ K (λC + H + KᵀK)⁻¹, H the sum of KᵀK over all earlier batches. As long as keys stay
    where they are, batches one after another then come to what all facts at once come to.
    """

    name: ClassVar[str] = "memit-history"
    published_as: ClassVar[str] = "memit"
    config_type: ClassVar[type[EditorConfig]] = MemitHistoryConfig
    config: MemitHistoryConfig
    good_for: ClassVar[str] = "streams of batches; what to compare others with"
    citation: ClassVar[str] = cite("wang2026labyrinth")


def _read_cutoff(value: Any, _values: Mapping[str, Any]) -> Mapping[str, Any]:
    if value > 0:
        raise ValueError(
            "must be 0, or minus the number of evaluations: probabilities stop nothing"
        )
    return {"stop_at": "argmax", "stop_after": -value} if value else {"stop_at": "loss"}


ENCORE_DIALECT = Dialect(
    editor="encore",
    methods=("encore", "memit"),
    names={
        **CLOSED_FORM_NAMES,
        "update_norm_lambda": lambda value, _: {"ridge": value, "ridge_unit": "absolute"},
        "prob_cutoff": _read_cutoff,
    },
    unused={"norm_control": "without effect in the authors' code"},
)


class EncoreConfig(MemitHistoryConfig):
    """MEMIT's numbers with ENCORE's three: history, the norm constraint and the early stop."""

    dialect: ClassVar[Dialect | None] = ENCORE_DIALECT
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "reference": {"ridge_unit": "absolute", "stop_rule": "reference"}
    }

    ridge: float = Field(
        default=0.1,
        ge=0,
        description="λₙ: weight of ‖Δ‖², 10 to 20 in the authors' files (update_norm_lambda)",
    )
    ridge_unit: Literal["absolute", "relative"] = Field(
        default="relative",
        description="relative: times the mean of C's diagonal; absolute, as the reference has it, "
        "does not carry over between models",
    )
    stop_at: Literal["loss", "argmax"] = Field(
        default="argmax",
        description="argmax: an edit is finished once its target is the likeliest continuation "
        "(MPES); loss: by its loss alone (prob_cutoff)",
    )
    stop_after: int = Field(
        default=2, ge=1, description="how many evaluations say so, in a row or not (prob_cutoff)"
    )
    stop_rule: Literal["every-prompt", "prefixed", "reference"] = Field(
        default="prefixed",
        description="which tokens have to be right: of every prompt; of those behind a prefix; "
        "or, as shipped, exactly five of these: right for one token and five prefixes alone, else "
        "it stops facts that are not learned, or does not stop at all (reference)",
    )


class Encore(MemitHistory):
    """ENCORE: history, a penalty on the update's norm, and targets that stop early (MPES).

    Δ = Rᵀ K (λC + λₙI + H + KᵀK)⁻¹. Optimizing z ends once the target has been the likeliest
    continuation after all prefixes for the second time: fewer steps, and smaller δ.
    """

    name: ClassVar[str] = "encore"
    config_type: ClassVar[type[EditorConfig]] = EncoreConfig
    config: EncoreConfig
    good_for: ClassVar[str] = "long streams, faster than MEMIT; the weights' norm stays small"
    citation: ClassVar[str] = cite("gupta2025encore")


class BlueConfig(MemitHistoryConfig):
    """MEMIT's numbers with BLUE's two layers; a null space makes BLUE's AlphaEdit of it."""

    critical_layers: tuple[int, ...] = Field(
        min_length=1,
        description="R: the boundary layers, two of them, each with a z of its own (layers)",
    )
    target_layers: Literal["last", "each"] = Field(
        default="each",
        description="where z lives: one at each layer, on the model with the layers before it "
        "written; or at the last one",
    )
    spreading: Spreading = Field(
        default="whole", description="a layer's share of what is missing: all of it"
    )


class Blue(MemitHistory):
    """BLUE: only the first and the last critical layer, and each reaches a target of its own.

    z is optimized at the first layer, which takes all of what is missing there; then at the last
    one, on the model that has the first layer's update. Two z for each fact cost twice the time.
    """

    name: ClassVar[str] = "blue"
    published_as: ClassVar[str] = "blue"
    config_type: ClassVar[type[EditorConfig]] = BlueConfig
    config: BlueConfig
    good_for: ClassVar[str] = "facts that spreading over many layers writes too weakly"
    citation: ClassVar[str] = cite("li2025blue")

    @classmethod
    def derive_defaults(cls, model: EditableModel) -> Mapping[str, Any]:
        """MEMIT's, at the first and the last of its layers."""
        defaults = super().derive_defaults(model)
        layers = defaults["critical_layers"]
        return {**defaults, "critical_layers": tuple(dict.fromkeys((layers[0], layers[-1])))}


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
    protected_share: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="τ: the protected directions hold this share of the weight's energy; a small "
        "model needs more of them to write in than a large one",
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
