"""All cells of a prompt together: only what a restored state can reach is run again.

In a causal model a state at token t behind block l reaches neither a block up to l nor a token
before t. So the corrupted run is kept (states, keys and values of every layer), and for each token
the blocks are swept once from the lowest on, over the tokens from t on alone. A cell joins the
sweep where its first restored state stands, so that the batch grows as it rises; windows that begin
in the same layer are one until the first of them ends. Tokens so near the end that they would make
small batches share a sweep.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from editbench.models.chosen_positions import Places, only_at
from editbench.models.editable import EditableModel
from editbench.models.head import apply_head
from editbench.models.lean_modules import lean_modules
from editbench.models.out_of_memory import Halving
from editbench.replay.block_calls import BlockCalls, forwards_replaced
from editbench.replay.reach import Reach
from editbench.tracing.block_replay import ReplayArguments
from editbench.tracing.routes import Line, Route
from editbench.tracing.runs import Runs, answer_probabilities, module_paths
from editbench.tracing.settings import Kind
from editbench.tracing.traces import TracedPrompt
from memit_core import capture, intervene

MODULE_KINDS: tuple[Kind, Kind] = ("mlp", "attention")
# Multiplications below which calling a block costs more than what it computes.
_ENOUGH_WORK = 100_000_000


class Entries:
    """Entry states of one prompt's routes, and what the next block's unmoved modules make of them.

    A block's own are those of the clean run. Where a window of modules begins, the block is run
    with clean outputs of them at every token: within one block nothing flows from one token's MLP
    or attention output to another token, so one call has the states of all tokens. The first route
    begins at position `start`, and `replay` has the model's blocks from there on.
    """

    def __init__(
        self,
        model: EditableModel,
        runs: Runs,
        reach: Reach,
        routes: Sequence[Route],
        start: int,
        replay: BlockCalls,
    ) -> None:
        self._runs = runs
        self._start = start
        self._states: dict[tuple[str, int], Tensor] = {}
        self._outputs: dict[tuple[str, int], dict[str, Tensor]] = {}
        self._projections = {kind: module_paths(model, kind) for kind in MODULE_KINDS}
        for kind, layer in dict.fromkeys((route.kind, route.first) for route in routes):
            if kind not in MODULE_KINDS:
                continue
            put_clean = partial(_put_out, runs.clean[kind][layer][start:])
            with intervene(model.model, {self._projections[kind][layer]: put_clean}):
                states = replay.run(runs.entering[layer][:, start:], layer, layer)
            self._states[kind, layer] = states
            if unmoved := reach.unmoved.get(layer + 1):
                with capture(model.model, outputs_of=unmoved, stop=True) as seen:
                    replay.run(states, layer + 1, layer + 1)
                self._outputs[kind, layer] = seen.outputs

    def state(self, route: Route) -> Tensor:
        """The state in which a route begins.

        Returns:
            `[d_model]` for blocks; for modules, whose input is corrupted, `[n_samples, d_model]`.
        """
        if route.kind in MODULE_KINDS:
            return self._states[route.kind, route.first][:, route.token - self._start]
        return self._runs.clean["hidden"][route.first][route.token]

    def output(self, line: Line, path: str) -> Tensor:
        """What an unmoved module of the next block puts out at the token of a line that begins.

        Returns:
            `[d]`, or `[n_samples, d]`.
        """
        layer, kept = line.first + 1, self._runs.kept[path][:, line.token]
        for kind in MODULE_KINDS:
            # What an MLP puts out comes from its output projection alone.
            if self._projections[kind][layer].startswith(f"{path}."):
                if line.restores(kind):
                    return kept[0]
                if line.severs(kind):
                    return kept[1:]
        if line.kind in MODULE_KINDS:
            return self._outputs[line.kind, line.first][path][:, line.token - self._start]
        return kept[0]


def _put_out(values: Tensor, output: Tensor) -> Tensor:
    """The same values, `[n_positions, d]`, in every row of what a module puts out."""
    rows = output.reshape(-1, *values.shape)
    # A copy: Falcon adds attention's output to the MLP's in place.
    return values.expand_as(rows).contiguous().view(output.shape)


class PromptReplay:
    """One prompt, made ready for its cells to be computed; `halving` is one for all prompts."""

    def __init__(
        self,
        model: EditableModel,
        prompt: TracedPrompt,
        runs: Runs,
        arguments: ReplayArguments,
        reach: Reach,
        halving: Halving,
    ) -> None:
        self._model = model
        self._halving = halving
        self._prompt = prompt
        self._runs = runs
        self._arguments = arguments
        self._reach = reach
        self._n_tokens = len(prompt.token_ids)
        self._last_layer = model.architecture.n_layers - 1
        self._paths = {kind: module_paths(model, kind) for kind in MODULE_KINDS}
        block = model.model.get_submodule(model.architecture.block(0))
        n_weights = sum(parameter.numel() for parameter in block.parameters())
        self._enough_tokens = _ENOUGH_WORK // max(1, n_weights)
        self._token_budget = model.memory.tokens

    def scores(self, routes: Sequence[Route]) -> dict[Route, float]:
        """Mean probability of the answer after restoring each route's states."""
        cut = {route: self._cut(route) for route in routes}
        wanted = list(dict.fromkeys(route for route in cut.values() if route is not None))
        found: dict[Route, float] = {}
        with torch.no_grad(), lean_modules(self._model):
            start = self._prompt.subject.start
            replay = self._replay_from(start)
            entries = Entries(self._model, self._runs, self._reach, wanted, start, replay)
            for group in self._group(wanted):
                found.update(self._sweep(group, entries))
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

    def _sweep(self, routes: Sequence[Route], entries: Entries) -> dict[Route, float]:
        start = min(route.token for route in routes)
        replay = self._replay_from(start)
        early = [route for route in routes if route.first < self._last_layer]
        lines: list[Line] = []
        states = self._runs.entering[0].new_empty(0)
        for layer in range(min(route.first for route in routes) + 1, self._last_layer + 1):
            lines, states = self._advance(start, early, entries, lines, states, layer)
            states = self._run_block(replay, start, entries, lines, states, layer)
        ends = [states[lines.index(Line.of(route, self._last_layer)), :, -1] for route in early]
        # At the last token, what is restored in the last layer is read out right away.
        late = [route for route in routes if route.first == self._last_layer]
        samples = self._runs.entering[0][:, 0]
        ends += [entries.state(route).expand_as(samples) for route in late]
        return dict(zip(early + late, self._read_out(torch.stack(ends)), strict=True))

    def _advance(
        self,
        start: int,
        routes: Sequence[Route],
        entries: Entries,
        lines: Sequence[Line],
        states: Tensor,
        layer: int,
    ) -> tuple[list[Line], Tensor]:
        """The lines that enter block `layer`: those before it, parted where windows end, and new.

        Returns:
            The lines, and their states, `[n_lines, n_samples, n_positions, d_model]`.
        """
        parent = {
            Line.of(route, layer): lines.index(Line.of(route, layer - 1))
            for route in routes
            if route.first < layer - 1
        }
        entering = {Line.of(each, layer): each for each in routes if each.first == layer - 1}
        parts = []
        if parent:
            places = list(parent.values())
            is_same = places == list(range(len(lines)))
            parts.append(states if is_same else states[torch.tensor(places, device=states.device)])
        if entering:
            base = self._runs.entering[layer][:, start:]
            new = base.expand(len(entering), *base.shape).clone()
            for place, route in enumerate(entering.values()):
                new[place, :, route.token - start] = entries.state(route)
            parts.append(new)
        return [*parent, *entering], parts[0] if len(parts) == 1 else torch.cat(parts)

    def _run_block(
        self,
        replay: BlockCalls,
        start: int,
        entries: Entries,
        lines: Sequence[Line],
        states: Tensor,
        layer: int,
    ) -> Tensor:
        """Send all lines through one block, a few at a time, and new ones by themselves."""
        _, n_samples, n_positions, _ = states.shape
        size = max(1, self._token_budget // (n_samples * n_positions))
        n_old = sum(line.first < layer - 1 for line in lines)  # they stand in front
        n_new = len(lines) - n_old
        if n_positions == 1 or n_new * n_samples * n_positions < self._enough_tokens:
            n_old = len(lines)
        begins = [*range(0, n_old, size), *range(n_old, len(lines), size), len(lines)]

        def run(places: Sequence[int]) -> Tensor:
            begin, end = places[0], places[-1] + 1
            some = lines[begin:end]
            found = self._find_known(some, start, entries, layer) if begin >= n_old else {}
            with ExitStack() as hooks:
                hooks.enter_context(_known({self._module(path): found[path] for path in found}))
                for kind in MODULE_KINDS:
                    if fixed := self._fixed_values(kind, some, layer):
                        module = self._module(self._paths[kind][layer])
                        hooks.enter_context(_fixed_at(module, fixed, (len(some), n_samples)))
                rows = rearrange(states[begin:end], "line sample ... -> (line sample) ...")
                if layer == self._last_layer and n_positions > 1:
                    paths = [path for path in self._reach.read_alone if path not in found]
                    everyone = torch.arange(len(rows))
                    last = Places(everyone, torch.full_like(everyone, n_positions - 1))
                    hooks.enter_context(only_at([self._module(path) for path in paths], last))
                sent = replay.run(rows, layer, layer)
                return rearrange(sent, "(line sample) ... -> line sample ...", sample=n_samples)

        outputs: list[Tensor] = []
        for begin, end in pairwise(begins):
            outputs += self._halving.run(range(begin, end), run)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _find_known(
        self, lines: Sequence[Line], start: int, entries: Entries, layer: int
    ) -> dict[str, Tensor]:
        """By name, all that modules will put out for lines that enter their first block."""
        found = {}
        for path in self._reach.unmoved.get(layer, ()):
            corrupted = self._runs.kept[path][1:, start:]
            outputs = corrupted.expand(len(lines), *corrupted.shape).clone()
            for place, line in enumerate(lines):
                outputs[place, :, line.token - start] = entries.output(line, path)
            found[path] = rearrange(outputs, "line sample ... -> (line sample) ...")
        return found

    def _fixed_values(
        self, kind: Kind, lines: Sequence[Line], layer: int
    ) -> Mapping[tuple[int, int], Tensor]:
        """By line and position, counted from the end, what a module has to put out."""
        fixed = {}
        for place, line in enumerate(lines):
            if layer == self._last_layer and line.token < self._n_tokens - 1:
                continue  # nobody reads it
            if line.restores(kind):
                values = self._runs.clean[kind][layer][line.token]
            elif line.severs(kind):
                values = self._runs.corrupted[kind][layer][:, line.token]
            else:
                continue
            fixed[place, line.token - self._n_tokens] = values
        return fixed

    def _replay_from(self, start: int) -> BlockCalls:
        return self._arguments.replay_from(start, self._prompt.token_ids, self._runs.keys_values)

    def _read_out(self, states: Tensor) -> list[float]:
        """Mean probability of the answer over samples: `[n, n_samples, d_model]` to n numbers."""
        n_samples = states.shape[1]
        size = max(1, self._model.memory.reads_in_float32 // n_samples)

        def read(places: Sequence[int]) -> list[float]:
            some = rearrange(
                states[places[0] : places[-1] + 1], "state sample d -> (state sample) d"
            )
            found = answer_probabilities(apply_head(self._model, some), self._prompt.answer)
            return reduce(found, "(state sample) -> state", "mean", sample=n_samples).tolist()

        means: list[float] = []
        for begin in range(0, len(states), size):
            for some in self._halving.run(range(begin, min(begin + size, len(states))), read):
                means += some
        return means

    def _module(self, path: str) -> nn.Module:
        return self._model.model.get_submodule(path)


@contextmanager
def _known(outputs: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Let modules put out what is known of them, and compute nothing."""

    def answer(output: Tensor) -> Callable[..., Tensor]:
        return lambda *_args, **_kwargs: output

    with forwards_replaced({module: answer(output) for module, output in outputs.items()}):
        yield


@contextmanager
def _fixed_at(
    module: nn.Module, fixed: Mapping[tuple[int, int], Tensor], shape: tuple[int, int]
) -> Iterator[None]:
    """Let a linear map put out given values at one position of some lines of rows.

    Args:
        module: Puts out rows for all lines, line after line.
        fixed: By line and position, its values: `[d]`, or `[n_samples, d]`. Positions count from
            the end; where a single position is computed, it is the one that is meant.
        shape: Numbers of lines and of samples.
    """

    def replace(module: nn.Module, args: object, output: Tensor) -> None:
        rows = output.view(*shape, -1, output.shape[-1])
        for (line, position), values in fixed.items():
            rows[line, :, position if rows.shape[2] > 1 else 0] = values

    with module.register_forward_hook(replace):
        yield
