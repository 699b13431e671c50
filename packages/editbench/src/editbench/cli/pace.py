"""How fast a stage of long work goes, and how long it still takes, once that can be told."""

import time
from collections import deque
from dataclasses import dataclass, field

_N_KEPT = 64
_N_ADVANCES = 3
_MIN_SECONDS = 2.0
_STEADY = 2.0  # how many times as fast one half may be as the other
_STALLED = 3.0  # how many times as long as usual nothing may have been heard


@dataclass
class Pace:
    """What has been heard of a stage.

    The first units tell little: they load and compile, or come out of a cache. So nothing is said
    before some have been done at a steady pace; where the pace changes, what was before counts no
    more.

    Attributes:
        total: Units in all; 0 if nobody knows.
    """

    total: int
    _heard: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_N_KEPT))

    def hear(self, done: int, total: int) -> None:
        """Take down that `done` units are finished."""
        if total != self.total or (self._heard and done < self._heard[-1][1]):
            self._heard.clear()
        self.total = total
        if not self._heard or done > self._heard[-1][1]:
            self._heard.append((time.monotonic(), done))

    def seconds_left(self) -> float | None:
        """About how long the rest takes; None where that is not known."""
        heard = list(self._heard)
        while len(heard) > _N_ADVANCES:
            (began, first), (ended, last) = heard[0], heard[-1]
            middle = len(heard) // 2
            rates = [_rate(heard[: middle + 1]), _rate(heard[middle:])]
            if ended - began >= _MIN_SECONDS and max(rates) <= _STEADY * min(rates):
                silence = time.monotonic() - ended
                if silence > _STALLED * (ended - began) / (len(heard) - 1):
                    return None
                left = (self.total - last) * (ended - began) / (last - first) - silence
                return max(left, 0.0) if last < self.total else None
            heard = heard[middle:]
        return None

    def describe(self) -> str:
        """The same in words, such as 'about 3 min left'; empty where nothing is known."""
        seconds = self.seconds_left()
        return "" if seconds is None else f"about {_describe_seconds(seconds)} left"


def _rate(heard: list[tuple[float, int]]) -> float:
    (began, first), (ended, last) = heard[0], heard[-1]
    return (last - first) / max(ended - began, 1e-9)


def _describe_seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
