"""What solving for updates takes, with nothing factorized beforehand."""

from collections.abc import Sequence

from editbench.costs.stage import StageCost
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel

NULL_SPACES = "null spaces"
_FLOAT64 = 8
_FLOAT32 = 4
# Of d_key × d_key: what is alive at once while a layer is solved; and while C is factorized and its
# factor written, as for few facts it is.
_MATRICES = 3
_FACTORED_MATRICES = 5
_WIDENED = 2**26  # numbers of keys, and of what is solved for, that are in float64 at once
_EIGENVECTORS = 9  # times d³ operations: reduced to a band, divided and conquered, multiplied back
_EIGEN_MATRICES = 5  # C, its copy, the eigenvectors and what LAPACK works in


def count_solve_bytes(n_edits: int, d_key: int, d_value: int) -> int:
    """Bytes that solving for the update of one layer takes, its keys and the update included."""
    n_matrices = _FACTORED_MATRICES if n_edits <= d_key // 2 else _MATRICES
    matrices = (n_matrices * d_key**2 + d_key * d_value) * _FLOAT64
    widened = 2 * min(n_edits * d_key, _WIDENED) * _FLOAT64
    return matrices + widened + n_edits * (d_key + d_value) * _FLOAT32


def estimate_solve(
    model: EditableModel,
    n_edits: int,
    layers: Sequence[int],
    module: ProjectionKind = "mlp",
    *,
    one_by_one: bool = False,
) -> StageCost:
    """What solving for the updates of all layers costs.

    Args:
        model: The model, with weights or without.
        n_edits: How many facts.
        layers: Critical layers.
        module: Whose output projection is written to.
        one_by_one: Whether each fact has a system of its own, with the same second moment.
    """
    d_value, d_key = model.architecture.d_model, model.d_key(layers[0], module)
    n, d = float(n_edits), float(d_key)
    solved = d**3 / 3 + (2 if one_by_one else 3) * n * d**2
    added = 2 * min(n, d) * d * d_value  # multiplied out once, to be added to the weight
    return StageCost(
        name="solve",
        n_double_flops=len(layers) * (solved + added),
        n_peak_bytes=count_solve_bytes(1 if one_by_one else n_edits, d_key, d_value),
        chunks=_describe(layers, d_key),
    )


def estimate_null_spaces(
    model: EditableModel, layers: Sequence[int], module: ProjectionKind = "mlp"
) -> StageCost:
    """What finding the null spaces of all layers' second moments costs, once a stream.

    Args:
        model: The model, with weights or without.
        layers: Critical layers.
        module: Whose output projection is written to.
    """
    d_key = model.d_key(layers[0], module)
    return StageCost(
        name=NULL_SPACES,
        n_double_flops=len(layers) * _EIGENVECTORS * float(d_key) ** 3,
        n_peak_bytes=_EIGEN_MATRICES * d_key**2 * _FLOAT64,
        chunks=_describe(layers, d_key),
    )


def _describe(layers: Sequence[int], d_key: int) -> str:
    return f"{len(layers)} layer{'s' * (len(layers) > 1)}, {d_key:,} × {d_key:,}"
