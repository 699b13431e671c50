"""Where large things are kept: on the model's device if there is room, else in main memory."""

import torch

from editbench.models.editable import EditableModel

_FLOAT64 = 8
_FLOAT32 = 4
_MATRICES = 3  # of d_key × d_key: what is alive at once while a layer is solved
_ENOUGH_TOKENS = 2_048  # in a batch of text: with fewer, weights are read for too little work
_WIDENED = 2**26  # numbers of keys, and of what is solved for, that are in float64 at once


def count_solve_bytes(n_edits: int, d_key: int, d_value: int) -> int:
    """Bytes that solving for the update of one layer takes, its keys and the update included."""
    matrices = (_MATRICES * d_key**2 + d_key * d_value) * _FLOAT64
    widened = 2 * min(n_edits * d_key, _WIDENED) * _FLOAT64
    return matrices + widened + n_edits * (d_key + d_value) * _FLOAT32


def place_second_moments(
    model: EditableModel, n_layers: int, d_key: int, n_parts: int
) -> tuple[torch.device, int]:
    """Where second moments are collected, which are alive all at once, and from how much text.

    On the model's device only if text still runs beside them in batches that are worth it.

    Args:
        model: The model.
        n_layers: How many layers' keys are collected.
        d_key: Width of a key.
        n_parts: Into how many parts the text is counted, each with matrices of its own.

    Returns:
        The device, and how many tokens run at once.
    """
    n_bytes = n_parts * n_layers * d_key**2 * _FLOAT64
    n_captured = (n_layers + 1) * d_key  # of one layer there are two copies for a moment
    alone, beside = (
        model.token_budget_beside(taken, n_captured=n_captured) for taken in (0, n_bytes)
    )
    is_cramped = beside < min(_ENOUGH_TOKENS, alone)
    device = torch.device("cpu") if is_cramped else model.place_for(n_bytes)
    return device, beside if device == model.device else alone


def place_states(model: EditableModel, n_bytes: int, n_edits: int, d_key: int) -> torch.device:
    """Where the states of all facts are kept from layer to layer.

    Args:
        model: The model.
        n_bytes: What they take.
        n_edits: Facts; their systems are solved while the states are there.
        d_key: Width of a key.
    """
    return model.place_for(n_bytes + count_solve_bytes(n_edits, d_key, model.architecture.d_model))
