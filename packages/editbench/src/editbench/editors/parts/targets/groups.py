"""Which edits share an offset, and on which others the state of each depends."""

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


def find_others(
    requests: Sequence[EditRequest], group: Sequence[int], *, warm_start: bool
) -> list[EditRequest]:
    """The requests that one's state depends on, if it depends on more than its own.

    Args:
        requests: All requests.
        group: Those that share its offset.
        warm_start: Whether offsets start from those of finished edits.
    """
    if warm_start:
        return list(requests)
    return [requests[index] for index in group] if len(group) > 1 else []
