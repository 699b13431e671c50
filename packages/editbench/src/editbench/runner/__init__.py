"""Trials and grids of them: editors on models and datasets, judged by metrics, kept in a folder.

Takes objects, not names: looking names up is the business of plugins and the command line.
"""

from editbench.results.manifest import Sample
from editbench.runner.executors import Executor, LocalExecutor
from editbench.runner.plan import has_questions
from editbench.runner.run import RunSummary, run_grid
from editbench.runner.selection import select_batches
from editbench.runner.trial import Inputs, Trial, grid

__all__ = [
    "Executor",
    "Inputs",
    "LocalExecutor",
    "RunSummary",
    "Sample",
    "Trial",
    "grid",
    "has_questions",
    "run_grid",
    "select_batches",
]
