"""The laws of the closed-form update, and what is refused."""

import copy
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from memit_core import (
    FactorizedSecondMoment,
    IllPosedError,
    MemitCoreError,
    Preservation,
    ShapeError,
    UpdateFactors,
    _linalg,
    solve,
    solve_edits,
    solve_update,
)

law = settings(derandomize=True, deadline=None, max_examples=40)


def dense(update: UpdateFactors | Tensor) -> Tensor:
    return update.dense() if isinstance(update, UpdateFactors) else update


@dataclass
class Problem:
    keys: Tensor
    residuals: Tensor
    second_moment: Tensor
    weight: float

    @property
    def system(self) -> Tensor:
        return self.weight * self.second_moment + self.keys.mT @ self.keys

    def solve(self) -> Tensor:
        return solve_update(
            self.keys, self.residuals, self.second_moment, preservation_weight=self.weight
        )

    @property
    def preservations(self) -> tuple[Preservation, Preservation]:
        """The same price, with C plain and factorized: n_edits decide what the second solves."""
        plain = Preservation(self.second_moment, weight=self.weight)
        return plain, plain.factorized()

    def solve_exactly(self) -> Tensor:
        return dense(solve_edits(self.keys, self.residuals, self.preservations[0], slack=0))


def make_problem(
    n_edits: int, d_key: int, d_value: int, *, weight: float = 1.0, seed: int = 0
) -> Problem:
    """Draw a problem whose coordinates differ in scale by up to a hundred, as real keys' do."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scales = 10 ** (2 * torch.rand(d_key, generator=generator, dtype=torch.float64) - 1)
    tokens = draw(4 * d_key, d_key) * scales
    return Problem(
        keys=draw(n_edits, d_key) * scales,
        residuals=draw(n_edits, d_value),
        second_moment=tokens.mT @ tokens / len(tokens),
        weight=weight,
    )


@st.composite
def problems(draw: st.DrawFn, *, few_edits: bool = False) -> Problem:
    d_key = draw(st.integers(2, 12))
    n_edits = draw(st.integers(1, d_key - 1 if few_edits else 15).filter(lambda n: n != d_key))
    d_value = draw(st.integers(1, 10).filter(lambda d: d not in (d_key, n_edits)))
    weight = 10 ** draw(st.floats(-2, 4))
    return make_problem(n_edits, d_key, d_value, weight=weight, seed=draw(st.integers(0, 2**31)))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert actual.shape == expected.shape
    gap = torch.linalg.norm(actual - expected)
    assert gap <= tolerance * torch.linalg.norm(expected), f"relative gap {gap / expected.norm()}"


# Laws


@law
@given(problems())
def test_update_solves_the_normal_equation(problem: Problem) -> None:
    assert_close(problem.solve() @ problem.system, problem.residuals.mT @ problem.keys)


@law
@given(problems())
def test_update_is_the_least_squares_solution(problem: Problem) -> None:
    eigenvalues, vectors = torch.linalg.eigh(problem.second_moment)
    root = vectors @ torch.diag(eigenvalues.sqrt()) @ vectors.mT
    rows = torch.cat([math.sqrt(problem.weight) * root, problem.keys])
    wanted = torch.cat([torch.zeros(len(root), problem.residuals.shape[1]), problem.residuals])
    oracle = torch.linalg.lstsq(rows, wanted, driver="gelsd").solution.mT
    assert_close(problem.solve(), oracle, 1e-7)


@law
@given(problems(), st.randoms(use_true_random=False))
def test_order_of_edits_changes_nothing(problem: Problem, random: object) -> None:
    before = problem.solve()
    order = list(range(len(problem.keys)))
    random.shuffle(order)  # type: ignore[attr-defined]
    problem.keys, problem.residuals = problem.keys[order], problem.residuals[order]
    assert_close(problem.solve(), before)


@law
@given(problems())
def test_zero_residuals_give_zero_update(problem: Problem) -> None:
    problem.residuals.zero_()
    assert not problem.solve().any()


@law
@given(problems())
def test_infinite_preservation_gives_zero_update(problem: Problem) -> None:
    modest = problem.solve().norm()
    problem.weight *= 1e12
    assert problem.solve().norm() <= 1e-9 * modest


@law
@given(problems(few_edits=True))
def test_vanishing_slack_meets_residuals(problem: Problem) -> None:
    problem.weight = 1.0
    exact = problem.solve_exactly()
    for preservation in problem.preservations:
        update = dense(solve_edits(problem.keys, problem.residuals, preservation, slack=1e-7))
        assert_close(problem.keys @ update.mT, problem.residuals, 1e-3)
        assert_close(update, exact, 1e-3)


@law
@given(problems())
def test_slack_and_weight_are_one_dial_without_history(problem: Problem) -> None:
    for preservation in problem.preservations:
        update = dense(solve_edits(problem.keys, problem.residuals, preservation, slack=0.1))
        system = problem.weight * problem.second_moment + 10 * problem.keys.mT @ problem.keys
        assert_close(update @ system, 10 * problem.residuals.mT @ problem.keys, 1e-8)
        problem.weight *= 0.1
        assert_close(update, problem.solve(), 1e-8)
        problem.weight /= 0.1


@law
@given(problems(), st.floats(-100, 100))
def test_scaling_and_rotating_values_commute_with_solving(problem: Problem, scale: float) -> None:
    before = problem.solve()
    generator = torch.Generator().manual_seed(1)
    square = torch.randn(before.shape[0], before.shape[0], generator=generator).double()
    rotation = torch.linalg.qr(square).Q
    problem.residuals = scale * problem.residuals @ rotation.mT
    assert_close(problem.solve(), scale * rotation @ before)


@law
@given(problems())
def test_all_forms_agree(problem: Problem) -> None:
    expected = problem.solve()
    for preservation in problem.preservations:
        update = solve_edits(problem.keys, problem.residuals, preservation)
        n_edits, d_value, d_key = len(problem.keys), *expected.shape
        assert isinstance(update, UpdateFactors) == (n_edits < min(d_value, d_key))
        assert_close(dense(update), expected, 1e-8)
    plain = solve_edits(problem.keys, problem.residuals, problem.preservations[0])
    assert torch.equal(dense(plain), expected) or isinstance(plain, UpdateFactors)


@law
@given(problems())
def test_an_edit_given_twice_weighs_as_much_as_half_the_preservation(problem: Problem) -> None:
    problem.keys = problem.keys.repeat(2, 1)
    problem.residuals = problem.residuals.repeat(2, 1)
    twice = problem.solve()
    problem.keys, problem.residuals = problem.keys.chunk(2)[0], problem.residuals.chunk(2)[0]
    problem.weight /= 2
    assert_close(twice, problem.solve())


# The equality-constrained form


@law
@given(problems(few_edits=True))
def test_equality_form_meets_every_residual(problem: Problem) -> None:
    assert_close(problem.keys @ problem.solve_exactly().mT, problem.residuals, 1e-8)


@law
@given(problems(few_edits=True), st.integers(0, 2**31))
def test_equality_form_disturbs_ordinary_keys_least(problem: Problem, seed: int) -> None:
    update = problem.solve_exactly()

    def disturbance(candidate: Tensor) -> Tensor:
        return (candidate @ problem.second_moment @ candidate.mT).trace()

    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(update.shape, generator=generator, dtype=torch.float64)
    # Whatever leaves the edited keys alone is a legal step away from the solution.
    step -= step @ torch.linalg.pinv(problem.keys) @ problem.keys
    for size in (1e-3, 1.0):
        assert disturbance(update + size * step) >= disturbance(update)


def test_equality_form_of_one_edit_is_rank_one_update_of_rome() -> None:
    problem = make_problem(1, 6, 4)
    key, value = problem.keys[0], problem.residuals[0]
    direction = torch.linalg.solve(problem.second_moment, key)
    rome = torch.outer(value, direction) / (direction @ key)
    for preservation in problem.preservations:
        factors = solve_edits(problem.keys, problem.residuals, preservation, slack=0)
        assert isinstance(factors, UpdateFactors)
        assert factors.rank == 1
        assert_close(factors.dense(), rome)


# Shapes, dtypes, modes and devices


def test_factors_are_the_transposed_residuals_and_the_preconditioned_keys() -> None:
    problem = make_problem(3, 7, 5, weight=2.0)
    factors = solve_edits(problem.keys, problem.residuals, problem.preservations[0])
    assert isinstance(factors, UpdateFactors)
    assert torch.equal(factors.left, problem.residuals.mT)
    assert_close(factors.right, torch.linalg.solve(problem.system, problem.keys.mT))
    assert (factors.d_value, factors.d_key, factors.rank) == (5, 7, 3)
    assert factors.left.is_contiguous()
    assert factors.right.is_contiguous()
    with pytest.raises(FrozenInstanceError):
        factors.left = factors.right  # type: ignore[misc]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_inputs_are_solved_in_float64(dtype: torch.dtype) -> None:
    problem = make_problem(3, 7, 5, weight=10.0)
    narrow = [
        tensor.to(dtype) for tensor in (problem.keys, problem.residuals, problem.second_moment)
    ]
    wide = [tensor.double() for tensor in narrow]
    update = solve_update(*narrow, preservation_weight=10)
    assert update.dtype == torch.float64
    assert_close(update, solve_update(*wide, preservation_weight=10), 1e-14)


def test_inputs_stay_untouched_and_unshared() -> None:
    problem = make_problem(3, 7, 5)
    before = copy.deepcopy(problem)
    for preservation in problem.preservations:
        for n_edits in (3, 1):
            factors = solve_edits(problem.keys[:n_edits], problem.residuals[:n_edits], preservation)
            assert isinstance(factors, UpdateFactors)
            factors.left.zero_()
            factors.right.zero_()
    assert torch.equal(problem.keys, before.keys)
    assert torch.equal(problem.residuals, before.residuals)
    assert torch.equal(problem.second_moment, before.second_moment)


def test_result_is_the_same_under_autograd_autocast_and_inference_mode() -> None:
    problem = make_problem(3, 7, 5)
    expected = problem.solve()
    factorized = FactorizedSecondMoment(problem.second_moment)
    problem.keys.requires_grad_()
    update = problem.solve()
    assert not update.requires_grad
    assert torch.equal(update, expected)
    with torch.inference_mode():
        assert torch.equal(problem.solve(), expected)
        made_inside = FactorizedSecondMoment(problem.second_moment)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(problem.solve(), expected)
    for second_moment in (factorized, made_inside):
        update = solve_update(
            problem.keys, problem.residuals, second_moment, preservation_weight=1.0
        )
        assert_close(update, expected)


def test_layout_of_the_inputs_does_not_matter() -> None:
    problem = make_problem(3, 7, 5)
    expected = problem.solve()
    problem.keys = problem.keys.mT.contiguous().mT
    problem.residuals = problem.residuals.repeat(1, 2)[:, :5]
    problem.second_moment = problem.second_moment.mT
    assert_close(problem.solve(), expected, 1e-14)


def test_no_edits_give_an_update_of_rank_zero() -> None:
    problem = make_problem(0, 7, 5)
    for preservation in problem.preservations:
        for slack in (0.0, 1.0):
            factors = solve_edits(problem.keys, problem.residuals, preservation, slack=slack)
            assert isinstance(factors, UpdateFactors)
            assert factors.rank == 0
            assert torch.equal(factors.dense(), torch.zeros(5, 7, dtype=torch.float64))


def test_many_edits_are_solved_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(23, 7, 5)
    history = make_problem(11, 7, 5, seed=1).keys
    monkeypatch.setattr(solve, "_ENTRIES_PER_CHUNK", 5 * 7)
    for preservation in problem.preservations:
        update = dense(solve_edits(problem.keys, problem.residuals, preservation))
        assert_close(update @ problem.system, problem.residuals.mT @ problem.keys)
        update = dense(
            solve_edits(problem.keys, problem.residuals, preservation.with_history(history))
        )
        system = problem.system + history.mT @ history
        assert_close(update @ system, problem.residuals.mT @ problem.keys)


def test_memory_does_not_grow_with_the_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "_ENTRIES_PER_CHUNK", 2**18)
    peaks = []
    for n_edits in (2_048, 8_192):
        keys, residuals = torch.ones(n_edits, 256), torch.ones(n_edits, 16)
        moment = torch.eye(256, dtype=torch.float64)
        arguments = (keys, residuals, moment)
        peaks.append(peak_bytes(partial(solve_update, *arguments, preservation_weight=1.0)))
    assert peaks[1] < 1.1 * peaks[0]


def test_wide_matrices_are_summed_in_strips() -> None:
    """Wider than a strip: every block of the upper triangle has to be there."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(40, 700, generator=generator, dtype=torch.float64)
    residuals = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    moment = torch.eye(700, dtype=torch.float64)
    plain = Preservation(moment, weight=2.0)
    for preservation in (plain, plain.factorized()):
        for slack in (1.0, 1e-3):
            update = dense(solve_edits(keys, residuals, preservation, slack=slack))
            system = 2 * slack * moment + keys.mT @ keys
            expected = residuals.mT @ torch.linalg.solve(system, keys.mT).mT
            assert_close(update, expected)


