"""Second moments in files: written whole, read as they were, refused where they are not."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from editbench.errors import SecondMomentError
from editbench.second_moments.moment_files import (
    SecondMomentFile,
    load_second_moments,
    save_second_moments,
)
from memit_core import MemitCoreError, SecondMoment


def draw_keys(n_tokens: int, d_key: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_tokens, d_key, generator=generator, dtype=torch.float64)


def collect(keys: Tensor, **options: torch.dtype) -> SecondMoment:
    collected = SecondMoment(keys.shape[1], **options)
    collected.update(keys)
    return collected


def list_names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


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
        "from pathlib import Path\n"
        "from editbench.second_moments.moment_files import save_second_moments\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "moment = memit_core.SecondMoment.from_moment(torch.eye(50), n_tokens=60)\n"
        "try:\n"
        "    save_second_moments(Path(sys.argv[1]), {0: moment}, None)\n"
        "except Exception as error:\n"
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
    with pytest.raises(SecondMomentError, match="second moments: cannot write the file, got"):
        save_second_moments(path, moments, None)
    assert list_names(tmp_path) == ["folder"]
    assert not list_names(tmp_path / "folder")


def test_what_cannot_be_saved_is_refused(tmp_path: Path, moments: dict[int, SecondMoment]) -> None:
    path = tmp_path / "moments.safetensors"
    for provenance, error in (({"path": tmp_path}, TypeError), ({"loss": math.nan}, ValueError)):
        with pytest.raises(error, match="not JSON"):
            save_second_moments(path, moments, provenance)
    with pytest.raises(MemitCoreError, match="got n_tokens=0"):
        save_second_moments(path, {4: SecondMoment(3)}, None)
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
        (
            {"layers.1": EYE / 0},
            None,
            r"layer 1: .*moment` must be finite, got inf at \[0, 0\]",
        ),
        ({"layers.1": EYE + EYE.roll(1, 0)}, None, "layer 1: .*moment` is not symmetric"),
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
    with pytest.raises(SecondMomentError, match=f"^second moments: {path}: .*{message}"):
        load_second_moments(path)


def test_files_that_are_no_safetensors_are_refused(
    tmp_path: Path, moments: dict[int, SecondMoment]
) -> None:
    path = tmp_path / "moments.safetensors"
    message = f"^second moments: {path}: cannot be read as safetensors"
    with pytest.raises(SecondMomentError, match=message):
        load_second_moments(path)
    save_second_moments(path, moments, PROVENANCE)
    whole = path.read_bytes()
    for content in (b"", b"{}", whole[:5], whole[:100], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(SecondMomentError, match=message):
            load_second_moments(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(SecondMomentError, match=message):
        load_second_moments(path)


# Damage


def moment_of(d_key: int = 6, seed: int = 0) -> SecondMoment:
    moment = SecondMoment(d_key)
    generator = torch.Generator().manual_seed(seed)
    moment.update(torch.randn(50, d_key, generator=generator, dtype=torch.float64))
    return moment


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "moments.safetensors"
    save_second_moments(path, {3: moment_of()}, {"model": "m"})
    return path


@pytest.mark.parametrize("seed", range(60))
def test_any_flipped_bit_is_met_or_changes_nothing(path: Path, seed: int) -> None:
    expected = load_second_moments(path)
    data = bytearray(path.read_bytes())
    data[random.Random(seed).randrange(len(data))] ^= 1 << seed % 8
    path.write_bytes(data)
    try:
        found = load_second_moments(path)
    except SecondMomentError:
        return
    assert found.provenance == expected.provenance
    assert torch.equal(found.moments[3].moment(), expected.moments[3].moment())


def test_other_numbers_under_the_old_card_are_met(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({"layers.3": 2 * load_file(path)["layers.3"]}, path, metadata=metadata)
    file = SecondMomentFile(path)
    for read in (file.read, file.load, file.check):
        with pytest.raises(SecondMomentError, match=r"tensor 'layers.3' is not what was written"):
            read(3)
    save_file({"layers.4": load_file(path)["layers.3"]}, path, metadata=metadata)
    with pytest.raises(SecondMomentError, match=r"got \['layers.4'\]; expected \['layers.3'\]"):
        SecondMomentFile(path)


def test_a_file_that_changes_is_checked_again(path: Path) -> None:
    SecondMomentFile(path).check(3)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    with pytest.raises(SecondMomentError):
        SecondMomentFile(path).check(3)


def test_files_without_checksums_are_read(path: Path) -> None:
    save_file(load_file(path), path)
    file = SecondMomentFile(path)
    assert not file.is_sealed
    file.check(3)
    assert torch.equal(file.read(3), moment_of().moment())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda moment: moment.fill_(float("nan")), r"finite, got nan at \[0, 0\]"),
        (lambda moment: moment[2, 4].fill_(float("nan")), r"finite, got nan at \[2, 4\]"),
        (lambda moment: moment[5, 1].fill_(float("inf")), r"finite, got inf at \[5, 1\]"),
        (lambda moment: moment.zero_(), r"no positive diagonal entry, got 6 zeros"),
        (lambda moment: moment[3, 3].fill_(0), r"negative eigenvalue, got .*expected at most 0\.0"),
        (lambda moment: moment[3, 3].fill_(-2), r"negative diagonal entry, got -2.* at \[3, 3\]"),
        (lambda moment: moment[4, 1].add_(1), r"not symmetric, got .* at \[1, 4\] and .* \[4, 1\]"),
        (lambda moment: moment[4, 1].add_(9) + moment[1, 4].add_(9), r"eigenvalue.* at \[1, 4\]"),
    ],
)
def test_numbers_that_are_no_second_moment_are_refused_by_file_layer_and_entry(
    path: Path, spoil, message: str
) -> None:
    moment = load_file(path)["layers.3"]
    spoil(moment)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for card, damaged in (({}, False), (metadata, True)):
        save_file({"layers.3": moment}, path, metadata=card)
        with pytest.raises(
            SecondMomentError, match=rf"{path.name}: layer 3: .*{message}"
        ) as caught:
            SecondMomentFile(path).check(3)
        assert ("The file was damaged" in str(caught.value)) == damaged
