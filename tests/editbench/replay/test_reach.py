"""What is found out about the modules of blocks that are put together in different ways."""

import pytest

from editbench.replay.reach import Reach
from editbench.testing import tiny_model


def find(model) -> Reach:
    n_layers = model.architecture.n_layers
    return Reach.find(model, 0, n_layers - 1, range(n_layers))


def last_names(paths) -> set[str]:
    return {path.rpartition(".")[2] for path in paths}


def test_mlp_behind_attention():
    tiny = tiny_model()
    reach = find(tiny)
    assert len(reach.unmoved) == tiny.architecture.n_layers
    for layer, paths in reach.unmoved.items():
        assert paths == (f"transformer.h.{layer}.attn.c_attn",)  # queries, keys and values in one
    assert set(reach.read_alone) == {"transformer.h.3.mlp", "transformer.h.3.attn.c_proj"}


@pytest.mark.parametrize("family", ["gptj"], indirect=True)
def test_mlp_beside_attention(family_model):
    reach = find(family_model)
    for paths in reach.unmoved.values():
        assert last_names(paths) == {"q_proj", "k_proj", "v_proj", "mlp"}
    assert last_names(reach.read_alone) == {"q_proj", "out_proj", "mlp"}


@pytest.mark.parametrize("family", ["bloom"], indirect=True)
def test_maps_of_an_mlp_that_adds_the_residual_by_itself(family_model):
    """Such an MLP is handed two things, so that its maps are asked, not it."""
    reach = find(family_model)
    found = last_names(reach.read_alone)
    assert {"dense_h_to_4h", "dense_4h_to_h"} <= found
    assert "mlp" not in found
