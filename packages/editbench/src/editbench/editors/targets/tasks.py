"""Edits in tokens: what is optimized as one, by which rows, and on what each state depends."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from editbench.editors.subject_tokens import PromptRow, key_row, kl_row, target_row
from editbench.models.shared_prefix import count_shared
from editbench.models.tokens import Tokens
from editbench.replay.offset_forward import OffsetRow
from editbench.requests import EditRequest


@dataclass(frozen=True, slots=True)
class TargetTask:
    """One edit in tokens.

    Attributes:
        index: The edit's place among all requests.
        bare: The bare prompt up to the subject's last token: where h is read.
        prompts: The prompt after each context prefix, with the target behind it.
        kl_row: That of the KL term.
        has_prefix: Of each prompt, whether there is anything in its prefix.
    """

    index: int
    bare: PromptRow
    prompts: tuple[PromptRow, ...]
    kl_row: PromptRow
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
            kl_row(tokens, request.subject),
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
        return max(row.subject_last for row in (*self.prompts, self.kl_row))


def make_tasks(
    tokens: Tokens,
    requests: Sequence[EditRequest],
    prefixes: Sequence[str],
    groups: Sequence[Sequence[int]] | None = None,
) -> list[TargetTask]:
    """Tokenize requests after every context prefix.

    Args:
        tokens: The model's tokenizer.
        requests: The facts.
        prefixes: Context prefixes.
        groups: Which of them are optimized as one, each group once; None is each by itself.
    """
    chosen = [[index] for index in range(len(requests))] if groups is None else groups
    return [
        TargetTask.joined(
            [TargetTask.of(tokens, index, requests[index], prefixes) for index in group]
        )
        for group in chosen
    ]


@dataclass(frozen=True)
class TargetRows:
    """The rows of some edits that run together: what is run, and what it costs, follow from them.

    Attributes:
        prompts: All edits' prompts.
        kl_rows: Those of the KL term, one an edit.
        edits: The edit of each prompt.
        target_ids: The tokens that are read, prompt after prompt.
        weights: What −log p of each counts in its edit's loss.
        are_prefixed: Whether each is behind a prefix; all are where an edit has no prompt that is.
        bare_rows: For each edit the prompt that begins as the bare one does, if all have one.
    """

    prompts: list[OffsetRow]
    kl_rows: list[OffsetRow]
    edits: list[int]
    target_ids: list[int]
    weights: list[float]
    are_prefixed: list[bool]
    bare_rows: list[int] | None

    @classmethod
    def of(cls, tasks: Sequence[TargetTask]) -> "TargetRows":
        """Lay out some edits; what rows after the same prefix share is run once."""
        columns = [*zip_longest(*(task.prompts for task in tasks))]
        columns.append(tuple(task.kl_row for task in tasks))
        *n_shared, n_kl = (
            count_shared([row.token_ids[: row.subject_last] for row in column if row is not None])
            for column in columns
        )
        rows = cls([], [], [], [], [], [], [])
        bare_rows: list[int] = []
        for edit, task in enumerate(tasks):
            if task.bare_prompt is not None:
                bare_rows.append(len(rows.prompts) + task.bare_prompt)
            has_prefix = [has or not any(task.has_prefix) for has in task.has_prefix]
            for row, n, has in zip(task.prompts, n_shared, has_prefix, strict=False):
                reads = range(row.target_start, row.target_start + len(row.target_ids))
                rows.prompts.append(OffsetRow(row.token_ids, row.subject_last, tuple(reads), n))
                rows.edits.append(edit)
                rows.weights.extend([1 / (len(reads) * len(task.prompts))] * len(reads))
                rows.target_ids.extend(row.target_ids)
                rows.are_prefixed.extend([has] * len(reads))
            last = task.kl_row.subject_last
            rows.kl_rows.append(OffsetRow(task.kl_row.token_ids, last, (last,), n_kl))
        return replace(rows, bare_rows=bare_rows if len(bare_rows) == len(tasks) else None)


def group_requests(requests: Sequence[EditRequest], *, share_subjects: bool) -> list[list[int]]:
    """For each request, those that share its offset, itself among them.

    Args:
        requests: All requests.
        share_subjects: Whether all requests about a subject share one.
    """
    if not share_subjects:
        return [[index] for index in range(len(requests))]
    of_subject: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        of_subject.setdefault(request.subject, []).append(index)
    return [of_subject[request.subject] for request in requests]


def distinct_groups(groups: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Each group of `group_requests` once, in the order of their first members."""
    return [group for index, group in enumerate(groups) if group[0] == index]


def hash_others(
    requests: Sequence[EditRequest], groups: Sequence[Sequence[int]], *, warm_start: bool
) -> list[str]:
    """For each request a hash of those its state depends on; empty if that is itself alone.

    What many depend on is hashed once: with a warm start that is all requests, for each of them.

    Args:
        requests: All requests.
        groups: For each of them, those that share its offset.
        warm_start: Whether offsets start from those of finished edits.
    """
    if warm_start:
        return [_hash(requests)] * len(requests)
    shared = {
        group[0]: _hash([requests[index] for index in group])
        for group in distinct_groups(groups)
        if len(group) > 1
    }
    return [shared.get(group[0], "") for group in groups]


def _hash(requests: Sequence[EditRequest]) -> str:
    facts = [request.fact for request in requests]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
