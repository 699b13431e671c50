"""Decoder blocks called again from one position on, for any number of copies of a prompt.

What a block needs besides hidden states (masks, positions, rotary angles, a cache) every
architecture passes in its own way. One forward of one row from that position on says what it is;
the blocks are then called with the same for many rows, all of the same length.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from editbench.models.editable import EditableModel
from editbench.tracing.module_outputs import forwards_replaced

KeysValues = Sequence[tuple[Tensor, Tensor]]

_HIDDEN = "hidden_states"
_Place = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _Call:
    """What a block is called with, hidden states aside."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _PrefixLayer(DynamicLayer):
    """One layer's keys and values before the first replayed position; it keeps nothing new.

    Row i of a batch has the past of copy ``i % n_copies``.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.remember(keys, values)

    def remember(self, keys: Tensor, values: Tensor) -> None:
        """Set them; `keys` and `values` are what the cache's own methods look at."""
        self.keys, self.values = self._past = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Hand out the past together with the new states."""
        keys, values = self._past
        if keys.shape[-2] == 0:
            return key_states, value_states
        return _put_before(key_states, keys), _put_before(value_states, values)


def _put_before(states: Tensor, past: Tensor) -> Tensor:
    """Put the past of each copy before new states, `[n_rows, n_heads, n_positions, d_head]`."""
    n_rows, n_past = len(states), past.shape[-2]
    if n_rows % len(past):
        past = past[torch.arange(n_rows, device=past.device) % len(past)]
    whole = states.new_empty(*states.shape[:-2], n_past + states.shape[-2], states.shape[-1])
    whole.unflatten(0, (-1, len(past)))[..., :n_past, :] = past  # copied once, not gathered first
    whole[..., n_past:, :] = states
    return whole


class BlockReplay:
    """The blocks of a model from one position of a prompt on.

    Args:
        blocks: The decoder blocks.
        calls: What they are called with.
        past: The cache among that, by layer.
        repeated: Which of it has to be repeated for a larger batch.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        calls: Sequence[_Call],
        past: Sequence[_PrefixLayer],
        repeated: frozenset[_Place],
    ) -> None:
        self._blocks = blocks
        self._calls = calls
        self._past = past
        self._repeated = repeated

    @property
    def last_layer(self) -> int:
        """Index of the last block."""
        return len(self._blocks) - 1

    def remember(self, past: KeysValues) -> None:
        """Set what the positions before the first have left, by layer; see `ReplayArguments`."""
        for layer, (keys, values) in zip(self._past, past, strict=True):
            layer.remember(keys, values)

    def run(self, layer: int, hidden: Tensor) -> Tensor:
        """Send hidden states through one block.

        Args:
            layer: The block.
            hidden: States that enter it, `[n_rows, n_positions, d_model]`; row i has the past of
                copy ``i % n_copies``.

        Returns:
            The states that leave it.
        """
        call = self._calls[layer]
        if self._repeated:

            def repeat(place: _Place, given: Tensor) -> Tensor:
                if place not in self._repeated:
                    return given
                return given.repeat(len(hidden), *([1] * (given.dim() - 1)))

            call = _map_call(call, layer, repeat)
        output = self._blocks[layer](hidden, *call.args, **call.kwargs)
        return output[0] if isinstance(output, tuple) else output


