"""What there is to try of an editor's hyperparameters: an editor says so, a search goes by it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from editbench.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Choices:
    """Values of a field to try.

    Attributes:
        values: The values, each once; if they are numbers, ascending.
        is_cheap: Whether what takes long in an edit does not depend on the field, so that an editor
            finds it in its cache when nothing else has changed. A search tries several of these
            values for each combination of the others.
    """

    values: tuple[Any, ...]
    is_cheap: bool = False

    @classmethod
    def around(cls, default: float, factors: Iterable[float], *, is_cheap: bool = False) -> Self:
        """Multiples of a default, which is among them."""
        return cls(_ascending([float(f"{default * f:.4g}") for f in factors], default), is_cheap)

    @classmethod
    def of(cls, values: Iterable[Any], default: Any, *, is_cheap: bool = False) -> Self:
        """Some values, and the default among them."""
        each = [*values, default]
        if all(isinstance(value, int | float) for value in each):
            return cls(_ascending(values, default), is_cheap)
        return cls(tuple(value for n, value in enumerate(each) if value not in each[:n]), is_cheap)

    def parts(self, field: str) -> "dict[str, Choices]":
        """What is drawn, by name: the field itself."""
        return {field: self}

    def read(self, field: str, drawn: Mapping[str, Any]) -> Any:
        """The field's value, of what was drawn."""
        return drawn[field]

    def split(self, field: str, value: Any) -> dict[str, Any]:
        """What would have to be drawn for a value."""
        return {field: value}

    def within(self, layers: Sequence[int]) -> Self:
        """The same with some layers as its values."""
        return replace(self, values=tuple(layers))


@dataclass(frozen=True, slots=True)
class LayerWindow:
    """Neighboring layers to write to: a last one, and how many.

    Target hidden states live at the last of them, so that the number is cheap to vary.

    Attributes:
        layers: Where windows lie, ascending.
        lasts: Where they end.
        max_length: How many layers there are in one, at most.
    """

    layers: tuple[int, ...]
    lasts: tuple[int, ...]
    max_length: int = 6

    def parts(self, field: str) -> dict[str, Choices]:
        """What is drawn, by name: the last layer, and the number of layers."""
        lengths = range(1, min(self.max_length, len(self.layers)) + 1)
        return {
            f"{field}.last": Choices(self.lasts),
            f"{field}.length": Choices(tuple(lengths), is_cheap=True),
        }

    def read(self, field: str, drawn: Mapping[str, Any]) -> tuple[int, ...]:
        """The layers, of what was drawn; fewer where the range begins."""
        last = drawn[f"{field}.last"]
        first = max(self.layers[0], last - drawn[f"{field}.length"] + 1)
        return tuple(range(first, last + 1))

    def split(self, field: str, value: Sequence[int]) -> dict[str, Any]:
        """What would have to be drawn for a window."""
        return {f"{field}.last": value[-1], f"{field}.length": len(value)}

    def within(self, layers: Sequence[int]) -> "LayerWindow":
        """The windows of other layers, ending at any of them."""
        return replace(self, layers=tuple(layers), lasts=tuple(layers))


LAYER_FIELDS = ("critical_layers", "layer")
"""What editors call the layers that they write to."""

SearchSpace = Mapping[str, Choices | LayerWindow]
"""What to try, by field; fields that are not named keep their values."""


def middle_layers(n_layers: int, default: int, *, to: float) -> tuple[int, ...]:
    """Layers from a tenth of the depth to `to` of it, less the first, and around the default."""
    likely = {*range(round(0.1 * n_layers), int(to * n_layers) + 1), default - 1, default + 1}
    return _ascending([layer for layer in likely if 0 < layer < n_layers], default)


def restrict_layers(space: SearchSpace, layers: Sequence[int], editor: str) -> SearchSpace:
    """The same space with layers out of some alone.

    Raises:
        ConfigError: The editor has no layers to choose.
    """
    fields = [name for name in LAYER_FIELDS if name in space]
    if not fields:
        raise ConfigError(
            f"--layers: there are no layers to choose for editor '{editor}', got {list(layers)}. "
            "Leave it out."
        )
    return {**space, **{name: space[name].within(layers) for name in fields}}


def _ascending(values: Iterable[Any], default: Any) -> tuple[Any, ...]:
    return tuple(sorted({*values, default}))
