"""The usual way to insert: two full forwards a layer, and `torch.linalg.solve`.

Written straight from the algorithm, sharing no code with the package but tokenization, so that it
serves as the slow side of a benchmark and as an independent check of the fast one.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.memit import MemitConfig
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest


def insert(
    model: EditableModel,
    requests: Sequence[EditRequest],
    prefixes: ContextPrefixes,
    config: MemitConfig,
    targets: Tensor,
    moments: Mapping[int, Tensor],
    n_together: int = 32,
) -> dict[int, Tensor]:
    """Return the update of each critical layer, `[d_value, d_key]`; the weights stay as they were.

    Args:
        model: A model whose MLP's output projections are linear maps.
        requests: The facts.
        prefixes: Context prefixes; keys are means over them, weighted as the reference does.
        config: Hyperparameters.
        targets: z of each fact, `[n_edits, d_model]`.
        moments: E[k kᵀ] of each critical layer, float64.
        n_together: Rows that are run together.
    """
    layers = config.critical_layers
    last = model.architecture.block(layers[-1])
    updates: dict[int, Tensor] = {}
    originals = {}
    try:
        for index, layer in enumerate(layers):
            projection = model.architecture.projection(layer, "mlp")
            weight = model.model.get_submodule(projection).weight
            originals[layer] = weight.detach().clone()
            keys = torch.zeros(len(requests), weight.shape[1])
            for prefix, share in zip(prefixes.flat, prefixes.weights("grouped"), strict=True):
                keys += share * _read(model, requests, prefix, projection, n_together, inputs=True)
            hidden = _read(model, requests, "", last, n_together, inputs=False)
            residuals = ((targets - hidden) / (len(layers) - index)).double()
            wide = keys.double()
            system = config.preservation_weight * moments[layer] + wide.mT @ wide
            updates[layer] = (torch.linalg.solve(system, wide.mT) @ residuals).mT
            with torch.no_grad():
                weight += updates[layer].float()
    finally:
        for layer, original in originals.items():
            path = model.architecture.projection(layer, "mlp")
            model.model.get_submodule(path).weight.data.copy_(original)
    return updates


def _read(
    model: EditableModel,
    requests: Sequence[EditRequest],
    prefix: str,
    path: str,
    n_together: int,
    *,
    inputs: bool,
) -> Tensor:
    """What a module gets, or says, at the subjects' last tokens, by whole forwards of prompts."""
    found: list[Tensor] = []
    seen: list[Tensor] = []

    def keep(module: torch.nn.Module, args: tuple[Tensor, ...], output: object) -> None:
        states = args[0] if inputs else output[0] if isinstance(output, tuple) else output
        assert isinstance(states, Tensor)
        seen.append(states)

    handle = model.model.get_submodule(path).register_forward_hook(keep)
    try:
        for start in range(0, len(requests), n_together):
            some = requests[start : start + n_together]
            texts = [prefix + request.text for request in some]
            begins = [len(prefix) + request.subject_start for request in some]
            lasts = [
                model.tokens.locate(text, begin, begin + len(request.subject))
                for text, begin, request in zip(texts, begins, some, strict=True)
            ]
            rows = model.batch([model.tokens.encode(text) for text in texts])
            with torch.no_grad():
                model.model(**rows, use_cache=False)
            found.append(seen.pop()[torch.arange(len(some)), lasts])
    finally:
        handle.remove()
    return torch.cat(found)
