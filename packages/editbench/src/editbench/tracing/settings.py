"""What a trace consists of: kinds of states, windows of layers, noise."""

import math
import re
from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from editbench.errors import ConfigError

Kind = Literal["hidden", "mlp", "attention"]
"""What is restored: a block's output in one layer, or a module's output in a window of layers."""

SeveredKind = Literal["severed_mlp", "severed_attention"]
"""A block's output restored, while one kind of module is frozen as it was in the corrupted run."""

KINDS: tuple[Kind, ...] = get_args(Kind)
SEVERED_KINDS: tuple[SeveredKind, ...] = get_args(SeveredKind)
SEVERED_MODULE: Mapping[Kind | SeveredKind, Kind] = {
    "severed_mlp": "mlp",
    "severed_attention": "attention",
}

DEFAULT_NOISE = "3s"
REFERENCE_WINDOW = 10
_REFERENCE_DEPTH = 28  # GPT-J's


class TraceSettings(BaseModel):
    """Everything that a trace's numbers depend on besides the model and the prompt.

    Attributes:
        noise_level: Standard deviation of the noise on the subject's embeddings.
        n_samples: How many noise samples a score is the mean over.
        window: How many layers of MLP or attention outputs are restored together.
        noise_source: ``prompt``: drawn from `seed` and the prompt's text. ``reference``: numpy's
            ``RandomState(1)``, made anew for every prompt, as the reference does.
        seed: Source of the noise of ``prompt``.
        kinds: What is restored, at every token and layer.
        severed: Whether the last subject token is traced with MLPs and attention severed, too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    noise_level: float = Field(gt=0)
    n_samples: int = Field(gt=0)
    window: int = Field(gt=0)
    noise_source: Literal["prompt", "reference"]
    seed: int
    kinds: tuple[Kind, ...] = KINDS
    severed: bool = True

    @property
    def traced_kinds(self) -> tuple[Kind | SeveredKind, ...]:
        """All that is traced, in a fixed order."""
        kinds = tuple(kind for kind in KINDS if kind in self.kinds)
        return (*kinds, *SEVERED_KINDS) if self.severed else kinds


def default_window(n_layers: int) -> int:
    """Ten layers as in the paper, and in models shallower than GPT-J as many in proportion."""
    return min(REFERENCE_WINDOW, math.ceil(n_layers * REFERENCE_WINDOW / _REFERENCE_DEPTH))


def window_around(layer: int, width: int, n_layers: int) -> tuple[int, int]:
    """First and last layer of the window around a layer, as the reference takes it.

    From ``layer - width // 2`` on, `width` layers, clipped to the model: a window of ten reaches
    from five below to four above.
    """
    first = layer - width // 2
    return max(0, first), min(n_layers - 1, first + width - 1)


def parse_noise(text: str) -> tuple[float, bool]:
    """Read a noise level: a number, or a multiple of the embeddings' spread such as ``3s``.

    Returns:
        The number, and whether it counts in spreads.

    Raises:
        ConfigError: It is something else, or not positive.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(s?)\s*", text)
    try:
        level = float(found[1]) if found else math.nan
    except ValueError:
        level = math.nan
    if found is None or not 0 < level < math.inf:
        raise ConfigError(
            f"--noise: got {text!r}; expected a positive number, such as 0.1, or a multiple of the "
            "spread of the subjects' embeddings, such as 3s."
        )
    return level, found[2] == "s"
