"""A large embedded world, trained on a GPU, and what editing it at scale shows.

    python benchmarks/gpu/atlas_big.py --out runs/atlas-big
    editbench report runs/atlas-big/scaling --figures runs/atlas-big/figures

Trains a model on some 40,000 facts about 17,600 subjects, and writes up to 10,000 of them at once,
with MEMIT, FT-W and, as far as time allows, ROME. MEMIT's λ is the best of a few on the validation
split. `scaling` is an ordinary run folder; `training.json` says what was trained, how well it
recalls, and what took how long, and is written after each of these. `--tiny` does the same with
some hundred subjects on a CPU.
"""

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch

from editbench.atlas import World
from editbench.atlas.cases import Split
from editbench.atlas.network import Shape, export_network
from editbench.atlas.recall import measure_recall
from editbench.atlas.train import Recipe, train
from editbench.datasets.base import Dataset
from editbench.datasets.corpus import Corpus
from editbench.editors.base import Editor
from editbench.editors.finetune import FineTune, FineTuneConfig
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.rome import Rome, RomeConfig
from editbench.experiments.comparisons import MIN_CASES, SCALING, scaling_sizes
from editbench.experiments.setup import Setup
from editbench.metrics.probes import Accuracy, Success
from editbench.models.editable import EditableModel
from editbench.requests import EditCase
from editbench.results.report import summarize
from editbench.runner import Inputs, Trial, run_grid

logger = logging.getLogger(__name__)

BIG = {"n_people": 8_000, "n_places": 3_200, "n_companies": 3_200, "n_works": 3_200}
BIG_RECIPE = Recipe(
    shape=Shape(n_layers=8, d_model=512, d_key=8_192, n_heads=8, d_rotary=32),
    n_vocabulary=8_192,
    n_steps=2_500,
    n_rows=96,
    tap=4,
    n_warmup_steps=100,
    muon_rate=2e-3,
    adam_rate=2e-3,
    n_first_subjects=2_000,
    n_first_steps=300,
)
TINY = {"n_people": 60, "n_places": 20, "n_companies": 20, "n_works": 20}
TINY_RECIPE = Recipe(
    shape=Shape(d_model=32, d_key=64, d_rotary=8), n_vocabulary=700, n_steps=6, n_rows=2
)


class BigWorld(Dataset):
    """One split of a world, as a dataset."""

    name: ClassVar[str] = "atlas-big"

    def __init__(self, world: World, split: Split) -> None:
        super().__init__(None, Path())
        self._world, self._split = world, split

    def cases(self) -> Sequence[EditCase]:
        """All cases of the split."""
        return self._cases

    @property
    def fingerprint(self) -> str:
        """Hash of what determines the cases."""
        content = json.dumps([self._world.parameters, self._split])
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def _cases(self) -> tuple[EditCase, ...]:
        return tuple(self._world.cases(split=self._split))


def make_editors(tap: int, preservation_weight: float, moment_tokens: int) -> list[Editor]:
    """The embedded model's hyperparameters, moved to the layers of a deeper one."""
    z = {"n_steps": 20, "learning_rate": 0.1, "learning_rate_unit": "relative"}
    memit = MemitConfig(
        critical_layers=tuple(range(1, tap + 1)),
        preservation_weight=preservation_weight,
        n_context_prefixes=3,
        second_moment_tokens=moment_tokens,
        **z,
    )
    rome = RomeConfig(
        critical_layers=(tap - 1,), n_context_prefixes=2, second_moment_tokens=moment_tokens, **z
    )
    return [Memit(memit), FineTune(FineTuneConfig(layer=tap, learning_rate=0.005)), Rome(rome)]


