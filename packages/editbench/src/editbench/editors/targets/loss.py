"""z's loss: how likely the target is after every prefix, and what it may cost.

For each edit it is the mean over prefixes of the target's mean −log p, plus `kl_weight` times
KL(edited ‖ original) of the next-token distribution right after the subject, plus
`offset_decay`·‖δ‖/‖h‖². (The paper's Eqn 16 has the first term alone; the rest is what the
reference implementation does.)
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from editbench.editors.targets.offsets import Offsets
from editbench.editors.targets.settings import TargetSettings
from editbench.editors.targets.tasks import TargetRows, TargetTask
from editbench.errors import ModelError
from editbench.models.editable import EditableModel
from editbench.replay.offset_forward import OffsetForward, OffsetSite
from editbench.replay.prefix_states import PrefixStates
from editbench.replay.reach import Reach
from editbench.replay.suffix_replay import SuffixReplay

_REFERENCE_COUNT = 5  # ENCORE's code takes the number of its prefixes for that of their tokens


class TargetLoss:
    """The loss of some edits as a function of their offsets.

    Args:
        model: The model.
        site: Where offsets are added.
        settings: Weights of the terms.
        tasks: The edits.
        build: Makes a forward of rows.
        original: Log-probabilities right after the subject without offsets, `[n_edits,
            vocabulary]`; None takes those of the first measurement.
    """

    def __init__(
        self,
        model: EditableModel,
        site: OffsetSite,
        settings: TargetSettings,
        tasks: Sequence[TargetTask],
        build: Callable[..., OffsetForward],
        original: Tensor | None = None,
    ) -> None:
        device = model.device
        self.tasks = tasks
        self._model = model
        self._settings = settings
        self._original = original
        rows = TargetRows.of(tasks)
        self._bare_rows = rows.bare_rows
        self._row_edit = torch.tensor(rows.edits, device=device)
        self._weights = torch.tensor(rows.weights, device=device)
        self._target_ids = torch.tensor(rows.target_ids, device=device)
        self._is_missed = torch.ones(len(rows.target_ids), device=device)
        self._stops_by = torch.tensor(rows.are_prefixed, device=device)
        self._kl_rows: OffsetForward | None = None
        if settings.reads_last_layer(model.architecture.n_layers):
            self._prompts = build(model, site, [*rows.prompts, *rows.kl_rows])
            everyone = torch.arange(len(tasks), device=device)
            self._row_edit = torch.cat([self._row_edit, everyone])
        else:
            self._prompts = build(model, site, rows.prompts, settings.loss_layer)
            self._kl_rows = build(model, site, rows.kl_rows)
        read_rows = self._prompts.read_rows[: len(rows.target_ids)]
        self._read_edit = self._row_edit[read_rows]

    @property
    def initial(self) -> Tensor | None:
        """What the site says at the bare prompts' subjects, float32 `[n_edits, d_model]`.

        None where that was not computed on the way.
        """
        states = self._prompts.entry if isinstance(self._prompts, SuffixReplay) else None
        if states is None or self._bare_rows is None:
            return None
        return states[self._bare_rows].float().to(self._row_edit.device)

    @property
    def reach(self) -> Reach | None:
        """What later forwards need not find out again."""
        return self._prompts.reach if isinstance(self._prompts, SuffixReplay) else None

    def of_some(self, rows: Sequence[int], make: Callable[..., "TargetLoss"]) -> "TargetLoss":
        """The loss of some of the edits, which need not run all that is known of them again.

        Args:
            rows: Which of the edits.
            make: Makes the loss of tasks, with what is `known` of their prefixes, and `original`.
        """
        forwards = (self._prompts, self._kl_rows)
        known: list[PrefixStates] = [
            forward.prefixes for forward in forwards if isinstance(forward, SuffixReplay)
        ]
        original = None if self._original is None else self._original[rows]
        return make([self.tasks[row] for row in rows], known=known, original=original)

    @torch.no_grad()
    def compare_with(self, offsets: Tensor) -> None:
        """Let the KL term compare with what the model says with these offsets."""
        self._original = self._measure(offsets)[1]

    def measure(self, offsets: Offsets) -> Tensor:
        """Each edit's loss, `[n_edits]`, differentiable by the offsets' values.

        Raises:
            ModelError: No gradient comes back through the model.
        """
        settings, values = self._settings, offsets.values.requires_grad_()
        likelihoods, log_probs = self._measure(values)
        if self._original is None:
            self._original = log_probs.detach().clone()
        losses = (
            likelihoods
            + settings.kl_weight * (log_probs.exp() * (log_probs - self._original)).sum(dim=1)
            + settings.offset_decay
            * torch.linalg.vector_norm(values, dim=1)
            / offsets.norms.square()
        )
        if not losses.requires_grad or likelihoods.grad_fn is None:  # Reformer has its own way
            raise ModelError(
                f"target hidden states on '{self._model.name}': no gradient comes back through "
                "its blocks, so no state can be optimized. Use an editor without states, such as "
                "ft-w."
            )
        return losses

    def _measure(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Run all rows with `offsets` `[n_edits, d_model]`.

        Returns:
            The mean over prefixes of the target's mean −log p, `[n_edits]`, and the next-token
            log-probabilities right after the subject, `[n_edits, vocabulary]`.
        """
        losses, kl_logits = self._prompts.losses(
            offsets[self._row_edit], len(self._target_ids), self._read
        )
        if self._kl_rows is not None:
            kl_logits = self._kl_rows.logits(offsets)
        negative_log_likelihood = torch.zeros(len(self.tasks), device=losses.device).index_add(
            0, self._read_edit, losses * self._weights
        )
        return negative_log_likelihood, kl_logits.float().log_softmax(dim=-1)

    def says_target(self) -> Tensor:
        """Whose target was the likeliest by the stop rule when measured last, `[n_edits]`.

        Nobody's, unless the settings say to stop at it.
        """
        rule, noted = self._settings.stop_rule, self._is_missed
        if rule == "reference":
            noted = 1 - noted
        if rule != "every-prompt":
            noted = noted * self._stops_by
        n_noted = noted.new_zeros(len(self.tasks)).index_add(0, self._read_edit, noted)
        return n_noted == (_REFERENCE_COUNT if rule == "reference" else 0)

    def _read(self, logits: Tensor, reads: slice) -> Tensor:
        """−log p of the targets at `reads`, from their logits `[n, vocabulary]`."""
        target_ids = self._target_ids[reads]
        if self._settings.stop_at == "argmax":
            self._is_missed[reads] = (logits.detach().argmax(dim=1) != target_ids).float()
        return functional.cross_entropy(logits.float(), target_ids, reduction="none")
