"""How long work says how far it has come."""

from typing import Protocol


class Progress(Protocol):
    """Told about long work: which stage, how much of it is done, and a remark such as a loss."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` units of `stage` are finished."""


def report_nothing(stage: str, done: int, total: int, note: str = "") -> None:
    """A `Progress` that stays silent."""
