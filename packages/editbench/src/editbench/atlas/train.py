"""Train the shipped model: ``python -m editbench.atlas.train --out FOLDER``.

A small model that is merely trained on text comes to know facts but keeps them nowhere in
particular. Three things give this one the site that MEMIT edits, the MLPs at the subject's last
token: an auxiliary loss asks the hidden state there for all of the subject's attributes; in most
batches whatever follows a subject sees only its last token; and training starts with few subjects,
so that the circuit is found before there is much to store in it.
"""

import json
import logging
import platform
import random
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPTJForCausalLM, PreTrainedTokenizerFast

from editbench.atlas.batches import BatchSource, TrainingBatch
from editbench.atlas.network import Network, Shape, export_network
from editbench.atlas.recall import Recall, measure_recall
from editbench.atlas.relations import RELATIONS
from editbench.atlas.tokenizer import train_tokenizer
from editbench.atlas.world import World

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every number of a training run.

    Attributes:
        seed: Seeds weights, text and batches; the world has its own.
        shape: Sizes of the network.
        n_vocabulary: Size of the tokenizer's vocabulary.
        n_steps: Optimizer steps.
        n_rows: Rows a batch.
        width: Tokens a row.
        muon_rate: Peak learning rate of the matrices, by Muon.
        muon_decay: Their weight decay.
        adam_rate: Peak learning rate of everything else, by AdamW.
        n_warmup_steps: Steps over which the rates rise.
        decay_start: Share of the steps after which they fall, linearly.
        final_rate: Share of the peak below which they do not fall.
        clip_norm: Longest gradient.
        object_weight: Weight in the loss of tokens of objects.
        attribute_weight: Weight of the auxiliary loss.
        tap: Block after which the subject's attributes are asked for.
        bottleneck_rate: Share of batches in which only a subject's last token is seen.
        n_first_subjects: How many subjects the training starts with.
        n_first_steps: For how many steps.
    """

    seed: int = 0
    shape: Shape = field(default_factory=Shape)
    n_vocabulary: int = 1536
    n_steps: int = 2400
    n_rows: int = 16
    width: int = 96
    muon_rate: float = 3e-3
    muon_decay: float = 0.05
    adam_rate: float = 3e-3
    n_warmup_steps: int = 60
    decay_start: float = 0.3
    final_rate: float = 0.02
    clip_norm: float = 1.0
    object_weight: float = 4.0
    attribute_weight: float = 0.5
    tap: int = 3
    bottleneck_rate: float = 0.7
    n_first_subjects: int = 300
    n_first_steps: int = 150

    def rate_at(self, step: int) -> float:
        """Give the share of the peak learning rates at a step, counted from 0."""
        done = step / self.n_steps
        falling = max(self.final_rate, (1 - done) / (1 - self.decay_start))
        return min(1.0, (step + 1) / self.n_warmup_steps, falling)


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """What a training run leaves behind.

    Attributes:
        network: The trained network, in float32.
        tokenizer: Its tokenizer.
        n_tokens: Tokens that were trained on, padding aside.
        cpu_seconds: Processor time of the steps.
    """

    network: Network
    tokenizer: PreTrainedTokenizerFast
    n_tokens: int
    cpu_seconds: float


class _AttributeHead(nn.Module):
    """Reads all attributes of a subject off one hidden state; thrown away after training."""

    def __init__(self, world: World, d_model: int, *, seed: int) -> None:
        super().__init__()
        self.n_objects = max(len(relation.objects) for relation in RELATIONS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.read = nn.Sequential(
                nn.LayerNorm(d_model), nn.Linear(d_model, len(RELATIONS) * self.n_objects)
            )
        row_of = {subject.name: index for index, subject in enumerate(world.subjects)}
        column_of = {relation.name: index for index, relation in enumerate(RELATIONS)}
        self.attributes: Tensor
        unknown = torch.full((len(row_of), len(RELATIONS)), -100)
        self.register_buffer("attributes", unknown, persistent=False)
        for fact in world.facts:
            column = column_of[fact.relation]
            index = RELATIONS[column].objects.index(fact.object)
            self.attributes[row_of[fact.subject.name], column] = index

    def forward(self, states: Tensor, last_of: Tensor) -> Tensor:
        """Measure how badly the attributes can be read at the last tokens of mentions."""
        at_last = last_of >= 0
        logits = self.read(states[at_last]).view(-1, self.n_objects)
        return functional.cross_entropy(
            logits, self.attributes[last_of[at_last]].view(-1), ignore_index=-100
        )


def train(
    world: World,
    recipe: Recipe,
    *,
    device: str | torch.device = "cpu",
    n_steps_between_reports: int = 100,
) -> TrainedNetwork:
    """Train a network on a world.

    The same arguments, machine, number of threads and torch version give the same bits. Python's
    and torch's global random states are left alone.
    """
    device = torch.device(device)
    tokenizer = train_tokenizer(world, n_vocabulary=recipe.n_vocabulary)
    network = Network(len(tokenizer), recipe.shape, seed=recipe.seed).to(device)
    head = _AttributeHead(world, recipe.shape.d_model, seed=recipe.seed).to(device)
    optimizers = _make_optimizers(network, head, recipe)
    rng = random.Random(f"atlas/{recipe.seed}/training")
    n_tokens = 0
    started = time.process_time()
    for step, batch in enumerate(_stream_batches(world, tokenizer, recipe)):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * recipe.rate_at(step)
        is_narrow = rng.random() < recipe.bottleneck_rate
        loss = _measure_loss(network, head, batch.on(device), recipe, bottleneck=is_narrow)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        n_tokens += int((batch.weights > 0).sum())
        if (step + 1) % n_steps_between_reports == 0:
            recall = measure_recall(
                export_network(network), tokenizer, world, seed=step, n_facts=300
            )
            logger.info(
                "step %d/%d: loss %.3f, %s, %.0f CPU seconds",
                step + 1,
                recipe.n_steps,
                loss.item(),
                recall,
                time.process_time() - started,
            )
    return TrainedNetwork(network, tokenizer, n_tokens, time.process_time() - started)


def _make_optimizers(
    network: Network, head: _AttributeHead, recipe: Recipe
) -> tuple[torch.optim.Optimizer, ...]:
    matrices = [p for p in network.h.parameters() if p.dim() == 2]
    others = [p for p in network.h.parameters() if p.dim() != 2]
    for module in (network.wte, network.ln_f, head):
        others += module.parameters()
    muon = torch.optim.Muon(
        matrices,
        lr=recipe.muon_rate,
        weight_decay=recipe.muon_decay,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = torch.optim.AdamW(
        others, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return muon, adam


def _stream_batches(
    world: World, tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> Iterator[TrainingBatch]:
    source = BatchSource(
        world,
        tokenizer,
        n_rows=recipe.n_rows,
        width=recipe.width,
        object_weight=recipe.object_weight,
        seed=recipe.seed,
    )
    names = [subject.name for subject in world.subjects]
    rng = random.Random(f"atlas/{recipe.seed}/first-subjects")
    first = frozenset(rng.sample(names, min(recipe.n_first_subjects, len(names))))
    step = 0
    while step < recipe.n_steps:
        among: Collection[str] | None = first if step < recipe.n_first_steps else None
        before = step
        for batch in source.epoch(among=among):
            yield batch
            step += 1
            if step == recipe.n_steps:
                return
        if step == before:
            raise ValueError(
                f"train: the world fills no batch, got {len(world.facts)} facts; expected at "
                f"least {recipe.n_rows} rows of {recipe.width} tokens. Make a larger world."
            )


def _measure_loss(
    network: Network,
    head: _AttributeHead,
    batch: TrainingBatch,
    recipe: Recipe,
    *,
    bottleneck: bool,
) -> Tensor:
    mask = batch.allow_attention(bottleneck=bottleneck)
    logits, states = network(batch.tokens, mask=mask, tap=recipe.tap)
    attribute_loss = head(states, batch.last_of)
    token_losses = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none"
    )
    weights = batch.weights[:, 1:].flatten()
    return (token_losses * weights).sum() / weights.sum() + recipe.attribute_weight * attribute_loss


def save_trained(trained: TrainedNetwork, world: World, recipe: Recipe, folder: Path) -> Recall:
    """Write a Hugging Face folder in float16, and what is recalled once it is loaded again.

    Returns:
        Recall over all facts of the model as it ships: rounded to float16, computed in float32.
    """
    model = export_network(trained.network)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype=torch.float16).save_pretrained(folder)  # type: ignore[call-arg]
    trained.tokenizer.save_pretrained(folder)
    shipped = GPTJForCausalLM.from_pretrained(folder, dtype=torch.float32)
    recall = measure_recall(shipped, trained.tokenizer, world, seed=recipe.seed)
    record = {
        "world": world.parameters,
        "world_fingerprint": world.fingerprint,
        "recipe": asdict(recipe),
        "n_subjects": len(world.subjects),
        "n_facts": len(world.facts),
        "n_parameters": sum(p.numel() for p in trained.network.parameters()),
        "n_tokens": trained.n_tokens,
        "cpu_seconds": round(trained.cpu_seconds),
        "n_threads": torch.get_num_threads(),
        "recall": recall.to_record(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
        },
    }
    text = json.dumps(record, indent=2) + "\n"
    (folder / "training.json").write_text(text, encoding="utf-8")
    return recall


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--seed", default=0, show_default=True, help="Seeds the training.")
@click.option("--world-seed", default=0, show_default=True, help="Seeds the world.")
@click.option("--people", default=660, show_default=True, help="People in the world.")
@click.option("--places", default=320, show_default=True, help="Places in the world.")
@click.option("--companies", default=330, show_default=True, help="Companies in the world.")
@click.option("--works", default=330, show_default=True, help="Works in the world.")
@click.option("--steps", default=Recipe().n_steps, show_default=True, help="Optimizer steps.")
@click.option("--threads", default=1, show_default=True, help="Threads of torch.")
def main(
    out: Path,
    seed: int,
    world_seed: int,
    people: int,
    places: int,
    companies: int,
    works: int,
    steps: int,
    threads: int,
) -> None:
    """Train a small GPT-J on a synthetic world and write it as a Hugging Face folder."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    world = World(
        world_seed, n_people=people, n_places=places, n_companies=companies, n_works=works
    )
    recipe = replace(Recipe(), seed=seed, n_steps=steps)
    logger.info("%d subjects, %d facts", len(world.subjects), len(world.facts))
    trained = train(world, recipe)
    recall = save_trained(trained, world, recipe, out)
    logger.info("%s: %s", out, recall)


if __name__ == "__main__":
    main()
