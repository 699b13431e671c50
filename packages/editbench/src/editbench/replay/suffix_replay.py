"""Offsets by replay: only what an offset can reach is run again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from editbench.errors import ModelError
from editbench.models.agreement import relative_error, tolerated_error
from editbench.models.chosen_positions import Places, find_padded, only_at, skipping_padding
from editbench.models.editable import EditableModel
from editbench.models.head import ReadLoss, apply_head, find_losses
from editbench.models.lean_modules import find_wasteful, made_lean
from editbench.models.token_states import by_row
from editbench.replay.block_calls import BlockCalls, ReplayMismatchError
from editbench.replay.offset_forward import (
    FullForward,
    OffsetForward,
    OffsetRow,
    OffsetSite,
)
from editbench.replay.prefix_states import PrefixStates
from editbench.replay.reach import Reach
from memit_core import intervene


class SuffixReplay(OffsetForward):
    """Runs only what an offset can reach: blocks after the site, from the offset's position on.

    In a causal model a state behind block L and position t reaches neither a block up to L nor a
    position before t. So the prefix before t is run once and its keys and values kept; the suffix
    from t on is run once up to L and its states kept; a call replays blocks L+1 … on the suffix
    alone and reads logits where they are asked for. For a site inside of block L, that block is
    replayed, too. The result is exact.

    Other arguments are those of `OffsetForward`. `reach` is what an earlier replay of this model
    and site found out; None finds it out, and compares with the model's own forward. Of prefixes
    that are `known`, those that hold all rows', none is run again.

    Attributes:
        prefixes: What stands before the offsets.
        entry: The states that offsets are added to, `[n_rows, d_model]`; None if the site is inside
            of a block.
        reach: What need not be computed everywhere, for later replays of this model and site.

    Raises:
        ReplayMismatchError: Without `reach`, if a replay is not what the model's own forward of
            whole rows gives: its cache cannot be frozen, or counts padding as distance, or its
            blocks are not called in a plain sequence.
    """

    def __init__(
        self,
        model: EditableModel,
        site: OffsetSite,
        rows: Sequence[OffsetRow],
        read_layer: int | None = None,
        *,
        reach: Reach | None = None,
        known: Sequence[PrefixStates] = (),
    ) -> None:
        super().__init__(model, site, rows, read_layer)
        self._read_index = self._read_positions([-row.offset_position for row in rows])
        held = next((states for states in known if states.hold(rows)), None)
        self.prefixes = PrefixStates.run(model, rows) if held is None else held.taken(rows)
        starts = [row.offset_position for row in rows]
        suffixes = [row.token_ids[row.offset_position :] for row in rows]
        suffix = model.batch_behind(self.prefixes.mask, suffixes, starts)
        suffix_mask = suffix["attention_mask"][:, self.prefixes.mask.shape[1] :]
        cache = self.prefixes.frozen_cache(suffix_mask.shape[1])
        inputs = {**suffix, "past_key_values": cache, "use_cache": True}
        last = model.architecture.n_layers - 1
        self._first = site.layer + 1 if site.leaves_block else site.layer
        self._wasteful = find_wasteful(model)
        states: list[Tensor] = []

        def run_suffix() -> None:
            with (
                intervene(model.model, {model.architecture.block(site.layer): keep_states}),
                made_lean(self._wasteful),
                skipping_padding(model, suffix_mask, range(site.layer)),
            ):
                model.model.base_model(**inputs)

        def keep_states(output: Tensor) -> Tensor:
            states.append(output)
            return output

        self._calls = BlockCalls.record(
            model,
            run_suffix,
            first=min(self._first, last),
            last=last,
            stop=self._first <= last,
        )
        self._states = states[0] if site.leaves_block else self._calls.entry
        self.entry = self._states[:, 0] if site.leaves_block else None
        self.reach = self._find_reach(reach)
        unmoved = self._modules(self.reach.unmoved.get(self._first, ()))
        self._read_alone = self._modules(self.reach.read_alone)
        self._unmoved = UnmovedMaps(
            unmoved,
            lambda states: self._calls.run(states, self._first, self._first),
            self._states,
        )
        start = self._first if site.leaves_block else self._first + 1  # behind the offset
        padded, self._unpadded = find_padded(model, suffix_mask, range(start, self.read_layer + 1))
        spared = {*unmoved, *self._read_alone}
        self._padded = [module for module in padded if spared.isdisjoint(module.modules())]
        if reach is None:
            self._check()

    def logits(self, offsets: Tensor) -> Tensor:
        """See `OffsetForward.logits`."""
        return apply_head(self.model, self._read(offsets))

    def losses(self, offsets: Tensor, n_losses: int, loss: ReadLoss) -> tuple[Tensor, Tensor]:
        """See `OffsetForward.losses`; in slices, if these reads' logits are more than one."""
        if n_losses <= self.model.memory.reads_with_loss:
            return super().losses(offsets, n_losses, loss)
        states, others = self._read(offsets).tensor_split([n_losses])
        losses = find_losses(self.model, states, loss)
        if not len(others):
            return losses, losses.new_empty(0, self.model.n_logits)
        return losses, apply_head(self.model, others)

    def _read(self, offsets: Tensor) -> Tensor:
        """States at the read positions, in front of the final norm: `[n_reads, d_model]`."""

        def add_offsets(output: Tensor) -> Tensor:
            states = by_row(output, len(self.rows))
            moved = (states[:, :1].float() + offsets[:, None].to(states.device)).to(states.dtype)
            return torch.cat([moved, states[:, 1:]], dim=1).reshape(output.shape)

        with made_lean(self._wasteful):
            if self.site.leaves_block:
                states = self._run(add_offsets(self._states))
            else:
                with intervene(self.model.model, {self.site.module: add_offsets}):
                    states = self._run(self._states)
        places = (self.read_rows.to(states.device), self._read_index.to(states.device))
        return states[places]

    def _run(self, states: Tensor) -> Tensor:
        """Replay the blocks, but what an offset cannot reach or nobody reads in the outer two."""
        first, last = self._first, self.read_layer
        if first > last:
            return states
        with only_at(self._padded, self._unpadded):
            if first < last:
                with self._unmoved.reused():
                    states = self._calls.run(states, first, first)
            states = self._calls.run(states, first + 1, last - 1)
            with only_at(self._read_alone, Places(self.read_rows, self._read_index)):
                return self._calls.run(states, last, last)

    def _find_reach(self, known: Reach | None) -> Reach:
        """What is known, if it is of the blocks at hand; else it is found out."""
        first, last = self._first, self.read_layer
        if known is not None and known.last == last:
            return known
        if first > last:
            return Reach.unknown(last)
        is_behind = self.site.leaves_block
        found = Reach.find(self.model, first, last, [first] if is_behind and first < last else [])
        # An offset inside of block `first` is added behind some of its modules.
        return found if is_behind or first < last else replace(found, read_alone=())

    def _modules(self, paths: Sequence[str]) -> list[nn.Module]:
        return [self.model.model.get_submodule(path) for path in paths]

    def _check(self) -> None:
        """Compare with whole rows that nothing was cached for, with offsets that matter."""
        offsets = self._states[:, 0].float().roll(1, dims=-1).to(self.model.device)
        whole = FullForward(self.model, self.site, self.rows, self.read_layer)
        with torch.no_grad():
            expected = whole.logits(offsets)
            try:
                replayed = self.logits(offsets)
            except ModelError as error:
                raise ReplayMismatchError(str(error)) from error
        off, tolerated = relative_error(replayed, expected), tolerated_error(expected.dtype)
        if not off <= tolerated:
            raise ReplayMismatchError(
                f"suffix replay: logits differ from the model's own by {off:.1e} of their size; "
                f"expected at most {tolerated:.1e}."
            )


