"""All cells of a prompt together: only what a restored state can reach is run again.

In a causal model a state at token t behind block l reaches neither a block up to l nor a token
before t. So the corrupted run is kept (states, keys and values of every layer), and for each token
the blocks are swept once from the lowest on, over the tokens from t on alone. A cell joins the
sweep where its first restored state stands, so that the batch grows as it rises; windows that begin
in the same layer are one until the first of them ends. Tokens so near the end that they would make
small batches share a sweep.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from editbench.models.activations import fused_activations
from editbench.models.editable import EditableModel
from editbench.models.readout import apply_head
from editbench.tracing.block_replay import BlockReplay, ReplayArguments
from editbench.tracing.module_outputs import fixed_at, only_last, put_out
from editbench.tracing.runs import Runs, answer_probabilities, module_paths
from editbench.tracing.settings import SEVERED_MODULE, Kind, SeveredKind
from editbench.tracing.traces import TracedPrompt
from editbench.tracing.unmoved import only_at

_MODULES: tuple[Kind, Kind] = ("mlp", "attention")
# Rows times positions of one call; beyond it, a batch leaves a processor's cache and gains nothing.
_CPU_TOKENS = 2_048
# Multiplications below which calling a block costs more than what it computes.
_ENOUGH_WORK = 100_000_000
_MAX_LOGITS = 2**24


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
class _Line:
    """Copies of the prompt that are swept together: those of routes that have not parted yet."""

    kind: Kind | SeveredKind
    token: int
    first: int
    closed_after: int | None  # None while the window is still open

    @classmethod
    def of(cls, route: Route, layer: int) -> "_Line":
        """The line that a route is on as it enters block `layer`."""
        return cls(route.kind, route.token, route.first, route.last if layer > route.last else None)


class PromptReplay:
    """One prompt, made ready for its cells to be computed.

    Args:
        model: The model.
        prompt: The prompt.
        runs: Its clean and corrupted run.
        arguments: What the model's blocks are called with.
        unmoved: By layer, modules that see each position's own state alone.
    """

    def __init__(
        self,
        model: EditableModel,
        prompt: TracedPrompt,
        runs: Runs,
        arguments: ReplayArguments,
        unmoved: Sequence[Sequence[nn.Module]],
    ) -> None:
        self._model = model
        self._prompt = prompt
        self._runs = runs
        self._arguments = arguments
        self._unmoved = unmoved
        self._n_tokens = len(prompt.token_ids)
        self._last_layer = model.architecture.n_layers - 1
        self._paths = {kind: module_paths(model, kind) for kind in _MODULES}
        block = model.model.get_submodule(model.architecture.block(0))
        n_weights = sum(parameter.numel() for parameter in block.parameters())
        self._enough_tokens = _ENOUGH_WORK // max(1, n_weights)
        self._token_budget = _CPU_TOKENS if model.device.type == "cpu" else model.token_budget
        self._read_alone = self._find_read_alone()
        self._entries: dict[tuple[Kind, int], Tensor] = {}

    def scores(self, routes: Sequence[Route]) -> dict[Route, float]:
        """Mean probability of the answer after restoring each route's states."""
        cut = {route: self._cut(route) for route in routes}
        wanted = list(dict.fromkeys(route for route in cut.values() if route is not None))
        found: dict[Route, float] = {}
        with torch.no_grad(), fused_activations(self._model):
            self._find_entries(wanted)
            for group in self._group(wanted):
                found.update(self._sweep(group))
        return {
            route: self._runs.low_score if short is None else found[short]
            for route, short in cut.items()
        }

    def _cut(self, route: Route) -> Route | None:
        """Leave out of a route what nothing is read from; None if nothing is left."""
        if route.token < self._prompt.subject.start:
            return None  # nothing was corrupted there
        if route.token == self._n_tokens - 1:
            return route
        # Behind the last block only the last token is read.
        last = min(route.last, self._last_layer - 1)
        return None if last < route.first else replace(route, last=last)

    def _group(self, routes: Sequence[Route]) -> Iterator[list[Route]]:
        """Put the routes of neighboring tokens together while they make a small batch."""
        by_token: dict[int, list[Route]] = {}
        for route in routes:
            by_token.setdefault(route.token, []).append(route)
        group: list[Route] = []
        for token in sorted(by_token, reverse=True):
            n_rows = self._runs.n_samples * (len(group) + len(by_token[token]))
            if group and n_rows * (self._n_tokens - token) > 2 * self._enough_tokens:
                yield group
                group = []
            group += by_token[token]
        if group:
            yield group

    def _sweep(self, routes: Sequence[Route]) -> dict[Route, float]:
        start = min(route.token for route in routes)
        replay = self._replay_from(start)
        early = [route for route in routes if route.first < self._last_layer]
        lines: list[_Line] = []
        states = self._runs.entering[0].new_empty(0)
        for layer in range(min(route.first for route in routes) + 1, self._last_layer + 1):
            lines, states = self._advance(start, early, lines, states, layer)
            states = self._run_block(replay, start, lines, states, layer)
        ends = [states[lines.index(_Line.of(route, self._last_layer)), :, -1] for route in early]
        # At the last token, what is restored in the last layer is read out right away.
        late = [route for route in routes if route.first == self._last_layer]
        samples = self._runs.entering[0][:, 0]
        ends += [self._entry(route).expand_as(samples) for route in late]
        return dict(zip(early + late, self._read_out(torch.stack(ends)), strict=True))

    def _advance(
        self,
        start: int,
        routes: Sequence[Route],
        lines: Sequence[_Line],
        states: Tensor,
        layer: int,
    ) -> tuple[list[_Line], Tensor]:
        """The lines that enter block `layer`: those before it, parted where windows end, and new.

        Returns:
            The lines, and their states, `[n_lines, n_samples, n_positions, d_model]`.
        """
        parent = {
            _Line.of(route, layer): lines.index(_Line.of(route, layer - 1))
            for route in routes
            if route.first < layer - 1
        }
        entering = {_Line.of(each, layer): each for each in routes if each.first == layer - 1}
        parts = []
        if parent:
            places = list(parent.values())
            is_same = places == list(range(len(lines)))
            parts.append(states if is_same else states[torch.tensor(places, device=states.device)])
        if entering:
            base = self._runs.entering[layer][:, start:]
            new = base.expand(len(entering), *base.shape).clone()
            for place, route in enumerate(entering.values()):
                new[place, :, route.token - start] = self._entry(route)
            parts.append(new)
        return [*parent, *entering], parts[0] if len(parts) == 1 else torch.cat(parts)

    def _run_block(
        self, replay: BlockReplay, start: int, lines: Sequence[_Line], states: Tensor, layer: int
    ) -> Tensor:
        """Send all lines through one block, a few at a time, and new ones by themselves."""
        _, n_samples, n_positions, _ = states.shape
        size = max(1, self._token_budget // (n_samples * n_positions))
        n_old = sum(line.first < layer - 1 for line in lines)  # they stand in front
        n_new = len(lines) - n_old
        if n_positions == 1 or n_new * n_samples * n_positions < self._enough_tokens:
            n_old = len(lines)
        begins = [*range(0, n_old, size), *range(n_old, len(lines), size), len(lines)]
        outputs = []
        for begin, end in pairwise(begins):
            some = lines[begin:end]
            with ExitStack() as hooks:
                for kind in _MODULES:
                    if fixed := self._fixed_values(kind, some, layer):
                        module = self._module(self._paths[kind][layer])
                        hooks.enter_context(fixed_at(module, fixed, (len(some), n_samples)))
                if layer == self._last_layer and n_positions > 1:
                    for module in self._read_alone:
                        hooks.enter_context(only_last(module))
                if begin >= n_old:
                    hooks.enter_context(self._only_new(some, start, layer))
                rows = states[begin:end].flatten(0, 1)
                outputs.append(replay.run(layer, rows).unflatten(0, (-1, n_samples)))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _only_new(
        self, lines: Sequence[_Line], start: int, layer: int
    ) -> AbstractContextManager[None]:
        """Within the block, what the new states cannot move is not computed again."""
        positions = [line.token - start for line in lines for _ in range(self._runs.n_samples)]
        modules = [
            module
            for module in self._unmoved[layer]
            if module in self._runs.kept
            and not (layer == self._last_layer and module in self._read_alone)
        ]
        return only_at(
            {module: self._runs.kept[module][:, start:] for module in modules},
            torch.tensor(positions, device=self._runs.entering[0].device),
        )

    def _fixed_values(
        self, kind: Kind, lines: Sequence[_Line], layer: int
    ) -> Mapping[tuple[int, int], Tensor]:
        """By line and position, counted from the end, what a module has to put out."""
        fixed = {}
        for place, line in enumerate(lines):
            if layer == self._last_layer and line.token < self._n_tokens - 1:
                continue  # nobody reads it
            if line.kind == kind and line.closed_after is None:
                values = self._runs.clean[kind][layer][line.token]
            elif SEVERED_MODULE.get(line.kind) == kind:
                values = self._runs.corrupted[kind][layer][:, line.token]
            else:
                continue
            fixed[place, line.token - self._n_tokens] = values
        return fixed

    def _entry(self, route: Route) -> Tensor:
        """The state that leaves the first restored block at the route's token.

        Returns:
            `[d_model]` for blocks; for modules, whose input is corrupted, `[n_samples, d_model]`.
        """
        if route.kind in _MODULES:
            position = route.token - self._prompt.subject.start
            return self._entries[route.kind, route.first][:, position]
        return self._runs.clean["hidden"][route.first][route.token]

    def _find_entries(self, routes: Sequence[Route]) -> None:
        """Run every block in which a window begins, with clean outputs at every token.

        Within one block nothing flows from one token's MLP or attention output to another token, so
        one call has the states of all tokens, `[n_samples, n_positions, d_model]` from the subject
        on.
        """
        start = self._prompt.subject.start
        replay = self._replay_from(start)
        for kind, layer in dict.fromkeys((route.kind, route.first) for route in routes):
            if kind in _MODULES:
                module = self._module(self._paths[kind][layer])
                with put_out(module, self._runs.clean[kind][layer][start:]):
                    entering = self._runs.entering[layer][:, start:]
                    self._entries[kind, layer] = replay.run(layer, entering)

    def _replay_from(self, start: int) -> BlockReplay:
        return self._arguments.replay_from(start, self._prompt.token_ids, self._runs.keys_values)

    def _read_out(self, states: Tensor) -> list[float]:
        """Mean probability of the answer over samples: `[n, n_samples, d_model]` to n numbers."""
        n_samples = states.shape[1]
        size = max(1, _MAX_LOGITS // (n_samples * self._model.n_logits))
        means: list[float] = []
        for part in states.split(size):
            logits = apply_head(self._model, part.flatten(0, 1))
            probabilities = answer_probabilities(logits, self._prompt.answer)
            means += probabilities.unflatten(0, (-1, n_samples)).mean(dim=1).tolist()
        return means

    def _module(self, path: str) -> nn.Module:
        return self._model.model.get_submodule(path)

    def _find_read_alone(self) -> list[nn.Module]:
        """What treats each position alone in the last block, of which only the last is read."""
        mlp = self._paths["mlp"][-1].rpartition(".")[0]
        is_block = mlp == self._model.architecture.block(self._last_layer)
        paths = [self._paths["attention"][-1], *([] if is_block else [mlp])]
        return [self._module(path) for path in paths]
