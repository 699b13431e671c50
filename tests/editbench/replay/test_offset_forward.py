"""Suffix replay against whole forwards, on every family of architectures."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers as hf
from transformers.cache_utils import DynamicCache

from editbench.errors import RequestError
from editbench.models.editable import EditableModel
from editbench.replay import prefix_states
from editbench.replay.block_calls import ReplayMismatchError
from editbench.replay.offset_forward import FullForward, OffsetRow, OffsetSite
from editbench.replay.suffix_replay import SuffixReplay
from editbench.testing import tiny_tokenizer

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


def test_prefixes_that_are_known_are_not_run_again(family_model: EditableModel) -> None:
    """As when some edits of a batch are finished."""
    if family_model.name == "opt_post_norm":
        pytest.skip("its blocks cannot be read out but by its own forward")
    rows = make_rows(family_model)
    site = OffsetSite.block_output(family_model, 1)
    whole = SuffixReplay(family_model, site, rows)
    some = [rows[4], rows[2]]
    offsets = torch.randn(
        len(some), family_model.architecture.d_model, generator=torch.Generator().manual_seed(1)
    )
    expected = logits_and_gradient(FullForward(family_model, site, some), offsets)
    runs: list[int] = []
    block = family_model.model.get_submodule(family_model.architecture.block(0))
    handle = block.register_forward_hook(lambda *_: runs.append(1))
    narrowed = SuffixReplay(family_model, site, some, reach=whole.reach, known=[whole.prefixes])
    handle.remove()
    assert len(runs) == 1  # of the suffix
    for found, true in zip(logits_and_gradient(narrowed, offsets), expected, strict=True):
        torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-5)
    more = [*some, OffsetRow((3, 4, 5), 1, (2,))]
    assert not whole.prefixes.hold(more)
    assert SuffixReplay(family_model, site, more, known=[whole.prefixes]).prefixes.hold(more)


def test_an_offset_at_the_mlp_moves_out_where_that_is_the_same(family_model: EditableModel) -> None:
    rows = make_rows(family_model)
    site = OffsetSite.mlp_output(family_model, 1)
    outer = site.outermost_equivalent(family_model, rows[0].token_ids)
    has_norm_behind = family_model.name in ("gemma2", "gemma3", "olmo2", "opt_post_norm")
    assert outer.leaves_block != has_norm_behind
    assert outer.outermost_equivalent(family_model, rows[0].token_ids) == outer
    offsets = torch.randn(
        len(rows), family_model.architecture.d_model, generator=torch.Generator().manual_seed(1)
    )
    inside, outside = (
        logits_and_gradient(FullForward(family_model, one, rows), offsets) for one in (site, outer)
    )
    for found, expected in zip(outside, inside, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_in_half_precision_an_offset_stays_where_it_is(family_model: EditableModel) -> None:
    """There rounding differs by as much as anything that would have to be told apart."""
    model = EditableModel(
        copy.deepcopy(family_model.model).bfloat16(), family_model.tokens, name="half"
    )
    site = OffsetSite.mlp_output(model, 1)
    assert site.outermost_equivalent(model, [5, 7, 11]) == site


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


@pytest.fixture
def tilted(family_model: EditableModel) -> Iterator[None]:
    """The last block answers differently where it is handed a cache to replay with."""

    def tilt(module: torch.nn.Module, args: tuple, kwargs: dict, output: object) -> object:
        given = [*args, *kwargs.values()]
        caches = [each for each in given if isinstance(each, DynamicCache)]
        if not any("update" in vars(layer) for cache in caches for layer in cache.layers):
            return None
        tilt = torch.linspace(0.9, 1.1, family_model.architecture.d_model)
        return (output[0] * tilt, *output[1:]) if isinstance(output, tuple) else output * tilt

    blocks = family_model.model.get_submodule(family_model.architecture.blocks)
    handle = blocks[-1].register_forward_hook(tilt, with_kwargs=True)
    yield
    handle.remove()


GROUPED = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    "make_config",
    [
        lambda n: hf.GraniteConfig(**GROUPED, num_hidden_layers=n, logits_scaling=8.0),
        lambda n: hf.CohereConfig(**GROUPED, num_hidden_layers=n, logit_scale=0.1),
        lambda n: hf.OPTConfig(  # projects states in front of its head
            vocab_size=320,
            hidden_size=32,
            word_embed_proj_dim=16,
            num_hidden_layers=n,
            num_attention_heads=4,
            ffn_dim=48,
            max_position_embeddings=64,
            do_layer_norm_before=False,
        ),
    ],
    ids=["granite", "cohere", "opt"],
)
def test_an_earlier_layer_is_read_out_by_the_model_s_own_code(tokenizers, make_config) -> None:
    """As the same model would be that ends there: with what stands around its head."""
    whole, ended = (
        hf.AutoModelForCausalLM.from_config(make_config(n), dtype=torch.float32) for n in (4, 3)
    )
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in whole.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3, generator=generator)
    ended.load_state_dict(whole.state_dict(), strict=False)
    whole, ended = (EditableModel(each, tokenizers["bos"], name="net") for each in (whole, ended))
    rows = make_rows(whole)
    offsets = torch.full((len(rows), 32), 0.3)
    for make_site in (OffsetSite.block_output, OffsetSite.mlp_output):
        for layer in (1, 2):
            site = make_site(whole, layer)
            found = logits_and_gradient(FullForward(whole, site, rows, 2), offsets)
            expected = logits_and_gradient(FullForward(ended, site, rows), offsets)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("tilted")
def test_a_replay_that_is_not_the_model_s_own_forward_is_found_out(
    family_model: EditableModel,
) -> None:
    site = OffsetSite.block_output(family_model, 1)
    with pytest.raises(ReplayMismatchError):
        SuffixReplay(family_model, site, make_rows(family_model))


def test_prefixes_that_are_not_the_model_s_own_are_found_out(
    family_model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family_model.name == "opt_post_norm":
        pytest.skip("its blocks cannot be read out but by its own forward")
    fill = prefix_states.fill_cache

    def spoil(cache: Any, *arguments: object) -> None:
        fill(cache, *arguments)
        for layer in cache.layers:
            if layer.values is not None:
                layer.values = layer.values * 1.1

    monkeypatch.setattr(prefix_states, "fill_cache", spoil)
    site = OffsetSite.block_output(family_model, 1)
    with pytest.raises(ReplayMismatchError):
        SuffixReplay(family_model, site, make_rows(family_model))


@pytest.mark.parametrize("forward", [FullForward, SuffixReplay])
def test_rows_that_are_too_long_are_refused(
    make_network: Callable[..., hf.PreTrainedModel], forward: type[FullForward | SuffixReplay]
) -> None:
    """Neither their prefix nor their suffix is too long by itself."""
    config = hf.GPT2Config(
        n_embd=32, n_layer=4, n_head=4, n_positions=20, vocab_size=len(tiny_tokenizer())
    )
    model = EditableModel(make_network(config), tiny_tokenizer(), name="short")
    row = OffsetRow(tuple(range(5, 29)), 12, (14,))
    with pytest.raises(RequestError, match=r"got 24 tokens .* expected at most 20"):
        forward(model, OffsetSite.block_output(model, 1), [row])
