"""Offsets by replay: only what an offset can reach is run again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from editbench.editors.parts.block_calls import BlockCalls
from editbench.editors.parts.offset_forward import OffsetForward, OffsetRow, OffsetSite
from editbench.editors.parts.unmoved_maps import UnmovedMaps
from editbench.errors import ModelError
from editbench.models.activations import fused_activations
from editbench.models.editable import EditableModel
from editbench.models.head import select_head_positions
from editbench.models.readout import apply_head
from memit_core import intervene


class ReplayMismatchError(RuntimeError):
    """Replaying this model's blocks does not give what its own forward gives."""


class SuffixReplay(OffsetForward):
    """Runs only what an offset can reach: blocks after the site, from the offset's position on.

    In a causal model a state behind block L and position t reaches neither a block up to L nor a
    position before t. So the prefix before t is run once and its keys and values kept; the suffix
    from t on is run once up to L and its states kept; a call replays blocks L+1 … on the suffix
    alone and reads logits where they are asked for. For a site inside of block L, that block is
    replayed, too. The result is exact.

    Raises:
        ReplayMismatchError: With `verify`, if a replay without offsets is not the model's own
            forward: its cache cannot be frozen, or its blocks are not called in a plain sequence.
    """

    def __init__(
        self,
        model: EditableModel,
        site: OffsetSite,
        rows: Sequence[OffsetRow],
        read_layer: int | None = None,
        *,
        verify: bool = True,
    ) -> None:
        super().__init__(model, site, rows, read_layer)
        self._read_index = self._read_positions([-row.offset_position for row in rows])
        cache, prefix_mask = self._run_prefixes()
        for cache_layer in cache.layers:
            _freeze(cache_layer)
        suffix = model.batch([row.token_ids[row.offset_position :] for row in rows])
        _move_positions(suffix, [row.offset_position for row in rows])
        suffix["attention_mask"] = torch.cat([prefix_mask, suffix["attention_mask"]], dim=1)
        inputs = {**suffix, "past_key_values": cache, "use_cache": True}
        last = model.architecture.n_layers - 1
        self._first = site.layer + 1 if site.leaves_block else site.layer
        check = verify and self._reads_ordinary_logits
        own_logits: list[Tensor] = []
        states: list[Tensor] = []

        def run_suffix() -> None:
            with intervene(model.model, {model.architecture.block(site.layer): keep_states}):
                if not check:
                    model.model.base_model(**inputs)
                    return
                with select_head_positions(model, self.read_rows, self._read_index):
                    own_logits.append(model.model(**inputs).logits[0])

        def keep_states(output: Tensor) -> Tensor:
            states.append(output)
            return output

        self._calls = BlockCalls.record(
            model,
            run_suffix,
            first=min(self._first, last),
            last=last,
            stop=not check and self._first <= last,
        )
        self._states = states[0] if site.leaves_block else self._calls.entry
        for cache_layer in cache.layers[: self._first]:
            _empty(cache_layer)
        self._last_mlp = self._find_last_mlp()
        self._unmoved = self._find_unmoved()
        if own_logits:
            self._check(own_logits[0])

    def _run_prefixes(self) -> tuple[DynamicCache, Tensor]:
        """Run what stands before the offsets; what rows share, once for all of them.

        Returns:
            The cache, and its mask `[n_rows, n_cached]`: padding stands before each part.
        """
        model = self.model
        cache = DynamicCache(config=model.model.config)
        # A sliding window counts padding between two parts of a row as distance.
        slides = any(getattr(layer, "is_sliding", False) for layer in cache.layers)
        n_shared = [0 if slides else row.n_shared for row in self.rows]
        shared = [row.token_ids[:n] for row, n in zip(self.rows, n_shared, strict=True)]
        distinct = list(dict.fromkeys(shared))
        inputs = model.batch(distinct, "left")
        _fill(cache, model, inputs)
        place = {tokens: index for index, tokens in enumerate(distinct)}
        index = torch.tensor([place[tokens] for tokens in shared], device=model.device)
        for cache_layer in cache.layers:
            _take_rows(cache_layer, index)
        mask = inputs["attention_mask"][index]

        own = [
            row.token_ids[n : row.offset_position]
            for row, n in zip(self.rows, n_shared, strict=True)
        ]
        inputs = model.batch(own, "left")
        _move_positions(inputs, n_shared)
        mask = torch.cat([mask, inputs["attention_mask"]], dim=1)
        _fill(cache, model, {**inputs, "attention_mask": mask})
        return cache, mask

    def logits(self, offsets: Tensor) -> Tensor:
        """See `OffsetForward.logits`."""

        def add_offsets(output: Tensor) -> Tensor:
            states = output.reshape(len(self.rows), -1, output.shape[-1])  # OPT's MLP flattens
            moved = (states[:, :1].float() + offsets[:, None]).to(states.dtype)
            return torch.cat([moved, states[:, 1:]], dim=1).reshape(output.shape)

        with fused_activations(self.model):
            if self.site.leaves_block:
                states = self._run(add_offsets(self._states))
            else:
                with intervene(self.model.model, {self.site.module: add_offsets}):
                    states = self._run(self._states)
        return apply_head(self.model, states[self.read_rows, self._read_index])

    def _run(self, states: Tensor) -> Tensor:
        """Replay the blocks, but what an offset cannot reach or nobody reads in the outer two."""
        first, last = self._first, self.read_layer
        if self._unmoved is not None:
            with self._unmoved.reused():
                states = self._calls.run(states, first, first)
            first += 1
        if self._last_mlp is None:
            return self._calls.run(states, first, last)
        states = self._calls.run(states, first, last - 1)
        with _only_at(self._last_mlp, self.read_rows, self._read_index):
            return self._calls.run(states, last, last)

    def _find_unmoved(self) -> UnmovedMaps | None:
        """What stays as it was in the first block behind the offset, unless that is the last."""
        if not self.site.leaves_block or self._first >= self.read_layer:
            return None
        block = self.model.model.get_submodule(self.model.architecture.block(self._first))
        return UnmovedMaps(
            block, lambda states: self._calls.run(states, self._first, self._first), self._states
        )

    def _find_last_mlp(self) -> nn.Module | None:
        """The MLP of the block that is read out, if it is a module and no offset is added in it."""
        if self.read_layer < self._first or self.site.layer == self.read_layer:
            return None
        architecture = self.model.architecture
        path = architecture.mlp_projections[self.read_layer].rpartition(".")[0]
        if path == architecture.block(self.read_layer):
            return None
        return self.model.model.get_submodule(path)

    def _check(self, expected: Tensor) -> None:
        try:
            with torch.no_grad():
                replayed = self.logits(torch.zeros_like(self._states[:, 0]))
        except ModelError as error:
            raise ReplayMismatchError(str(error)) from error
        tolerance = 64 * torch.finfo(expected.dtype).eps * expected.float().abs().max()
        worst = (replayed.float() - expected.float()).abs().max()
        if not worst <= tolerance:
            raise ReplayMismatchError(
                f"suffix replay: logits differ from the model's own by {worst:.2e}; "
                f"expected at most {tolerance:.2e}."
            )


