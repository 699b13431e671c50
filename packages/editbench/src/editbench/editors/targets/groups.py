"""Which edits share an offset, and on which others the state of each depends."""

import hashlib
import json
from collections.abc import Sequence

from editbench.requests import EditRequest


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
