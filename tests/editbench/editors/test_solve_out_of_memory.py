"""Where a device has no room for matrices of d_key × d_key, layers are solved for on the CPU."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from editbench.editors.closed_form.dials import Dials
from editbench.editors.closed_form.solving import PreservedValues
from editbench.second_moments.factors import require_factor
from editbench.second_moments.obtaining import LayerMoments
from memit_core import FactorizedSecondMoment, UpdateFactors, solve_edits


class SmallAccelerator(TorchFunctionMode):
    """Stands for a device that has no room for matrices of more than so many numbers.

    What is put there lies on the CPU, but says that it is on the device.
    """

    device = torch.device("cuda", 0)

    def __init__(self, n_numbers: int) -> None:
        super().__init__()
        self.n_numbers = n_numbers
        self.n_refused = 0
        self.there: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        cpu = torch.device("cpu")
        is_there = any(args[0] is each for each in self.there) if args else False
        if func == torch.Tensor.device.__get__ and is_there:
            return self.device
        if self.device not in (*args, *kwargs.values()):
            moves = func == torch.Tensor.to and is_there and cpu in (*args, *kwargs.values())
            return func(*args, **kwargs).clone() if moves else func(*args, **kwargs)
        args = tuple(cpu if arg == self.device else arg for arg in args)
        made = func(*args, **{k: cpu if v == self.device else v for k, v in kwargs.items()})
        if made.numel() > self.n_numbers:
            self.n_refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.there.append(made.clone())
        return self.there[-1]


def make_moments(d_key: int) -> LayerMoments:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(100, d_key, generator=generator, dtype=torch.float64)
    moment = tokens.T @ tokens / len(tokens)
    origin = {"model_fingerprint": "m", "corpus_fingerprint": "c", "n_tokens": 9}
    return LayerMoments({3: lambda: moment}, origin)


def make_dense(update: UpdateFactors | Tensor) -> Tensor:
    return update.dense() if isinstance(update, UpdateFactors) else update


@pytest.mark.parametrize("n_edits", [2, 9])
@pytest.mark.parametrize("with_cache", [False, True])
def test_solves_go_on_on_the_cpu(n_edits: int, with_cache: bool, tmp_path: Path) -> None:
    moments = make_moments(12)
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(n_edits, 12, generator=generator)
    residuals = torch.randn(n_edits, 5, generator=generator)
    cache, dials = tmp_path if with_cache else None, Dials(weight=2.0)
    expected = make_dense(PreservedValues(moments, dials, None).solve(3, keys, residuals))
    with SmallAccelerator(12 * 12) as roomy:
        there = keys.to(roomy.device), residuals.to(roomy.device)
        found = make_dense(PreservedValues(moments, dials, None).solve(3, *there))
    assert any(each.numel() == 12 * 12 for each in roomy.there)
    torch.testing.assert_close(found, expected)
    with SmallAccelerator(12 * 12 - 1) as cramped:
        there = keys.to(cramped.device), residuals.to(cramped.device)
        message = "solving for the update of layer 3: memory ran out on cuda:0"
        with pytest.warns(UserWarning, match=message):
            found = make_dense(PreservedValues(moments, dials, cache).solve(3, *there))
    assert cramped.n_refused == 1
    torch.testing.assert_close(found, expected)


def test_second_moments_are_factorized_on_the_cpu_instead(tmp_path: Path) -> None:
    moments = make_moments(12)
    expected = require_factor(moments, 3, None, torch.device("cpu"))
    with SmallAccelerator(12 * 12 - 1) as cramped:
        with pytest.warns(UserWarning, match="factorizing second moments of layer 3: memory ran"):
            found = require_factor(moments, 3, tmp_path, cramped.device)
        keys = torch.ones(1, 12).to(cramped.device)
        update = solve_edits(keys, torch.ones(1, 5), found, slack=0)
        assert isinstance(update, UpdateFactors)
        assert update.right.device == cramped.device
    parts = [each.second_moment for each in (found, expected)]
    assert all(isinstance(part, FactorizedSecondMoment) for part in parts)
    torch.testing.assert_close(*(part.factor for part in parts))
