"""Compute golden.json by exact rational arithmetic, with nothing but Python's own integers.

Run from anywhere: ``python tests/memit-core/make_golden.py``. Inputs are small multiples of 1/8, so
that every float dtype down to bfloat16 holds them exactly; each answer is rounded once, at the end.
"""

import json
import random
from fractions import Fraction
from pathlib import Path

Matrix = list[list[Fraction]]


def multiply(left: Matrix, right: Matrix) -> Matrix:
    columns = list(zip(*right, strict=True))
    return [[sum(a * b for a, b in zip(row, c, strict=True)) for c in columns] for row in left]


def transpose(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


def combine(scale: Fraction, left: Matrix, right: Matrix) -> Matrix:
    return [
        [scale * a + b for a, b in zip(*rows, strict=True)]
        for rows in zip(left, right, strict=True)
    ]


def invert(matrix: Matrix) -> Matrix:
    """Gauss-Jordan elimination."""
    size = len(matrix)
    rows = [[*row, *(Fraction(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for i in range(size):
        pivot = next(r for r in range(i, size) if rows[r][i] != 0)
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [entry / rows[i][i] for entry in rows[i]]
        for r in range(size):
            if r != i:
                rows[r] = [a - rows[r][i] * b for a, b in zip(rows[r], rows[i], strict=True)]
    return [row[size:] for row in rows]


def solve_case(n_edits: int, d_key: int, d_value: int, weight: Fraction, seed: int) -> dict:
    source = random.Random(seed)

    def draw(n_rows: int, n_columns: int) -> Matrix:
        return [
            [Fraction(source.randint(-24, 24), 8) for _ in range(n_columns)] for _ in range(n_rows)
        ]

    keys, residuals, tokens = draw(n_edits, d_key), draw(n_edits, d_value), draw(16, d_key)
    second_moment = combine(
        Fraction(1, 16), multiply(transpose(tokens), tokens), [[Fraction()] * d_key] * d_key
    )
    right_hand = multiply(transpose(residuals), keys)
    system = combine(weight, second_moment, multiply(transpose(keys), keys))
    case = {
        "keys": keys,
        "residuals": residuals,
        "tokens": tokens,
        "second_moment": second_moment,
        "update": multiply(right_hand, invert(system)),
    }
    if n_edits <= d_key:
        moved = multiply(keys, invert(second_moment))
        gram = invert(multiply(moved, transpose(keys)))
        case["equality_update"] = multiply(multiply(transpose(residuals), gram), moved)
    floats = {name: [[float(x) for x in row] for row in value] for name, value in case.items()}
    return {"preservation_weight": float(weight), **floats}


if __name__ == "__main__":
    cases = [
        solve_case(1, 4, 3, Fraction(2), seed=1),
        solve_case(3, 5, 2, Fraction(1, 4), seed=2),
        solve_case(4, 6, 7, Fraction(150), seed=3),
        solve_case(7, 5, 3, Fraction(1), seed=4),
    ]
    path = Path(__file__).with_name("golden.json")
    path.write_text(json.dumps(cases, indent=1) + "\n")
