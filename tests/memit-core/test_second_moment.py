"""Streaming second moments."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memit_core import (
    IllPosedError,
    MemitCoreError,
    SecondMoment,
    ShapeError,
    second_moment,
)

law = settings(derandomize=True, deadline=None, max_examples=40)


def draw_keys(n_tokens: int, d_key: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_tokens, d_key, generator=generator, dtype=torch.float64)


def collect(keys: Tensor, **options: torch.dtype) -> SecondMoment:
    collected = SecondMoment(keys.shape[1], **options)
    collected.update(keys)
    return collected


# Laws


@law
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 6), st.data())
def test_moment_is_the_same_under_any_batching_and_merge_order(
    sizes: list[int], d_key: int, data: st.DataObject
) -> None:
    sizes = [*sizes, 1]
    keys = draw_keys(sum(sizes), d_key, data.draw(st.integers(0, 2**31)))
    expected = keys.mT @ keys / len(keys)
    batches = keys.split(sizes)

    streamed = SecondMoment(d_key)
    for batch in data.draw(st.permutations(batches)):
        streamed.update(batch)

    parts = [collect(batch) for batch in data.draw(st.permutations(batches))]
    while len(parts) > 1:
        first = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        second = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        first.merge(second)
        parts.append(first)

    for collected in (streamed, parts[0]):
        assert collected.n_tokens == len(keys)
        moment = collected.moment()
        assert torch.equal(moment, moment.mT)
        torch.testing.assert_close(moment, expected, rtol=1e-12, atol=1e-12)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = draw_keys(50, 4)
    whole = collect(keys).moment()
    monkeypatch.setattr(second_moment, "_ENTRIES_PER_CHUNK", 30)
    torch.testing.assert_close(collect(keys).moment(), whole, rtol=1e-13, atol=1e-13)
    monkeypatch.setattr(second_moment, "_ENTRIES_PER_CHUNK", 1)
    torch.testing.assert_close(collect(keys).moment(), whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_keys_are_accumulated_in_float64(dtype: torch.dtype) -> None:
    keys = draw_keys(100, 4).to(dtype)
    wide = keys.double()
    collected = collect(keys)
    assert collected.dtype == torch.float64
    torch.testing.assert_close(collected.moment(), wide.mT @ wide / 100, rtol=1e-13, atol=1e-13)


def test_float32_accumulator() -> None:
    keys = draw_keys(100, 4)
    collected = collect(keys, dtype=torch.float32)
    assert collected.moment().dtype == torch.float32
    torch.testing.assert_close(
        collected.moment().double(), keys.mT @ keys / 100, rtol=1e-5, atol=1e-5
    )


def test_merging_with_itself_counts_every_token_twice() -> None:
    collected = collect(draw_keys(10, 3))
    before = collected.moment()
    collected.merge(collected)
    assert collected.n_tokens == 20
    assert torch.equal(collected.moment(), before)


def test_moment_is_a_copy_and_carries_no_gradient() -> None:
    keys = draw_keys(10, 3).requires_grad_()
    collected = collect(keys)
    assert not collected.moment().requires_grad
    collected.moment().zero_()
    assert collected.moment().any()
    assert (collected.d_key, collected.device) == (3, torch.device("cpu"))


def test_float64_on_a_device_without_it_is_kept_on_the_cpu() -> None:
    assert SecondMoment(3, device="mps").device == torch.device("cpu")


# Refusals


def test_nothing_of_a_bad_batch_is_taken_in() -> None:
    collected = collect(draw_keys(10, 3))
    before = collected.moment()
    bad = draw_keys(5, 3)
    bad[4, 1] = math.nan
    with pytest.raises(IllPosedError, match=r"`keys` must be finite, got nan at \[4, 1\]"):
        collected.update(bad)
    assert collected.n_tokens == 10
    assert torch.equal(collected.moment(), before)


def test_wrong_widths_are_refused() -> None:
    collected = collect(draw_keys(10, 3))
    with pytest.raises(ShapeError, match="update: `keys` does not fit, got d_key=4; expected d_k"):
        collected.update(draw_keys(10, 4))
    with pytest.raises(ShapeError, match=r"update: `keys` does not fit, got float64 \[2, 5, 3\]"):
        collected.update(torch.ones(2, 5, 3, dtype=torch.float64))
    with pytest.raises(ShapeError, match="merge: `other` does not fit, got d_key=4; expected d_k"):
        collected.merge(collect(draw_keys(10, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_key": 0}, "`d_key` must be at least 1, got 0"),
        ({"d_key": 3, "dtype": torch.bfloat16}, "`dtype` is too narrow for a sum, got torch.bf"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(MemitCoreError, match=message):
        SecondMoment(**options)  # type: ignore[arg-type]


def test_mean_of_nothing_is_refused() -> None:
    with pytest.raises(MemitCoreError, match="a mean needs tokens, got n_tokens=0"):
        SecondMoment(3).moment()


def test_unknown_number_of_tokens_is_not_guessed() -> None:
    moment = collect(draw_keys(10, 3)).moment()
    unknown = SecondMoment.from_moment(moment, n_tokens=None)
    assert unknown.n_tokens is None
    assert torch.equal(unknown.moment(), moment)
    message = "a mean over an unknown number of tokens cannot be combined"
    with pytest.raises(MemitCoreError, match=message):
        unknown.update(draw_keys(1, 3))
    with pytest.raises(MemitCoreError, match=message):
        unknown.merge(SecondMoment(3))
    with pytest.raises(MemitCoreError, match=message):
        SecondMoment(3).merge(unknown)
    with pytest.raises(MemitCoreError, match="`n_tokens` must be at least 1, got 0"):
        SecondMoment.from_moment(moment, n_tokens=0)
