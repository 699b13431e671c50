"""Edits that go on: batch after batch into the same model, by every editor there is."""

from editbench.experiments.comparisons import N_OF_PAPER
from editbench.experiments.setup import Experiment, Setup
from editbench.runner import Trial

BATCH_SIZE = 100
N_ORDERS = 3
_N_CHECKPOINTS = 10


def checkpoints_of(n_edits: int, batch_size: int) -> list[int]:
    """Ten ends of batches, evenly apart, or all of them if there are fewer."""
    n_batches = -(-n_edits // batch_size)
    n = min(_N_CHECKPOINTS, n_batches)
    ends = {batch_size * (n_batches * step // n) for step in range(1, n + 1)}
    return sorted(min(end, n_edits) for end in ends)


def _write_on(experiment: Experiment, setup: Setup) -> list[Trial]:
    n = setup.limit(N_OF_PAPER)
    size = max(1, min(BATCH_SIZE, n // _N_CHECKPOINTS))  # few facts are a stream, too
    return setup.trials(
        experiment,
        [n],
        n_draws=N_ORDERS,
        batch_size=size,
        checkpoints=lambda n_edits: checkpoints_of(n_edits, size),
    )


LIFELONG = Experiment(
    "lifelong",
    "no figure: the protocol of later papers",
    "batches of 100, one after another, in several orders, by all editors",
    _write_on,
    ("success", "accuracy", "perplexity", "divergence"),
    editors=(),
)
