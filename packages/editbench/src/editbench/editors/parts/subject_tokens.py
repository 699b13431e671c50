"""From requests and context prefixes to rows of tokens, with the subject's last token located."""

from dataclasses import dataclass

import torch
from torch import Tensor

from editbench.models.tokens import Tokens
from editbench.requests import EditRequest


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt in tokens.

    Attributes:
        token_ids: The row.
        subject_last: Index of the subject's last token.
        target_ids: The target's tokens; empty where no target is asked for.
        target_start: Index at which the target's first token is predicted.
    """

    token_ids: tuple[int, ...]
    subject_last: int
    target_ids: tuple[int, ...] = ()
    target_start: int = -1


def key_row(tokens: Tokens, request: EditRequest, prefix: str) -> PromptRow:
    """The prompt up to the subject's last token: nothing later can reach what is read there."""
    text = prefix + request.text
    start = len(prefix) + request.subject_start
    subject_last = tokens.locate(text, start, start + len(request.subject))
    return PromptRow(tuple(tokens.encode(text)[: subject_last + 1]), subject_last)


def target_row(tokens: Tokens, request: EditRequest, prefix: str) -> PromptRow:
    """The prompt followed by all of the target but its last token, for teacher forcing."""
    text = prefix + request.text
    start = len(prefix) + request.subject_start
    prompt_ids, target_ids = tokens.encode_continuation(text, request.target)
    joined = tokens.join(text, request.target)
    return PromptRow(
        token_ids=(*prompt_ids, *target_ids[:-1]),
        subject_last=tokens.locate(joined, start, start + len(request.subject)),
        target_ids=tuple(target_ids),
        target_start=len(prompt_ids) - 1,
    )


def essence_row(tokens: Tokens, subject: str) -> PromptRow:
    """The row at whose end the KL term compares next-token distributions.

    The reference writes "{subject} is a" and compares right after the subject, so nothing behind
    the subject matters but the way in which it may change the subject's own tokens.
    """
    text = f"{subject} is a"
    subject_last = tokens.locate(text, 0, len(subject))
    return PromptRow(tuple(tokens.encode(text)[: subject_last + 1]), subject_last)


def at_subjects(states: Tensor, subject_last: Tensor) -> Tensor:
    """Pick, from each row of a batch, the state at its subject's last token.

    Args:
        states: What a module was given or puts out, `[n_rows, width, d]`, or flattened as OPT's
            MLP has it, `[n_rows · width, d]`; or Gemma 3n's residual streams, `[n_streams, n_rows,
            width, d]`, whose mean counts.
        subject_last: Index of the subject's last token in each row, `[n_rows]`.

    Returns:
        States, `[n_rows, d]`.
    """
    n_rows = len(subject_last)
    rows = torch.arange(n_rows, device=states.device)
    states = states.mean(dim=0) if states.dim() == 4 else states
    return states.reshape(n_rows, -1, states.shape[-1])[rows, subject_last.to(states.device)]
