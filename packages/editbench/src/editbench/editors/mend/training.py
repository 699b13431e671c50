"""Training a hypernetwork for one model: it can be killed at any time, and taken up again."""

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editbench.editors.mend.examples import (
    check_cases,
    draw_batch,
    draw_example,
    select_trainable,
)
from editbench.editors.mend.hypernetwork import Hypernetwork
from editbench.editors.mend.objective import Losses, measure_losses, measure_parts
from editbench.editors.mend.trained_file import TrainingRecord, read_state, write_state
from editbench.editors.mend.training_config import MendTraining
from editbench.editors.training.matrices import find_matrices
from editbench.edits.card import package_versions
from editbench.errors import ConfigError, EditError
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import Halving
from editbench.progress import Progress
from editbench.requests import EditCase

STAGE = "training"
_OUT_OF_TIME = "time was used up"
_CHECKPOINT_SECONDS = 60.0

ValidationLoss = tuple[int, float, float, float, float]


@dataclass(frozen=True, slots=True)
class DataOrigin:
    """What the cases are called and hash to.

    Attributes:
        dataset: Name of the dataset that is trained on.
        dataset_fingerprint: Hash of its content.
        validation: Name of the validation dataset; None where cases of `dataset` are held out.
        validation_fingerprint: Hash of its content.
    """

    dataset: str
    dataset_fingerprint: str
    validation: str | None = None
    validation_fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class TrainedHypernetwork:
    """What a training leaves behind.

    Attributes:
        tensors: The network's, as they were at the best validation.
        record: Where they come from.
        ended: Why the training ended, in words.
        may_go_on: Whether time alone ended it, so that with more of it the checkpoint is of use.
    """

    tensors: dict[str, Tensor]
    record: TrainingRecord
    ended: str
    may_go_on: bool


@dataclass
class _State:
    """Where a training stands, besides network and optimizer."""

    step: int = 0
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    losses: list[ValidationLoss] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def best_loss(self) -> float:
        """The lowest validation loss so far."""
        return min((loss[1] for loss in self.losses), default=math.inf)

    @property
    def n_stale(self) -> int:
        """How many validations there have been since the best one."""
        return sum(loss[0] > self.best_step for loss in self.losses)


def hold_out(
    cases: Sequence[EditCase], share: float, seed: int
) -> tuple[list[EditCase], list[EditCase]]:
    """Split cases by their subjects, so that none is on both sides.

    Args:
        cases: All cases.
        share: Share of the subjects that is held out; at least one is, and one is left.
        seed: Draws them.

    Returns:
        Cases to train on, and cases to validate on.

    Raises:
        ConfigError: There are fewer than two subjects.
    """
    subjects = sorted({case.request.subject for case in cases})
    if len(subjects) < 2:
        raise ConfigError(
            "train mend: holding out subjects for validation takes at least two of them, got "
            f"{len(subjects)}. Give more cases, or a dataset with --validation."
        )
    random.Random(f"mend/{seed}/hold-out").shuffle(subjects)
    held_out = set(subjects[: min(len(subjects) - 1, max(1, round(share * len(subjects))))])
    return (
        [case for case in cases if case.request.subject not in held_out],
        [case for case in cases if case.request.subject in held_out],
    )


