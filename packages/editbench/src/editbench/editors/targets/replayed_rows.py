"""What it takes to replay some rows with offsets: operations, and bytes at the widest place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from editbench.editors.subject_tokens import PromptRow
from editbench.models.decoder_size import DecoderSize
from editbench.models.readout import choose_slice_size


@dataclass(frozen=True, slots=True)
class ReplayedRows:
    """Rows with an offset each that run together, padded; see `PrefixStates` and `SuffixReplay`.

    Attributes:
        n_rows: Rows.
        n_distinct: Beginnings that they share.
        shared: Tokens of the longest of these.
        own: Tokens from there to the offset, in the longest row.
        width: Tokens from the offset on, in the longest row.
        n_unpadded: Tokens from the offset on in all rows, which is where maps and MLPs work.
        n_losses: Places at which logits are read for the target's loss, in slices if they are many.
        n_whole: Places whose logits are wanted whole.
    """

    n_rows: int
    n_distinct: int
    shared: int
    own: int
    width: int
    n_unpadded: int
    n_losses: int
    n_whole: int

    @classmethod
    def of(cls, rows: Sequence[PromptRow], n_shared: Sequence[int]) -> Self:
        """Count the tokens of `rows`, of which the first `n_shared` are shared with others."""
        beginnings = {row.token_ids[:n] for row, n in zip(rows, n_shared, strict=True)}
        return cls(
            n_rows=len(rows),
            n_distinct=len(beginnings),
            shared=max(len(beginning) for beginning in beginnings),
            own=max(row.subject_last - n for row, n in zip(rows, n_shared, strict=True)),
            width=max(len(row.token_ids) - row.subject_last for row in rows),
            n_unpadded=sum(len(row.token_ids) - row.subject_last for row in rows),
            n_losses=sum(len(row.target_ids) for row in rows),
            n_whole=sum(not row.target_ids for row in rows),
        )

    @property
    def n_prefix_tokens(self) -> int:
        """Tokens in front of the offsets, those that are shared once."""
        return self.n_distinct * self.shared + self.n_rows * self.own

    @property
    def n_tokens(self) -> int:
        """Tokens from the offset on."""
        return self.n_rows * self.width

    @property
    def n_reads(self) -> int:
        """Places at which logits are read."""
        return self.n_losses + self.n_whole

    @property
    def n_keys(self) -> int:
        """What a token attends to."""
        return self.shared + self.own + self.width

    def prepare_flops(self, size: DecoderSize, n_blocks: int) -> float:
        """Everything that is run once: prefixes up to the last block, suffixes up to the offset."""
        with_own = self.shared + self.own
        n_pairs = self.n_distinct * self.shared**2 + self.n_rows * self.own * with_own
        prefixes = size.block_flops(self.n_prefix_tokens, n_pairs)
        suffixes = size.block_flops(self.n_unpadded, self.n_tokens * self.n_keys)
        return (size.n_layers - 1) * prefixes + (size.n_layers - n_blocks) * suffixes

    def replay_flops(self, size: DecoderSize, n_blocks: int) -> tuple[float, float]:
        """One replay of the blocks behind the offset, forwards and backwards.

        In the first block, what works on its input does so at the first position alone; in the last
        one, the MLP works where logits are read. Losses that are taken in slices bring their
        gradients along, in the forward pass.
        """
        n_pairs = self.n_tokens * self.n_keys
        forward = n_blocks * size.block_flops(self.n_unpadded, n_pairs)
        forward -= 2 * size.n_mlp * (self.n_unpadded - min(self.n_reads, self.n_unpadded))
        if n_blocks > 1:
            forward -= 2 * size.n_inward * (self.n_unpadded - self.n_rows)
        is_sliced = self.n_losses > choose_slice_size(size.n_logits)
        head = size.head_flops(self.n_reads)
        moved = size.head_flops(self.n_losses) if is_sliced else 0.0
        backward = forward + n_blocks * size.attention_flops(n_pairs) + head - moved
        return forward + head + moved, backward

    def peak_bytes(self, size: DecoderSize, n_blocks: int) -> float:
        """Bytes besides the weights, at the widest place of a step; `n_blocks` are replayed."""
        prefix_width = self.shared + self.own
        # Blocks that are replayed keep what is cached together with what is new.
        cached = self.n_rows * prefix_width * size.n_cache_bytes * (1 - n_blocks / size.n_layers)
        kept = n_blocks * size.kept_bytes(self.n_keys, n_prefix=prefix_width / self.width)
        working = 2 * size.working_bytes(self.n_keys)  # the gradient is as wide as what it is of
        n_at_once = self.n_whole + min(self.n_losses, choose_slice_size(size.n_logits))
        logits = n_at_once * size.logit_bytes(with_loss=True)
        return cached + self.n_tokens * (kept + working) + logits
