"""Target hidden states z: what block L must say at the subject's last token (Eqn 16).

For each edit an offset δ is optimised so that z = h + δ, put in place of h, makes the model say the
new target after every context prefix. Edits do not touch each other, so many are optimised side by
side, and what is finished is kept in a cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from editbench.editors.base import Share
from editbench.editors.keys.reading import read_hidden
from editbench.editors.subject_tokens import key_row
from editbench.editors.targets.batches import STAGE, chunk_tasks
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.optimizer import FinishedTarget, TargetOptimizer
from editbench.editors.targets.settings import TargetSettings
from editbench.editors.targets.tasks import (
    TargetTask,
    distinct_groups,
    group_requests,
    make_tasks,
)
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import Halving
from editbench.progress import Progress
from editbench.replay.offset_forward import OffsetSite
from editbench.requests import EditRequest


@dataclass(frozen=True)
class TargetHidden:
    """The optimised states of a batch of edits, row for row.

    Attributes:
        states: z, float32 `[n_edits, d_model]`, on the CPU.
        initial: h, block L's output for the bare prompt before editing, likewise.
        losses: Total loss of the returned δ, `[n_edits]`.
        n_steps: Forward passes that each edit took, `[n_edits]`.
        replay_failure: Why suffix replay could not be used; None where it was.
    """

    states: Tensor
    initial: Tensor
    losses: Tensor
    n_steps: Tensor
    replay_failure: str | None

    @property
    def outcomes(self) -> list[FinishedTarget]:
        """The same, edit by edit."""
        numbers = zip(self.losses.tolist(), self.n_steps.tolist(), strict=True)
        rows = zip(self.states, self.initial, numbers, strict=True)
        return [FinishedTarget(state, initial, *rest) for state, initial, rest in rows]

    @property
    def finite(self) -> Tensor:
        """Whose state and loss are finite numbers, bool `[n_edits]`."""
        return self.states.isfinite().all(dim=1) & self.losses.isfinite()


def optimize_target_hidden(
    model: EditableModel,
    requests: Sequence[EditRequest],
    *,
    layer: int,
    settings: TargetSettings,
    prefixes: Sequence[str],
    cache: TargetCache,
    report_progress: Progress,
    replay: bool = True,
    token_budget: int | None = None,
    share_subjects: bool = False,
    warm_start: bool = False,
    optimizer: TargetOptimizer | None = None,
) -> TargetHidden:
    """Optimise z for every request, on the model as it is.

    Adam takes `n_steps` − 1 steps down the loss (see `editbench.editors.targets.loss`); after each,
    δ is projected onto ‖δ‖ ≤ `clamp_factor`·‖h‖. An edit whose total loss is below `stop_loss` is
    finished, before the step.

    States that are not finite are returned like others (`TargetHidden.finite`), but not kept, and
    no offset starts from them.

    Args:
        model: The model to be edited.
        requests: The facts.
        layer: L, the last critical layer.
        settings: Hyperparameters.
        prefixes: Context prefixes; all weigh alike.
        cache: Finished states are looked up and kept there.
        report_progress: Told the number of finished edits and the mean loss.
        replay: False runs whole forwards, which gives the same numbers, slowly.
        token_budget: Suffix tokens that are replayed together; None chooses by device and memory.
            Where memory runs out all the same, chunks are halved.
        share_subjects: Optimise one δ for all requests about a subject. The loss is the mean over
            all their prompts, and each one's z is its own h plus δ.
        warm_start: Start from the mean δ of the edits finished before that have the same target.
        optimizer: One for the same layer and settings that has checked its replay before, in place
            of a new one.

    Raises:
        DeviceMemoryError: There is not enough memory for a single edit.
    """
    outcomes: dict[int, FinishedTarget] = {}
    groups = group_requests(requests, share_subjects=share_subjects)
    keys = cache.keys(model, requests, groups, layer, settings, prefixes, warm_start=warm_start)
    outcomes.update(cache.read(keys))
    report_progress(
        STAGE, len(outcomes), len(requests), f"{len(outcomes)} from the cache" if outcomes else ""
    )
    unknown = [
        group
        for group in distinct_groups(groups)
        if not all(member in outcomes for member in group)
    ]
    tasks = make_tasks(model.tokens, requests, prefixes, unknown)
    if optimizer is None:
        site = OffsetSite.block_output(model, layer)
        optimizer = TargetOptimizer(model, site, settings, replay=replay)

    def optimize(some: Sequence[TargetTask]) -> dict[int, FinishedTarget]:
        n_before = len(outcomes)

        def on_step(step: int, n_finished: int, loss: float) -> None:
            advanced = (len(some) - n_finished) * (step - 1) // settings.n_steps
            n_done = min(n_before + n_finished + advanced, len(requests))
            report_progress(STAGE, n_done, len(requests), f"loss {loss:.3f}")

        start = None
        if warm_start:
            start = _mean_offsets(requests, outcomes, [task.index for task in some])
        found = optimizer.run(some, on_step, start=start)
        first = {task.index: one for task, one in zip(some, found, strict=True)}
        return {**first, **_share(model, requests, layer, groups, first)}

    halving = Halving(f"target hidden states on '{model.name}'")
    for chunk in chunk_tasks(model, tasks, layer, token_budget):
        for found in halving.run(chunk.rows, optimize):
            cache.write({keys[index]: one for index, one in found.items()})
            outcomes.update(found)
    ordered = [outcomes[index] for index in range(len(requests))]
    return TargetHidden(
        states=torch.stack([one.state for one in ordered]),
        initial=torch.stack([one.initial for one in ordered]),
        losses=torch.tensor([one.loss for one in ordered]),
        n_steps=torch.tensor([one.n_steps for one in ordered]),
        replay_failure=optimizer.replay_failure,
    )


def _mean_offsets(
    requests: Sequence[EditRequest], outcomes: Mapping[int, FinishedTarget], edits: Sequence[int]
) -> Tensor | None:
    """For each edit, the mean δ of finished ones that have the same target; zero without any."""
    of_target: dict[str, list[Tensor]] = {}
    for index, one in outcomes.items():
        if not one.is_finite:
            continue
        of_target.setdefault(requests[index].target, []).append(one.state - one.initial)
    if not of_target:
        return None
    means = {target: torch.stack(offsets).mean(dim=0) for target, offsets in of_target.items()}
    zero = torch.zeros_like(next(iter(means.values())))
    return torch.stack([means.get(requests[index].target, zero) for index in edits])


def _share(
    model: EditableModel,
    requests: Sequence[EditRequest],
    layer: int,
    groups: Sequence[Sequence[int]],
    found: Mapping[int, FinishedTarget],
) -> dict[int, FinishedTarget]:
    """The outcomes of those whose offset was optimised as another one's."""
    others = [(member, index) for index in found for member in groups[index] if member != index]
    if not others:
        return {}
    bare = [key_row(model.tokens, requests[member], "") for member, _ in others]
    initial = read_hidden(model, bare, layer).cpu()
    return {
        member: replace(
            found[index],
            state=own + found[index].state - found[index].initial,
            initial=own,
        )
        for (member, index), own in zip(others, initial, strict=True)
    }


def choose_share(
    model: EditableModel,
    requests: Sequence[EditRequest],
    *,
    layer: int,
    prefixes: Sequence[str],
    share: Share,
) -> list[EditRequest]:
    """A share of the requests, in whole chunks: its states are the same bits as all requests' are.

    Args:
        model: The model to be edited.
        requests: All requests.
        layer: L, the last critical layer.
        prefixes: Context prefixes.
        share: Which part of them.
    """
    chunks = list(chunk_tasks(model, make_tasks(model.tokens, requests, prefixes), layer))
    return [requests[task.index] for chunk in chunks[share.index :: share.n] for task in chunk.rows]
