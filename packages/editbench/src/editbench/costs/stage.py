"""What one stage of the work costs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True, slots=True)
class StageCost:
    """The work of one stage, at most: editors that stop early do less.

    Attributes:
        name: The stage, as progress displays call it.
        n_tokens: Tokens that go through the model, padding included; each pass counts.
        n_flops: Floating-point operations in the model's type.
        n_double_flops: Floating-point operations in float64.
        n_read_bytes: Bytes of weights and caches that are read for them.
        n_block_calls: How often a decoder block is called, backwards twice: each call takes a
            while, however small.
        n_peak_bytes: Bytes on the device at the worst moment, the model's weights left out.
        chunks: How the work is divided, in words; or why the stage is not known.
        is_known: False where nobody says what it costs; the numbers mean nothing then.
    """

    name: str
    n_tokens: int = 0
    n_flops: float = 0.0
    n_double_flops: float = 0.0
    n_read_bytes: float = 0.0
    n_block_calls: int = 0
    n_peak_bytes: float = 0.0
    chunks: str = ""
    is_known: bool = True

    @classmethod
    def unknown(cls, name: str, reason: str) -> Self:
        """A stage that nobody can say anything about, and why."""
        return cls(name, chunks=reason, is_known=False)


@dataclass(frozen=True, slots=True)
class Known:
    """What work that comes earlier in a plan leaves behind for later work: caches, by any key."""

    keys: set[object] = field(default_factory=set)

    def add(self, *key: object) -> bool:
        """Note that something will have been done; True if it was not before."""
        is_new = key not in self.keys
        self.keys.add(key)
        return is_new


def add_stages(stages: Iterable[StageCost]) -> list[StageCost]:
    """Put stages of the same name together, in the order of their first appearance."""
    together: dict[str, StageCost] = {}
    for stage in stages:
        before = together.get(stage.name)
        together[stage.name] = stage if before is None else _add(before, stage)
    return list(together.values())


def _add(one: StageCost, other: StageCost) -> StageCost:
    return StageCost(
        name=one.name,
        n_tokens=one.n_tokens + other.n_tokens,
        n_flops=one.n_flops + other.n_flops,
        n_double_flops=one.n_double_flops + other.n_double_flops,
        n_read_bytes=one.n_read_bytes + other.n_read_bytes,
        n_block_calls=one.n_block_calls + other.n_block_calls,
        n_peak_bytes=max(one.n_peak_bytes, other.n_peak_bytes),
        chunks=one.chunks if one.chunks == other.chunks else "",
        is_known=one.is_known and other.is_known,
    )
