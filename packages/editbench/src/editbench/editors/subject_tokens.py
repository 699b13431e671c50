"""From requests and context prefixes to rows of tokens, with the subject's last token located."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from editbench.errors import RequestError
from editbench.models.editable import EditableModel
from editbench.models.token_states import by_row
from editbench.models.tokens import Tokens
from editbench.questions import Score
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


def check_requests(model: EditableModel, requests: Iterable[EditRequest]) -> None:
    """Find out before any work whether a model has the tokens of what is to be written.

    Raises:
        RequestError: One of the requests cannot be put into tokens, or is too long.
    """
    for request in requests:
        try:
            row = target_row(model.tokens, request, "")
            model.check_length(len(row.token_ids), request.text)
        except RequestError as error:
            raise RequestError(f"request '{request.case_id}': {error}") from error


def key_row(tokens: Tokens, request: EditRequest, prefix: str) -> PromptRow:
    """The prompt up to the subject's last token: nothing later can reach what is read there."""
    question, subject_last = _lay_out(tokens, request, prefix)
    ids = tokens.encode(question.prompt, chat=question.chat)
    return PromptRow(tuple(ids[: subject_last + 1]), subject_last)


def target_row(tokens: Tokens, request: EditRequest, prefix: str) -> PromptRow:
    """The prompt followed by all of the target but its last token, for teacher forcing."""
    question, subject_last = _lay_out(tokens, request, prefix)
    prompt_ids, target_ids = tokens.encode_question(question)
    return PromptRow(
        token_ids=(*prompt_ids, *target_ids[:-1]),
        subject_last=subject_last,
        target_ids=tuple(target_ids),
        target_start=len(prompt_ids) - 1,
    )


def _lay_out(tokens: Tokens, request: EditRequest, prefix: str) -> tuple[Score, int]:
    """The question after a prefix, and the index of its subject's last token.

    In a chat the prefix begins the user's message. A prompt that brings a header of its own, which
    nothing can come before and nobody knows the end of, goes without.
    """
    if not request.chat and tokens.has_header(request.text[: request.subject_start]):
        prefix = ""
    question = replace(request.question, prompt=prefix + request.text)
    start = len(prefix) + request.subject_start
    end = start + len(request.subject)
    return question, tokens.locate(question.prompt, start, end, chat=request.chat)


def kl_row(tokens: Tokens, subject: str) -> PromptRow:
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
    return by_row(states, n_rows)[rows, subject_last.to(states.device)]
