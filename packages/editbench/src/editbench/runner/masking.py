"""Which questions about consequences have one answer, once a whole batch is written."""

from collections.abc import Sequence
from dataclasses import replace

from editbench.portability import Hop
from editbench.requests import EditCase


def mask_contaminated(cases: Sequence[EditCase]) -> tuple[list[EditCase], int]:
    """Leave out the portability probes that have another answer once all of a batch is written.

    An edit of weights cannot be withheld from one question, so the question is: where a request
    of the batch writes another object into one of its hops (as MQuAKE-Remastered masks edits of
    other cases, Zhong et al. 2025), and where the batch lacks a request that it follows from.

    Args:
        cases: The cases of one batch.

    Returns:
        The cases with the probes that remain, and how many were left out.
    """
    written: dict[tuple[str, str | None], set[str]] = {}
    for request in (case.request for case in cases):
        written.setdefault((request.subject, request.relation), set()).add(request.target)

    def holds(hop: Hop) -> bool:
        targets = written.get((hop.subject, hop.relation), set())
        return targets == {hop.target} or not (targets or hop.is_edited)

    kept = [
        case
        if all(holds(hop) for each in case.portability for hop in each.hops)
        else replace(
            case, portability=tuple(each for each in case.portability if all(map(holds, each.hops)))
        )
        for case in cases
    ]
    n_before, n_after = (sum(len(case.portability) for case in each) for each in (cases, kept))
    return kept, n_before - n_after
