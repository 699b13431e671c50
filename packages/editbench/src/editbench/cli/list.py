"""``editbench list``: what there is to run, and what is wrong with plugins."""

import json
from typing import Any

import click

from editbench.cli.terminal import terminal_width, wrap
from editbench.errors import EditbenchError, PluginError
from editbench.plugins.manager import PluginManager
from editbench.plugins.registry import KINDS, Kind

_DETAILS = {"good_for": "Good for", "source": "From", "known_errors": "Known errors:"}
_EXAMPLES = """\b
Examples:
  editbench list
  editbench list editors
  editbench list --format json
"""


@click.command("list", epilog=_EXAMPLES)
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to print it.",
)
@click.pass_obj
def list_(plugins: PluginManager, kind: Kind | None, output_format: str) -> None:
    """List what there is to run.

    Editors, datasets, metrics and models are listed with the plugin that each comes from, models
    with the editors that they have settings for; where these are from, JSON says. 'list editors'
    also says what each editor is good for, and cites its paper; 'list datasets' says where each is
    from, under which licence, and which errors are known in its labels. A plugin that cannot be
    loaded is named with the reason, and makes the exit code 2.
    """
    listing: dict[str, list[dict[str, Any]]] = {}
    problems: list[str] = []
    for wanted in [kind] if kind else KINDS:
        try:
            found = plugins.registrations(wanted)
        except PluginError as error:
            problems.append(str(error))
            found = ()
        listing[wanted] = [
            {
                "name": each.name,
                "description": each.summary,
                "plugin": each.plugin,
                **(each.details if kind or output_format == "json" else {}),
                **({"settings": each.settings} if wanted == "models" else {}),
            }
            for each in found
        ]
    problems = [str(failure) for failure in plugins.failures] + problems
    if output_format == "json":
        content: dict[str, Any] = {**listing, "problems": problems}
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        click.echo(_format(listing))
    if problems:
        raise EditbenchError("; ".join(problem.rstrip(".") for problem in problems) + ".")


def _format(listing: dict[str, list[dict[str, Any]]]) -> str:
    entries = [entry for group in listing.values() for entry in group]
    name_width = max((len(entry["name"]) for entry in entries), default=0)
    plugin_width = max((len(entry["plugin"]) for entry in entries), default=0)
    blocks = []
    indent = name_width + plugin_width + 6
    for kind, group in listing.items():
        indent = indent if indent <= terminal_width() // 2 else 6
        lines = []
        for entry in group:
            names = f"  {entry['name']:<{name_width}}  {entry['plugin']:<{plugin_width}}  "
            text = f"{names}{entry['description']}{_name_settings(entry)}"
            lines.append(wrap(text.rstrip(), indent))
            for name, opening in _DETAILS.items():
                if detail := entry.get(name):
                    lines.append(wrap(f"{'':{indent}}{opening} {detail}.", indent))
        blocks.append("\n".join([kind, *(lines or ["  (none)"])]))
    blocks += dict.fromkeys(entry["citation"] for entry in entries if "citation" in entry)
    return "\n\n".join(blocks)


def _name_settings(entry: dict[str, Any]) -> str:
    settings = [editor for editor in entry.get("settings", ()) if editor != "mend-training"]
    return f"; settings for {', '.join(settings)}" if settings else ""