@contextmanager
def _only_at(mlp: nn.Module, rows: Tensor, positions: Tensor) -> Iterator[None]:
    """Let an MLP, which treats each position alone, work on some; elsewhere it puts out zero.

    One that is handed more than its input (BLOOM's adds the residual by itself) is left alone.
    """
    shape: torch.Size | None = None

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal shape
        if len(args) != 1:
            return None
        shape = args[0].shape
        return (args[0][rows, positions].unsqueeze(0),)

    def put_back(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if shape is None:
            return output
        everywhere = output.new_zeros(*shape[:-1], output.shape[-1])
        return everywhere.index_put((rows, positions), output[0])

    handles = [mlp.register_forward_pre_hook(select), mlp.register_forward_hook(put_back)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _freeze(cache_layer: Any) -> None:
    """Let a cache layer hand out what it holds plus the new states, and keep nothing of them."""

    def hand_out(keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if cache_layer.keys is None or cache_layer.keys.numel() == 0:
            return keys, values
        return (
            torch.cat([cache_layer.keys, keys], dim=-2),
            torch.cat([cache_layer.values, values], dim=-2),
        )

    cache_layer.update = hand_out  # of this instance alone: it shadows the method


def _fill(cache: DynamicCache, model: EditableModel, inputs: dict[str, Tensor]) -> None:
    """Run tokens, if there are any, and keep their keys and values."""
    if inputs["input_ids"].shape[1]:
        with torch.no_grad():
            model.model.base_model(**inputs, past_key_values=cache, use_cache=True)


def _take_rows(cache_layer: Any, index: Tensor) -> None:
    """Make a cache's rows those of `index`, each as often as it stands there."""
    if cache_layer.keys is not None and cache_layer.keys.numel():
        cache_layer.keys = cache_layer.keys[index.to(cache_layer.keys.device)]
        cache_layer.values = cache_layer.values[index.to(cache_layer.values.device)]


def _move_positions(inputs: dict[str, Tensor], starts: Sequence[int]) -> None:
    """Let each row's positions count from where it starts, if the model takes positions."""
    if "position_ids" in inputs:
        offset = torch.tensor(starts, device=inputs["position_ids"].device)
        inputs["position_ids"] = inputs["position_ids"] + offset[:, None]


def _empty(cache_layer: Any) -> None:
    """Free what a cache layer holds."""
    cache_layer.keys = cache_layer.values = None
