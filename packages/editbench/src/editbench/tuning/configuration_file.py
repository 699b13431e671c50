"""What a search found, as a file for ``--config`` that says where it comes from."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from math import isfinite
from pathlib import Path

import yaml

from editbench import __version__
from editbench.files.whole_files import write_whole
from editbench.tuning.bench import Problem
from editbench.tuning.comparison import ComparedQuantity
from editbench.tuning.search import SearchStatus


def write_configuration(
    path: Path,
    problem: Problem,
    state: SearchStatus,
    source: str,
    compared: Sequence[ComparedQuantity] | None,
) -> None:
    """Write the best hyperparameters so far, whole or not at all.

    Args:
        path: A YAML file; one that is there is replaced.
        problem: What was searched for.
        state: What was found; there is a best.
        source: What the user calls the facts.
        compared: How it compares on held-out facts; None as long as nobody has looked.

    Raises:
        OSError: It cannot be written.
    """
    assert state.best is not None
    values = state.best.config.model_dump(mode="json")
    comments = "".join(f"# {line}\n" for line in _provenance(problem, state, source, compared))
    text = comments + yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100)
    write_whole(path, text)


def format_comparison(compared: Sequence[ComparedQuantity]) -> list[str]:
    """A table in lines: the unedited model, the default, what was found, and the difference."""
    lines = [f"{'':<4}{'unedited':>9}{'default':>9}{'found':>9}   difference, 95 % interval"]
    for each in compared:
        one = each.difference
        interval = f" ({one.low:+.1f} to {one.high:+.1f})" if isfinite(one.low) else ""
        numbers = "".join(f"{number:>9.1f}" for number in (each.unedited, one.theirs, one.ours))
        lines.append(f"{each.symbol:<4}{numbers}   {one.value:+.1f}{interval}")
    return lines


def _provenance(
    problem: Problem, state: SearchStatus, source: str, compared: Sequence[ComparedQuantity] | None
) -> Iterator[str]:
    facts, objective, best = problem.facts, problem.objective, state.best
    assert best is not None
    n_search, n_held_out = len(facts.search.cases()), len(facts.held_out.cases())
    floor = "" if objective.max_drop is None else f", specificity at most {objective.max_drop:g} "
    yield f"Settings of {problem.editor.name} for '{problem.model.name}', found by editbench tune."
    yield f"Model: weights {problem.model.fingerprint}"
    yield (
        f"Facts: {n_search} of {source} to search on, {n_held_out} others to compare on, "
        f"{facts.size.n_edits} written at once"
    )
    yield f"Objective: {objective.name}{floor}{'points below the unedited model' if floor else ''}"
    yield (
        f"Search: seed {problem.seed}, {state.n_trials} trials ({state.n_pruned} given up early, "
        f"{state.n_failed} failed) in {state.seconds / 60:.1f} minutes; the best is trial "
        f"{best.number} (0 is the default)"
    )
    default = "" if state.default is None else f", the default {state.default.value:.1f}"
    yield (
        f"On the facts that it was chosen on: {best.value:.1f}{default}; what is chosen on facts "
        "looks better on them than it is"
    )
    if compared is None:
        yield "On held-out facts: not compared, since the search has not ended"
    else:
        yield "On held-out facts:"
        yield from (f"  {line}" for line in format_comparison(compared))
    today = datetime.now(UTC).date().isoformat()
    yield f"editbench {__version__}, Optuna {version('optuna')}, {today}"
    yield f"Command: {' '.join(shlex.join(sys.argv).split())}"