class ReplayArguments:
    """Says what a model's blocks are called with, from any position of any prompt on.

    Nearly all arguments have one row that serves every row of a batch. Where an architecture folds
    other things into the first axis (ALiBi's biases: rows times heads), a forward of two rows gives
    it away. And nearly all depend on the prompt's length alone, so that prompts can share them;
    where they depend on its tokens, a forward of other tokens gives that away.

    Args:
        model: The model.
    """

    def __init__(self, model: EditableModel) -> None:
        self._model = model
        self._blocks = list(model.model.get_submodule(model.architecture.blocks).children())
        self._repeated: frozenset[_Place] = frozenset()
        self._is_shared: bool | None = None  # nobody knows yet
        self._besides: list[tuple[Any, ...] | None] | None = None
        self._replays: dict[tuple[int, int], BlockReplay] = {}

    def replay_whole(self, token_ids: Sequence[int]) -> BlockReplay:
        """The blocks on a whole prompt, with nothing before it."""
        nothing = torch.zeros(1, 1, 0, 1, dtype=self._model.model.dtype, device=self._model.device)
        return self.replay_from(0, token_ids, [(nothing, nothing)] * len(self._blocks))

    def replay_from(
        self, start: int, token_ids: Sequence[int], keys_values: KeysValues
    ) -> BlockReplay:
        """The blocks from position `start` of a prompt on.

        Args:
            start: The first replayed position.
            token_ids: The prompt.
            keys_values: By layer, keys and values of all positions, `[n_copies, n_heads, n_tokens,
                d_head]`.
        """
        if self._is_shared is None:
            self._look_into(token_ids, keys_values)
        past = [(keys[..., :start, :], values[..., :start, :]) for keys, values in keys_values]
        place = (len(token_ids), start)
        if place not in self._replays or not self._is_shared:
            layers = [_PrefixLayer(keys, values) for keys, values in past]
            calls = self._record(token_ids, start, layers, n_rows=1)
            self._replays[place] = BlockReplay(self._blocks, calls, layers, self._repeated)
        replay = self._replays[place]
        replay.remember(past)
        return replay

    def _look_into(self, token_ids: Sequence[int], keys_values: KeysValues) -> None:
        """Find out which arguments must be repeated, and whether prompts can share them."""
        ids, tensors = [*token_ids], []
        for each_ids, n_rows in ((ids, 1), (ids, 2), (ids[::-1], 1)):
            found: dict[_Place, Tensor] = {}

            def note(place: _Place, given: Tensor, found: dict[_Place, Tensor] = found) -> Tensor:
                found[place] = given
                return given

            empty = [(keys[..., :0, :], values[..., :0, :]) for keys, values in keys_values]
            layers = [_PrefixLayer(keys, values) for keys, values in empty]
            for layer, call in enumerate(self._record(each_ids, 0, layers, n_rows)):
                _map_call(call, layer, note)
            tensors.append(found)
        one, two, other = tensors
        self._repeated = frozenset(
            place
            for place, given in one.items()
            if given.dim() and len(given) > 1 and place in two and len(two[place]) == 2 * len(given)
        )
        self._is_shared = one.keys() == other.keys() and all(
            torch.equal(given, other[place]) for place, given in one.items()
        )

    def _record(
        self, token_ids: Sequence[int], start: int, layers: Sequence[_PrefixLayer], n_rows: int
    ) -> list[_Call]:
        """Run a prompt from `start` on, and keep how the model called its blocks.

        The first time the blocks are run; from then on they hand on what they are given.
        """
        inputs = self._model.batch([token_ids] * n_rows)
        for name in ("input_ids", "position_ids"):
            if name in inputs:
                inputs[name] = inputs[name][:, start:]
        cache = Cache(layers=list(layers))
        calls: list[_Call] = []
        seen: list[object] = []

        def record_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rest = {name: value for name, value in kwargs.items() if name != _HIDDEN}
            calls.append(_Call(args if _HIDDEN in kwargs else args[1:], rest))

        def record_output(module: nn.Module, args: object, output: object) -> None:
            seen.append(output)

        with ExitStack() as hooks:
            for block in self._blocks:
                handle = block.register_forward_pre_hook(record_call, with_kwargs=True)
                hooks.callback(handle.remove)
                if self._besides is None:
                    hooks.callback(block.register_forward_hook(record_output).remove)
            if self._besides is not None:
                forwards = map(_hand_on, self._besides)
                idle = dict(zip(self._blocks, forwards, strict=True))
                hooks.enter_context(forwards_replaced(idle))
            hooks.enter_context(torch.no_grad())
            self._model.model.base_model(**inputs, past_key_values=cache, use_cache=True)
        if self._besides is None:
            self._besides = [each[1:] if isinstance(each, tuple) else None for each in seen]
        return calls


def _hand_on(besides: tuple[Any, ...] | None) -> Callable[..., Any]:
    """A forward that returns the hidden states it is given, with what a block returns besides."""

    def forward(*args: Any, **kwargs: Any) -> Tensor | tuple[Any, ...]:
        hidden = kwargs[_HIDDEN] if _HIDDEN in kwargs else args[0]
        return hidden if besides is None else (hidden, *besides)

    return forward


def _map_call(call: _Call, layer: int, change: Callable[[_Place, Tensor], Tensor]) -> _Call:
    return _Call(
        _map_tensors(call.args, (layer, "args"), change),
        _map_tensors(call.kwargs, (layer, "kwargs"), change),
    )


def _map_tensors(value: Any, place: _Place, change: Callable[[_Place, Tensor], Tensor]) -> Any:
    """Change every tensor in nested tuples, lists and dictionaries; the rest stays itself."""
    if isinstance(value, Tensor):
        return change(place, value)
    if type(value) in (tuple, list):
        return type(value)(
            _map_tensors(each, (*place, index), change) for index, each in enumerate(value)
        )
    if type(value) is dict:
        return {key: _map_tensors(each, (*place, key), change) for key, each in value.items()}
    return value
