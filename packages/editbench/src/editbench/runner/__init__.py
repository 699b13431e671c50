"""Trials and grids of them: editors on models and datasets, judged by metrics, kept in a folder.

Takes objects, not names: looking names up is the business of plugins and the command line.
"""

from editbench.editors.base import Inputs
from editbench.results.manifest import Sample
from editbench.runner.executors import Executor, LocalExecutor
from editbench.runner.prepare import PreparedRun, has_questions, prepare_run
from editbench.runner.run import RunSummary, run_grid
from editbench.runner.selection import select_batches
from editbench.runner.stop_rule import StopRule
from editbench.runner.trial import Trial, grid

__all__ = [
    "Executor",
    "Inputs",
    "LocalExecutor",
    "PreparedRun",
    "RunSummary",
    "Sample",
    "StopRule",
    "Trial",
    "grid",
    "has_questions",
    "prepare_run",
    "run_grid",
    "select_batches",
]
