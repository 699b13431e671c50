"""Float64 arithmetic on matrices that just fit: checked tile by tile, and factorized in place.

Everything is solved in float64, whatever the inputs are stored in. Devices that lack float64 lend
their inputs to the CPU and get a float32 result back. Memory is the constraint: at d_key = 16384 a
float64 matrix takes 2 GiB.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from memit_core.errors import IllPosedError, IndefiniteError

DEVICE_TYPES_WITHOUT_FLOAT64: Final = frozenset({"mps"})

# A tile and its mirror image fit into a core's cache; whole rows against columns would not. On an
# accelerator each tile is waited for, which takes as long as looking at a large one.
_CPU_TILE: Final = 128
_ACCELERATOR_TILE: Final = 2_048

# |C_ij - C_ji| relative to √(C_ii C_jj), the scale on which a sum of k kᵀ rounds: generous to what
# long float32 sums leave behind, far below any real mistake.
_SYMMETRY_TOLERANCE: Final = 1e-4

# An eigenvalue below minus this, the diagonal scaled to one, is no rounding: float32 sums stay far
# above it.
_NEGATIVE_TOLERANCE: Final = 1e-3

# A smallest eigenvalue within this many units of rounding is noise. Matrices that are singular but
# for float32 storage stay below one unit or so (tried up to d = 200); the trained models tried keep
# hundreds of units away from it.
_NOISE_MARGIN: Final = 16.0

# More strips waste less on the blocks of the diagonal; fewer multiply larger matrices.
_N_STRIPS: Final = 8
_MIN_STRIP: Final = 256


def find_float64_device(device: torch.device) -> torch.device:
    """Return `device` itself, or the CPU if `device` cannot compute in float64."""
    if device.type in DEVICE_TYPES_WITHOUT_FLOAT64:
        return torch.device("cpu")
    return device


def to_float64(rows: Tensor, device: torch.device) -> Tensor:
    """Copy to float64, so that no result shares memory with an argument."""
    return rows.to(device=device, dtype=torch.float64, copy=True)


def hand_back(result: Tensor, device: torch.device) -> Tensor:
    """Move a float64 result to the device its inputs came from, in float32 where it must be."""
    if device.type in DEVICE_TYPES_WITHOUT_FLOAT64:
        return result.to(device=device, dtype=torch.float32)
    return result.to(device)


def add_gram(system: Tensor, rows: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> None:
    """Turn a symmetric matrix S `[d, d]` into βS + αRᵀR, R `[n, d]`, in the upper triangle alone.

    What is below the diagonal has no meaning any more.
    """
    size = len(system)
    strip = max(_MIN_STRIP, -(-size // _N_STRIPS))
    for start in range(0, size, strip):
        block = system[start : start + strip, start:]
        block.addmm_(rows[:, start : start + strip].mT, rows[:, start:], beta=beta, alpha=alpha)


@dataclass(frozen=True)
class Breakdown:
    """How a Cholesky factorization lost its footing.

    Attributes:
        pivot: Row that depends linearly on the rows before it, as far as the numbers can tell, or
            that makes the matrix indefinite.
        eigenvalue: Estimate of the smallest eigenvalue, with the diagonal scaled to one; None if
            the pivot itself was not positive.
        noise: What rounding may leave of an eigenvalue that is zero.
    """

    pivot: int
    eigenvalue: float | None = None
    noise: float = 0.0

    def __str__(self) -> str:
        if self.eigenvalue is None:
            return f"a pivot of zero or less at row {self.pivot}"
        return (
            f"a smallest eigenvalue of {self.eigenvalue:.1e} with {self.noise:.1e} of rounding "
            f"(diagonal scaled to one), weakest at row {self.pivot}"
        )


def require_finite(operation: str, name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity.

    Here and below, messages name a public function, the operation, and its parameter.

    Raises:
        IllPosedError: Says where the first offending entry stands.
    """
    # The extrema carry a NaN through and, unlike `isfinite`, need no tensor of the same size.
    if tensor.numel() == 0 or bool(torch.stack(torch.aminmax(tensor)).isfinite().all()):
        return
    index = tensor.isfinite().logical_not_().nonzero()[0].tolist()
    raise IllPosedError(
        f"{operation}: `{name}` must be finite, got {tensor[tuple(index)].item()} at {index}. "
        "Find out what overflowed: half precision is the usual cause."
    )


