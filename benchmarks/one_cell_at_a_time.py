"""The usual way to trace: one cell at a time, the whole model on whole rows, logits everywhere.

Written straight from the definition, sharing no code with the package's replay, so that it serves
as the slow side of the benchmark and as an independent check of the fast one.
"""

import numpy as np
import torch
from torch import Tensor

from editbench.models.editable import EditableModel
from editbench.tracing.noise import draw_noise
from editbench.tracing.settings import Kind, TraceSettings, window_around
from editbench.tracing.traces import TracedPrompt


def trace_cells(
    model: EditableModel, prompt: TracedPrompt, settings: TraceSettings, kind: Kind
) -> np.ndarray:
    """Return the scores of all cells of one kind, `[n_tokens, n_layers]`."""
    noise = draw_noise(model, prompt, settings)

    def trace(token: int, layer: int) -> float:
        window = settings.window
        return trace_one(model, prompt, noise, kind=kind, token=token, layer=layer, window=window)

    layers = range(model.architecture.n_layers)
    return np.array(
        [[trace(token, layer) for layer in layers] for token in range(len(prompt.token_ids))]
    )


def trace_one(
    model: EditableModel,
    prompt: TracedPrompt,
    noise: Tensor,
    *,
    kind: Kind,
    token: int,
    layer: int,
    window: int,
) -> float:
    """Return the score of one cell: mean probability of the answer over the noise samples."""
    network, architecture = model.model, model.architecture
    n_rows = 1 + len(noise)
    inputs = model.batch([prompt.token_ids] * n_rows)
    first, last = layer, layer
    paths = [architecture.block(index) for index in range(architecture.n_layers)]
    if kind != "hidden":
        first, last = window_around(layer, window, architecture.n_layers)
        paths = list(
            architecture.mlp_projections if kind == "mlp" else architecture.attention_projections
        )
    begin, end = prompt.subject.start, prompt.subject.stop

    def corrupt(module: torch.nn.Module, args: object, output: Tensor) -> Tensor:
        output[1:, begin:end] += noise
        return output

    def restore(module: torch.nn.Module, args: object, output: object) -> object:
        states = output[0] if isinstance(output, tuple) else output
        assert isinstance(states, Tensor)
        states[1:, token] = states[0, token]
        return output

    handles = [network.get_submodule(architecture.embedding).register_forward_hook(corrupt)]
    handles += [
        network.get_submodule(path).register_forward_hook(restore)
        for path in paths[first : last + 1]
    ]
    try:
        with torch.no_grad():
            logits = network(**inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return float(logits[1:, -1].softmax(dim=-1)[:, prompt.answer].mean())
