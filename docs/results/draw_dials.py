"""Draw what α, λ and H do on a linear toy model: `python docs/results/draw_dials.py`.

Keys of ordinary text have a second moment whose spectrum falls by three orders of magnitude, facts
have keys of the same kind, and what their values lack is random. Nothing else is in the model, so
that the curves are those of the equation alone.
"""

from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor

from memit_core import Preservation, UpdateFactors, find_null_space, solve_edits

mpl.use("svg")
from matplotlib import pyplot as plt

FIGURE = Path(__file__).parent / "figures" / "dials.svg"
D_KEY, D_VALUE, N_FACTS, N_BATCHES = 64, 16, 8, 12
SCALES = torch.logspace(0, -1.5, D_KEY, dtype=torch.float64)
MOMENT = torch.diag(SCALES.square())


def draw_rows(n_rows: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keys and residuals of some facts."""
    keys = torch.randn(n_rows, D_KEY, generator=chance, dtype=torch.float64) * SCALES
    return keys, torch.randn(n_rows, D_VALUE, generator=chance, dtype=torch.float64)


def solve(keys: Tensor, residuals: Tensor, price: Preservation, slack: float = 1.0) -> Tensor:
    """Δ."""
    update = solve_edits(keys, residuals, price, slack=slack)
    return update.dense() if isinstance(update, UpdateFactors) else update


def missed(update: Tensor, keys: Tensor, residuals: Tensor) -> float:
    """The share of the residuals that is missed."""
    return float((keys @ update.mT - residuals).norm() / residuals.norm())


def moved(update: Tensor) -> float:
    """How far ordinary values move, root mean square."""
    return float(torch.trace(update @ MOMENT @ update.mT).sqrt())


def follow_first_batch(price: Preservation, *, remembers: bool) -> list[float]:
    """Of a stream of batches, the share that the first one's facts miss after each."""
    chance = torch.Generator().manual_seed(0)
    total, curve = torch.zeros(D_VALUE, D_KEY, dtype=torch.float64), []
    first_keys, first = rows = draw_rows(N_FACTS, chance)
    for _ in range(N_BATCHES):
        keys, residuals = rows
        total = total + solve(keys, residuals - keys @ total.mT, price)
        price = price.with_history(keys) if remembers else price
        curve.append(missed(total, first_keys, first))
        rows = draw_rows(N_FACTS, chance)
    return curve


def main() -> None:
    """Draw three panels, and write them as one SVG."""
    keys, residuals = draw_rows(N_FACTS, torch.Generator().manual_seed(1))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    dials = torch.logspace(-4, 4, 33).tolist()
    for axes, name in ((left, "α"), (middle, "λ")):
        updates = [
            solve(keys, residuals, Preservation(MOMENT, weight=0.1), slack=dial)
            if name == "α"
            else solve(keys, residuals, Preservation(MOMENT, weight=dial))
            for dial in dials
        ]
        axes.plot(dials, [missed(update, keys, residuals) for update in updates], label="missed")
        largest = max(moved(update) for update in updates)
        moves = [moved(update) / largest for update in updates]
        axes.plot(dials, moves, "--", label="ordinary values move")
        axes.set(xscale="log", xlabel=name, ylim=(0, 1.05))
        axes.legend(frameon=False)
    left.set_title("slack α, at λ = 0.1")
    middle.set_title("weight λ, at α = 1")
    batches = range(1, N_BATCHES + 1)
    null_space = Preservation(None, ridge=1e-3, basis=find_null_space(MOMENT, 0.5))
    for name, price, remembers in (
        ("λC", Preservation(MOMENT, weight=0.01), False),
        ("λC + H", Preservation(MOMENT, weight=0.01), True),
        ("null space", null_space, False),
        ("null space + H", null_space, True),
    ):
        right.plot(batches, follow_first_batch(price, remembers=remembers), label=name)
    right.set(xlabel="batches written", ylim=(0, None), title="what the first batch misses")
    right.legend(frameon=False)
    mpl.rcParams["svg.hashsalt"] = "dials"
    figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
