"""One cell at a time, the whole model on whole rows: slow, plain, right for any architecture."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from editbench.models.editable import EditableModel
from editbench.models.head import select_head_positions
from editbench.models.token_states import by_row
from editbench.tracing.routes import Route
from editbench.tracing.runs import Runs, add_noise, answer_probabilities, module_paths, stack_rows
from editbench.tracing.settings import SEVERED_MODULE
from editbench.tracing.traces import TracedPrompt
from memit_core import intervene


def score_plainly(
    model: EditableModel, prompt: TracedPrompt, noise: Tensor, runs: Runs, route: Route
) -> float:
    """Mean probability of the answer after restoring a route's states.

    Of the runs only what severed modules are frozen at is used.
    """
    token = route.token
    n_rows = 1 + len(noise)
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        model.architecture.embedding: lambda given: add_noise(given, prompt, noise)
    }

    def restore(output: Tensor, frozen: Tensor | None = None) -> Tensor:
        changed = by_row(output, n_rows).clone()
        changed[1:, token] = changed[0, token] if frozen is None else frozen
        return changed.view(output.shape)

    severed = SEVERED_MODULE.get(route.kind)
    restored = module_paths(model, route.kind)
    for layer in range(route.first, route.last + 1):
        changes[restored[layer]] = restore
    if severed is not None:
        for path, output in zip(module_paths(model, severed), runs.corrupted[severed], strict=True):
            changes[path] = partial(restore, frozen=output[:, token])
    last = torch.full((n_rows,), -1)
    with (
        torch.no_grad(),
        intervene(model.model, changes),
        select_head_positions(model, torch.arange(n_rows), last),
    ):
        logits = model.model(**stack_rows(model, prompt, len(noise)), use_cache=False).logits[0]
    return float(answer_probabilities(logits, prompt.answer)[1:].mean())
