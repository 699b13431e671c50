"""When a stream of edits ends before its end: a metric has gone too far."""

import re
from dataclasses import dataclass
from typing import Literal, Self

from editbench.errors import ConfigError

_RULE = re.compile(r"\s*([^\s<>]+)\s*([<>])\s*(\d+(?:\.\d*)?|\.\d+)\s*(x?)\s*")


@dataclass(frozen=True, slots=True)
class StopRule:
    """A bound on a metric, such as ``perplexity>1.1x`` or ``score<50``.

    Attributes:
        metric: A row metric or a score.
        sign: On which side of the bound a stream ends.
        bound: The bound.
        is_relative: Whether it is times the number of the unedited model, on the same questions.
    """

    metric: str
    sign: Literal["<", ">"]
    bound: float
    is_relative: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a rule.

        Raises:
            ConfigError: It is none.
        """
        found = _RULE.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"--stop-when: no rule, got {text!r}; expected a metric, < or >, and a number, "
                "which an x makes relative to the unedited model: 'perplexity>1.1x'."
            )
        metric, sign, number, relative = found.groups()
        return cls(metric, "<" if sign == "<" else ">", float(number), bool(relative))

    def __str__(self) -> str:
        short = f"{self.bound:g}"  # as it was written, where that says all of it
        bound = short if float(short) == self.bound and "e" not in short else f"{self.bound!r}"
        return f"{self.metric}{self.sign}{bound}{'x' * self.is_relative}"

    def judge(self, value: float, unedited: float) -> str | None:
        """Say why a stream ends here; None if it does not.

        Args:
            value: The metric's number of the edited model.
            unedited: That of the unedited one; a rule that is not relative ignores it.
        """
        bound = self.bound * unedited if self.is_relative else self.bound
        if not (value > bound if self.sign == ">" else value < bound):
            return None
        of = f", {self.bound:g} times that of the unedited model" if self.is_relative else ""
        return f"{self.metric} {value:.4g} {self.sign} {bound:.4g}{of}"
