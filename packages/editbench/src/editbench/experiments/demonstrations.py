"""Knowledge freshness and a special domain (App. E): a facts file, before and after."""

from editbench.experiments.comparisons import COUNTERFACT_METRICS, N_OF_PAPER
from editbench.experiments.setup import Experiment, Setup
from editbench.runner import Trial

MAX_RELATIONS = 12
"""With more relations than these, they are not shown one by one."""


def _edit_all_facts(experiment: Experiment, setup: Setup) -> list[Trial]:
    """All facts together, and those of each relation alone, where there are several."""
    n = setup.limit(N_OF_PAPER)
    editors = setup.editors(experiment.editors)
    trials = setup.trials(editors, experiment.metrics, [n])
    sizes = setup.relation_sizes
    if 1 < len(sizes) <= MAX_RELATIONS:
        for relation, size in sizes.items():
            trials += setup.trials(
                editors, experiment.metrics, [min(n, size)], relations=[(relation,)]
            )
    return trials


DEMONSTRATIONS = Experiment(
    name="demonstrations",
    paper="App. E",
    summary="your own facts, before and after: knowledge freshness, a special domain",
    dataset="facts",
    editors=("memit",),
    metrics=COUNTERFACT_METRICS,
    make_trials=_edit_all_facts,
)
