"""What one stage of the work costs, added up over what runs together."""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, field
from typing import Self

from editbench.models.batches import Padded
from editbench.models.decoder_size import DecoderSize


@dataclass(frozen=True, slots=True)
class StageCost:
    """The work of one stage, at most: editors that stop early do less.

    Attributes:
        name: The stage, as progress displays call it.
        n_tokens: Tokens that go through the model, padding included; each pass counts.
        n_flops: Floating-point operations in the model's type.
        n_double_flops: Floating-point operations in float64.
        n_read_bytes: Bytes that are read for them besides the weights of blocks.
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

    def __add__(self, other: "StageCost") -> "StageCost":
        """Both, one after the other, under the name of the first."""
        return StageCost(
            name=self.name,
            n_tokens=self.n_tokens + other.n_tokens,
            n_flops=self.n_flops + other.n_flops,
            n_double_flops=self.n_double_flops + other.n_double_flops,
            n_read_bytes=self.n_read_bytes + other.n_read_bytes,
            n_block_calls=self.n_block_calls + other.n_block_calls,
            n_peak_bytes=max(self.n_peak_bytes, other.n_peak_bytes),
            chunks=self.chunks if self.chunks == other.chunks else "",
            is_known=self.is_known and other.is_known,
        )


@dataclass(frozen=True, slots=True)
class ExpectedCache:
    """What earlier work of a plan will have left in caches for later work, by any key."""

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
        together[stage.name] = stage if before is None else before + stage
    return list(together.values())


@dataclass(frozen=True, slots=True)
class Forward:
    """Rows that run through some blocks together: what the cost of work is made of.

    Attributes:
        rows: The rows.
        n_blocks: Through how many blocks they go.
        n_before: Tokens in front of them, in the longest row, whose keys and values are there.
        is_copied: Whether those of the block at hand are copied for each row, instead of those of
            all blocks being there for each.
        n_shared: Tokens in front of these that all rows share: they are there once, and those of
            the block at hand are copied for each row.
        n_reads: At how many places logits are read; in the last block the MLP works there alone.
        n_mlp_tokens: Tokens that MLPs work on, where that is not all of them.
        n_times: How often they run.
        has_gradients: Whether a gradient comes back through the blocks.
    """

    rows: Padded
    n_blocks: int
    n_before: int = 0
    _: KW_ONLY
    is_copied: bool = False
    n_shared: int = 0
    n_reads: int = 0
    n_mlp_tokens: int | None = None
    n_times: int = 1
    has_gradients: bool = False

    @property
    def n_keys(self) -> int:
        """What a token attends to."""
        return self.n_shared + self.n_before + self.rows.width

    def flops(self, size: DecoderSize) -> tuple[float, float]:
        """Operations of one pass forwards, and of one backwards."""
        n_pairs = self.rows.n_padded * self.n_keys
        head = size.head_flops(self.n_reads)
        n_tokens = self.rows.n_tokens
        block = size.block_flops(n_tokens, n_pairs, n_mlp_tokens=self.n_mlp_tokens)
        forward = self.n_blocks * block + head
        if self.n_reads and self.n_blocks:
            forward -= 2 * size.n_mlp * max(0, n_tokens - self.n_reads)
        return forward, forward + self.n_blocks * size.attention_flops(n_pairs)

    def peak_bytes(self, size: DecoderSize) -> float:
        """Bytes besides the weights, at the widest place."""
        n_tokens = self.rows.n_padded
        logits = self.n_reads * size.logit_bytes(with_loss=self.has_gradients)
        cached = float(self.rows.n_rows * self.n_before * size.n_cache_bytes)
        cached *= 2 / size.n_layers if self.is_copied else 1
        if self.n_shared:
            cached += self.n_shared * size.n_cache_bytes
            cached += self.rows.n_rows * self.n_keys * size.n_copied_bytes
        working = n_tokens * size.working_bytes(self.n_keys)
        if not self.has_gradients:
            return max(cached + working, logits)
        # Blocks that a gradient passes keep what is cached together with what is new.
        cached *= 1 - self.n_blocks / size.n_layers
        n_prefix = self.n_before / max(1, self.rows.width)
        kept = n_tokens * self.n_blocks * size.kept_bytes(self.n_keys, n_prefix=n_prefix)
        return cached + kept + 2 * working + logits  # the gradient is as wide as what it is of

    def cost(self, size: DecoderSize, name: str = "") -> StageCost:
        """What all of it costs."""
        forward, backward = self.flops(size)
        n_passes = self.n_blocks * self.n_times
        n_seen = self.rows.n_rows * (self.n_before + self.n_shared)
        seen = n_seen * size.n_cache_bytes * self.n_blocks / size.n_layers
        n_head = size.d_model * size.n_logits * size.itemsize if self.n_reads else 0
        return StageCost(
            name=name,
            n_tokens=self.rows.n_padded * self.n_times,
            n_flops=self.n_times * (forward + (backward if self.has_gradients else 0.0)),
            n_read_bytes=self.n_times * (1 + self.has_gradients) * (seen + n_head),
            n_block_calls=n_passes * (3 if self.has_gradients else 1),
            n_peak_bytes=self.peak_bytes(size),
        )


def sum_cost(name: str, forwards: Iterable[Forward], size: DecoderSize) -> StageCost:
    """What forwards cost one after another."""
    total = StageCost(name)
    for forward in forwards:
        total += forward.cost(size, name)
    return total
