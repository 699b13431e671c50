"""Tracing one prompt: every (token, layer) cell of every kind."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from editbench.errors import ModelError
from editbench.models.continuing import find_continuing
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import Halving, is_out_of_memory
from editbench.replay.block_calls import ReplayMismatchError
from editbench.replay.reach import Reach
from editbench.tracing.block_replay import ReplayArguments
from editbench.tracing.noise import draw_noise
from editbench.tracing.plain import score_plainly
from editbench.tracing.replay import MODULE_KINDS, PromptReplay
from editbench.tracing.routes import Route
from editbench.tracing.runs import Runs, module_paths, run_clean_and_corrupted
from editbench.tracing.settings import (
    SEVERED_KINDS,
    SEVERED_MODULE,
    Kind,
    SeveredKind,
    TraceSettings,
    window_around,
)
from editbench.tracing.traces import PromptTrace, Scores, TracedPrompt

# What an architecture may do about a cache or a shape that it does not expect.
_UNEXPECTED = (ModelError, RuntimeError, ValueError, TypeError)


class Tracer:
    """Traces prompts of one model.

    Cells are computed together by replay. For the first prompt of each length one is computed
    plainly as well; where the two disagree, everything is computed plainly from then on.

    Attributes:
        replay_failure: Why replay was given up; None where it was not.

    Raises:
        ModelError: Attention is traced, and a block has none.
    """

    def __init__(self, model: EditableModel, settings: TraceSettings) -> None:
        for kind in settings.traced_kinds:
            module_paths(model, SEVERED_MODULE.get(kind, kind))
        self.replay_failure: str | None = None
        if find_continuing(model) != "padded":
            self.replay_failure = "replay: rows do not go on from keys and values alone."
        self._model = model
        self._settings = settings
        self._n_layers = model.architecture.n_layers
        self._arguments = ReplayArguments(model)
        self._halving = Halving(f"tracing '{model.name}'")
        self._reach: Reach | None = None  # nobody knows yet
        self._checked_lengths: set[int] = set()

    def trace(self, prompt: TracedPrompt, *, only_last_subject: bool = False) -> PromptTrace:
        """Trace one prompt.

        Args:
            prompt: The prompt.
            only_last_subject: Leave out all tokens but the last of the subject; their scores are
                NaN.

        Raises:
            DeviceMemoryError: There is not enough memory for a single cell.
        """
        noise = draw_noise(self._model, prompt, self._settings)
        reach = self._find_reach()
        keep = [path for paths in reach.unmoved.values() for path in paths]
        runs = run_clean_and_corrupted(self._model, prompt, noise, keep)
        tokens = prompt.subject[-1:] if only_last_subject else range(len(prompt.token_ids))
        routes = {
            (kind, token): self._routes(kind, token)
            for kind in self._settings.traced_kinds
            for token in (prompt.subject[-1:] if kind in SEVERED_KINDS else tokens)
        }
        wanted = [route for group in routes.values() for route in group]
        found = self._score(prompt, noise, runs, wanted)
        scores: dict[Kind | SeveredKind, Scores] = {}
        for (kind, token), group in routes.items():
            row = [found[route] for route in group]
            if kind in SEVERED_KINDS:
                scores[kind] = np.array(row)
            else:
                shape = (len(prompt.token_ids), self._n_layers)
                scores.setdefault(kind, np.full(shape, np.nan))[token] = row
        return PromptTrace(prompt, runs.high_score, runs.low_score, scores)

    def _routes(self, kind: Kind | SeveredKind, token: int) -> list[Route]:
        """The route of each layer's cell at a token."""
        n, width = self._n_layers, self._settings.window if kind in MODULE_KINDS else 1
        return [Route(kind, token, *window_around(layer, width, n)) for layer in range(n)]

    def _score(
        self, prompt: TracedPrompt, noise: Tensor, runs: Runs, routes: Sequence[Route]
    ) -> dict[Route, float]:
        if self.replay_failure is None:
            try:
                return self._score_by_replay(prompt, noise, runs, routes)
            except ReplayMismatchError as error:
                self.replay_failure = str(error)
        return {
            route: score_plainly(self._model, prompt, noise, runs, route)
            for route in dict.fromkeys(routes)
        }

    def _find_reach(self) -> Reach:
        """Which modules can be spared; found out once."""
        last = self._n_layers - 1
        if self._reach is None and self.replay_failure is None:
            try:
                self._reach = Reach.find(self._model, 0, last, range(self._n_layers))
            except _UNEXPECTED as error:
                if is_out_of_memory(error):
                    raise
                self.replay_failure = f"replay: {error}"
        return self._reach or Reach.unknown(last)

    def _score_by_replay(
        self, prompt: TracedPrompt, noise: Tensor, runs: Runs, routes: Sequence[Route]
    ) -> dict[Route, float]:
        is_new_length = len(prompt.token_ids) not in self._checked_lengths
        try:
            replay = PromptReplay(
                self._model, prompt, runs, self._arguments, self._find_reach(), self._halving
            )
            found = replay.scores(routes)
        except _UNEXPECTED as error:
            # Where the architecture's replay has worked before, the same error is a defect.
            if not is_new_length or is_out_of_memory(error):
                raise
            raise ReplayMismatchError(f"replay: {error}") from error
        if is_new_length:
            self._check(prompt, noise, runs, found)
            self._checked_lengths.add(len(prompt.token_ids))
        return found

    def _check(
        self, prompt: TracedPrompt, noise: Tensor, runs: Runs, found: dict[Route, float]
    ) -> None:
        """Compute one cell plainly, of the first prompt one of each kind.

        Raises:
            ReplayMismatchError: One of them differs.
        """
        tolerance = max(1e-4, 8 * torch.finfo(self._model.model.dtype).eps)
        # How kinds differ has nothing to do with length; masks and caches have.
        kinds = self._settings.traced_kinds
        for kind in kinds[:1] if self._checked_lengths else kinds:
            route = self._routes(kind, prompt.subject[-1])[self._n_layers // 2]
            plain = score_plainly(self._model, prompt, noise, runs, route)
            worst = abs(found[route] - plain)
            if not worst <= tolerance:
                raise ReplayMismatchError(
                    f"replay: a score of kind '{kind}' differs from the model's own by "
                    f"{worst:.2e}; expected at most {tolerance:.2e}."
                )
