"""The laws of what moving ordinary values costs: history, ridge, bases, errors fed back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memit_core import (
    FactorizedSecondMoment,
    IllPosedError,
    IndefiniteError,
    MemitCoreError,
    Preservation,
    ShapeError,
    UpdateFactors,
    find_null_space,
    solve_edits,
    solve_update,
)

law = settings(derandomize=True, deadline=None, max_examples=20)
seeds = st.integers(0, 2**31)
slacks = st.sampled_from([0.1, 1.0, 10.0])


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def draw_moment(d_key: int, seed: int) -> Tensor:
    """Coordinates differ in scale by up to ten."""
    scales = 10 ** torch.rand(d_key, generator=torch.Generator().manual_seed(seed)).double()
    tokens = draw(4 * d_key, d_key, seed=seed) * scales
    return tokens.mT @ tokens / len(tokens)


def solve(
    keys: Tensor, residuals: Tensor, preservation: Preservation, **arguments: object
) -> Tensor:
    update = solve_edits(keys, residuals, preservation, **arguments)  # type: ignore[arg-type]
    return update.dense() if isinstance(update, UpdateFactors) else update


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    assert actual.shape == expected.shape
    gap = torch.linalg.norm(actual - expected)
    assert gap <= tolerance * torch.linalg.norm(expected), f"relative gap {gap / expected.norm()}"


def both_forms(preservation: Preservation) -> tuple[Preservation, Preservation]:
    return preservation, preservation.factorized()


# History


@law
@given(st.integers(2, 12), st.lists(st.integers(1, 5), min_size=2, max_size=4), slacks, seeds)
def test_with_history_batches_in_turn_are_one_batch(
    d_key: int, sizes: list[int], slack: float, seed: int
) -> None:
    """On one layer, whose keys do not drift. A slack other than one is every edit's own."""
    n, d_value, weight = sum(sizes), 5, 3.0
    keys, wanted = draw(n, d_key, seed=seed), draw(n, d_value, seed=seed + 1)
    moment = draw_moment(d_key, seed)
    root = slack**-0.5  # a written key stays in M as it was weighed when it was written
    for start in both_forms(Preservation(moment, weight=weight)):
        total, preservation = torch.zeros(d_value, d_key, dtype=torch.float64), start
        for rows, aims in zip(keys.split(sizes), wanted.split(sizes), strict=True):
            residuals = aims - rows @ total.mT
            total = total + solve(rows, residuals, preservation, slack=slack)
            preservation = preservation.with_history(root * rows)
        assert_close(total, solve(keys, wanted, start, slack=slack), 1e-7)


@law
@given(st.integers(2, 12), st.integers(1, 9), st.integers(1, 9), slacks, seeds)
def test_history_is_a_part_of_the_second_moment(
    d_key: int, n_edits: int, n_written: int, slack: float, seed: int
) -> None:
    keys, residuals = draw(n_edits, d_key, seed=seed), draw(n_edits, 5, seed=seed + 1)
    moment, written = draw_moment(d_key, seed), draw(n_written, d_key, seed=seed + 2)
    expected = solve(keys, residuals, Preservation(2 * moment + written.mT @ written), slack=slack)
    for preservation in both_forms(Preservation(moment, weight=2.0)):
        found = solve(keys, residuals, preservation.with_history(written), slack=slack)
        assert_close(found, expected)


@law
@given(st.integers(3, 12), st.integers(1, 9), st.integers(2, 9), seeds)
def test_a_row_that_leaves_history_was_never_there(
    d_key: int, n_edits: int, n_written: int, seed: int
) -> None:
    keys, residuals = draw(n_edits, d_key, seed=seed), draw(n_edits, 5, seed=seed + 1)
    written = draw(n_written, d_key, seed=seed + 2)
    gone = seed % n_written
    rest = torch.cat([written[:gone], written[gone + 1 :]])
    never = Preservation(draw_moment(d_key, seed))
    for row in rest:
        never = never.with_history(row[None])
    known = Preservation(draw_moment(d_key, seed)).with_history(written)
    assert known.history is not None
    kept = torch.arange(n_written) != gone
    again = Preservation(known.second_moment, history=known.history[kept])
    assert torch.equal(solve(keys, residuals, again), solve(keys, residuals, never))
    with_row = solve(keys, residuals, known)
    assert torch.linalg.norm(with_row - solve(keys, residuals, again)) > 0


