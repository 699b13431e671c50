"""What is lost of updates when they are written: to rounding, or to a bound on their ranks."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class UpdateErrors:
    """How far the updates Δ' that were written are from those that were meant, Δ.

    Attributes:
        squares: Of each parameter ‖Δ' − Δ‖² and ‖Δ‖² (Frobenius).
    """

    squares: dict[str, tuple[float, float]] = field(default_factory=dict)

    def note_rounding(self, name: str, written: Tensor, total: Tensor, before: Tensor) -> None:
        """Take down what is written in place of W + Δ, of which `before` is W."""
        lost = float((written.double() - total).square().sum())
        self.squares[name] = lost, float((total - before.double()).square().sum())

    @property
    def of_each(self) -> dict[str, float]:
        """‖Δ' − Δ‖ / ‖Δ‖ by parameter; those with Δ = 0 are left out."""
        return {name: (lost / size) ** 0.5 for name, (lost, size) in self.squares.items() if size}

    @property
    def overall(self) -> float | None:
        """The same over all parameters; None if no update is anything."""
        lost, size = map(sum, zip((0.0, 0.0), *self.squares.values(), strict=True))
        return (lost / size) ** 0.5 if size else None
