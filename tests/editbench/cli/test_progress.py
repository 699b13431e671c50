"""Progress on stderr: bars in a terminal, lines now and then elsewhere."""

import io
import sys

import pytest

from editbench.cli import progress
from editbench.cli.progress import ProgressDisplay


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when it is told to."""

    class Clock:
        now = 100.0

        def pass_(self, seconds):
            self.now += seconds

    made = Clock()
    monkeypatch.setattr(progress.time, "monotonic", lambda: made.now)
    return made


def test_a_line_every_ten_seconds(clock, capsys):
    with ProgressDisplay() as display:
        for done in range(7):
            display("targets", done, 100, "loss 0.5")
            clock.pass_(6)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "targets: 2/100, loss 0.5",
        "targets: 4/100, about 10 min left, loss 0.5",
        "targets: 6/100, about 9 min left, loss 0.5",
    ]


@pytest.mark.parametrize(("n", "left"), [(10, "36 s"), (100, "14 min"), (3000, "7.5 h")])
def test_time_left(clock, capsys, n, left):
    with ProgressDisplay() as display:
        for done in range(7):
            display("targets", done, n)
            clock.pass_(9)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"targets: 2/{n}"
    assert lines[-1] == f"targets: 6/{n}, about {left} left"


def test_unknown_total(clock, capsys):
    with ProgressDisplay() as display:
        clock.pass_(11)
        display("texts", 7, 0)
    assert capsys.readouterr().err == "texts: 7\n"


def test_quiet(clock, capsys):
    with ProgressDisplay(quiet=True) as display:
        display("targets", 0, 2)
        clock.pass_(60)
        display("targets", 1, 2)
    assert capsys.readouterr().err == ""


def test_remarks_wait_for_the_work(capsys):
    with ProgressDisplay() as display:
        display.say("first")
        assert capsys.readouterr() == ("", "")
        display("targets", 0, 2)
        assert capsys.readouterr() == ("first\n", "")
        display.say("second")
        assert capsys.readouterr() == ("second\n", "")


def test_remarks_are_dropped_if_there_is_no_work(capsys):
    def work():
        with ProgressDisplay() as display:
            display.say("never mind")
            raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        work()
    assert capsys.readouterr() == ("", "")


def test_bars_in_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    with ProgressDisplay() as display:
        display("target [hidden] states", 1, 4, "loss [0.25]")
        display.say("a remark")
        display("target [hidden] states", 4, 4)
        display("target [hidden] states", 1, 8, "again")
    shown = terminal.getvalue()
    for part in ("target [hidden] states", "1/8", "again", "a remark"):
        assert part in shown
    assert "left" not in shown  # nothing is known yet
