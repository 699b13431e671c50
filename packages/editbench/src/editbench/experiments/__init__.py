"""The paper's experiments, each a preset grid over `editbench.runner`."""

from editbench.experiments.ablations import ATTENTION, LAMBDA, LAYERS, WEIGHT_DECAY
from editbench.experiments.comparisons import SCALING, TABLE1, TABLE2
from editbench.experiments.lifelong import LIFELONG
from editbench.experiments.relations import CATEGORIES, DEMONSTRATIONS, MIXING
from editbench.experiments.setup import Experiment, Setup

_IN_ORDER = (
    TABLE1, TABLE2, SCALING, CATEGORIES, MIXING, WEIGHT_DECAY, LAYERS, ATTENTION, LAMBDA,
    LIFELONG, DEMONSTRATIONS,
)  # fmt: skip
EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _IN_ORDER}
"""All experiments, by name."""

__all__ = ["EXPERIMENTS", "Experiment", "Setup"]
