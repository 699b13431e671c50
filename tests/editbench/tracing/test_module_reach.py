"""What is found out about the modules of blocks that are put together in different ways."""

import pytest
import torch

from editbench.tracing.block_replay import ReplayArguments
from editbench.tracing.module_reach import ModuleReach, find_reach


def find(model) -> ModuleReach:
    token_ids = model.tokens.encode("Everybody knows that")
    with torch.no_grad():
        whole = ReplayArguments(model).replay_whole(token_ids)
        return find_reach(model, whole, len(token_ids))


def last_names(paths) -> set[str]:
    return {path.rpartition(".")[2] for path in paths}


def test_mlp_behind_attention(tiny):
    reach = find(tiny)
    assert len(reach.unmoved) == tiny.architecture.n_layers
    for layer, paths in enumerate(reach.unmoved):
        assert paths == (f"transformer.h.{layer}.attn.c_attn",)  # queries, keys and values in one
    assert set(reach.read_alone) == {"transformer.h.3.mlp", "transformer.h.3.attn.c_proj"}


@pytest.mark.parametrize("family", ["gptj"], indirect=True)
def test_mlp_beside_attention(family_model):
    reach = find(family_model)
    for paths in reach.unmoved:
        assert last_names(paths) == {"q_proj", "k_proj", "v_proj", "mlp"}
    assert last_names(reach.read_alone) == {"q_proj", "out_proj", "mlp"}