@law
@given(st.integers(4, 12), st.integers(1, 2), seeds)
def test_residuals_are_met_exactly_with_history_too(d_key: int, n_edits: int, seed: int) -> None:
    keys, residuals = draw(n_edits, d_key, seed=seed), draw(n_edits, 5, seed=seed + 1)
    written = draw(3, d_key, seed=seed + 2)
    preservation = Preservation(draw_moment(d_key, seed)).with_history(written)
    update = solve(keys, residuals, preservation, slack=0)
    assert_close(keys @ update.mT, residuals)
    # The price counts the values of written keys: far dearer ones move far less.
    dearer = Preservation(draw_moment(d_key, seed)).with_history(1e3 * written)
    stiff = solve(keys, residuals, dearer, slack=0)
    assert (written @ stiff.mT).norm() <= (written @ update.mT).norm()


@law
@given(st.integers(2, 12), st.lists(st.integers(1, 4), min_size=1, max_size=5), slacks, seeds)
def test_history_that_was_worked_out_is_the_same_history(
    d_key: int, sizes: list[int], slack: float, seed: int
) -> None:
    """Whether its rows come one after another, all at once, or as a part of the factors."""
    moment, rows = draw_moment(d_key, seed), draw(sum(sizes), d_key, seed=seed + 1)
    keys, residuals = draw(2, d_key, seed=seed + 2), draw(2, 3, seed=seed + 3)
    basis = torch.linalg.qr(draw(d_key, max(1, d_key - 1), seed=seed + 4)).Q
    for empty in (
        Preservation(moment, weight=2.0, ridge=0.1),
        Preservation(moment, weight=2.0).factorized(),
        Preservation(None, ridge=0.7, basis=basis),
    ):
        grown = empty
        for some in rows.split(sizes):
            grown = grown.with_history(some)
            solve(keys, residuals, grown, slack=slack)
        expected = solve(keys, residuals, empty.with_history(rows), slack=slack)
        assert_close(solve(keys, residuals, grown, slack=slack), expected)
        for price in (grown.absorbed(), grown.to(torch.device("cpu"))):
            assert_close(solve(keys, residuals, price, slack=slack), expected)


def test_each_row_of_history_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    n_solved = []
    solve_triangular = torch.linalg.solve_triangular

    def note(factor: Tensor, columns: Tensor, **options: object) -> Tensor:
        if len(factor) == 60:  # C's; the others are of systems with a row for each edit
            n_solved.append(columns.shape[1])
        return solve_triangular(factor, columns, **options)

    price = Preservation(draw_moment(60, 0)).factorized()
    monkeypatch.setattr(torch.linalg, "solve_triangular", note)
    for step in range(6):
        keys = draw(2, 60, seed=step)
        solve(keys, draw(2, 3, seed=step + 10), price)
        price = price.with_history(keys)
    # A batch goes in and out; from the second one on the rows before it come in, once.
    assert n_solved == [2, 2, *(5 * [2, 2, 2])]


@law
@given(st.integers(3, 10), st.integers(1, 4), st.integers(1, 4), seeds)
def test_the_symmetric_form_is_the_authors_of_alphaedit(
    d_key: int, n_edits: int, n_written: int, seed: int
) -> None:
    """Δᵀ = (P(KᵀK + H) + L₂I)⁻¹ P KᵀR, with P = UUᵀ."""
    basis = torch.linalg.qr(draw(d_key, d_key - 1, seed=seed)).Q
    keys, written = draw(n_edits, d_key, seed=seed + 1), draw(n_written, d_key, seed=seed + 2)
    residuals, ridge = draw(n_edits, 3, seed=seed + 3), 0.3
    projector, unit = basis @ basis.mT, torch.eye(d_key, dtype=torch.float64)
    system = projector @ (keys.mT @ keys + written.mT @ written) + ridge * unit
    expected = torch.linalg.solve(system, projector @ keys.mT @ residuals).mT
    price = Preservation(None, ridge=ridge, basis=basis, history=written)
    assert_close(solve(keys, residuals, price), expected)


# Ridge


@law
@given(st.integers(2, 12), st.integers(1, 9), slacks, seeds)
def test_a_ridge_is_added_to_what_is_preserved(
    d_key: int, n_edits: int, slack: float, seed: int
) -> None:
    keys, residuals = draw(n_edits, d_key, seed=seed), draw(n_edits, 5, seed=seed + 1)
    moment, identity = draw_moment(d_key, seed), torch.eye(d_key).double()
    expected = solve(keys, residuals, Preservation(3 * moment + 0.7 * identity), slack=slack)
    for preservation in both_forms(Preservation(moment, weight=3.0, ridge=0.7)):
        assert_close(solve(keys, residuals, preservation, slack=slack), expected)
    alone = Preservation(None, ridge=0.7)
    expected = solve(keys, residuals, Preservation(0.7 * identity), slack=slack)
    assert_close(solve(keys, residuals, alone, slack=slack), expected)


