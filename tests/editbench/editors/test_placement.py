"""Where large things are kept when a device has little room."""

import pytest
import torch

from editbench.second_moments.collection_work import CollectionWork
from editbench.testing import tiny_model

N_LAYERS, D_KEY = 2, 2_000
N_BYTES = N_LAYERS * D_KEY**2 * 8


@pytest.mark.parametrize(
    ("room", "place"),
    [
        (1.1 * N_BYTES, "cpu"),  # they do not fit, for a part of the room stays free
        (1.3 * N_BYTES, "cpu"),  # they do, and nearly nothing beside them
        (20 * N_BYTES, "cuda"),
    ],
)
def test_second_moments_leave_room_for_text(room: float, place: str) -> None:
    model = tiny_model()
    model.planned_device = torch.device("cuda")
    model.memory.narrow(int(model.memory.weight_bytes[model.device] + room))
    work = CollectionWork.of(model, [D_KEY] * N_LAYERS, 1_000)
    n_tokens = work.n_together
    assert work.device == torch.device(place)
    n_bytes = N_BYTES if place == "cuda" else 0
    assert n_tokens == model.memory.tokens_beside(n_bytes, n_captured=(N_LAYERS + 1) * D_KEY)
    assert n_tokens <= model.memory.tokens_beside(n_bytes)
    assert model.memory.place(N_BYTES).type == ("cpu" if room < 1.2 * N_BYTES else "cuda")


def test_keys_of_many_layers_leave_room_for_less_text() -> None:
    model = tiny_model()
    model.planned_device = torch.device("cuda")
    model.memory.narrow(int(model.memory.weight_bytes[model.device] + 2**30))
    few, many = (CollectionWork.of(model, [D_KEY] * n, 1_000).n_together for n in (1, 8))
    assert 0 < many < few / 3
