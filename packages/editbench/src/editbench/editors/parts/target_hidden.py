"""Target hidden states z: what block L must say at the subject's last token (Eqn 16).

For each edit an offset δ is optimised so that z = h + δ, put in place of h, makes the model say the
new target after every context prefix. Edits do not touch each other, so many are optimised side by
side, and what is finished is kept in a cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editbench.editors.base import Progress, Share
from editbench.editors.parts.layer_sweep import read_hidden
from editbench.editors.parts.offset_forward import OffsetSite
from editbench.editors.parts.target_cache import TargetCache
from editbench.editors.parts.target_costs import STAGE, chunk_tasks, make_tasks
from editbench.editors.parts.target_optimizer import (
    FinishedTarget,
    TargetOptimizer,
    TargetTask,
)
from editbench.editors.parts.target_settings import TargetSettings
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import Halving
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
) -> TargetHidden:
    """Optimise z for every request, on the unedited model.

    The loss of one edit is the mean over prefixes of the target's mean negative log-probability,
    plus `kl_weight` times KL(edited ‖ original) of the next-token distribution right after the
    subject, plus `offset_decay`·‖δ‖/‖h‖². Adam takes `n_steps` − 1 steps; after each, δ is
    projected onto ‖δ‖ ≤ `clamp_factor`·‖h‖. An edit whose total loss is below `stop_loss` is
    finished, before the step. (The paper's Eqn 16 has the first term alone; the rest is what the
    reference implementation does.)

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

    Raises:
        DeviceMemoryError: There is not enough memory for a single edit.
    """
    outcomes: dict[int, FinishedTarget] = {}
    keys = [cache.key(model, request, layer, settings, prefixes) for request in requests]
    outcomes.update(cache.read(keys))
    report_progress(
        STAGE, len(outcomes), len(requests), f"{len(outcomes)} from the cache" if outcomes else ""
    )
    tasks = [
        TargetTask.of(model.tokens, index, request, prefixes)
        for index, request in enumerate(requests)
        if index not in outcomes
    ]
    optimizer = TargetOptimizer(
        model, OffsetSite.block_output(model, layer), settings, replay=replay
    )

    def optimize(some: Sequence[TargetTask]) -> dict[int, FinishedTarget]:
        n_before = len(outcomes)

        def on_step(step: int, n_finished: int, loss: float) -> None:
            advanced = (len(some) - n_finished) * (step - 1) // settings.n_steps
            n_done = n_before + n_finished + advanced
            report_progress(STAGE, n_done, len(requests), f"loss {loss:.3f}")

        initial = read_hidden(model, [task.bare for task in some], layer)
        found = optimizer.run(some, initial, on_step)
        return {task.index: one for task, one in zip(some, found, strict=True)}

    halving = Halving(f"target hidden states on '{model.name}'")
    for chunk in chunk_tasks(model, tasks, layer, token_budget):
        for found in halving.run(chunk, optimize):
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
    return [requests[task.index] for chunk in chunks[share.index :: share.n] for task in chunk]
