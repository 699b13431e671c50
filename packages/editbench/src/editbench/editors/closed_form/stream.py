"""What a stream of closed-form edits carries from batch to batch, and how a batch is written."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editbench.editors.base import Resources
from editbench.editors.closed_form.goals import Goal, Solved, judge_target
from editbench.editors.closed_form.solving import PreservedValues
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.stream import Carried, Stream, WrittenFacts
from editbench.edits.card import EditCard
from editbench.edits.edit import Edit
from editbench.edits.files import Update, assemble_updates, name_tensors
from editbench.edits.weight_edit import (
    WeightEdit,
    lay_out,
    orient_for_edit,
    orient_for_module,
    sum_updates,
)
from editbench.errors import EditError
from editbench.models.editable import EditableModel
from editbench.models.offload import in_memory, updated_weights
from editbench.requests import EditRequest
from editbench.second_moments.obtaining import obtain_second_moments
from memit_core import MemitCoreError

if TYPE_CHECKING:
    from editbench.editors.closed_form.editor import ClosedForm

_CLOSED = (
    "its key lies outside of the null space at every layer, or where earlier facts were written, "
    "so that nothing can be written"
)


class ClosedFormStream(Stream):
    """The loop over layers, batch by batch; see `ClosedForm`.

    Args:
        editor: Its slots are asked.
        model: The model.
        resources: As for `Editor.edit`.
        carried: What to go on from.
        keeps_keys: Whether the keys of all facts are kept, as they were when they were written:
            `measure_drift` and a stream that goes on from this one need them.
    """

    def __init__(
        self,
        editor: "ClosedForm",
        model: EditableModel,
        resources: Resources,
        carried: Carried | None = None,
        *,
        keeps_keys: bool = False,
    ) -> None:
        for layer in editor.layers:
            model.architecture.check_layer(layer)
        self._editor = editor
        self._model = model
        if carried is not None:
            groups = map(tuple, carried.content["context_prefixes"])
            self._prefixes = ContextPrefixes(tuple(groups))
        else:
            given = resources.context_prefixes
            self._prefixes = given or editor.sample_prefixes(model, resources.seed)
        moments = obtain_second_moments(
            model, editor.layers, editor.config.second_moment_tokens, resources, editor.module
        )
        self._preserved = PreservedValues(moments, editor.dials(), resources.cache)
        self._targets = editor.make_targets(model, self._prefixes, resources)
        self._written = WrittenFacts()
        self._updates: dict[str, Update] = {}  # the sums, as factors or in float64
        self._kept: dict[str, dict[str, Any]] = {}
        told = ("facts", "losses", "n_steps", "sizes", "forgotten")
        self._told: dict[str, list[Any]] = {name: [] for name in told}
        self._keys: dict[int, list[Tensor]] = {layer: [] for layer in editor.layers}
        self._keeps_keys = keeps_keys
        if carried is not None:
            self._go_on_from(carried)

    def write(self, batch: Sequence[EditRequest]) -> WeightEdit:
        """Write one more batch; see `Stream.write`."""
        self.add(batch)
        return self._hand_out()

    def add(self, batch: Sequence[EditRequest]) -> None:
        """Write one more batch, and do not finish the sum; see `Stream.add`."""
        card = EditCard.of(
            self._model, editor=self._editor.name, config=self._editor.config, requests=batch
        )
        self._let_go(batch)
        rest = list(batch)
        with closing(self._targets.aim(batch)) as goals:
            while rest:
                with WeightEdit(self._updates, card).applied(self._model):
                    goal = next(goals)
                    self._insert(goal, rest[: len(goal.outcomes)])
                del rest[: len(goal.outcomes)]

    def _hand_out(self) -> WeightEdit:
        updates = {
            name: self._editor.finish_total(total, weight)
            for name, total in self._updates.items()
            for weight in [self._weight(name)]
        }
        return WeightEdit.build(
            self._model,
            editor=self._editor.name,
            config=self._editor.config,
            requests=self._written.requests,
            updates=updates,
            extra={
                "context_prefixes": [list(group) for group in self._prefixes.groups],
                "target_loss": _mean(self._told["losses"], 4),
                "target_steps": _mean(self._told["n_steps"], 2),
                "replay_failure": self._targets.replay_failure,
                "facts": self._written.tell(self._told["facts"]),
            },
        )

    def _insert(self, goal: Goal, requests: Sequence[EditRequest]) -> None:
        """Write what a goal asks for into all layers, one after another."""
        editor, model, layers = self._editor, self._model, self._editor.layers
        found: list[tuple[int, str, Update]] = []
        is_open = [False] * len(requests)
        with ExitStack() as partial_edits:
            for index, layer in enumerate(layers):
                measured = goal.measure(layer)
                if self._preserved.is_exhausted(
                    layer, measured.keys, measured.target, measured.current
                ):
                    break
                projection = model.architecture.projection(layer, editor.module)
                name = model.architecture.weight_name(projection)
                try:
                    residuals = editor.spread(measured, len(layers) - index)
                    if measured.norm is not None:
                        said = model.model.get_submodule(projection)(
                            measured.keys.to(model.model.dtype)
                        )
                        residuals = measured.norm.pull_back(said, residuals)
                    update = self._preserved.solve(
                        layer, measured.keys, residuals, editor.slack(len(requests))
                    )
                    if index < len(layers) - 1:
                        weight = model.model.get_parameter(name)
                        oriented = orient_for_module(model, name, weight, update)
                        partial_edits.enter_context(updated_weights(model.model, {name: oriented}))
                        del oriented
                except MemitCoreError as error:
                    where = f"{editor.name} on '{model.name}', {goal.describe(layer)}"
                    raise EditError(f"{where}: {error}") from error
                found.append((layer, name, update.to("cpu")))
                del update
                opened = self._preserved.is_open(layer, measured.keys).tolist()
                is_open = [one or other for one, other in zip(is_open, opened, strict=True)]
                keys = measured.keys.cpu()
                self._preserved.add(layer, keys, self._n_inserted)
                if self._keeps_keys:
                    self._keys[layer].append(keys)
        for layer, name, update in found:
            earlier, kept = self._updates.get(name), self._kept.setdefault(name, {})
            weight = self._weight(name)
            finished = editor.finish(Solved(layer, update, weight, earlier, goal, kept))
            self._preserved.feed_back(layer, update, finished)
            whole = finished if earlier is None else sum_updates(name, earlier, finished)
            self._updates[name] = lay_out(whole)
        goal.finish()
        if self._keeps_keys:  # what comes to an end early has not been written to all layers
            for layer in layers[len(found) :]:
                width = model.d_key(layer, editor.module)
                self._keys[layer].append(torch.full((len(requests), width), torch.nan))
        self._told["sizes"].append(len(requests))
        for place, (request, outcome) in enumerate(zip(requests, goal.outcomes, strict=True)):
            self._told["losses"].append(outcome.loss)
            self._told["n_steps"].append(outcome.n_steps)
            fact = {"case_id": request.case_id, "status": judge_target(outcome, editor.config)}
            why = goal.refused.get(place) or (None if is_open[place] else _CLOSED)
            skipped = {**fact, "status": "skipped", "why": why} if why else fact
            self._told["facts"].append(skipped)

    @property
    def carried(self) -> Carried | None:
        """Updates, keys, and what else the slots keep; see `Stream.carried`."""
        kept = {
            f"kept.{name}.{key}": value
            for name, values in self._kept.items()
            for key, value in values.items()
        }
        if not self._keeps_keys or not all(isinstance(each, Tensor) for each in kept.values()):
            return None
        tensors = {
            **{f"updates.{name}": each for name, each in name_tensors(self._updates).items()},
            **{f"keys.{layer}": torch.cat(parts) for layer, parts in self._keys.items() if parts},
            **{f"preserved.{name}": each for name, each in self._preserved.carried.items()},
            **kept,
        }
        content = {
            **Carried.write_requests(self._written.requests),
            "context_prefixes": [list(group) for group in self._prefixes.groups],
            "targets": dict(self._targets.carried),
            "told": {name: list(each) for name, each in self._told.items()},
        }
        return Carried({name: each.cpu() for name, each in tensors.items()}, content)

    def _go_on_from(self, carried: Carried) -> None:
        self._written = WrittenFacts(carried.requests)
        self._updates = assemble_updates(Path("stream"), carried.part("updates."))
        for name, tensor in carried.part("kept.").items():
            parameter, _, key = name.rpartition(".")
            self._kept.setdefault(parameter, {})[key] = tensor
        self._told = {name: list(each) for name, each in carried.content["told"].items()}
        self._targets.go_on_from(carried.content["targets"])
        sizes: list[int] = self._told["sizes"]
        for number, rows in carried.part("keys.").items():
            self._keys[int(number)] = list(rows.split(sizes))
        forgotten = iter([*self._told["forgotten"], [math.inf, []]])
        n_written, places = next(forgotten)
        first = 0
        for index, size in enumerate(sizes):
            while n_written <= first:
                self._preserved.forget(places)
                n_written, places = next(forgotten)
            for layer, parts in self._keys.items():
                if not bool((keys := parts[index]).isnan().any()):
                    slack = self._editor.slack(size)
                    self._preserved.add_again(layer, keys.to(self._model.device), slack, first)
            first += size
        self._preserved.go_on_from(carried.part("preserved."))

    def _let_go(self, batch: Sequence[EditRequest]) -> None:
        """Let what was written about the same as a batch's facts, otherwise, not be preserved."""
        n_earlier = len(self._written.requests)
        if old := self._written.add(batch):
            self._preserved.forget(old)
            self._told["forgotten"].append([n_earlier, old])

    @property
    def _n_inserted(self) -> int:
        return sum(self._told["sizes"])

    def measure_drift(self, edit: Edit) -> Mapping[int, Sequence[float]]:
        """Measure all keys again, as they were measured; see `Stream.measure_drift`."""
        with edit.applied(self._model):
            now = self._targets.measure_keys(self._written.requests)
        drift = {}
        for layer, parts in self._keys.items():
            then = torch.cat(parts).double()
            moved = now[layer].to(then) - then
            drift[layer] = (moved.norm(dim=1) / then.norm(dim=1)).tolist()
        return drift

    def _weight(self, name: str) -> Tensor:
        """A weight as it is now, `[d_value, d_key]`, on the CPU where it is offloaded."""
        with in_memory(self._model.model, [name]):
            parameter = self._model.model.get_parameter(name).detach()
            return orient_for_edit(self._model, name, parameter)


def _mean(numbers: Sequence[float], n_digits: int) -> float | None:
    return round(sum(numbers) / len(numbers), n_digits) if numbers else None