def train_hypernetwork(
    model: EditableModel,
    cases: Sequence[EditCase],
    validation_cases: Sequence[EditCase],
    config: MendTraining,
    data: DataOrigin,
    *,
    seed: int,
    report_progress: Progress,
    max_seconds: float | None = None,
    checkpoint: Path | None = None,
) -> TrainedHypernetwork:
    """Train a hypernetwork until validation no longer improves, or time or steps are used up.

    The same arguments, machine, number of threads and torch version give the same bits, also if the
    training was killed and taken up again in between. The global random state is left alone.

    Args:
        model: The model that it is for; it is left as it is.
        cases: What to train on.
        validation_cases: What decides when to stop, and which state of the network is kept.
        config: The training's settings.
        data: What the cases are called.
        seed: Source of every random choice.
        report_progress: Told about every step, with the latest losses.
        max_seconds: When to stop at the latest, counted over all sessions of the training.
        checkpoint: Where the training is kept about once a minute; if it exists, it is gone on
            with.

    Raises:
        DataError: The cases lack what training needs.
        RequestError: One of them cannot be put into the model's tokens.
        ConfigError: The settings are at odds, or the checkpoint is of another training.
        EditError: A loss is not finite, or the checkpoint cannot be read or written.
        ModelError: The model is edited.
    """
    if config.batch_size % config.edits_at_once:
        raise ConfigError(
            f"train mend: edits_at_once must divide batch_size, got {config.edits_at_once} and "
            f"{config.batch_size}."
        )
    model.check_unedited("train mend")
    cases = select_trainable(cases, data.dataset)
    validation_cases = select_trainable(validation_cases, data.validation or data.dataset)
    check_cases(model.tokens, [*cases, *validation_cases])
    training = _Training(model, cases, validation_cases, config, data, seed)
    if checkpoint is not None and checkpoint.exists():
        training.restore(checkpoint)
    ended = training.run(report_progress, max_seconds, checkpoint)
    state = training.state
    return TrainedHypernetwork(
        state.best, training.record(finished=True), ended, may_go_on=ended == _OUT_OF_TIME
    )


