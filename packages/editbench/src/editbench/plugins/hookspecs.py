"""The hooks a plugin may implement; all are optional.

A plugin is a module or object behind an entry point of the group ``editbench`` that defines
functions of these names, each decorated with `hookimpl`. What a hook is passed and returns is
stated here and in ``docs/reference/plugins.md``. The functions that register things take nothing,
so that importing what they return can wait until somebody asks for it: keep heavy imports inside
their bodies, or ``editbench --help`` becomes slow for everyone who installs the plugin.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    import click

    from editbench.datasets.base import Dataset
    from editbench.editors.base import Editor
    from editbench.metrics.base import AnyMetric
    from editbench.models.spec import ModelSpec
    from editbench.results.row import Row
    from editbench.runner import Trial

hookspec = HookspecMarker("editbench")
hookimpl = HookimplMarker("editbench")
"""Marks a plugin's function as an implementation of the hook of the same name."""


@hookspec
def editbench_register_editors() -> "Sequence[type[Editor]]":  # type: ignore[empty-body]
    """Register editors.

    Called once, the first time that a command or a program asks for the known editors.

    Returns:
        Concrete subclasses of `editbench.editors.base.Editor`, each with a `name` of lower-case
        letters, digits and hyphens that no other plugin uses. Classes, not instances: an editor is
        constructed with the configuration of its trial.
    """


@hookspec
def editbench_register_datasets() -> "Sequence[type[Dataset]]":  # type: ignore[empty-body]
    """Register datasets.

    Called once, the first time that a command or a program asks for the known datasets.

    Returns:
        Concrete subclasses of `editbench.datasets.base.Dataset`, each with a `name` of its own. A
        dataset is constructed with the path that the user gave, if any, and the cache folder.
    """


@hookspec
def editbench_register_metrics() -> "Sequence[type[AnyMetric]]":  # type: ignore[empty-body]
    """Register metrics.

    Called once, the first time that a command or a program asks for the known metrics.

    Returns:
        Concrete subclasses of `editbench.metrics.base.Metric`, which asks about edit cases, of
        `editbench.metrics.base.TextMetric`, which asks about held-out texts, or of
        `editbench.metrics.base.ModelMetric`, which asks the model itself, each with a `name` of its
        own. They are constructed without arguments.
    """


@hookspec
def editbench_register_models() -> "Sequence[ModelSpec]":  # type: ignore[empty-body]
    """Register short names and hyperparameters of models.

    Called once, the first time that a command or a program asks for the known models. A model
    needs no registration to be used: this gives it a short name, or editors' defaults.

    Returns:
        `editbench.models.spec.ModelSpec` objects, each with a `name` of its own.
    """


@hookspec
def editbench_register_commands(cli: "click.Group") -> None:
    """Add commands to the command line.

    Called once as the command line starts, before its arguments are read, ``--help`` included.

    Args:
        cli: The group behind ``editbench``; add to it with ``cli.command()`` or
            ``cli.add_command()``. A name that is taken is refused.
    """


@hookspec
def editbench_trial_finished(trial: "Trial", rows: "Sequence[Row]") -> None:
    """Look at a finished trial.

    Called by ``editbench run`` after each trial that it ran, when the trial's rows are safely
    stored; not for trials that a resumed run skips. An exception raised here is reported, and the
    run goes on.

    Args:
        trial: What was run.
        rows: Its rows, one per case and metric; of a failed trial, the row that says why.
    """


HOOKS = tuple(name for name in list(globals()) if name.startswith("editbench_"))
"""Names of all hooks."""
