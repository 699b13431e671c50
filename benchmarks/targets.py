"""Target hidden states outside of an editor: found, or put where the editor looks for them."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.memit import MemitConfig
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.optimizer import FinishedTarget
from editbench.editors.targets.target_hidden import TargetHidden, optimize_target_hidden
from editbench.editors.targets.tasks import group_requests
from editbench.models.editable import EditableModel
from editbench.progress import report_nothing
from editbench.requests import EditRequest


def find_targets(
    model: EditableModel,
    requests: Sequence[EditRequest],
    config: MemitConfig,
    prefixes: ContextPrefixes,
    folder: Path | None = None,
) -> TargetHidden:
    """Find z as the editor does, and leave it in the cache in `folder`, if there is one."""
    return optimize_target_hidden(
        model,
        requests,
        layer=config.critical_layers[-1],
        settings=config,
        prefixes=prefixes.flat,
        cache=TargetCache(folder),
        report_progress=report_nothing,
        share_subjects=config.share_subjects,
        warm_start=config.warm_start,
    )


def keep_targets(
    model: EditableModel,
    requests: Sequence[EditRequest],
    config: MemitConfig,
    prefixes: ContextPrefixes,
    states: Tensor,
    initial: Tensor,
    folder: Path,
) -> None:
    """Put z into the cache in `folder`.

    Args:
        model: The model.
        requests: The facts.
        config: The editor's.
        prefixes: Context prefixes.
        states: z, `[n_edits, d_model]`.
        initial: h, likewise.
        folder: The folder of the cache.
    """
    cache = TargetCache(folder)
    keys = cache.keys(
        model,
        requests,
        group_requests(requests, share_subjects=config.share_subjects),
        config.critical_layers[-1],
        config,
        prefixes.flat,
        warm_start=config.warm_start,
    )
    cache.write(
        {
            key: FinishedTarget(state, start, 0.0, 0)
            for key, state, start in zip(keys, states, initial, strict=True)
        }
    )