@pytest.mark.parametrize(("n_edits", "name"), [(6, "_solve_dual"), (40, "_solve_primal")])
def test_the_cheaper_system_is_solved(
    n_edits: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem(n_edits, 20, 5)
    expected = problem.solve()
    other = ({"_solve_dual", "_solve_primal"} - {name}).pop()
    monkeypatch.delattr(solve._System, other)
    update = solve_edits(problem.keys, problem.residuals, problem.preservations[1])
    assert_close(dense(update), expected)


def test_devices_without_float64_are_served_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _linalg.find_float64_device(torch.device("mps")) == torch.device("cpu")
    problem = make_problem(3, 7, 5)
    expected = problem.solve()
    monkeypatch.setattr(_linalg, "DEVICE_TYPES_WITHOUT_FLOAT64", frozenset({"cpu"}))
    update = problem.solve()
    assert update.dtype == torch.float32
    assert_close(update.double(), expected, 1e-6)


def peak_bytes(run: Callable[[], object]) -> int:
    """What torch allocates at most while `run` runs."""
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiled:
        run()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    alive = peak = 0
    for _, change in changes:
        alive += change
        peak = max(peak, alive)
    return peak


@pytest.mark.parametrize("slack", [0.0, 1.0])
def test_at_most_three_float64_matrices_are_alive(slack: float) -> None:
    """With a slack the primal, without the factors of C and a tiny system."""
    d_key = 1024
    keys, residuals = torch.eye(3, d_key), torch.ones(3, 5)
    second_moment = 2 * torch.eye(d_key, dtype=torch.float64)
    preservation = Preservation(second_moment)
    peak = peak_bytes(lambda: solve_edits(keys, residuals, preservation, slack=slack))
    matrix = 8 * d_key**2
    assert peak > matrix, "the profiler saw nothing"
    assert matrix + peak <= 3 * matrix  # the caller's own second moment is the first


# Ill-posed input


def test_keys_may_fill_the_gap_of_a_singular_second_moment() -> None:
    problem = make_problem(3, 7, 5)
    problem.second_moment[:2] = 0
    problem.second_moment[:, :2] = 0
    assert_close(problem.solve() @ problem.system, problem.residuals.mT @ problem.keys)
    with pytest.raises(IllPosedError, match="`second_moment` is singular, got a pivot"):
        FactorizedSecondMoment(problem.second_moment)


@pytest.mark.parametrize("seed", range(20))
def test_singular_but_for_float32_rounding_is_singular(seed: int) -> None:
    """Rounding makes half of these matrices positive definite; their solutions are noise."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(7, 8, generator=generator)
    second_moment = tokens.mT @ tokens
    with pytest.raises(IllPosedError, match="`second_moment` is singular, got"):
        FactorizedSecondMoment(second_moment)
    key = tokens[:1].clone()
    with pytest.raises(IllPosedError, match="λC \\+ KᵀK is singular, got"):
        solve_update(key, torch.ones(1, 2), second_moment, preservation_weight=1.0)


def test_asymmetry_of_float32_sums_is_averaged_out() -> None:
    problem = make_problem(3, 7, 5)
    expected = problem.solve()
    noisy = problem.second_moment.float()
    noisy[2, 4] *= 1 + 3e-6
    update = solve_update(problem.keys, problem.residuals, noisy, preservation_weight=1.0)
    assert_close(update, expected, 1e-4)
    flipped = solve_update(problem.keys, problem.residuals, noisy.mT, preservation_weight=1.0)
    assert torch.equal(update, flipped)


def test_asymmetry_beyond_the_first_tile_is_found() -> None:
    second_moment = torch.eye(600, dtype=torch.float64)
    second_moment[550, 300] = 0.5
    with pytest.raises(IllPosedError, match=r"got 5\.000000e-01 at \[550, 300\] and 0\."):
        FactorizedSecondMoment(second_moment)


@pytest.mark.parametrize(
    ("name", "value", "at", "message"),
    [
        ("keys", math.nan, (2, 1), r"`keys` must be finite, got nan at \[2, 1\]"),
        ("residuals", math.inf, (1, 0), r"`residuals` must be finite, got inf at \[1, 0\]"),
        ("second_moment", -math.inf, (3, 4), r"`second_moment` must be finite, got -inf at"),
        ("second_moment", -1.0, (3, 3), r"negative diagonal entry, got -1.000e.00 at \[3, 3\]"),
        (
            "second_moment",
            9e9,
            (3, 4),
            r"not symmetric, got 9.000000e.09 at \[3, 4\] and .* at \[4, 3\]",
        ),
    ],
)
@pytest.mark.parametrize("slack", [0.0, 1.0])
def test_bad_numbers_are_refused(
    slack: float, name: str, value: float, at: tuple[int, int], message: str
) -> None:
    problem = make_problem(3, 7, 5)
    getattr(problem, name)[at] = value
    with pytest.raises(IllPosedError, match=message):
        solve_edits(problem.keys, problem.residuals, problem.preservations[0], slack=slack)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": 0.0}, r"`weight` must be positive and finite, got 0\.0"),
        ({"ridge": -1.0}, r"`ridge` must not be negative, got -1\.0"),
        ({"second_moment": None}, r"a ridge goes with a plain second moment or with none, got"),
        ({"basis": torch.arange(6) > 0}, r"`basis` does not fit, got bool \[6\]; expected Float"),
    ],
)
def test_prices_that_are_none_are_refused(arguments: dict[str, object], message: str) -> None:
    problem = make_problem(3, 7, 5)
    with pytest.raises(MemitCoreError, match=f"^Preservation: {message}"):
        Preservation(**{"second_moment": problem.second_moment, **arguments})  # type: ignore[arg-type]
    with pytest.raises(MemitCoreError, match="ridge goes with a plain"):
        Preservation(FactorizedSecondMoment(problem.second_moment), ridge=1.0)


@pytest.mark.parametrize("slack", [-1.0, math.nan, math.inf])
def test_slack_must_be_finite_and_not_negative(slack: float) -> None:
    problem = make_problem(3, 7, 5)
    with pytest.raises(MemitCoreError, match=r"^solve_edits: `slack` must not be negative, got"):
        solve_edits(problem.keys, problem.residuals, problem.preservations[0], slack=slack)


@pytest.mark.parametrize("weight", [0, 0.0, -1.0, math.nan, math.inf])
def test_preservation_weight_must_be_positive_and_finite(weight: float) -> None:
    problem = make_problem(3, 7, 5, weight=weight)
    message = f"^solve_update: `preservation_weight` must be positive and finite, got {weight}"
    with pytest.raises(MemitCoreError, match=message):
        problem.solve()


@pytest.mark.parametrize("n_edits", [3, 20])
def test_preservation_weight_that_rounding_swallows_is_refused(n_edits: int) -> None:
    problem = make_problem(n_edits, 7, 5, weight=1e-18)
    problem.keys[1:] = problem.keys[:1]
    with pytest.raises(IllPosedError, match="the weight of what is preserved vanishes next to"):
        solve_edits(problem.keys, problem.residuals, problem.preservations[1])


@pytest.mark.parametrize("row", [0.0, 1.0])
def test_dependent_keys_have_no_equality_solution(row: float) -> None:
    problem = make_problem(3, 7, 5)
    problem.keys[2] = row * (problem.keys[0] - 3 * problem.keys[1])
    with pytest.raises(IllPosedError, match="row 2 of `keys` is zero or a linear combination"):
        problem.solve_exactly()


def test_more_keys_than_dimensions_have_no_equality_solution() -> None:
    problem = make_problem(8, 7, 5)
    with pytest.raises(IllPosedError, match="got n_edits=8; expected at most 7"):
        problem.solve_exactly()


def test_transposed_arguments_are_refused() -> None:
    problem = make_problem(3, 7, 5)
    keys, residuals, second_moment = problem.keys, problem.residuals, problem.second_moment
    factorized = FactorizedSecondMoment(second_moment)
    with pytest.raises(ShapeError, match=r"`residuals` does not fit, got float64 \[3, 5\]"):
        solve_update(keys.mT, residuals, second_moment, preservation_weight=1.0)
    with pytest.raises(ShapeError, match=r"`residuals` does not fit, got float64 \[5, 3\]"):
        solve_update(keys, residuals.mT, second_moment, preservation_weight=1.0)
    with pytest.raises(ShapeError, match=r"got float64 \[7, 7\]; expected Float \[d_key=3"):
        solve_update(keys.mT, residuals.mT.repeat(7, 1)[:7], second_moment, preservation_weight=1.0)
    with pytest.raises(ShapeError, match=r"got d_key=7; expected d_key=6"):
        solve_update(keys[:, :6], residuals, factorized, preservation_weight=1.0)
    with pytest.raises(ShapeError, match=r"got d_key=7; expected d_key=6"):
        solve_edits(keys[:, :6], residuals, Preservation(factorized), slack=0)


def test_factors_of_different_rank_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"`right` does not fit, got .*expected Float \[d_key, ra"):
        UpdateFactors(torch.ones(5, 3), torch.ones(7, 2))
