"""Shape checks at the public boundary."""

import inspect
import subprocess
import sys
import types
from typing import Literal

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import memit_core
from memit_core import MemitCoreError, ShapeError
from memit_core._shapes import shape_checked


@shape_checked
def multiply(
    keys: Float[Tensor, "n_edits d_key"],
    weight: Float[Tensor, "d_value d_key"] | str,
    *extra: int,
    scale: float = 1.0,
    mode: Literal["plain", "wrong"] = "plain",
    limit: int | None = None,
    note=None,
) -> Float[Tensor, "n_edits d_value"]:
    """Multiply."""
    assert isinstance(weight, Tensor)
    values = scale * keys @ weight.mT
    return values.mT if mode == "wrong" else values


KEYS, WEIGHT = torch.ones(2, 3), torch.ones(4, 3)


def test_fitting_arguments_pass_through() -> None:
    assert multiply(KEYS, weight=WEIGHT).shape == (2, 4)
    # An int is as good as a float; sizes are forgotten after each call.
    assert multiply(KEYS[:1], WEIGHT, scale=2, limit=3, note=object()).sum() == 24
    assert multiply.__name__ == "multiply"
    assert multiply.__doc__ == "Multiply."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"weight": WEIGHT.mT},
            (
                r"^multiply: `weight` does not fit, got float32 \[3, 4\]; expected Float "
                r"\[d_value, d_key=3\] or str\. Check that no argument is transposed \(d_key=3 is "
                r"set by `keys`; d_value: width of a value, .*; d_key: width of a key, .*\)\.$"
            ),
        ),
        (
            {"keys": KEYS.long()},
            r"`keys` does not fit, got int64 \[2, 3\]; expected Float \[n_edits, d_key\]\.",
        ),
        (
            {"keys": KEYS[0]},
            r"`keys` does not fit, got float32 \[3\]; expected Float \[n_edits, d_",
        ),
        (
            {"weight": 3},
            r"`weight` does not fit, got int 3; expected Float \[d_value, d_key=3\] or",
        ),
        ({"scale": "1"}, "`scale` does not fit, got str '1'; expected float.$"),
        ({"scale": "1" * 500}, "got str '1{5,30}...1{5,30}'; expected float.$"),
        ({"limit": 0.5}, "`limit` does not fit, got float 0.5; expected int.$"),
        ({"mode": "x"}, "`mode` does not fit, got str 'x'; expected 'plain' or 'wrong'.$"),
        ({"mode": "wrong"}, r"the result does not fit, got float32 \[4, 2\]; expected Float \[n_e"),
    ],
)
def test_misfits_name_parameter_and_both_sides(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        multiply(**{"keys": KEYS, "weight": WEIGHT, **arguments})  # type: ignore[arg-type]


def test_calls_that_do_not_match_the_signature_stay_type_errors() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'weight'"):
        multiply(KEYS)  # type: ignore[call-arg]


def test_checks_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert multiply(KEYS, WEIGHT, mode="wrong").shape == (4, 2)


def test_every_axis_must_be_in_the_glossary() -> None:
    def stray(keys: Float[Tensor, "n_edits d_whatever"]) -> None:
        """Use an axis that nobody has explained."""

    with pytest.raises(KeyError, match="d_whatever"):
        shape_checked(stray)


def test_every_public_tensor_argument_is_checked() -> None:
    """Whatever is public and takes a tensor is decorated; annotations cannot be strings."""
    unchecked = set()
    for name in memit_core.__all__:
        public = getattr(memit_core, name)
        members = [public] if inspect.isfunction(public) else list(vars(public).values())
        for member in members:
            function = getattr(member, "__func__", member)
            if not isinstance(function, types.FunctionType):
                continue
            hints = [p.annotation for p in inspect.signature(function).parameters.values()]
            assert not any("Tensor" in hint for hint in hints if isinstance(hint, str))
            takes_arrays = any(
                isinstance(part, type) and issubclass(part, jaxtyping.AbstractArray)
                for hint in hints
                for part in (hint, *getattr(hint, "__args__", ()))
            )
            takes_tensors = any(hint is Tensor for hint in hints)
            if takes_tensors or (takes_arrays and not hasattr(function, "__wrapped__")):
                unchecked.add(f"{name}.{function.__name__}")
    assert not unchecked


def test_public_names_are_sorted_and_documented() -> None:
    assert memit_core.__all__ == sorted(memit_core.__all__)
    for name in memit_core.__all__:
        assert getattr(memit_core, name).__doc__, f"{name} has no docstring"
    assert issubclass(ShapeError, MemitCoreError)
    assert issubclass(MemitCoreError, ValueError)


def test_the_package_needs_only_what_it_names() -> None:
    others = {"accelerate", "safetensors", "transformers", "editbench"}
    code = f"import sys, memit_core; sys.exit(bool(sys.modules.keys() & {others}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
