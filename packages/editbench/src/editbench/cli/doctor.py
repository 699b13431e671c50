"""``editbench doctor``: is everything there that editbench needs?"""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from editbench.cli import options
from editbench.cli.terminal import lay_out
from editbench.plugins.manager import PluginManager

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_EXAMPLES = """\b
Example:
  editbench doctor
"""
_FREE = 5e9
_TIMEOUT_SECONDS = 3.0

Mark = Literal["ok", "note", "FAULT"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        mark: Whether it is as it should be; of a note it need not be.
        what: What it is.
        text: How it is; and how to mend it, where it is not as it should be.
    """

    mark: Mark
    what: str
    text: str


@click.command(epilog=_EXAMPLES)
@options.cache()
@click.option("--offline", is_flag=True, help="Do not ask whether the model hub can be reached.")
@click.pass_obj
def doctor(plugins: PluginManager, cache: Path | None, offline: bool) -> None:
    """Say whether everything is there that editbench needs.

    Versions, extras, devices, memory, the cache folder, the model hub and plugins. Exit code 2 if
    something is broken; what is merely missing is a note.
    """
    findings = [
        *_look_at_packages(),
        *_look_at_devices(),
        *_look_at_cache(cache),
        *([] if offline else _look_at_hub()),
        *(Finding("FAULT", "plugin", str(failure)) for failure in plugins.failures),
    ]
    from editbench.results.tables.model import Cell, Column, Table
    from editbench.results.tables.terminal import draw_table

    rows = tuple(
        (Cell(each.mark, bold=each.mark == "FAULT"), Cell(each.what), Cell(each.text))
        for each in findings
    )
    table = Table("", (Column(""), Column("what"), Column("")), (rows,))
    click.echo(lay_out(draw_table(table)).rstrip("\n"))
    n_faults = sum(each.mark == "FAULT" for each in findings)
    if n_faults:
        click.echo(f"{n_faults} thing(s) are broken.", err=True)
        click.get_current_context().exit(2)
    click.echo("Everything that is needed is there.")


def _look_at_packages() -> Iterator[Finding]:
    """Python, editbench and what it requires, each with its version."""
    yield Finding("ok", "Python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("ok", "editbench", version("editbench"))
    from packaging.requirements import Requirement

    extras = metadata("editbench").get_all("Provides-Extra") or []
    for text in requires("editbench") or []:
        requirement = Requirement(text)
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        extra = next((each for each in extras if not needed and _is_of(requirement, each)), None)
        if not needed and extra is None:
            continue  # for another platform
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            if extra is not None:
                how = f"not installed: pip install 'editbench[{extra}]'"
                yield Finding("note", f"{requirement.name} ({extra})", how)
            else:
                how = f"missing: pip install '{requirement.name}{requirement.specifier}'"
                yield Finding("FAULT", requirement.name, how)
            continue
        name = requirement.name if extra is None else f"{requirement.name} ({extra})"
        if requirement.specifier.contains(found, prereleases=True):
            yield Finding("ok", name, found)
        else:
            how = f"{found}, needed is {requirement.specifier}: pip install --upgrade {name}"
            yield Finding("FAULT", name, how)


def _is_of(requirement: "Requirement", extra: str) -> bool:
    return requirement.marker is not None and requirement.marker.evaluate({"extra": extra})


def _look_at_devices() -> Iterator[Finding]:
    """Processors and GPUs, and their memory."""
    import torch

    from editbench.models.device_memory import free_memory

    n_threads = torch.get_num_threads()
    main = free_memory(torch.device("cpu"))
    text = f"{os.cpu_count()} cores, torch uses {n_threads}, {main / 1e9:.3g} GB of memory free"
    yield Finding("ok", "processor", text)
    if not torch.cuda.is_available():
        yield Finding("note", "GPU", "none that torch can use: everything runs on the processor")
    for index in range(torch.cuda.device_count()):
        available, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield Finding(
            "ok", f"GPU {index}", f"{name}, {available / 1e9:.3g} of {total / 1e9:.3g} GB free"
        )


def _look_at_cache(cache: Path | None) -> Iterator[Finding]:
    """Where things are kept between runs, and whether there is room."""
    if cache is None:
        return
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        how = f"cannot be written, got {str(cache)!r}: choose another with EDITBENCH_CACHE"
        yield Finding("FAULT", "cache", how)
        return
    used = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    free = shutil.disk_usage(there).free
    text = f"{cache}: {used / 1e9:.3g} GB kept, {free / 1e9:.3g} GB free"
    if free < _FREE:
        text += ", which is little: 'editbench cache --clear' deletes, EDITBENCH_CACHE moves it"
    yield Finding("ok" if free >= _FREE else "note", "cache", text)


def _look_at_hub() -> Iterator[Finding]:
    """Whether models can be downloaded."""
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield Finding("note", "model hub", "not asked: HF_HUB_OFFLINE is set")
        return
    try:
        request = Request(constants.ENDPOINT, method="HEAD")
        with urlopen(request, timeout=_TIMEOUT_SECONDS):
            pass
    except OSError as error:
        yield Finding(
            "note",
            "model hub",
            f"cannot be reached ({type(error).__name__}): models on this disk, GGUF files and "
            "'atlas' work all the same",
        )
    else:
        yield Finding("ok", "model hub", "can be reached")
