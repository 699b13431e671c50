"""The optimisation of z for one batch of edits: losses, Adam, the norm bound and the stop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from operator import attrgetter

import torch
from torch import Tensor
from torch.nn import functional

from editbench.editors.keys.subject_reading import read_hidden
from editbench.editors.subject_tokens import PromptRow, essence_row, key_row, target_row
from editbench.editors.targets.settings import TargetSettings
from editbench.errors import ModelError
from editbench.models.continuing import find_continuing
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import is_out_of_memory
from editbench.models.tokens import Tokens
from editbench.replay.block_calls import ReplayMismatchError
from editbench.replay.offset_forward import (
    FullForward,
    OffsetForward,
    OffsetRow,
    OffsetSite,
)
from editbench.replay.prefix_states import PrefixStates, count_shared
from editbench.replay.reach import Reach
from editbench.replay.suffix_replay import SuffixReplay
from editbench.requests import EditRequest

_ADAM_BETAS = (0.9, 0.999)
_ADAM_EPSILON = 1e-8
_REFERENCE_COUNT = 5  # ENCORE's code takes the number of its prefixes for that of their tokens


@dataclass(frozen=True, slots=True)
class TargetTask:
    """One edit in tokens.

    Attributes:
        index: The edit's place among all requests.
        bare: The bare prompt up to the subject's last token: where h is read.
        prompts: The prompt after each context prefix, with the target behind it.
        essence: The row of the KL term.
        has_prefix: Of each prompt, whether there is anything in its prefix.
    """

    index: int
    bare: PromptRow
    prompts: tuple[PromptRow, ...]
    essence: PromptRow
    has_prefix: tuple[bool, ...]

    @classmethod
    def of(
        cls, tokens: Tokens, index: int, request: EditRequest, prefixes: Sequence[str]
    ) -> "TargetTask":
        """Tokenize one request after every context prefix."""
        return cls(
            index,
            key_row(tokens, request, ""),
            tuple(target_row(tokens, request, prefix) for prefix in prefixes),
            essence_row(tokens, request.subject),
            tuple(bool(prefix) for prefix in prefixes),
        )

    @classmethod
    def joined(cls, tasks: Sequence["TargetTask"]) -> "TargetTask":
        """One edit that writes several facts about a subject; h is the first one's."""
        prompts = tuple(prompt for task in tasks for prompt in task.prompts)
        has_prefix = tuple(has for task in tasks for has in task.has_prefix)
        return replace(tasks[0], prompts=prompts, has_prefix=has_prefix)

    @property
    def bare_prompt(self) -> int | None:
        """Which of the prompts begins as the bare one does; None if each has something before."""
        begins = (row.token_ids[: row.subject_last + 1] for row in self.prompts)
        return next((place for place, ids in enumerate(begins) if ids == self.bare.token_ids), None)

    @property
    def suffix_width(self) -> int:
        """Tokens from the subject's last one on, in the longest row."""
        return max(len(row.token_ids) - row.subject_last for row in self.prompts)

    @property
    def prefix_width(self) -> int:
        """Tokens before the subject's last one, in the longest row."""
        return max(row.subject_last for row in (*self.prompts, self.essence))


@dataclass(frozen=True, slots=True)
class FinishedTarget:
    """The outcome for one edit.

    Attributes:
        state: z = h + δ, float32 `[d_model]`, on the CPU.
        initial: h, likewise.
        loss: Total loss at the returned δ.
        n_steps: Forward passes taken.
    """

    state: Tensor
    initial: Tensor
    loss: float
    n_steps: int