class UnmovedMaps:
    """What some modules of one block put out wherever an offset does not reach.

    In the block behind an offset, queries, keys and values of all later positions are what they
    were; where attention and MLP stand side by side (GPT-J, GPT-NeoX), so is all of the MLP.

    The modules are those of `Reach.unmoved`, `run` sends hidden states `[n_rows, width, d_model]`
    through their block, and `states` enter it without an offset.
    """

    def __init__(
        self, modules: Sequence[nn.Module], run: Callable[[Tensor], object], states: Tensor
    ) -> None:
        self._rest: dict[nn.Module, Tensor] = {}
        if states.shape[1] == 1 or not modules:
            return

        def keep(module: nn.Module, args: object, output: Tensor) -> None:
            # A copy: Falcon adds attention's output to the MLP's in place.
            self._rest[module] = output[:, 1:].clone()

        with ExitStack() as hooks, torch.no_grad():
            for module in modules:
                hooks.enter_context(module.register_forward_hook(keep))
            run(states)

    @contextmanager
    def reused(self) -> Iterator[None]:
        """Within the block, ask these modules about the first position; the rest is as it was."""

        # Without the axis of length one: with it, torch makes many small products of one large.
        def take_first(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0][:, 0], *args[1:])

        def put_back(module: nn.Module, args: object, output: Tensor) -> Tensor:
            return torch.cat([output[:, None], self._rest[module]], dim=1)

        with ExitStack() as hooks:
            for module in self._rest:
                hooks.enter_context(module.register_forward_pre_hook(take_first))
                hooks.enter_context(module.register_forward_hook(put_back))
            yield
