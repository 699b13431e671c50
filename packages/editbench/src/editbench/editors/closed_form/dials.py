"""What tells one closed-form editor from another."""

from dataclasses import dataclass
from typing import Literal

from memit_core.spread import Spreading

Finish = Literal["none", "rect", "prune", "sphere", "revive"]


@dataclass(frozen=True)
class Dials:
    """What tells one closed-form editor from another, but for its targets.

    Attributes:
        weight: λ, of the second moment; of no use with a null space.
        slack: α, how far residuals may be missed.
        ridge: λₙ, or L₂ in a null space.
        ridge_unit: ``absolute``, or ``relative`` to the mean of C's diagonal.
        history: Whether keys of what was written before are preserved, too.
        null_space: Threshold and unit of `find_null_space`; None writes everywhere.
        null_space_shrinks: Whether what was written to before is no part of it any more.
        error_feedback: Whether what finishing takes from an update is made up for by the next one.
        spreading: Whose share of what is missing a layer takes on, see `spread_residuals`.
        finish: What is done to an update, see `editbench.editors.closed_form.finish`.
        keep_share: Of entries, for ``rect``.
        protected_share: Of energy, for ``sphere`` and ``revive``.
        protection: How much of an update these take away, where they do.
    """

    weight: float = 1.0
    slack: float = 1.0
    ridge: float = 0.0
    ridge_unit: Literal["absolute", "relative"] = "absolute"
    history: bool = False
    null_space: tuple[float, Literal["absolute", "share"]] | None = None
    null_space_shrinks: bool = False
    error_feedback: bool = False
    spreading: Spreading = "even"
    finish: Finish = "none"
    keep_share: float = 0.4
    protected_share: float = 0.5
    protection: float = 1.0
