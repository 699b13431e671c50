"""The paper's experiments, each a preset grid over `editbench.runner`."""

from editbench.experiments.ablations import ATTENTION, LAMBDA, LAYERS, WEIGHT_DECAY
from editbench.experiments.comparisons import SCALING, TABLE1, TABLE2
from editbench.experiments.demonstrations import DEMONSTRATIONS
from editbench.experiments.relations import CATEGORIES, MIXING
from editbench.experiments.setup import Experiment, Setup

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        TABLE1,
        TABLE2,
        SCALING,
        CATEGORIES,
        MIXING,
        WEIGHT_DECAY,
        LAYERS,
        ATTENTION,
        LAMBDA,
        DEMONSTRATIONS,
    )
}
"""All experiments, by name."""

__all__ = ["EXPERIMENTS", "Experiment", "Setup"]
