"""MEMIT: thousands of facts written into several layers at once (Meng et al., 2022)."""

from typing import ClassVar

from editbench.editors.base import EditorConfig
from editbench.editors.closed_form.config import CLOSED_FORM_NAMES, ClosedFormConfig
from editbench.editors.closed_form.editor import ClosedForm
from editbench.editors.dialect import Dialect

DIALECT = Dialect(
    editor="memit",
    methods=("memit", "memit_seq", "alphaedit"),
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

    With ``module="attention"`` that is attention's output projection, and K and C are of its
    inputs; all else stays the same. The paper compares the two.
    """

    name: ClassVar[str] = "memit"
    config_type: ClassVar[type[EditorConfig]] = MemitConfig
    config: MemitConfig
