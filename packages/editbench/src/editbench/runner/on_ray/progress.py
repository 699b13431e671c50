"""Progress of all workers of a Ray cluster, shown where the run was started."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from editbench.progress import Progress
from editbench.runner.prepare import PreparedTrial

_SECONDS_BETWEEN_REPORTS = 0.5

Report = tuple[str, str, int, int, str]
"""Hash of the trial, stage, units done, units in all, note."""


class Reports:
    """The workers' end: goes to them together with their work."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def of(self, trial: str) -> Progress:
        """A `Progress` for a trial; it begins with saying that the trial has begun."""
        import ray

        def send(stage: str, done: int, total: int, note: str) -> None:
            with suppress(ray.exceptions.RayError):  # nobody's number depends on it
                self._queue.put_nowait((trial, stage, done, total, note))

        last = -float("inf")

        def report(stage: str, done: int, total: int, note: str = "") -> None:
            nonlocal last
            now = time.monotonic()
            if now - last > _SECONDS_BETWEEN_REPORTS:
                last = now
                send(stage, done, total, note)

        send("", 0, 0, "")
        return report


class ProgressChannel:
    """The driver's end; made by `open_channel`.

    Attributes:
        reports: What workers report to.
    """

    def __init__(
        self,
        queue: Any,
        trials: Sequence[PreparedTrial],
        on_progress: Progress,
        on_begun: Callable[[PreparedTrial], None],
    ) -> None:
        self.reports = Reports(queue)
        self._queue = queue
        self._trials = {trial.hash: trial for trial in trials}
        self._on_progress = on_progress
        self._on_begun = on_begun
        self._lanes: dict[str, int] = {}

    def pass_on(self) -> None:
        """Show what workers have reported: of each the stage it is in, on a line of its own."""
        import ray

        latest: dict[str, Report] = {}
        with suppress(ray.exceptions.RayError):
            for report in self._queue.get_nowait_batch(self._queue.qsize()):
                latest[report[0]] = report
        for trial, stage, done, total, note in latest.values():
            if trial not in self._trials:
                continue  # it has finished meanwhile
            if trial not in self._lanes:
                free = set(range(len(self._lanes) + 1)) - set(self._lanes.values())
                self._lanes[trial] = min(free)
                self._on_begun(self._trials[trial])
            if stage:
                remark = ", ".join(part for part in (stage, note) if part)
                self._on_progress(f"worker {self._lanes[trial] + 1}", done, total, remark)

    def close(self, trial: PreparedTrial) -> None:
        """Give a finished trial's line to the next one."""
        self._trials.pop(trial.hash, None)
        self._lanes.pop(trial.hash, None)


@contextmanager
def open_channel(
    trials: Sequence[PreparedTrial],
    on_progress: Progress,
    on_begun: Callable[[PreparedTrial], None],
) -> Iterator[ProgressChannel]:
    """Open a channel for the length of a block, on a cluster that is joined."""
    from ray.util.queue import Queue

    queue = Queue(actor_options={"num_cpus": 0})
    try:
        yield ProgressChannel(queue, trials, on_progress, on_begun)
    finally:
        queue.shutdown(force=True)
