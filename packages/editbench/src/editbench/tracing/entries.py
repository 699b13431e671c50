"""The states in which routes begin: what leaves the first restored layer's block at their token."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from editbench.models.editable import EditableModel
from editbench.replay.block_calls import BlockCalls
from editbench.replay.reach import Reach
from editbench.tracing.routes import Line, Route
from editbench.tracing.runs import Runs, module_paths
from editbench.tracing.settings import Kind
from memit_core import capture, intervene

MODULE_KINDS: tuple[Kind, Kind] = ("mlp", "attention")


class Entries:
    """Entry states of one prompt's routes, and what the next block's unmoved modules make of them.

    A block's own are those of the clean run. Where a window of modules begins, the block is run
    with clean outputs of them at every token: within one block nothing flows from one token's MLP
    or attention output to another token, so one call has the states of all tokens.

    Args:
        model: The model.
        runs: The prompt's clean and corrupted run.
        reach: Which modules are unmoved.
        routes: The routes that begin somewhere.
        start: The first position that a route begins at.
        replay: The model's blocks from that position on.
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