@dataclass
class _Training:
    """One training: network, optimizer, and how far it has come."""

    model: EditableModel
    cases: Sequence[EditCase]
    validation_cases: Sequence[EditCase]
    config: MendTraining
    data: DataOrigin
    seed: int
    state: _State = field(default_factory=_State)

    def __post_init__(self) -> None:
        config = self.config
        self.halving = Halving(f"training mend on '{self.model.name}'")
        matrices = find_matrices(self.model, config.blocks)
        network = Hypernetwork(matrices, rank=config.rank, rate=config.initial_rate, seed=self.seed)
        self.network = network.to(self.model.device)
        rates = [network.rate_of(matrix.name) for matrix in matrices]
        others = [p for p in network.parameters() if all(p is not rate for rate in rates)]
        self.adam = torch.optim.Adam(
            [
                {"params": others, "lr": config.learning_rate},
                {"params": rates, "lr": config.rate_learning_rate},
            ]
        )

    def run(
        self, report_progress: Progress, max_seconds: float | None, checkpoint: Path | None
    ) -> str:
        """Train; return why it ended."""
        config, state = self.config, self.state
        began = time.monotonic() - state.seconds
        saved = time.monotonic()
        while True:
            state.seconds = time.monotonic() - began
            is_late = max_seconds is not None and state.seconds >= max_seconds
            is_last = is_late or state.step == config.max_steps
            if is_last or state.step % config.validation_interval == 0:
                self.validate()
                if checkpoint is not None:
                    self.save(checkpoint)
                    saved = time.monotonic()
            if is_last:
                return _OUT_OF_TIME if is_late else "all steps were taken"
            if state.n_stale >= config.patience:
                return "validation no longer improved"
            loss = self.take_step()
            _, best, *_ = min(state.losses, key=lambda each: each[1])
            note = f"loss {loss:.3f}, validation {state.losses[-1][1]:.3f}, best {best:.3f}"
            report_progress(STAGE, state.step, config.max_steps, note)
            if checkpoint is not None and time.monotonic() - saved > _CHECKPOINT_SECONDS:
                state.seconds = time.monotonic() - began
                self.save(checkpoint)
                saved = time.monotonic()

    def take_step(self) -> float:
        """Take one step of the optimizer; return the loss before it."""
        config = self.config
        # Drawn by step, so that a training that is taken up again draws the same.
        rng = random.Random(f"mend/{self.seed}/step/{self.state.step}")
        drawn = draw_batch(self.cases, config.batch_size, config.edits_at_once, rng)
        examples = [draw_example(self.model.tokens, c, config.n_neighbors, rng) for c in drawn]
        parameters = list(self.network.parameters())

        def differentiate(part: Losses) -> tuple[float, Sequence[Tensor | None]]:
            loss = config.edit_weight * part.edit + config.locality_weight * part.locality
            return loss.item(), torch.autograd.grad(loss, parameters, allow_unused=True)

        self.adam.zero_grad()
        total = 0.0
        for loss, gradients in measure_parts(
            self.model,
            self.network,
            examples,
            config.edits_at_once,
            differentiate,
            self.halving,
            observe=True,
        ):
            total += loss
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    before = parameter.grad
                    parameter.grad = gradient if before is None else before + gradient
        if not math.isfinite(total):
            raise EditError(
                f"train mend: the loss is not finite in step {self.state.step + 1}, got "
                f"{total}. Use a smaller learning rate or initial rate."
            )
        nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_norm)
        self.adam.step()
        self.state.step += 1
        return total

    @torch.no_grad()
    def validate(self) -> None:
        """Measure the losses on the same validation edits every time; keep the best network."""
        config, state = self.config, self.state
        if state.losses and state.losses[-1][0] == state.step:
            return
        rng = random.Random(f"mend/{self.seed}/validation")
        n_edits = min(config.validation_cases, len(self.validation_cases))
        drawn = draw_batch(self.validation_cases, n_edits, config.edits_at_once, rng)
        examples = [draw_example(self.model.tokens, c, config.n_neighbors, rng) for c in drawn]
        edit = locality = recall = 0.0
        for start in range(0, len(examples), config.batch_size):
            batch = examples[start : start + config.batch_size]
            losses = measure_losses(
                self.model, self.network, batch, config.edits_at_once, observe=False
            )
            share = len(batch) / len(examples)
            edit += losses.edit.item() * share
            locality += losses.locality.item() * share
            recall += losses.recall.item() * share
        loss = config.edit_weight * edit + config.locality_weight * locality
        if loss < state.best_loss:
            tensors = self.network.state_dict()
            state.best = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
            state.best_step = state.step
        state.losses.append((state.step, loss, edit, locality, recall))

    def record(self, *, finished: bool) -> TrainingRecord:
        """Say where the network comes from."""
        state = self.state
        return TrainingRecord(
            model_name=self.model.name,
            model_fingerprint=self.model.fingerprint,
            **asdict(self.data),
            seed=self.seed,
            config=self.config,
            matrices=tuple(matrix.name for matrix in self.network.matrices),
            steps=state.step if finished else None,
            best_step=state.best_step if finished else None,
            validation_losses=tuple(state.losses) if finished else (),
            versions=package_versions(),
        )

    def save(self, path: Path) -> None:
        """Keep everything that is needed to go on."""
        tensors = {f"network.{name}": each for name, each in self.network.state_dict().items()}
        tensors |= {f"best.{name}": each for name, each in self.state.best.items()}
        for index, moments in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": each for name, each in moments.items()}
        metadata = {
            "origin": self.record(finished=False).origin,
            "step": self.state.step,
            "best_step": self.state.best_step,
            "losses": self.state.losses,
            "seconds": self.state.seconds,
        }
        write_state(path, tensors, metadata)

    def restore(self, path: Path) -> None:
        """Go on where a checkpoint was saved.

        Raises:
            ConfigError: It is of another training; the message says what differs.
            EditError: It cannot be read.
        """
        tensors, metadata = read_state(path)
        ours, theirs = self.record(finished=False).origin, metadata.get("origin")
        if theirs != ours:
            raise ConfigError(
                f"train mend: {path} belongs to another training, {_describe_change(theirs, ours)}"
                ". Repeat the command that began it, or remove the file to begin anew."
            )
        try:
            self._take_up(tensors, metadata)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise EditError(
                f"train mend: {path} does not hold what a training keeps, got {reason}. Remove the "
                "file to begin anew."
            ) from error

    def _take_up(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        parts: dict[str, dict[str, Any]] = {"network": {}, "best": {}, "adam": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.network.load_state_dict(parts["network"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["adam"].items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = tensor
        self.adam.load_state_dict({**self.adam.state_dict(), "state": moments})
        losses = [(int(step), *rest) for step, *rest in metadata["losses"]]
        self.state = _State(
            metadata["step"], metadata["best_step"], parts["best"], losses, metadata["seconds"]
        )


def _describe_change(theirs: object, ours: dict[str, Any]) -> str:
    if not isinstance(theirs, dict):
        return "or is no checkpoint"
    for name, value in ours.items():
        if theirs.get(name) != value:
            return f"got {name} {theirs.get(name)!r}; expected {value!r}"
    return "got other fields than expected"
