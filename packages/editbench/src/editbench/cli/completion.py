"""``editbench completion``: the shell completes commands, options, files, and names of plugins."""

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem, get_completion_class

from editbench.errors import EditbenchError
from editbench.plugins.manager import PluginManager
from editbench.plugins.registry import Kind

_EXAMPLES = """\b
For good, in the file that the shell reads when it starts:
  bash  ~/.bashrc   eval "$(editbench completion bash)"
  zsh   ~/.zshrc    eval "$(editbench completion zsh)"
  fish  ~/.config/fish/completions/editbench.fish, the file to write the output to
"""

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


@click.command(epilog=_EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete editbench's commands.

    It completes commands, options and files, and the names of models, editors, datasets and
    metrics, those of plugins included.
    """
    root = context.find_root()
    made = get_completion_class(shell)
    assert made is not None  # click knows these three
    click.echo(made(root.command, {}, "editbench", "_EDITBENCH_COMPLETE").source())


def complete_names(kind: Kind, *, many: bool = False) -> Complete:
    """Complete names of things that plugins register; what is none of them may be a path.

    Args:
        kind: What is named.
        many: Whether several names stand in one value, with commas between them.
    """

    def complete(
        context: click.Context, _: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        before, comma, begun = incomplete.rpartition(",") if many else ("", "", incomplete)
        plugins = context.find_object(PluginManager)
        try:
            known = [] if plugins is None else plugins.registrations(kind)
        except EditbenchError:
            known = []  # whatever is wrong with plugins is said when the command runs
        found = [
            CompletionItem(before + comma + each.name, help=each.summary)
            for each in known
            if each.name.startswith(begun)
        ]
        return found or [CompletionItem(incomplete, type="file")]

    return complete
