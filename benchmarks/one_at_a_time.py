"""The usual way to optimize z: one edit at a time, whole model, logits everywhere.

Written straight from the algorithm, sharing no code with the package but tokenization, so that it
serves as the slow side of the benchmark and as an independent check of the fast one.
"""

import torch
from torch import Tensor

from editbench.editors.memit import MemitConfig
from editbench.editors.subject_tokens import target_row
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest


def optimize_one(
    model: EditableModel, request: EditRequest, config: MemitConfig, prefixes: tuple[str, ...]
) -> Tensor:
    """Return z of one edit, `[d_model]`; learning rate absolute."""
    layer = config.critical_layers[-1]
    network, tokens = model.model, model.tokens
    rows = [target_row(tokens, request, prefix) for prefix in prefixes]
    kl_text = f"{request.subject} is a"
    kl_ids = tokens.encode(kl_text)
    lookups = [row.subject_last for row in rows]
    lookups.append(tokens.locate(kl_text, 0, len(request.subject)))
    inputs = model.batch([*(row.token_ids for row in rows), kl_ids])
    labels = torch.full(inputs["input_ids"].shape, -100)[:-1]
    for row, label in zip(rows, labels, strict=True):
        label[row.target_start : row.target_start + len(row.target_ids)] = torch.tensor(
            row.target_ids
        )
    every_row = torch.arange(len(lookups))
    offset = torch.zeros(model.architecture.d_model, requires_grad=True)
    optimizer = torch.optim.Adam([offset], lr=config.learning_rate)
    initial: list[Tensor] = []

    def add_offset(module: torch.nn.Module, args: object, output: object) -> object:
        states = output[0] if isinstance(output, tuple) else output
        if not initial:
            initial.append(states[0, lookups[0]].detach().clone())
        moved = states.clone()
        moved[every_row, lookups] = moved[every_row, lookups] + offset
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = network.get_submodule(model.architecture.block(layer)).register_forward_hook(
        add_offset
    )
    original = None
    try:
        for step in range(config.n_steps):
            optimizer.zero_grad()
            logits = network(**inputs, use_cache=False).logits
            drift = logits[-1, lookups[-1]].log_softmax(-1)
            original = drift.detach().clone() if original is None else original
            log_probs = logits[:-1].log_softmax(-1)
            gathered = log_probs.gather(2, labels.clamp(min=0)[..., None])[..., 0]
            mask = (labels != -100).float()
            loss = (-(gathered * mask).sum(1) / mask.sum(1)).mean()
            loss = loss + config.kl_weight * (drift.exp() * (drift - original)).sum()
            loss = loss + config.offset_decay * offset.norm() / initial[0].norm() ** 2
            if loss < config.stop_loss or step == config.n_steps - 1:
                break
            loss.backward()
            optimizer.step()
            bound = config.clamp_factor * initial[0].norm()
            if offset.norm() > bound:
                with torch.no_grad():
                    offset *= bound / offset.norm()
    finally:
        handle.remove()
    return initial[0] + offset.detach()