def main() -> None:
    """Train, choose λ, run the grid."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--tiny", action="store_true", help="a world and a model for a CPU")
    parser.add_argument("--steps", type=int, help="optimizer steps")
    parser.add_argument("--largest", type=int, default=10_000, help="the most facts at once")
    parser.add_argument("--largest-rome", type=int, default=1_000, help="likewise for ROME")
    parser.add_argument("--n-scales", type=int, default=6, help="how many numbers of facts")
    parser.add_argument("--weights", default="300,1000,3000", help="λs to choose from")
    parser.add_argument("--n-validation", type=int, default=1_500, help="facts to choose λ with")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_float32_matmul_precision("high")
    world = World(0, **(TINY if args.tiny else BIG))
    recipe = TINY_RECIPE if args.tiny else BIG_RECIPE
    recipe = recipe if args.steps is None else replace(recipe, n_steps=args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}

    began = time.perf_counter()
    trained = train(world, recipe, device=args.device, n_steps_between_reports=recipe.n_steps + 1)
    seconds["training"] = time.perf_counter() - began
    network = export_network(trained.network).to(device=args.device)  # type: ignore[call-arg]
    n_asked = min(3_000, len(world.facts))
    recall = measure_recall(network, trained.tokenizer, world, seed=0, n_facts=n_asked)
    logger.info("%.0f seconds; recall %s", seconds["training"], recall)
    scores: dict[float, float] = {}

    def write_record(*, complete: bool = False) -> None:
        content = {
            "complete": complete,
            "world": world.parameters,
            "n_subjects": len(world.subjects),
            "n_facts": len(world.facts),
            "recipe": asdict(recipe),
            "n_parameters": sum(each.numel() for each in network.parameters()),
            "n_tokens": trained.n_tokens,
            "recall": recall.to_record(),
            "accuracy_score_by_preservation_weight": scores,
            "seconds": seconds,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if model.device.type == "cuda" else args.device,
        }
        beside = args.out / ".training.json"
        beside.write_text(json.dumps(content, indent=2) + "\n")
        beside.replace(args.out / "training.json")

    # Editing is measured at full precision.
    torch.set_float32_matmul_precision("highest")
    model = EditableModel(network, trained.tokenizer, name="atlas-big")
    corpus = Corpus("atlas-big", world.fingerprint, world.corpus)
    moment_tokens = 10 * recipe.shape.d_key

    def set_up(split: Split, largest: int) -> Setup:
        return Setup(
            model=model,
            dataset=BigWorld(world, split),
            configured={},
            metrics={"success": Success(), "accuracy": Accuracy()},
            max_edits=largest,
            seed=0,
            on_conflict="error",
            inputs=Inputs(corpus=corpus),
        )

    def run(trials: Sequence[Trial], folder: Path, experiment: str) -> float:
        began = time.perf_counter()
        summary = run_grid(
            trials,
            folder,
            cache=args.out / "cache",
            provenance={"experiment": experiment},
            on_progress=lambda stage, done, total, note="": logger.debug("%s %s", stage, note),
            on_trial_finished=lambda trial, rows: logger.info("%s", trial.label),
        )
        for trial, reason in summary.failures:
            logger.error("%s: %s", trial.label, reason)
        return time.perf_counter() - began

    scaling = replace(SCALING, metrics=("success", "accuracy"))
    validation = set_up("validation", args.n_validation)
    write_record()
    seconds["choosing λ"] = 0.0
    for weight in map(float, args.weights.split(",")):
        memit = make_editors(recipe.tap, weight, moment_tokens)[:1]
        trials = validation.trials(scaling, [validation.limit(args.n_validation)], memit)
        folder = args.out / f"lambda-{weight:g}"
        seconds["choosing λ"] += run(trials, folder, "lambda")
        found = [
            line.value
            for line in summarize([folder]).lines
            if line.editor == "memit" and line.metric == "accuracy_score"
        ]
        scores[weight] = found[0] if found else 0.0
        logger.info("λ = %g: accuracy score %.1f", weight, scores[weight])
        write_record()

    test = set_up("test", args.largest)
    sizes = scaling_sizes(test.limit(args.largest))
    sizes = [sizes[-1 - index * len(sizes) // args.n_scales] for index in range(args.n_scales)]
    memit, tuned, rome = make_editors(
        recipe.tap, max(scores, key=lambda weight: scores[weight]), moment_tokens
    )
    few = [size for size in sizes if size <= args.largest_rome]
    min_cases = 1 if args.tiny else MIN_CASES
    trials = [
        *test.trials(scaling, sorted(sizes), [memit, tuned], min_cases=min_cases),
        *test.trials(scaling, sorted(few), [rome], min_cases=min_cases),
    ]
    distinct = {trial.hash: trial for trial in trials}
    seconds["scaling"] = run(list(distinct.values()), args.out / "scaling", "scaling")
    write_record(complete=True)


if __name__ == "__main__":
    main()