class _Batch:
    """The edits still being optimised, with the forwards that measure them."""

    def __init__(
        self,
        model: EditableModel,
        site: OffsetSite,
        settings: TargetSettings,
        tasks: Sequence[TargetTask],
        build: Callable[..., OffsetForward],
    ) -> None:
        device = model.device
        self.tasks = tasks
        rows: list[OffsetRow] = []
        row_edit: list[int] = []
        weights: list[float] = []
        target_ids: list[int] = []
        stops_by: list[bool] = []
        columns = list(zip_longest(*(task.prompts for task in tasks)))
        columns.append(tuple(task.essence for task in tasks))
        *n_shared, n_essence = (
            count_shared([row.token_ids[: row.subject_last] for row in column if row is not None])
            for column in columns
        )
        self._bare_rows: list[int] = []
        for edit, task in enumerate(tasks):
            if task.bare_prompt is not None:
                self._bare_rows.append(len(rows) + task.bare_prompt)
            counts = task.has_prefix
            if settings.stop_rule == "every-prompt" or not any(counts):
                counts = (True,) * len(task.prompts)
            for row, n, is_counted in zip(task.prompts, n_shared, counts, strict=False):
                reads = range(row.target_start, row.target_start + len(row.target_ids))
                rows.append(OffsetRow(row.token_ids, row.subject_last, tuple(reads), n))
                row_edit.append(edit)
                weights += [1 / (len(reads) * len(task.prompts))] * len(reads)
                target_ids += row.target_ids
                stops_by += [is_counted] * len(reads)
        essence = [
            OffsetRow(row.token_ids, row.subject_last, (row.subject_last,), n_essence)
            for row in (task.essence for task in tasks)
        ]
        self._row_edit = torch.tensor(row_edit, device=device)
        self._weights = torch.tensor(weights, device=device)
        self._target_ids = torch.tensor(target_ids, device=device)
        self._stop = settings
        self._stops_by = torch.tensor(stops_by, device=device)
        self._is_missed = torch.ones(len(target_ids), device=device)
        self._essence: OffsetForward | None = None
        if settings.reads_last_layer(model.architecture.n_layers):
            self._prompts = build(model, site, [*rows, *essence])
            everyone = torch.arange(len(tasks), device=device)
            self._row_edit = torch.cat([self._row_edit, everyone])
        else:
            self._prompts = build(model, site, rows, settings.loss_layer)
            self._essence = build(model, site, essence)
        read_rows = self._prompts.read_rows[: len(target_ids)]
        self._read_edit = self._row_edit[read_rows]

    @property
    def known_prefixes(self) -> list[PrefixStates]:
        """What smaller batches of the same edits need not run again."""
        forwards = (self._prompts, self._essence)
        return [forward.prefixes for forward in forwards if isinstance(forward, SuffixReplay)]

    @property
    def initial(self) -> Tensor | None:
        """What the site says at the bare prompts' subjects, float32 `[n_edits, d_model]`.

        None where that was not computed on the way.
        """
        states = self._prompts.entry if isinstance(self._prompts, SuffixReplay) else None
        if states is None or len(self._bare_rows) < len(self.tasks):
            return None
        return states[self._bare_rows].float().to(self._row_edit.device)

    @property
    def reach(self) -> Reach | None:
        """What later batches need not find out again."""
        return self._prompts.reach if isinstance(self._prompts, SuffixReplay) else None

    def measure(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Run all rows with `offsets` `[n_edits, d_model]`.

        Returns:
            The mean over prefixes of the target's mean −log p, `[n_edits]`, and the next-token
            log-probabilities right after the subject, `[n_edits, vocabulary]`.
        """
        losses, essence = self._prompts.losses(
            offsets[self._row_edit], len(self._target_ids), self._loss
        )
        if self._essence is not None:
            essence = self._essence.logits(offsets)
        negative_log_likelihood = torch.zeros(len(self.tasks), device=losses.device).index_add(
            0, self._read_edit, losses * self._weights
        )
        return negative_log_likelihood, essence.float().log_softmax(dim=-1)

    def says_target(self) -> Tensor:
        """Whose target was the likeliest by the stop rule when measured last, `[n_edits]`.

        Nobody's, unless the settings say to stop at it.
        """
        is_reference = self._stop.stop_rule == "reference"
        noted = 1 - self._is_missed if is_reference else self._is_missed
        n_noted = self._is_missed.new_zeros(len(self.tasks))
        n_noted.index_add_(0, self._read_edit, noted * self._stops_by)
        return n_noted == (_REFERENCE_COUNT if is_reference else 0)

    def _loss(self, logits: Tensor, reads: slice) -> Tensor:
        """−log p of the targets at `reads`, from their logits `[n, vocabulary]`."""
        target_ids = self._target_ids[reads]
        if self._stop.stop_at == "argmax":
            self._is_missed[reads] = (logits.detach().argmax(dim=1) != target_ids).float()
        return functional.cross_entropy(logits.float(), target_ids, reduction="none")


class TargetOptimizer:
    """Optimises the offsets of one chunk of edits together.

    Finished edits leave: once half of a batch is done, the rest goes on without them.

    Attributes:
        replays: Whether suffix replay is used; turns False, with `replay_failure` set, where the
            architecture does not allow it.
    """

    def __init__(
        self, model: EditableModel, site: OffsetSite, settings: TargetSettings, *, replay: bool
    ) -> None:
        self._model = model
        self._site = site
        self._settings = settings
        self._reach: Reach | None = None
        self.replays = replay
        self.replay_failure: str | None = None

    def run(
        self,
        tasks: Sequence[TargetTask],
        on_step: Callable[[int, int, float], None],
        *,
        initial: Tensor | None = None,
        start: Tensor | None = None,
    ) -> list[FinishedTarget]:
        """Optimise one chunk.

        Args:
            tasks: The edits of the chunk.
            on_step: Told, after each step, the step, how many edits are finished, and the mean
                loss of those that are not.
            initial: h of each edit, float32 `[n_edits, d_model]`: what the site's module says
                at the bare prompt's subject. δ's bounds are relative to it. None is for a block's
                output, and takes it from the prompts' own forward, or another one.
            start: Offsets to start from, `[n_edits, d_model]`; None is zero.

        Returns:
            The outcomes, in the order of `tasks`.
        """
        settings = self._settings
        batch = self._prepare(tasks)
        if initial is None:
            initial = batch.initial
        if initial is None:
            initial = read_hidden(self._model, [task.bare for task in tasks], self._site.layer)
        places = list(range(len(tasks)))  # which of `tasks` each row of the batch is
        finished: dict[int, FinishedTarget] = {}
        norms = initial.norm(dim=1)
        offsets = torch.zeros_like(initial)
        mean, square = torch.zeros_like(offsets), torch.zeros_like(offsets)
        n_said = torch.zeros(len(tasks), device=offsets.device)
        original: Tensor | None = None
        if start is not None:
            with torch.no_grad():
                original = batch.measure(offsets)[1]
            offsets = _within(start.to(offsets), settings.clamp_factor * norms)
        for step in range(1, settings.n_steps + 1):
            offsets.requires_grad_()
            likelihoods, log_probs = batch.measure(offsets)
            original = log_probs.detach().clone() if original is None else original
            losses = (
                likelihoods
                + settings.kl_weight * (log_probs.exp() * (log_probs - original)).sum(dim=1)
                + settings.offset_decay * torch.linalg.vector_norm(offsets, dim=1) / norms.square()
            )
            if not losses.requires_grad or likelihoods.grad_fn is None:  # Reformer has its own way
                raise ModelError(
                    f"target hidden states on '{self._model.name}': no gradient comes back through "
                    "its blocks, so no state can be optimized. Use an editor without states, such "
                    "as ft-w."
                )
            values = losses.detach().tolist()
            is_done = losses.detach() < settings.stop_loss
            if settings.stop_at == "argmax":
                n_said += batch.says_target()
                is_done |= n_said >= settings.stop_after
            done = is_done.tolist()
            going = []
            for row, place in enumerate(places):
                if place in finished:
                    continue
                if done[row] or step == settings.n_steps:
                    state = (initial[row] + offsets[row]).detach().cpu()
                    finished[place] = FinishedTarget(state, initial[row].cpu(), values[row], step)
                else:
                    going.append(row)
            rest = going or range(len(places))
            on_step(step, len(finished), sum(values[row] for row in rest) / len(rest))
            if not going:
                break
            (gradient,) = torch.autograd.grad(losses.sum(), offsets)
            offsets = offsets.detach()
            mean.lerp_(gradient, 1 - _ADAM_BETAS[0])
            square.lerp_(gradient.square(), 1 - _ADAM_BETAS[1])
            scale = (square / (1 - _ADAM_BETAS[1] ** step)).sqrt() + _ADAM_EPSILON
            rates = self._learning_rates(norms)[:, None] / (1 - _ADAM_BETAS[0] ** step)
            offsets -= rates * mean / scale
            offsets = _within(offsets, settings.clamp_factor * norms)
            if len(going) <= len(places) // 2:
                places = [places[row] for row in going]
                initial, norms, offsets = initial[going], norms[going], offsets[going]
                mean, square, original = mean[going], square[going], original[going]
                n_said = n_said[going]
                batch = self._prepare([batch.tasks[row] for row in going], batch.known_prefixes)
        return [finished[place] for place in range(len(tasks))]

    def _learning_rates(self, norms: Tensor) -> Tensor:
        rate = self._settings.learning_rate
        if self._settings.learning_rate_unit == "relative":
            return rate * norms / self._model.architecture.d_model**0.5
        return torch.full_like(norms, rate)

    def _prepare(self, tasks: Sequence[TargetTask], known: Sequence[PrefixStates] = ()) -> _Batch:
        if self.replays and self._reach is None:
            self._try_replay(_most_different(tasks))
        build: Callable[..., OffsetForward] = FullForward
        if self.replays:
            build = partial(SuffixReplay, reach=self._reach, known=known)
        return _Batch(self._model, self._site, self._settings, tasks, build)

    def _try_replay(self, tasks: Sequence[TargetTask]) -> None:
        """Compare replay with the model's own forward, on some rows of a few edits."""
        if find_continuing(self._model) != "padded":
            self.replays = False
            self.replay_failure = "suffix replay: rows do not go on from keys and values alone."
            return
        self._site = self._site.outermost_equivalent(self._model, tasks[0].bare.token_ids)
        some = [replace(task, prompts=(task.prompts[0], task.prompts[-1])) for task in tasks]
        try:
            tried = _Batch(self._model, self._site, self._settings, some, SuffixReplay)
            self._reach = tried.reach
        except ReplayMismatchError as error:
            self.replays, self.replay_failure = False, str(error)
        except (RuntimeError, AttributeError, TypeError, LookupError) as error:
            if is_out_of_memory(error):
                raise
            # A cache of a kind that nobody thought of breaks wherever it happens to.
            self.replays, self.replay_failure = False, f"{type(error).__name__}: {error}"


def _most_different(tasks: Sequence[TargetTask]) -> list[TargetTask]:
    """Of a chunk, the edits with the shortest and the longest prefix: most padding between parts.

    The chunk's edits are sorted by their suffixes, so that these differ less.
    """
    width = attrgetter("prefix_width")
    shortest, longest = (choose(tasks, key=width) for choose in (min, max))
    return [shortest] if shortest is longest else [shortest, longest]


def _within(offsets: Tensor, bounds: Tensor) -> Tensor:
    """Scale offsets down to norms of at most `bounds`, `[n_edits]`."""
    return offsets * (bounds / offsets.norm(dim=1)).clamp(max=1)[:, None]