# Bases


@law
@given(st.integers(3, 12), st.integers(1, 9), st.integers(0, 9), slacks, seeds)
def test_the_form_with_a_basis_is_the_one_with_a_projector(
    d_key: int, n_edits: int, n_written: int, slack: float, seed: int
) -> None:
    """AlphaEdit's own form, Δᵀ = (P(KᵀK + H) + L₂I)⁻¹ P KᵀR, is not symmetric."""
    keys, residuals = draw(n_edits, d_key, seed=seed), draw(n_edits, 5, seed=seed + 1)
    written = draw(n_written, d_key, seed=seed + 2)
    basis = find_null_space(draw_moment(d_key, seed), 0.6)
    projector, ridge = basis @ basis.mT, 0.3
    system = projector @ (keys.mT @ keys / slack + written.mT @ written)
    system = system + ridge * torch.eye(d_key).double()
    expected = torch.linalg.solve(system, projector @ keys.mT @ residuals / slack).mT
    preservation = Preservation(None, ridge=ridge, basis=basis, history=written)
    found = solve(keys, residuals, preservation, slack=slack)
    assert_close(found, expected)
    assert_close(found @ projector, found)


@law
@given(st.integers(3, 12), st.integers(1, 9), seeds)
def test_second_moments_are_restricted_to_the_basis(d_key: int, n_edits: int, seed: int) -> None:
    keys, residuals = draw(n_edits, d_key, seed=seed), draw(n_edits, 5, seed=seed + 1)
    moment = draw_moment(d_key, seed)
    basis = find_null_space(draw_moment(d_key, seed + 1), 0.5)
    projector = basis @ basis.mT
    system = projector @ (2 * moment + keys.mT @ keys) @ projector
    expected = residuals.mT @ keys @ torch.linalg.pinv(system, hermitian=True)
    for preservation in both_forms(Preservation(moment, weight=2.0, basis=basis)):
        assert_close(solve(keys, residuals, preservation), expected, 1e-7)


@law
@given(st.integers(3, 12), st.integers(1, 9), slacks, seeds)
def test_axes_are_a_basis(d_key: int, n_edits: int, slack: float, seed: int) -> None:
    """Neurons that never fire: what an update says about them is nothing."""
    keys, residuals = draw(n_edits, d_key, seed=seed), draw(n_edits, 5, seed=seed + 1)
    moment, written = draw_moment(d_key, seed), draw(2, d_key, seed=seed + 2)
    fires = torch.arange(d_key) % 3 != seed % 3
    columns = torch.eye(d_key).double()[:, fires]
    axes, basis = (
        Preservation(moment, weight=2.0, basis=basis, history=written) for basis in (fires, columns)
    )
    expected = solve(keys, residuals, basis, slack=slack)
    for preservation in both_forms(axes):
        found = solve(keys, residuals, preservation, slack=slack)
        assert_close(found, expected)
        assert not found[:, ~fires].any()
    everywhere = Preservation(moment, basis=torch.ones(d_key, dtype=torch.bool))
    assert everywhere.basis is None


def test_a_null_space_is_spanned_by_small_eigenvalues() -> None:
    moment = draw_moment(9, seed=0)
    eigenvalues = torch.linalg.eigvalsh(moment)
    threshold = float(eigenvalues[3:5].mean())
    absolute = find_null_space(moment, threshold, "absolute")
    assert absolute.shape == (9, 4)
    torch.testing.assert_close(absolute.mT @ absolute, torch.eye(4).double())
    torch.testing.assert_close(absolute.mT @ moment @ absolute, torch.diag(eigenvalues[:4]))
    assert torch.equal(find_null_space(moment, 4 / 9), absolute)
    with pytest.raises(MemitCoreError, match=r"no direction is left .* smallest of 9 eigenvalues"):
        find_null_space(moment, float(eigenvalues[0]) / 2, "absolute")
    with pytest.raises(MemitCoreError, match=r"a share lies above 0 and up to 1, got 1\.5"):
        find_null_space(moment, 1.5)


