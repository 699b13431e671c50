"""Progress of long work on stderr: a live display in a terminal, a line now and then elsewhere."""

import sys
import time
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from editbench.cli.pace import Pace

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay:
    """Shows how far long work has come; a `Progress` while its ``with`` block lasts.

    In a terminal each stage is a bar with a count, the time left (see `Pace`) and a remark.
    Elsewhere, in a log for instance, it is a plain line every ten seconds. Python's warnings become
    lines, too.

    Args:
        quiet: Show nothing at all.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._paces: dict[str, Pace] = {}
        self._last_line = time.monotonic()
        self._held: list[tuple[str, bool]] | None = []
        self._outer_warnings = warnings.catch_warnings()

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            self._live = _make_bars()
            self._live.start()
        self._outer_warnings.__enter__()
        warnings.showwarning = self._show_warning
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._outer_warnings.__exit__(kind, error, traceback)
        if error is None:
            self._release()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` steps of a stage are finished.

        Args:
            stage: What is going on.
            done: Steps finished; 0 starts the stage anew.
            total: Steps in all; 0 if nobody knows.
            note: A remark, such as a loss.
        """
        self._release()
        if self._quiet:
            return
        if done == 0 or stage not in self._paces:
            self._paces[stage] = Pace(total)
        self._paces[stage].hear(done, total)
        if self._live is not None:
            self._move_bar(self._live, stage, done, total, note)
        else:
            self._write_line(stage, done, total, note)

    def say(self, message: str) -> None:
        """Write a line: above the bars where there are any, else to stdout.

        Not to stderr, and not before work begins: a command that is refused says why on stderr, in
        one line, and nothing else.
        """
        self._write_or_hold(message, to_stderr=False)

    def note(self, message: str) -> None:
        """Write a line to stderr, once work begins, as `say` does to stdout.

        It is for what was understood of the user's files, which no result is made of.
        """
        self._write_or_hold(message, to_stderr=True)

    def _show_warning(self, message: Warning | str, *_place: object, **_more: object) -> None:
        self._write_or_hold(f"Warning: {' '.join(str(message).split())}", to_stderr=True)

    def _write_or_hold(self, line: str, *, to_stderr: bool) -> None:
        if self._held is not None:
            self._held.append((line, to_stderr))
        elif self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            click.echo(line, err=to_stderr)

    def _release(self) -> None:
        held, self._held = self._held, None
        for line, to_stderr in held or ():
            self._write_or_hold(line, to_stderr=to_stderr)

    def _move_bar(self, live: "RichProgress", stage: str, done: int, total: int, note: str) -> None:
        if stage in self._tasks and live.tasks[self._tasks[stage]].finished and done < total:
            live.reset(self._tasks[stage])
        if stage not in self._tasks:
            self._tasks[stage] = live.add_task(stage, total=total or None, note=note, pace=None)
        task, pace = self._tasks[stage], self._paces[stage]
        live.update(task, completed=done, total=total or None, note=note, pace=pace)

    def _write_line(self, stage: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        parts = [f"{stage}: {done}" + (f"/{total}" if total else "")]
        parts += [self._paces[stage].describe(), note]
        click.echo(", ".join(filter(None, parts)), err=True)


def _make_bars() -> "RichProgress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text

    class TimeLeftColumn(ProgressColumn):
        """What the stage's pace says."""

        def render(self, task: Task) -> Text:
            pace: Pace | None = task.fields["pace"]
            return Text(pace.describe() if pace is not None else "", style="progress.remaining")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeLeftColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
    )