def copy_symmetric(operation: str, name: str, matrix: Tensor, device: torch.device) -> Tensor:
    """Copy a second moment to float64, refusing what cannot be one, and average out asymmetry.

    The copy is exactly symmetric, and contiguous.

    Raises:
        IllPosedError: Not finite, a negative diagonal entry or none that is positive, or asymmetric
            beyond float32 rounding.
    """
    copy = torch.empty(matrix.shape, dtype=torch.float64, device=device).copy_(matrix)
    scale = _require_diagonal(operation, name, copy)
    for row, column, tile, mirror in _tiles(copy):
        if torch.equal(tile, mirror):
            continue
        _require_mirrored(operation, name, tile, mirror, scale, row, column)
        mean = tile.add(mirror).div_(2)
        tile.copy_(mean)
        copy[column : column + mean.shape[1], row : row + mean.shape[0]].copy_(mean.mT)
    return copy


def require_second_moment(operation: str, name: str, matrix: Tensor) -> None:
    """What `check_second_moment` does, for whichever function it is done."""
    scale = _require_diagonal(operation, name, matrix)
    for row, column, one, other in _tiles(matrix):
        tile, mirror = one.double(), other.double()
        _require_mirrored(operation, name, tile, mirror, scale, row, column)
        bound = torch.outer(scale[row : row + len(tile)], scale[column : column + tile.shape[1]])
        excess = tile.abs().addcmul_(bound, bound.new_tensor(1 + _SYMMETRY_TOLERANCE), value=-1)
        if bool(excess.max() > 0):
            i, j = divmod(int(excess.argmax()), excess.shape[1])
            raise IllPosedError(
                f"{operation}: `{name}` has a negative eigenvalue, got {tile[i, j]:.6e} at "
                f"[{row + i}, {column + j}]; expected at most {bound[i, j]:.6e}, the root of "
                f"[{row + i}, {row + i}] times [{column + j}, {column + j}]. Pass E[k kᵀ], which "
                "has none."
            )


def _require_diagonal(operation: str, name: str, matrix: Tensor) -> Tensor:
    """Refuse what the diagonal shows, NaN and infinity; return its roots in float64."""
    require_finite(operation, name, matrix)
    diagonal = matrix.diagonal().double()
    if bool((diagonal < 0).any()):
        index = int(diagonal.argmin())
        raise IllPosedError(
            f"{operation}: `{name}` has a negative diagonal entry, got {diagonal[index]:.3e} at "
            f"[{index}, {index}]; expected a mean of squares. Pass E[k kᵀ], uncentered."
        )
    if not bool((diagonal > 0).any()):
        raise IllPosedError(
            f"{operation}: `{name}` has no positive diagonal entry, got {len(diagonal)} zeros from "
            "[0, 0] on; expected a mean of squares of keys. Collect it from keys that are not zero."
        )
    return diagonal.sqrt()


def _tiles(matrix: Tensor) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """The lower triangle in tiles: row, column, a view of the tile, its mirror image transposed."""
    size = _CPU_TILE if matrix.device.type == "cpu" else _ACCELERATOR_TILE
    starts = range(0, len(matrix), size)
    for row, column in ((row, column) for row in starts for column in starts if column <= row):
        rows, columns = slice(row, row + size), slice(column, column + size)
        yield row, column, matrix[rows, columns], matrix[columns, rows].contiguous().mT


