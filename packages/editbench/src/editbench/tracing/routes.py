"""The ways through the model that cells take: what is restored where, and who shares a path."""

from dataclasses import dataclass

from editbench.tracing.settings import SEVERED_MODULE, Kind, SeveredKind


@dataclass(frozen=True, slots=True)
class Route:
    """What is restored at one token: the outputs of layers `first` to `last`, both included.

    Of a block only one layer is restored. Cells whose windows are clipped to the same layers share
    a route.
    """

    kind: Kind | SeveredKind
    token: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Line:
    """Copies of the prompt that are swept together: those of routes that have not parted yet."""

    kind: Kind | SeveredKind
    token: int
    first: int
    closed_after: int | None  # None while the window is still open

    @classmethod
    def of(cls, route: Route, layer: int) -> "Line":
        """The line that a route is on as it enters block `layer`."""
        return cls(route.kind, route.token, route.first, route.last if layer > route.last else None)

    def restores(self, kind: Kind) -> bool:
        """Whether modules of a kind put out at the token what they do in the clean run."""
        return self.kind == kind and self.closed_after is None

    def severs(self, kind: Kind) -> bool:
        """Whether modules of a kind put out at the token what they do in the corrupted run."""
        return SEVERED_MODULE.get(self.kind) == kind
