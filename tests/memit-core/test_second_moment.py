"""Streaming second moments, and their files."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from memit_core import (
    IllPosedError,
    MemitCoreError,
    SecondMoment,
    ShapeError,
    load_second_moments,
    save_second_moments,
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


def list_names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


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


# Files

PROVENANCE = {"model": "tiny", "n_samples": 3, "corpus": {"name": "nothing", "hash": "00"}}


@pytest.fixture
def moments() -> dict[int, SecondMoment]:
    return {11: collect(draw_keys(9, 3)), 2: collect(draw_keys(7, 4), dtype=torch.float32)}


def test_files_keep_bits_counts_and_provenance(
    tmp_path: Path, moments: dict[int, SecondMoment]
) -> None:
    path = tmp_path / "moments.safetensors"
    save_second_moments(path, moments, PROVENANCE)
    loaded = load_second_moments(path)
    assert list(loaded.moments) == [2, 11]
    assert loaded.provenance == PROVENANCE
    for layer, moment in moments.items():
        assert loaded.moments[layer].n_tokens == moment.n_tokens
        assert loaded.moments[layer].dtype == moment.dtype
        assert torch.equal(loaded.moments[layer].moment(), moment.moment())
    assert list_names(tmp_path) == ["moments.safetensors"]
    again = tmp_path / "again.safetensors"
    save_second_moments(again, loaded.moments, loaded.provenance)
    assert again.read_bytes() == path.read_bytes()


def test_loaded_moments_go_on_where_they_stopped(tmp_path: Path) -> None:
    keys = draw_keys(20, 3)
    save_second_moments(tmp_path / "half", {0: collect(keys[:8])}, None)
    resumed = load_second_moments(tmp_path / "half").moments[0]
    resumed.update(keys[8:])
    torch.testing.assert_close(resumed.moment(), collect(keys).moment(), rtol=1e-14, atol=1e-14)


def test_files_follow_the_documented_format(
    tmp_path: Path, moments: dict[int, SecondMoment]
) -> None:
    path = tmp_path / "moments.safetensors"
    save_second_moments(path, moments, PROVENANCE, dtype=torch.float32)
    tensors = load_file(path)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "layers.2": torch.float32,
        "layers.11": torch.float32,
    }
    assert torch.equal(tensors["layers.11"], moments[11].moment().float())
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    card = json.loads(header["__metadata__"]["editbench"])
    assert card.pop("checksums").keys() == tensors.keys()
    assert len(card.pop("checksum")) == 64
    assert card == {"n_tokens": {"2": 7, "11": 9}, "provenance": PROVENANCE}


def test_files_without_metadata_load_with_unknown_counts(
    tmp_path: Path, moments: dict[int, SecondMoment]
) -> None:
    path = tmp_path / "bare.safetensors"
    moment = moments[11].moment()
    save_file({"layers.3": moment}, path)
    loaded = load_second_moments(path)
    assert loaded.provenance is None
    assert loaded.moments[3].n_tokens is None
    assert torch.equal(loaded.moments[3].moment(), moment)
    save_second_moments(path, loaded.moments, loaded.provenance)
    again = load_second_moments(path)
    assert (again.provenance, again.moments[3].n_tokens) == (None, None)


def test_replacing_a_file_keeps_the_old_one_until_the_new_one_is_whole(
    tmp_path: Path, moments: dict[int, SecondMoment]
) -> None:
    """Run out of space for real, in a process that may only write 100 bytes."""
    path = tmp_path / "moments.safetensors"
    save_second_moments(path, moments, PROVENANCE)
    before = path.read_bytes()
    script = (
        "import resource, signal, sys, torch, memit_core\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "moment = memit_core.SecondMoment.from_moment(torch.eye(50), n_tokens=60)\n"
        "try:\n"
        "    memit_core.save_second_moments(sys.argv[1], {0: moment}, None)\n"
        "except memit_core.MemitCoreError as error:\n"
        "    sys.exit(str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"cannot write the file, got {path}" in done.stderr
    assert path.read_bytes() == before
    assert list_names(tmp_path) == ["moments.safetensors"]


@pytest.mark.parametrize("place", ["missing/moments.safetensors", "."])
def test_unwritable_places_are_refused(
    tmp_path: Path, moments: dict[int, SecondMoment], place: str
) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / place
    with pytest.raises(MemitCoreError, match="save_second_moments: cannot write the file, got"):
        save_second_moments(path, moments, None)
    assert list_names(tmp_path) == ["folder"]
    assert not list_names(tmp_path / "folder")


def test_what_cannot_be_saved_is_refused(tmp_path: Path, moments: dict[int, SecondMoment]) -> None:
    path = tmp_path / "moments.safetensors"
    for provenance in ({"path": tmp_path}, {"loss": math.nan}):
        with pytest.raises(MemitCoreError, match="`provenance` is not JSON, got"):
            save_second_moments(path, moments, provenance)
    with pytest.raises(MemitCoreError, match="there is nothing to save, got no layer"):
        save_second_moments(path, {}, None)
    with pytest.raises(MemitCoreError, match=r"`dtype` is too narrow, got torch\.float16"):
        save_second_moments(path, moments, None, dtype=torch.float16)
    with pytest.raises(MemitCoreError, match="got layer 4 with n_tokens=0"):
        save_second_moments(path, {4: SecondMoment(3)}, None)
    with pytest.raises(MemitCoreError, match="got layer -1 with n_tokens=9"):
        save_second_moments(path, {-1: moments[11]}, None)
    assert not list_names(tmp_path)


EYE = torch.eye(3)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({}, None, "holds no second moment, got no tensor"),
        ({"layer.1.moment": EYE}, None, "not a file of second moments, got tensor 'layer.1.mom"),
        ({"layers.01": EYE}, None, "not a file of second moments, got tensor 'layers.01'"),
        (
            {"layers.1": EYE.half()},
            None,
            "tensor 'layers.1' has the wrong dtype, got torch.float16",
        ),
        ({"layers.1": EYE[:2]}, None, r"tensor 'layers.1' must be square, got \[2, 3\]"),
        ({"layers.1": EYE[0]}, None, r"tensor 'layers.1' must be square, got \[3\]"),
        ({"layers.1": EYE / 0}, None, r"layer 1: .*`moment` must be finite, got inf at \[0, 0\]"),
        ({"layers.1": EYE + EYE.roll(1, 0)}, None, "layer 1: .*`moment` is not symmetric"),
        ({"layers.1": EYE}, "{", "metadata 'editbench' is not JSON, got '{'"),
        ({"layers.1": EYE}, "[1]", r"metadata 'editbench' must be a JSON object, got \[1\]"),
        ({"layers.1": EYE}, '{"n_tokens": 3}', "metadata 'n_tokens' must be a JSON object, got 3"),
        ({"layers.1": EYE}, '{"provenance": "x"}', "metadata 'provenance' must be a JSON object"),
        (
            {"layers.1": EYE},
            '{"n_tokens": {"1": "9"}}',
            "must hold a count for each layer, got '9'",
        ),
        ({"layers.1": EYE}, '{"n_tokens": {"1": 0}}', "`n_tokens` must be at least 1, got 0"),
    ],
)
def test_files_that_break_the_format_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: str | None, message: str
) -> None:
    path = tmp_path / "broken.safetensors"
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        path,
        metadata=None if metadata is None else {"editbench": metadata},
    )
    with pytest.raises(MemitCoreError, match=f"^load_second_moments: {path}: .*{message}"):
        load_second_moments(path)


def test_files_that_are_no_safetensors_are_refused(
    tmp_path: Path, moments: dict[int, SecondMoment]
) -> None:
    path = tmp_path / "moments.safetensors"
    message = f"^load_second_moments: {path}: cannot be read as safetensors"
    with pytest.raises(MemitCoreError, match=message):
        load_second_moments(path)
    save_second_moments(path, moments, PROVENANCE)
    whole = path.read_bytes()
    for content in (b"", b"{}", whole[:5], whole[:100], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(MemitCoreError, match=message):
            load_second_moments(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(MemitCoreError, match=message):
        load_second_moments(path)


def test_files_need_safetensors(
    tmp_path: Path, moments: dict[int, SecondMoment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MemitCoreError, match=r"Install it with: pip install 'memit-core\[files\]'"):
        save_second_moments(tmp_path / "moments", moments, None)
    with pytest.raises(MemitCoreError, match="load_second_moments: needs the package safetensors"):
        load_second_moments(tmp_path / "moments")
