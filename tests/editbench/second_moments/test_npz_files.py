"""Second moments as ROME, MEMIT and EasyEdit keep them."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from editbench.editors.base import Inputs
from editbench.errors import SecondMomentError
from editbench.second_moments.npz_files import read_npz_moments
from editbench.second_moments.obtaining import LayerMoments, read_second_moments
from editbench.testing import tiny_model
from memit_core import SecondMoment

MODEL = tiny_model()
D_KEY = 96
SAYS_NO_MODEL = pytest.mark.filterwarnings("ignore:.*does not say which model")
pytestmark = SAYS_NO_MODEL


def name_of(layer: int, module: str = "transformer.h.{}.mlp.c_proj", n: int = 100_000) -> str:
    return f"{module.format(layer)}_float32_mom2_{n}.npz"


def moment_of(layer: int, d_key: int = D_KEY) -> torch.Tensor:
    moment = SecondMoment(d_key, dtype=torch.float32)
    moment.update(torch.randn(200, d_key, generator=torch.Generator().manual_seed(layer)))
    return moment.moment()


def write(folder: Path, layer: int, name: str | None = None, **changes: object) -> Path:
    arrays: dict[str, object] = {
        "mom2.constructor": "runningstats.SecondMoment()",
        "mom2.count": 200,
        "mom2.mom2": 200 * moment_of(layer).numpy(),
        "sample_size": 100_000,
        **changes,
    }
    path = folder / (name or name_of(layer))
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def read(path: Path, *layers: int) -> LayerMoments:
    return read_second_moments(MODEL, layers, path)


def test_a_file_is_the_sum_over_the_count(tmp_path: Path) -> None:
    path = write(tmp_path, 2)
    with pytest.warns(UserWarning, match=r"memit's format, which does not say which model"):
        moments = read(path, 2)
    assert moments[2].dtype == torch.float32
    assert torch.allclose(moments[2], moment_of(2))
    assert moments.provenance is None
    assert moments.source == str(path)


def test_a_count_in_a_list_of_one_is_a_count(tmp_path: Path) -> None:
    path = write(tmp_path, 2, **{"mom2.count": np.array([200])})
    with pytest.warns(UserWarning, match="memit's format"):
        assert torch.allclose(read(path, 2)[2], moment_of(2))


def test_that_which_people_have_is_read(shared: Path) -> None:
    (path,) = (shared / "cases" / "05").glob("*.npz")

    class Llama:
        class architecture:  # noqa: N801
            @staticmethod
            def projection(layer: int, module: str) -> str:
                return f"model.layers.{layer}.mlp.down_proj"

        @staticmethod
        def d_key(layer: int, module: str) -> int:
            return 172

    (found,) = read_npz_moments(Llama(), [1], path, "mlp").values()  # type: ignore[arg-type]
    with np.load(path) as arrays:
        expected = arrays["mom2.mom2"] / np.float32(arrays["mom2.count"])
    assert np.array_equal(found().numpy(), expected)


def test_a_folder_has_a_file_for_each_layer_and_what_is_of_other_modules_is_left(
    tmp_path: Path,
) -> None:
    for layer in (1, 2):
        write(tmp_path, layer)
        write(tmp_path, layer, name_of(layer, "transformer.h.{}.attn.out_proj"))
    (tmp_path / "notes.txt").write_text("not read")
    moments = read(tmp_path, 2, 1)
    for layer in (1, 2):
        assert torch.allclose(moments[layer], moment_of(layer))


def test_layers_that_are_missing_are_named_with_those_that_are_there(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 3)
    with pytest.raises(SecondMomentError, match=r"lacks layers 0, 2, got layers 1, 3; .*h\.0\.mlp"):
        read(tmp_path, 0, 1, 2, 3)
    with pytest.raises(SecondMomentError, match=r"lacks layer 2, got layer 1;"):
        read(tmp_path / name_of(1), 1, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SecondMomentError, match="lacks layer 1, got no layer;"):
        read(tmp_path / "empty", 1)
    write(tmp_path, 1, name_of(1, n=5))
    with pytest.raises(SecondMomentError, match=r"layer 1 is there twice .*_100000.* and .*_5"):
        read(tmp_path, 1)


def test_a_file_of_another_module_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, 1, name_of(1, "model.layers.{}.self_attn.o_proj"))
    with pytest.raises(SecondMomentError, match=r"got no layer \(and .* of 'o_proj'"):
        read(path, 1)


def test_the_name_must_say_the_layer(tmp_path: Path) -> None:
    with pytest.raises(SecondMomentError, match=r"must say its layer, got .*mom2\.npz"):
        read(write(tmp_path, 1, "mom2.npz"), 1)


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mom2.count": 0}, "positive count of tokens, got 0"),
        ({"mom2.count": -3}, "positive count of tokens, got -3"),
        ({"mom2.count": float("nan")}, "positive count of tokens, got nan"),
        ({"mom2.count": [1, 2]}, r"positive count of tokens, got \[1, 2\]"),
        ({"mom2.count": "many"}, "positive count of tokens, got 'many'"),
        (
            {"mom2.count": None},
            "mom2.mom2, sample_size; expected 'mom2.count' as well",
        ),
        ({"mom2.mom2": None}, "expected 'mom2.mom2' as well"),
        ({"mom2.mom2": np.eye(5)}, r"got \[5, 5\] of float64; expected \[96, 96\]"),
        ({"mom2.mom2": np.eye(D_KEY, dtype=np.float16)}, r"got \[96, 96\] of float16; expected"),
        ({"mom2.mom2": np.eye(D_KEY) * np.nan}, r"layer 1 of .*finite, got nan at \[0, 0\]"),
        ({"mom2.mom2": np.zeros((D_KEY, D_KEY))}, "layer 1 of .*no positive diagonal entry"),
        ({"mom2.mom2": np.triu(np.ones((D_KEY, D_KEY)))}, "layer 1 of .*not symmetric"),
        ({"mom2.mom2": np.array(Evil(), dtype=object)}, "without pickled objects"),
    ],
)
def test_what_cannot_be_second_moments_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = write(tmp_path, 1, **changes)
    with pytest.raises(SecondMomentError, match=message) as caught:
        read(path, 1)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"text", pickle.dumps(Evil()), "half", "bit"]
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes | str) -> None:
    path = write(tmp_path, 1)
    data = bytearray(path.read_bytes())
    if content == "half":
        data = data[: len(data) // 2]
    elif content == "bit":
        data[len(data) // 2] ^= 1
    else:
        data = bytearray(content)
    path.write_bytes(data)
    with pytest.raises(SecondMomentError, match=r"cannot read .*1\.mlp"):
        read(path, 1)


def test_one_under_another_ending_is_known_by_what_it_holds(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    renamed = path.rename(path.with_suffix(".safetensors"))
    assert torch.allclose(read(renamed, 1)[1], moment_of(1))


def test_a_trial_is_addressed_by_all_that_a_folder_holds(tmp_path: Path) -> None:
    write(tmp_path, 1)
    one = Inputs(second_moments=tmp_path).content
    write(tmp_path, 2)
    two = Inputs(second_moments=tmp_path).content
    write(tmp_path, 2, **{"mom2.count": 201})
    assert one != two != Inputs(second_moments=tmp_path).content != one
    write(tmp_path, 2)
    assert Inputs(second_moments=tmp_path).content.keys() == two.keys()
