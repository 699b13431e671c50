"""Suffix replay against whole forwards, on every family of architectures."""

import pytest
import torch

from editbench.editors.parts.offset_forward import FullForward, OffsetRow, OffsetSite
from editbench.editors.parts.suffix_replay import ReplayMismatchError, SuffixReplay
from editbench.models.editable import EditableModel

# Suffix and prefix lengths differ, one row has no prefix, one reads at the offset itself. The last
# three begin alike; of two of them that is said.
SHAPES = [(0, 4, (1, 3)), (1, 2, (1,)), (7, 5, (2, 3, 4)), (9, 1, (0,)), (3, 6, (5,))]
SHARED = (0, 0, 3, 3, 0)


def make_rows(model: EditableModel) -> list[OffsetRow]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for (n_before, n_after, reads), n_shared in zip(SHAPES, SHARED, strict=True):
        ids = torch.randint(3, 300, (n_before + n_after,), generator=generator).tolist()
        if n_before >= 3:
            ids[:3] = [5, 7, 11]
        places = tuple(n_before + read for read in reads)
        rows.append(OffsetRow(tuple(ids), n_before, places, n_shared))
    return rows


def logits_and_gradient(
    forward: FullForward | SuffixReplay, offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    offsets = offsets.clone().requires_grad_()
    logits = forward.logits(offsets)
    (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[:, 7].sum(), offsets)
    return logits.detach(), gradient


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_replay_equals_full_forward(family_model: EditableModel, layer: int) -> None:
    rows = make_rows(family_model)
    site = OffsetSite.block_output(family_model, layer)
    offsets = torch.randn(
        len(rows), family_model.architecture.d_model, generator=torch.Generator().manual_seed(1)
    )
    full = logits_and_gradient(FullForward(family_model, site, rows), offsets)
    try:
        replay = SuffixReplay(family_model, site, rows)
    except ReplayMismatchError:
        # Its head sits behind a projection of its own, so that replay has to give way.
        assert family_model.name == "opt_post_norm"
        return
    for found, expected in zip(logits_and_gradient(replay, offsets), full, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_earlier_layer_can_be_read_out(family_model: EditableModel) -> None:
    if family_model.name == "opt_post_norm":
        pytest.skip("its blocks cannot be read out but by its own forward")
    rows = make_rows(family_model)
    site = OffsetSite.block_output(family_model, 0)
    offsets = torch.full((len(rows), family_model.architecture.d_model), 0.3)
    full = logits_and_gradient(FullForward(family_model, site, rows, 2), offsets)
    replay = logits_and_gradient(SuffixReplay(family_model, site, rows, 2), offsets)
    last = FullForward(family_model, site, rows).logits(offsets)
    for found, expected in zip(replay, full, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(full[0], last, atol=1e-3)


def test_a_replay_that_is_not_the_model_s_own_forward_is_found_out(
    family_model: EditableModel,
) -> None:
    """A last block that answers differently when it is called a second time on the suffix."""
    n_calls = 0
    # Shared prefixes (not where a window slides), prefixes, and the suffix itself.
    n_forwards = 2 if family_model.name in ("mistral_sliding", "gemma2", "gemma3") else 3

    def tilt_replay(module: torch.nn.Module, args: object, output: object) -> object:
        nonlocal n_calls
        n_calls += 1
        if n_calls <= n_forwards:
            return None
        tilt = torch.linspace(0.5, 1.5, family_model.architecture.d_model)
        return (output[0] * tilt, *output[1:]) if isinstance(output, tuple) else output * tilt

    blocks = family_model.model.get_submodule(family_model.architecture.blocks)
    handle = blocks[-1].register_forward_hook(tilt_replay)
    try:
        with pytest.raises(ReplayMismatchError):
            SuffixReplay(
                family_model, OffsetSite.block_output(family_model, 1), make_rows(family_model)
            )
    finally:
        handle.remove()
