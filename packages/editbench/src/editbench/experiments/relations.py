"""Facts of one relation alone (Figure 6), of two mixed (Figures 7, 10), and of a file (App. E)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from editbench.errors import ConfigError
from editbench.experiments.comparisons import (
    ALL_EDITORS,
    COUNTERFACT_METRICS,
    N_OF_PAPER,
    scaling_sizes,
)
from editbench.experiments.setup import Experiment, Setup
from editbench.runner import Trial

N_PER_CATEGORY = 300
MAX_MIXED = 700
N_DRAWS = 10
MAX_RELATIONS = 12  # with more of them, a file's are not shown one by one
_MIXING_STARTS_AT = 20


@dataclass(frozen=True)
class Pair:
    """Two relations whose facts are mixed.

    Attributes:
        relations: Their names.
        subjects_alike: Whether their subjects are of one kind.
        objects_alike: Whether their objects are.
    """

    relations: tuple[str, str]
    subjects_alike: bool
    objects_alike: bool


PAIRS = (
    # CounterFact, by Wikidata's numbers: mother tongue and headquarters, mother tongue and
    # citizenship, citizenship and country of origin (of works), mother tongue and language spoken.
    Pair(("P103", "P159"), subjects_alike=False, objects_alike=False),
    Pair(("P103", "P27"), subjects_alike=True, objects_alike=False),
    Pair(("P27", "P495"), subjects_alike=False, objects_alike=True),
    Pair(("P103", "P1412"), subjects_alike=True, objects_alike=True),
    # Atlas. No two relations of one kind of subject share their objects there; sports and
    # instruments, both pastimes, come nearest.
    Pair(("occupation", "headquarters"), subjects_alike=False, objects_alike=False),
    Pair(("citizenship", "occupation"), subjects_alike=True, objects_alike=False),
    Pair(("native_language", "spoken_language"), subjects_alike=False, objects_alike=True),
    Pair(("sport", "instrument"), subjects_alike=True, objects_alike=True),
)
"""The four kinds of diversity that the paper tells apart, in the datasets that have them."""


def _edit_each_relation(experiment: Experiment, setup: Setup) -> list[Trial]:
    sizes = setup.relation_sizes
    if not sizes:
        raise ConfigError(
            f"{experiment.name}: dataset '{setup.dataset.name}' names no relations. Choose a "
            "dataset that does, such as counterfact, or facts with a field 'relation'."
        )
    n = setup.limit(N_PER_CATEGORY)
    if max(sizes.values()) < n:  # a small dataset: as many as every relation has
        n = min(sizes.values())
    chosen = [(relation,) for relation, size in sizes.items() if size >= n]
    return setup.trials(experiment, [n], relations=chosen)


def _mix_relations(experiment: Experiment, setup: Setup) -> list[Trial]:
    sizes = setup.relation_sizes
    pairs = [pair for pair in PAIRS if all(name in sizes for name in pair.relations)]
    if not pairs:
        known = " and ".join(PAIRS[0].relations)
        raise ConfigError(
            f"{experiment.name}: no pair of relations is known for dataset "
            f"'{setup.dataset.name}'; expected, for instance, {known}. Use 'editbench run "
            "--relation A --relation B --relation A+B' for relations of your own."
        )
    trials: dict[str, Trial] = {}
    for pair in pairs:
        one, other = pair.relations
        largest = min(setup.limit(MAX_MIXED), sizes[one], sizes[other])
        for trial in setup.trials(
            experiment,
            list(_mixing_sizes(largest)),
            relations=[(one,), (other,), (one, other)],
            n_draws=N_DRAWS,
        ):
            trials.setdefault(trial.hash, trial)
    return list(trials.values())


def _mixing_sizes(largest: int) -> Iterator[int]:
    """Every other size of `scaling`, from the first that a mixture is visible at."""
    sizes: Sequence[int] = scaling_sizes(largest)
    while sizes and sizes[-1] >= _MIXING_STARTS_AT:
        yield sizes[-1]
        sizes = sizes[:-2]


def _edit_all_facts(experiment: Experiment, setup: Setup) -> list[Trial]:
    """All facts together, and those of each relation alone, where there are several."""
    n = setup.limit(N_OF_PAPER)
    trials = setup.trials(experiment, [n])
    sizes = setup.relation_sizes
    if 1 < len(sizes) <= MAX_RELATIONS:
        for relation, size in sizes.items():
            trials += setup.trials(experiment, [min(n, size)], relations=[(relation,)])
    return trials


CATEGORIES = Experiment(
    "categories",
    "Figure 6",
    "relations one by one: score, and specificity against generalization",
    _edit_each_relation,
    editors=ALL_EDITORS,
)
MIXING = Experiment(
    "mixing",
    "Figures 7 and 10",
    "two relations mixed, against the mean of the two alone",
    _mix_relations,
)
DEMONSTRATIONS = Experiment(
    "demonstrations",
    "App. E",
    "your own facts, before and after: knowledge freshness, a special domain",
    _edit_all_facts,
    COUNTERFACT_METRICS,
    dataset="facts",
)
