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
    """Sets of layers of a model to compare with the chosen ones, which ascend.

    Windows as long as theirs at five places, from the second layer to the last; and the chosen ones
    with their earlier, or their later, half taken away again and again, down to one layer. The
    first layer is left out: where attention and MLP stand side by side, its MLP has seen nothing
    but the token itself, and cannot tell subjects apart.
    """
    length = chosen[-1] - chosen[0] + 1
    first, last = min(1, n_layers - length), n_layers - length
    starts = {first + round((last - first) * quarter / 4) for quarter in range(5)}
    windows = [tuple(range(start, start + length)) for start in sorted(starts)]
    parts = []
    later = earlier = tuple(chosen)
    while len(later) > 1:
        later, earlier = later[len(later) // 2 :], earlier[: (len(earlier) + 1) // 2]
        parts += [later, earlier]
    return list(dict.fromkeys([tuple(chosen), *windows, *parts]))


def _vary_decay(experiment: Experiment, setup: Setup) -> list[Trial]:
    editors = [setup.editor("ft-w", weight_decay=decay) for decay in WEIGHT_DECAYS]
    return setup.trials(experiment, [setup.limit(N_OF_PAPER)], editors)


def _vary_layers(experiment: Experiment, setup: Setup) -> list[Trial]:
    chosen = setup.configured["memit"].config.model_dump()["critical_layers"]
    sets = layer_sets(setup.model.architecture.n_layers, chosen)
    editors = [setup.editor("memit", critical_layers=layers) for layers in sets]
    return setup.trials(experiment, [setup.limit(N_OF_PAPER)], editors)


def _vary_module(experiment: Experiment, setup: Setup) -> list[Trial]:
    largest = setup.limit(N_OF_PAPER)
    sizes = {max(1, round(largest / _SIZES_APART**step)) for step in range(_N_MODULE_SIZES)}
    config = setup.configured["memit"].config.model_dump()
    # A lone edit realizes the share s/(1 + s) of its residual, s = kᵀC⁻¹k/λ, and kᵀC⁻¹k is as
    # large, on average, as keys are wide: the same λ would hold narrower keys back the more.
    last = config["critical_layers"][-1]
    width = setup.model.d_key(last, "attention") / setup.model.d_key(last)
    own = config["preservation_weight"]
    editors = [
        setup.editor("memit", module="mlp", preservation_weight=own),
        setup.editor("memit", module="attention", preservation_weight=own * width),
    ]
    return setup.trials(experiment, sorted(sizes), editors, min_cases=MIN_CASES)


def _vary_preservation(experiment: Experiment, setup: Setup) -> list[Trial]:
    own = setup.configured["memit"].config.model_dump()["preservation_weight"]
    editors = [
        setup.editor("memit", preservation_weight=own * factor) for factor in PRESERVATION_FACTORS
    ]
    return setup.trials(experiment, [setup.limit(N_OF_PAPER)], editors)


WEIGHT_DECAY = Experiment(
    "weight-decay",
    "Figure 9",
    "fine-tuning: the tradeoff that its weight decay makes",
    _vary_decay,
    METRICS,
    editors=("ft-w",),
    varies=True,
)
LAYERS = Experiment(
    "layers",
    "Figures 11-13",
    "MEMIT with other critical layers",
    _vary_layers,
    METRICS,
    varies=True,
)
ATTENTION = Experiment(
    "attention",
    "Figures 11-13",
    "MEMIT on attention instead of MLPs",
    _vary_module,
    METRICS,
    varies=True,
)
LAMBDA = Experiment(
    "lambda",
    "Figures 11-13",
    "MEMIT with other preservation weights λ",
    _vary_preservation,
    METRICS,
    varies=True,
)