def _require_mirrored(
    operation: str, name: str, tile: Tensor, mirror: Tensor, scale: Tensor, row: int, column: int
) -> None:
    """Refuse a tile that differs from its mirror image by more than rounding."""
    excess = (tile - mirror).abs_()
    rows, columns = scale[row : row + len(tile)], scale[column : column + tile.shape[1]]
    excess.addcmul_(rows[:, None], columns, value=-_SYMMETRY_TOLERANCE)
    if bool(excess.max() > 0):
        i, j = divmod(int(excess.argmax()), excess.shape[1])
        raise IllPosedError(
            f"{operation}: `{name}` is not symmetric, got {tile[i, j]:.6e} at "
            f"[{row + i}, {column + j}] and {mirror[i, j]:.6e} at [{column + j}, {row + i}]. "
            "Pass E[k kᵀ], which is symmetric by construction."
        )


def require_no_negative_eigenvalue(operation: str, name: str, matrix: Tensor) -> None:
    """Refuse a matrix that could not be factorized because it is no mean of k kᵀ at all.

    It is symmetric, with a diagonal that is not negative, on a device that has float64; it is
    copied.

    Raises:
        IndefiniteError: It has a negative eigenvalue that rounding cannot explain.
    """
    copy = matrix.to(torch.float64, copy=True).contiguous()
    diagonal = copy.diagonal()
    diagonal.copy_(torch.where(diagonal > 0, diagonal * (1 + _NEGATIVE_TOLERANCE), 1.0))
    _, info = torch.linalg.cholesky_ex(copy)
    if row := int(info):
        raise IndefiniteError(operation, name, row - 1)


def cholesky_in_place(
    matrix: Tensor, rounding: Tensor | float = 0.0
) -> tuple[Tensor, Breakdown | None]:
    """Factorize a symmetric matrix where it stands.

    LAPACK happily factorizes a matrix that is singular up to rounding, and what follows is noise.
    So the smallest eigenvalue is estimated, too, by inverse iteration. It is that of the matrix
    scaled to a unit diagonal: no test depends on the units of a coordinate.

    Args:
        matrix: Symmetric, contiguous, float64; only its upper triangle is read. Destroyed.
        rounding: Errors that the diagonal entries came with, [d]; what this computation adds in
            float64 is counted anyway.

    Returns:
        The lower factor, a column-major view of the same memory, and how it broke down, if it did;
        the factor is then of no use.
    """
    diagonal = matrix.diagonal().clone()
    # The transpose of a contiguous symmetric matrix is the same matrix in the order LAPACK wants:
    # with any other layout `out` would be a copy.
    factor = matrix.mT
    info = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(factor, out=(factor, info))
    if failed := int(info):
        return factor, Breakdown(failed - 1)
    # Scaled, the factor is D^-½ L. Inverse iteration from the weakest pivot: half a step comes near
    # the eigenvector, the other half measures what is left of it.
    scale = diagonal.sqrt()[:, None]
    pivot = int((factor.diagonal() / scale[:, 0]).argmin())
    vector = torch.zeros_like(scale)
    vector[pivot] = 1
    vector = scale * torch.linalg.solve_triangular(factor.mT, vector, upper=True)
    vector /= vector.norm()
    measure = torch.linalg.solve_triangular(factor, scale * vector, upper=False)
    eigenvalue = float(1 / measure.norm().square())
    unit = len(matrix) * torch.finfo(torch.float64).eps
    unit += float((vector[:, 0].square() * rounding / diagonal).sum())
    if eigenvalue > _NOISE_MARGIN * unit:  # false for NaN, too
        return factor, None
    return factor, Breakdown(pivot, eigenvalue, unit)


def solve_cholesky(factor: Tensor, columns: Tensor) -> Tensor:
    """Solve L Lᵀ X = B by two triangular solves: X `[d, n]` of B `[d, n]`.

    `torch.cholesky_solve` does the same with a copy of the factor.
    """
    half = torch.linalg.solve_triangular(factor, columns, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)
