"""``--lm-eval-…``: which tasks of the LM Evaluation Harness metric ``lm-eval`` asks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from editbench.cli.options import Decorator, gathering, in_file
from editbench.errors import ConfigError

if TYPE_CHECKING:
    from editbench.cli.progress import ProgressDisplay
    from editbench.metrics.base import AnyMetric
    from editbench.metrics.lm_eval.metric import LmEval

_NAME = "lm-eval"


@dataclass(frozen=True)
class WantedTasks:
    """What the options say, as `harness_options` read them."""

    names: tuple[str, ...]
    folders: tuple[Path, ...]
    limit: int | None
    n_shots: int | None

    def load(self, metrics: Sequence[str]) -> "LmEval | None":
        """Load the tasks, so that whatever is wrong with them is said before anything is done.

        Args:
            metrics: Values of ``--metrics``.

        Returns:
            The metric; None if it is not wanted.

        Raises:
            ConfigError: It is wanted and no task is named, or an option has no task to be about; or
                a task cannot be asked.
        """
        is_named = any(_NAME in map(str.strip, option.split(",")) for option in metrics)
        if not self.names:
            for option, value in self._besides.items():
                if value:
                    raise ConfigError(
                        f"{option}: of which tasks? Got {value!r} and no --lm-eval-task. Name one."
                    )
            if is_named:
                raise ConfigError(
                    "--metrics: 'lm-eval' of which tasks? Name them with --lm-eval-task NAME, such "
                    "as arc_easy, or a YAML file of your own."
                )
            return None
        from editbench.metrics.lm_eval.metric import LmEval

        return LmEval.of(*self.names, folders=self.folders, limit=self.limit, n_shots=self.n_shots)

    @property
    def _besides(self) -> dict[str, object]:
        return {
            "--lm-eval-folder": [str(folder) for folder in self.folders],
            "--lm-eval-limit": self.limit,
            "--lm-eval-shots": self.n_shots,
        }


def harness_options() -> Decorator:
    """Options of metric ``lm-eval``, passed on as ``harness``: `WantedTasks`."""
    return gathering(
        "harness",
        WantedTasks,
        click.option(
            "--lm-eval-task",
            "names",
            multiple=True,
            metavar="NAME|FILE",
            help="Also ask a task of the LM Evaluation Harness, before and after: a task, group or "
            "tag that lm_eval knows, such as arc_easy, or a YAML file of your own. Repeatable. "
            "Needs pip install 'editbench[lm-eval]'.",
        ),
        click.option(
            "--lm-eval-folder",
            "folders",
            multiple=True,
            type=in_file,
            metavar="DIR",
            help="A folder with tasks of your own, to be named by --lm-eval-task. Repeatable.",
        ),
        click.option(
            "--lm-eval-limit",
            "limit",
            type=click.IntRange(min=1),
            metavar="N",
            help="Ask the first N documents of each task. [default: all]",
        ),
        click.option(
            "--lm-eval-shots",
            "n_shots",
            type=click.IntRange(min=0),
            metavar="N",
            help="Solved examples before each document. [default: as the task says]",
        ),
    )


def with_tasks(metrics: "Sequence[AnyMetric]", harness: "LmEval | None") -> "Sequence[AnyMetric]":
    """Metrics, and behind them the one with tasks if there is one, which replaces that without."""
    if harness is None:
        return metrics
    return [*(metric for metric in metrics if metric.name != harness.name), harness]


def note_left_out(harness: "LmEval | None", display: "ProgressDisplay") -> None:
    """Say which metrics of tasks have no rows."""
    for task, metrics in (harness.left_out if harness is not None else {}).items():
        display.say(f"Metric 'lm-eval': left out of '{task}': {'; '.join(metrics)}.")
