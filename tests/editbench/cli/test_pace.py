"""Nothing is said about the time left before something is known, and then it is about right."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from editbench.cli import pace
from editbench.cli.pace import Pace


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(pace, "time", made)
    return made


def run(clock, durations, per_step=1, start=0):
    """Work in steps of these durations: what is said after each, and what was true."""
    total = start + per_step * len(durations)
    watched = Pace(total)
    watched.hear(start, total)
    said = []
    for index, seconds in enumerate(durations, 1):
        clock.now += seconds
        watched.hear(start + index * per_step, total)
        said.append((watched.seconds_left(), sum(durations[index:])))
    return said


@settings(deadline=None)
@given(
    seconds=st.floats(0.05, 500),
    n=st.integers(8, 300),
    per_step=st.integers(1, 1000),
    start=st.integers(0, 5000),
)
@example(seconds=0.25, n=8, per_step=1, start=0)
@example(seconds=0.25, n=9, per_step=1, start=0)
def test_a_steady_pace_is_told_rightly(seconds, n, per_step, start):
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "time", clock)
        said = run(clock, [seconds] * n, per_step, start)
    assert [left for left, _ in said[:2]] == [None, None]
    assert all(left == pytest.approx(true) for left, true in said[:-1] if left is not None)
    heard = (n - 1) * seconds  # before the last step
    assert said[-2][0] is not None or heard < 2 + 1e-9


@settings(deadline=None)
@given(
    first=st.lists(st.sampled_from([0.0, 0.001, 30.0, 200.0]), min_size=1, max_size=6),
    seconds=st.floats(0.5, 5),
)
def test_whatever_the_beginning_is_like_the_first_word_is_not_far_off(first, seconds):
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "time", clock)
        said = run(clock, [*first, *[seconds] * 80])
    told = [(left, true) for left, true in said[len(first) : -1] if left is not None]
    assert len(told) > 40
    assert all(true / 4 <= left <= 4 * true for left, true in told[-40:])
    if min(first) < 0.01 and max(first) < 0.01:  # what was cached counts for nothing
        assert all(true / 2.5 <= left <= 2.5 * true for left, true in told)


def test_trials_of_different_costs_say_nothing(clock):
    # The unedited model, MEMIT, ROME: 100 cases each, in seconds.
    assert [left for left, _ in run(clock, [2, 25, 260], per_step=100)] == [None] * 3


def test_what_came_out_of_a_cache_is_no_pace(clock):
    watched = Pace(1000)
    watched.hear(990, 1000)
    assert watched.seconds_left() is None
    clock.now += 5
    watched.hear(991, 1000)
    assert watched.seconds_left() is None


def test_a_stage_that_begins_anew_is_told_anew(clock):
    watched = Pace(10)
    for done in range(6):
        watched.hear(done, 10)
        clock.now += 3
    assert watched.seconds_left() is not None
    watched.hear(0, 10)
    assert watched.seconds_left() is None


def test_silence_counts_down_and_then_says_nothing(clock):
    watched = Pace(10)
    for done in range(6):
        clock.now += 10
        watched.hear(done, 10)
    assert watched.describe() == "about 50 s left"
    clock.now += 10
    assert watched.describe() == "about 40 s left"
    clock.now += 25
    assert watched.describe() == ""


def test_nobody_knows_the_total(clock):
    watched = Pace(0)
    for done in range(9):
        clock.now += 10
        watched.hear(done, 0)
    assert watched.describe() == ""
