"""``editbench check``: does an editor keep its contract?"""

import click

from editbench.cli.completion import complete_names
from editbench.cli.group import SOME_FAILED
from editbench.plugins.manager import PluginManager

_EXAMPLES = """\b
Examples:
  editbench check memit
  editbench check my-plugins-editor
"""


@click.command(epilog=_EXAMPLES)
@click.argument("name", shell_complete=complete_names("editors"))
@click.pass_obj
def check(plugins: PluginManager, name: str) -> None:
    """Check an editor against the contract.

    The editor NAME is run on a tiny model in memory. It must change something, leave the model
    bit-identical (also when something raises), leave no hook behind, be deterministic under a seed,
    and leave the global random state alone. It is given requests only, never probes. A clause that
    is broken makes the exit code 1.
    """
    editor = plugins.get_editor(name)
    from editbench.testing import check_editor

    results = check_editor(editor)
    for result in results:
        click.echo(f"{'ok' if result.passed else 'FAILED':6}  {result.clause}")
        if result.failure is not None:
            click.echo(f"        {result.failure}")
    n_failed = sum(not result.passed for result in results)
    if n_failed:
        click.echo(f"{name} breaks {n_failed} clause(s) of an editor's contract.", err=True)
        click.get_current_context().exit(SOME_FAILED)
    click.echo(f"{name} keeps the contract of an editor.")
