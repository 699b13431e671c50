"""All editors side by side: the paper's two tables, and how editors scale (Figure 5)."""

import math

from editbench.experiments.setup import Experiment, Setup
from editbench.runner import Trial

ALL_EDITORS = ("ft-w", "mend", "rome", "memit")
COUNTERFACT_METRICS = (
    "success",
    "accuracy",
    "generation-entropy",
    "reference-score",
    "perplexity",
)
N_OF_PAPER = 10_000
N_SCALES = 16

MIN_CASES = 50
"""Few edits at once are measured in as many batches as have this many cases: one case says little.

The reference does the same, with its own number.
"""


def scaling_sizes(largest: int) -> list[int]:
    """The paper's n_i = exp(ln(10,000)·i/16), rounded, up to `largest`, which ends them."""
    sizes = {round(math.exp(math.log(N_OF_PAPER) * i / N_SCALES)) for i in range(N_SCALES + 1)}
    return [*sorted(size for size in sizes if size < largest), largest]


def _compare_at_one_size(experiment: Experiment, setup: Setup) -> list[Trial]:
    return setup.trials(experiment, [setup.limit(N_OF_PAPER)], min_cases=MIN_CASES)


def _compare_at_all_sizes(experiment: Experiment, setup: Setup) -> list[Trial]:
    sizes = scaling_sizes(setup.limit(N_OF_PAPER))
    return setup.trials(experiment, sizes, min_cases=MIN_CASES)


TABLE1 = Experiment(
    "table1",
    "Table 1",
    "zsRE: efficacy, paraphrase and specificity of all editors",
    _compare_at_one_size,
    ("accuracy",),
    ALL_EDITORS,
    dataset="zsre",
)
TABLE2 = Experiment(
    "table2",
    "Table 2",
    "CounterFact: all editors, with fluency and consistency",
    _compare_at_one_size,
    COUNTERFACT_METRICS,
    ALL_EDITORS,
)
SCALING = Experiment(
    "scaling",
    "Figure 5",
    "every metric against the number of edits, all editors",
    _compare_at_all_sizes,
    COUNTERFACT_METRICS,
    ALL_EDITORS,
)
