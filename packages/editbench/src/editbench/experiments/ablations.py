"""One choice varied, the others kept: fine-tuning's decay, and MEMIT's layers, module and λ."""

from collections.abc import Sequence

from editbench.experiments.comparisons import MIN_CASES, N_OF_PAPER
from editbench.experiments.setup import Experiment, Setup
from editbench.runner import Trial

METRICS = ("success", "accuracy", "perplexity")

WEIGHT_DECAYS = (0.0, 1e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
PRESERVATION_FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""λ as multiples of the model's own."""

_N_MODULE_SIZES = 4
_SIZES_APART = 10**0.5


def layer_sets(n_layers: int, chosen: Sequence[int]) -> list[tuple[int, ...]]:
    """Sets of layers to compare with the chosen ones.

    Windows of the same length at five places from the first layer to the last; then the chosen
    ones with their earlier half taken away again and again, down to the last of them alone.

    Args:
        n_layers: How many layers the model has.
        chosen: The critical layers, ascending.
    """
    length = chosen[-1] - chosen[0] + 1
    n_starts = n_layers - length
    starts = {round(n_starts * quarter / 4) for quarter in range(5)}
    windows = [tuple(range(start, start + length)) for start in sorted(starts)]
    endings = []
    ending = tuple(chosen)
    while len(ending) > 1:
        ending = ending[len(ending) // 2 :]
        endings.append(ending)
    return list(dict.fromkeys([*windows, tuple(chosen), *endings]))


def _vary_decay(experiment: Experiment, setup: Setup) -> list[Trial]:
    editors = [setup.editor("ft-w", weight_decay=decay) for decay in WEIGHT_DECAYS]
    return setup.trials(editors, experiment.metrics, [setup.limit(N_OF_PAPER)])


def _vary_layers(experiment: Experiment, setup: Setup) -> list[Trial]:
    chosen = setup.configured["memit"].config.model_dump()["critical_layers"]
    sets = layer_sets(setup.model.architecture.n_layers, chosen)
    editors = [setup.editor("memit", critical_layers=layers) for layers in sets]
    return setup.trials(editors, experiment.metrics, [setup.limit(N_OF_PAPER)])


def _vary_module(experiment: Experiment, setup: Setup) -> list[Trial]:
    largest = setup.limit(N_OF_PAPER)
    sizes = {max(1, round(largest / _SIZES_APART**step)) for step in range(_N_MODULE_SIZES)}
    editors = [setup.editor("memit", module=module) for module in ("mlp", "attention")]
    return setup.trials(editors, experiment.metrics, sorted(sizes), min_cases=MIN_CASES)


def _vary_preservation(experiment: Experiment, setup: Setup) -> list[Trial]:
    own = setup.configured["memit"].config.model_dump()["preservation_weight"]
    editors = [
        setup.editor("memit", preservation_weight=own * factor) for factor in PRESERVATION_FACTORS
    ]
    return setup.trials(editors, experiment.metrics, [setup.limit(N_OF_PAPER)])


WEIGHT_DECAY = Experiment(
    name="weight-decay",
    paper="Figure 9",
    summary="fine-tuning: the tradeoff that its weight decay makes",
    dataset="counterfact",
    editors=("ft-w",),
    metrics=METRICS,
    plan=_vary_decay,
)
LAYERS = Experiment(
    name="layers",
    paper="Figures 11-13",
    summary="MEMIT with other critical layers",
    dataset="counterfact",
    editors=("memit",),
    metrics=METRICS,
    plan=_vary_layers,
)
ATTENTION = Experiment(
    name="attention",
    paper="Figures 11-13",
    summary="MEMIT on attention instead of MLPs",
    dataset="counterfact",
    editors=("memit",),
    metrics=METRICS,
    plan=_vary_module,
)
LAMBDA = Experiment(
    name="lambda",
    paper="Figures 11-13",
    summary="MEMIT with other preservation weights λ",
    dataset="counterfact",
    editors=("memit",),
    metrics=METRICS,
    plan=_vary_preservation,
)
