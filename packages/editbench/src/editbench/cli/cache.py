"""``editbench cache``: what is kept between runs, how large and how old it is."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import click

from editbench.cli import options
from editbench.cli.terminal import lay_out
from editbench.errors import ConfigError

_EXAMPLES = """\b
Examples:
  editbench cache
  editbench cache --clear answers --clear factors
  editbench cache --clear all --older-than 30
"""

_KINDS = {
    "targets": ("target_hidden.sqlite*", "target hidden states"),
    "second_moments": ("second_moments", "second moments of keys"),
    "factors": ("factors", "what second moments are factorized into"),
    "answers": ("answers", "what unedited models answer"),
    "measurements": ("measurements", "what unedited models come to in tasks"),
    "critical_layers": ("critical_layers", "what --layers auto found"),
    "machines": ("machines", "how fast this machine is, for plans"),
    "datasets": ("datasets", "downloads"),
    "mend": ("mend", "what 'editbench train mend' has trained, which takes hours"),
    "damaged": ("**/*.damaged", "entries that were not what was written, put aside"),
}
"""What is kept by name: where it lies, and what it is. All of it but MEND is found again."""

_DAY = 86_400.0


@dataclass(frozen=True)
class _Found:
    files: tuple[Path, ...]

    @property
    def n_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    @property
    def days(self) -> tuple[float, float]:
        """Since the youngest and the oldest were written."""
        ages = [(time.time() - path.stat().st_mtime) / _DAY for path in self.files]
        return max(0.0, min(ages)), max(0.0, *ages)


@click.command(epilog=_EXAMPLES)
@options.cache()
@click.option(
    "--clear",
    multiple=True,
    type=click.Choice([*_KINDS, "all"]),
    help="Delete what is kept of this kind; 'all' is all but 'mend'. Repeatable.",
)
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Delete only files that were written longer ago.",
)
def cache(cache: Path | None, clear: tuple[str, ...], older_than: float | None) -> None:
    """Show what is kept between runs, or delete it.

    Whatever is deleted is computed or downloaded again when it is needed, but for what 'editbench
    train mend' has trained. Nothing should be deleted while a run is using it.
    """
    if older_than is not None and not clear:
        raise ConfigError("--older-than: nothing is to be deleted, got no --clear. Say what.")
    if cache is None or not cache.is_dir():
        click.echo(f"Nothing is kept in {cache}." if cache else "With --no-cache nothing is kept.")
        return
    if clear:
        chosen = [name for name in _KINDS if name in clear or ("all" in clear and name != "mend")]
        found = _Found(
            tuple(
                path
                for name in chosen
                for path in _find(cache, name).files
                if older_than is None or time.time() - path.stat().st_mtime > older_than * _DAY
            )
        )
        n_bytes = found.n_bytes
        for path in found.files:
            path.unlink()
        _remove_empty_folders(cache)
        click.echo(f"Deleted {len(found.files)} file(s), {_size(n_bytes)}, from {cache}.")
    click.echo(_draw(cache).rstrip("\n"))


def _find(cache: Path, name: str) -> _Found:
    pattern = _KINDS[name][0]
    roots = sorted(cache.glob(pattern))
    nested = (sorted(root.rglob("*")) if root.is_dir() else [root] for root in roots)
    files = dict.fromkeys(path for paths in nested for path in paths if path.is_file())
    if name != "damaged":
        damaged = set(_find(cache, "damaged").files)
        files = dict.fromkeys(path for path in files if path not in damaged)
    return _Found(tuple(files))


def _remove_empty_folders(cache: Path) -> None:
    for folder in sorted(filter(Path.is_dir, cache.rglob("*")), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def _draw(cache: Path) -> str:
    from editbench.results.tables.model import Cell, Column, Table
    from editbench.results.tables.terminal import draw_table

    rows = []
    for name, (_, what) in _KINDS.items():
        if (found := _find(cache, name)).files:
            youngest, oldest = found.days
            age = f"{youngest:.0f} to {oldest:.0f}" if round(youngest) < round(oldest) else ""
            cells = name, str(len(found.files)), _size(found.n_bytes), age or f"{oldest:.0f}", what
            rows.append(tuple(map(Cell, cells)))
    columns = (
        Column("kind"),
        Column("files", align="right"),
        Column("size", align="right"),
        Column("days old", align="right"),
        Column("what"),
    )
    free = shutil.disk_usage(cache).free
    notes = (f"In {cache}; {_size(free)} are free there.",)
    if not rows:
        return f"Nothing is kept in {cache}; {_size(free)} are free there."
    return lay_out(draw_table(Table("", columns, (tuple(rows),), notes)))


def _size(n_bytes: int) -> str:
    size = float(n_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
