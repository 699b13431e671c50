"""The group behind ``editbench``: the one place where exceptions become messages and exit codes.

0 done; 1 some trials failed; 2 bad input, with one line on stderr; 130 interrupted. Anything that
is not translated here is a defect and keeps its traceback. Authors of plugins, whose errors are
translated, set ``EDITBENCH_TRACEBACK`` to see theirs.
"""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from editbench.errors import DeviceMemoryError, EditbenchError
from editbench.plugins.manager import PluginManager

SOME_FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

TRACEBACK_VARIABLE = "EDITBENCH_TRACEBACK"
"""Whoever sets it sees, before the one line, where the error was raised."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MENDABLE = _NO_SPACE | {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, together with what to tell the user about what was kept."""


@contextmanager
def telling_what_is_kept(describe: Callable[[], str]) -> Iterator[None]:
    """Make an interrupt say what is kept; `describe` is asked only when one comes."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise Interrupted(describe()) from interrupt


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make an operating system's error name `path`, where it names no file itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


class EditbenchGroup(click.Group):
    """A group whose commands may raise `EditbenchError`."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the arguments that precede the command's name."""
        with _translated_errors():
            return super().make_context(info_name, args, parent, **extra)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; one that is not there may be one of a plugin that failed."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if isinstance(ctx.obj, PluginManager):
                ctx.obj.suspect_failures(error)
            raise

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        with _translated_errors():
            return super().invoke(ctx)


class _BadInputError(click.ClickException):
    """One line on stderr, ``Error: …``."""

    exit_code = BAD_INPUT

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines() if line.strip()))


class _InterruptedError(click.ClickException):
    exit_code = INTERRUPTED

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"\n{self.message}", file=file, err=True)


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except EditbenchError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            click.echo("".join(traceback.format_exception(error)), err=True)
        raise _BadInputError(" ".join([str(error), *_notes(error)])) from error
    except click.UsageError as error:
        hint = [f"Try '{error.ctx.command_path} --help'."] if error.ctx is not None else []
        message = " ".join([error.format_message(), *hint, *_notes(error)])
        raise _BadInputError(message) from error
    except KeyboardInterrupt as error:
        raise _InterruptedError(str(error) or "Interrupted.") from error
    except BrokenPipeError as error:
        # Whoever read our output has left. Python flushes stdout once more as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(BROKEN_PIPE) from error
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        raise _BadInputError(_describe_os_error(error)) from error
    except (RuntimeError, MemoryError) as error:
        if (explanation := _explain_memory(error)) is None:
            raise
        raise _BadInputError(explanation) from error


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _explain_memory(error: RuntimeError | MemoryError) -> str | None:
    """What to do about memory that ran out where no editor or trial says so; None if it did not."""
    # Without torch nothing has run that could have needed more than there is.
    if isinstance(error, click.exceptions.Exit | click.Abort) or "torch" not in sys.modules:
        return None
    from editbench.models.out_of_memory import explaining_out_of_memory

    context = click.get_current_context(silent=True)
    command = None if context is None else context.invoked_subcommand
    try:
        with explaining_out_of_memory(command or "editbench"):
            raise error
    except DeviceMemoryError as explained:
        return str(explained)
    except (RuntimeError, MemoryError):
        return None


def _describe_os_error(error: OSError) -> str:
    place = error.filename2 or error.filename
    where = f"got {str(place)!r}" if place else "while writing"
    if error.errno in _NO_SPACE:
        return f"write: no space left, {where}. Free some space, or choose another place."
    return f"file access: {error.strerror}, {where}. Check the path and its permissions."
