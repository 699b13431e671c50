"""The optimization of z for one chunk of edits: steps until the loss is low enough."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter

import torch
from torch import Tensor

from editbench.editors.keys.reading import read_hidden
from editbench.editors.targets.loss import TargetLoss
from editbench.editors.targets.offsets import Offsets
from editbench.editors.targets.settings import TargetSettings
from editbench.editors.targets.tasks import TargetTask
from editbench.errors import EditError
from editbench.models.continuing import find_continuing
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import is_out_of_memory
from editbench.replay.block_calls import ReplayMismatchError
from editbench.replay.offset_forward import FullForward, OffsetForward, OffsetSite
from editbench.replay.prefix_states import PrefixStates
from editbench.replay.reach import Reach
from editbench.replay.suffix_replay import SuffixReplay
from editbench.requests import EditRequest

_N_NAMED = 3


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

    @property
    def is_finite(self) -> bool:
        """Whether it is usable: half precision overflows, and some steps are too long.

        With a loss that is not finite, the state may be, since no step could be taken from there.
        """
        return bool(torch.isfinite(self.state).all()) and abs(self.loss) < float("inf")


def refuse_overflowed(
    editor: str, model: EditableModel, requests: Sequence[EditRequest], finite: Sequence[bool]
) -> None:
    """Refuse an edit of which some target hidden states are not finite: it would be NaN throughout.

    Args:
        editor: The editor's name, for the message.
        model: The model that they were optimized on.
        requests: The facts.
        finite: Of each fact, whether its state and loss are finite.

    Raises:
        EditError: One is not. The message names some of the requests and the model's dtype, and
            says how to mend it.
    """
    overflowed = [one for one, is_good in zip(requests, finite, strict=True) if not is_good]
    if not overflowed:
        return
    named = ", ".join(f"'{one.text}' → '{one.target}'" for one in overflowed[:_N_NAMED])
    more = len(overflowed) - _N_NAMED
    rest = f" and {more} more" if more > 0 else ""
    dtype = str(model.model.dtype).removeprefix("torch.")
    mend = "Lower the learning rate (learning_rate)"
    if model.model.dtype == torch.float16:  # its largest number is 65,504
        mend = f"Load the model with --dtype float32 or bfloat16, or l{mend[1:]}"
    raise EditError(
        f"{editor} on '{model.name}': the target hidden states of {len(overflowed)} of "
        f"{len(requests)} requests are not finite, got NaN or infinity in {dtype} for "
        f"{named}{rest}. {mend}."
    )


class TargetOptimizer:
    """Optimizes the offsets of one chunk of edits together.

    Finished edits leave: once half of a chunk is done, the rest goes on without them.

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
        """Optimize one chunk.

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
        loss = self._make_loss(tasks)
        if initial is None:
            initial = loss.initial
        if initial is None:
            initial = read_hidden(self._model, [task.bare for task in tasks], self._site.layer)
        offsets = Offsets(initial, settings)
        if start is not None:
            loss.compare_with(offsets.values)
            offsets.start_from(start)
        n_said = torch.zeros(len(tasks), device=initial.device)  # how often the target was
        places = list(range(len(tasks)))  # which of `tasks` each row of the chunk is
        finished: dict[int, FinishedTarget] = {}
        for step in range(1, settings.n_steps + 1):
            losses = loss.measure(offsets)
            values = losses.detach().tolist()
            is_done = losses.detach() < settings.stop_loss
            if settings.stop_at == "argmax":
                n_said += loss.says_target()
                is_done |= n_said >= settings.stop_after
            done = is_done.tolist()
            going = []
            for row, place in enumerate(places):
                if place in finished:
                    continue
                if done[row] or step == settings.n_steps:
                    h, offset = offsets.initial[row], offsets.values[row]
                    state = (h + offset).detach().cpu()
                    finished[place] = FinishedTarget(state, h.cpu(), values[row], step)
                else:
                    going.append(row)
            rest = going or range(len(places))
            on_step(step, len(finished), sum(values[row] for row in rest) / len(rest))
            if not going:
                break
            offsets.step(losses)
            if len(going) <= len(places) // 2:
                places = [places[row] for row in going]
                offsets.keep(going)
                n_said = n_said[going]
                loss = loss.of_some(going, self._make_loss)
        return [finished[place] for place in range(len(tasks))]

    def _make_loss(
        self,
        tasks: Sequence[TargetTask],
        *,
        known: Sequence[PrefixStates] = (),
        original: Tensor | None = None,
    ) -> TargetLoss:
        if self.replays and self._reach is None:
            self._try_replay(_most_different(tasks))
        build: Callable[..., OffsetForward] = FullForward
        if self.replays:
            build = partial(SuffixReplay, reach=self._reach, known=known)
        return TargetLoss(self._model, self._site, self._settings, tasks, build, original)

    def _try_replay(self, tasks: Sequence[TargetTask]) -> None:
        """Compare replay with the model's own forward, on some rows of a few edits."""
        if find_continuing(self._model) != "padded":
            self.replays = False
            self.replay_failure = "suffix replay: rows do not go on from keys and values alone."
            return
        self._site = self._site.outermost_equivalent(self._model, tasks[0].bare.token_ids)
        some = [replace(task, prompts=(task.prompts[0], task.prompts[-1])) for task in tasks]
        try:
            tried = TargetLoss(self._model, self._site, self._settings, some, SuffixReplay)
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