def test_keys_outside_of_the_basis_have_no_exact_solution() -> None:
    fires = torch.tensor([True, True, False])
    preservation = Preservation(torch.eye(3), basis=fires)
    with pytest.raises(IllPosedError, match="row 0 of `keys` is zero or a linear combination"):
        solve_edits(torch.eye(3)[2:], torch.ones(1, 2), preservation, slack=0)


def test_factors_of_another_basis_are_refused() -> None:
    factorized = FactorizedSecondMoment(torch.eye(3))
    with pytest.raises(ShapeError, match="got factors of 3 dimensions; expected 2"):
        Preservation(factorized, basis=torch.tensor([True, True, False]))


# Errors fed back


@law
@given(st.integers(2, 12), st.integers(1, 9), slacks, seeds)
def test_an_error_is_one_more_right_hand_side(
    d_key: int, n_edits: int, slack: float, seed: int
) -> None:
    keys, residuals = draw(n_edits, d_key, seed=seed), draw(n_edits, 5, seed=seed + 1)
    moment, written = draw_moment(d_key, seed), draw(3, d_key, seed=seed + 2)
    error = draw(5, d_key, seed=seed + 3)
    system = 2 * moment + written.mT @ written + keys.mT @ keys / slack
    for preservation in both_forms(Preservation(moment, weight=2.0, history=written)):
        found = solve(keys, residuals, preservation, slack=slack, error=error)
        assert_close(found @ system, residuals.mT @ keys / slack - error)


@law
@given(st.integers(3, 12), st.integers(1, 9), st.booleans(), slacks, seeds)
def test_what_was_cut_off_comes_back_with_the_next_batch(
    d_key: int, n_edits: int, in_basis: bool, slack: float, seed: int
) -> None:
    """With history, an empty batch restores all of it."""
    keys, residuals = draw(n_edits, d_key, seed=seed), draw(n_edits, 5, seed=seed + 1)
    basis = find_null_space(draw_moment(d_key, seed + 4), 0.5) if in_basis else None
    for start in both_forms(Preservation(draw_moment(d_key, seed), basis=basis)):
        update = solve(keys, residuals, start, slack=slack)
        other = draw(5, d_key, seed=seed + 2)
        post = other if basis is None else other @ basis @ basis.mT
        then = start.with_history(slack**-0.5 * keys)
        error = then.times(post - update)
        rest = solve(keys[:0], residuals[:0], then, slack=slack, error=error)
        assert_close(post + rest, update, 1e-7)


@law
@given(st.integers(3, 12), seeds)
def test_times_is_a_product_with_the_whole_price(d_key: int, seed: int) -> None:
    update, written = draw(5, d_key, seed=seed), draw(4, d_key, seed=seed + 1)
    moment, identity = draw_moment(d_key, seed), torch.eye(d_key).double()
    whole = Preservation(moment, weight=2.0, ridge=0.5, history=written)
    expected = update @ (2 * moment + 0.5 * identity + written.mT @ written)
    for preservation in both_forms(whole):
        assert_close(preservation.times(update), expected)
    assert_close(Preservation(None, ridge=0.5).times(update), 0.5 * update)


def test_an_error_needs_a_slack() -> None:
    with pytest.raises(MemitCoreError, match="error feedback needs a slack above 0"):
        solve_edits(
            torch.ones(1, 3),
            torch.ones(1, 2),
            Preservation(torch.eye(3)),
            slack=0,
            error=torch.ones(2, 3),
        )


def moment_of(d_key: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(50, d_key, generator=generator, dtype=torch.float64)
    return keys.mT @ keys / 50


def test_a_negative_eigenvalue_is_not_called_singular() -> None:
    values, vectors = torch.linalg.eigh(moment_of(8))
    values[0] = -0.1 * values[-1]
    indefinite = vectors @ values.diag() @ vectors.mT
    with pytest.raises(IndefiniteError, match=r"FactorizedSecondMoment.* negative eigenvalue"):
        FactorizedSecondMoment(indefinite)
    keys, residuals = torch.ones(1, 8), torch.ones(1, 3)
    with pytest.raises(IndefiniteError, match=r"solve_update: .* negative eigenvalue") as caught:
        solve_update(keys, residuals, indefinite, preservation_weight=100)
    assert f"[{caught.value.row}, {caught.value.row}]" in str(caught.value)
    assert "at [70, 70]" in str(caught.value.at(70)).replace("meets at", "at")
    singular = torch.ones(8, 8)
    with pytest.raises(IllPosedError, match="singular") as other:
        FactorizedSecondMoment(singular)
    assert not isinstance(other.value, IndefiniteError)
