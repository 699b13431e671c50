"""The boundary to third-party code: whatever goes wrong behind it names plugin, package and call.

The methods of classes that plugins register are guarded: they do the same, but for what is raised
where they break their contract. So nothing else has to expect that a plugin does.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import update_wrapper
from inspect import getattr_static
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from editbench.errors import EditbenchError, PluginError

if TYPE_CHECKING:
    import click

Check = Callable[[Any, Any], str | None]
"""Looks at an object and what its method returned; says what is wrong with that, if anything is."""

Contract = Mapping[str, Check | None]
"""The methods and properties through which something is used, and what is expected of each."""

_N_SHOWN_CHARACTERS = 300
_ORIGIN = "__editbench_origin__"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where third-party code comes from.

    Attributes:
        plugin: Name of the entry point.
        distribution: The installed distribution that it belongs to, where known.
        version: Its version, where known.
    """

    plugin: str
    distribution: str | None = None
    version: str | None = None

    @property
    def package(self) -> str:
        """Distribution and version, as far as they are known."""
        return " ".join(part for part in (self.distribution, self.version) if part)

    def __str__(self) -> str:
        return f"plugin '{self.plugin}'" + (f" ({self.package})" if self.package else "")


class Calling:
    """A block that runs third-party code.

    An interrupt comes from the user, and memory that runs out is explained elsewhere: both pass. An
    `EditbenchError` explains itself, so it gets a note that says whose it is. Everything else, an
    attempt to end the process included, becomes a `PluginError`.

    Args:
        origin: Whose code it is.
        call: What is called, such as ``editor 'x': edit()``.
        passing: What else passes.
    """

    def __init__(
        self, origin: Origin, call: str, passing: tuple[type[BaseException], ...] = ()
    ) -> None:
        self._origin = origin
        self._call = call
        self._passing: tuple[type[BaseException], ...] = (KeyboardInterrupt, *passing)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        if error is None or isinstance(error, self._passing) or _is_out_of_memory(error):
            return False
        if isinstance(error, EditbenchError):
            said = " ".join([str(error), *getattr(error, "__notes__", ())])
            if str(self._origin) not in said:
                error.add_note(f"({self._call} of {self._origin}.)")
            return False
        raise self._fail(f"failed, got {describe(error)}") from error

    def checked(self, subject: Any, result: Any, check: Check | None) -> Any:
        """What the call returned, looked at.

        Raises:
            PluginError: Something is wrong with it.
        """
        if check is not None and (problem := check(subject, result)):
            raise self._fail(problem)
        if isinstance(result, AbstractContextManager):
            return _GuardedBlock(result, self)
        return result

    def _fail(self, problem: str) -> PluginError:
        return PluginError(
            f"{self._call} of {self._origin}: {problem.rstrip('.')}. Tell the plugin's authors, or "
            f"leave it out with EDITBENCH_DISABLE_PLUGINS={self._origin.plugin}."
        )


def calling(guarded: Any, call: str) -> AbstractContextManager[object]:
    """A block that runs code of whoever made `guarded`, if that is a third party.

    A value that is refused there is the user's: an `EditbenchError` passes as it is.
    """
    origin = origin_of(guarded)
    return Calling(origin, call, (EditbenchError,)) if origin is not None else nullcontext()


def guard_class(cls: type, origin: Origin, what: str, contract: Contract) -> None:
    """Make a plugin's class name its plugin when its contract is broken; nothing else changes.

    One of editbench's own is left alone. `what` is what messages call it, such as ``editor 'x'``.
    """
    if cls.__module__.partition(".")[0] == "editbench":
        return
    setattr(cls, _ORIGIN, origin)
    missing = object()
    for name, check in {"__init__": None, **contract}.items():
        found = getattr_static(cls, name, missing)
        if isinstance(found, _GuardedMember):  # from a registration before, or of its parent
            found = found.member
        if found is not missing and found is not object.__init__:
            setattr(cls, name, _GuardedMember(found, origin, what, name, check))


def origin_of(guarded: Any) -> Origin | None:
    """Whose a guarded class, or an object of one, is; None if it is nobody's but editbench's."""
    return getattr(guarded, _ORIGIN, None)


def guard_function(
    function: Callable[..., Any],
    origin: Origin,
    call: str,
    check: Check | None = None,
    subject: Any = None,
) -> Callable[..., Any]:
    """Make a function that does the same, but for what is said when it fails.

    `check` looks at what it returns, and at `subject`.
    """

    def guarded(*arguments: Any, **named: Any) -> Any:
        with Calling(origin, call) as calling:
            return calling.checked(subject, function(*arguments, **named), check)

    return update_wrapper(guarded, function)


def guard_command(command: "click.Command", origin: Origin) -> None:
    """Guard a command of a plugin; what ends any command, with a message or without, passes."""
    invoke = command.invoke

    def guarded(context: "click.Context") -> Any:
        from click import Abort, ClickException
        from click.exceptions import Exit

        ends = (ClickException, Exit, Abort, SystemExit)
        with Calling(origin, f"command '{command.name}'", (*ends, OSError, EditbenchError)):
            return invoke(context)

    command.invoke = guarded  # type: ignore[method-assign, assignment]


def describe(error: BaseException) -> str:
    """Type and message of an exception, in one line of bearable length."""
    text = " ".join(str(error).split())
    if len(text) > _N_SHOWN_CHARACTERS:
        text = f"{text[:_N_SHOWN_CHARACTERS]} …"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _GuardedMember:
    """A method, property or other attribute of a guarded class, in the place of the plugin's own.

    That is `member`, descriptors as they are; `check` looks at what comes out of it.
    """

    def __init__(
        self, member: Any, origin: Origin, what: str, name: str, check: Check | None
    ) -> None:
        self.member = member
        self._origin = origin
        self._check = check
        self._is_called = callable(member) or isinstance(member, classmethod | staticmethod)
        call = f"{name}()" if self._is_called else name
        if name == "__init__":
            call = "its constructor"
        self._call = f"{what}: {call}"

    def __get__(self, instance: Any, owner: type) -> Any:
        subject = owner if instance is None else instance
        if self._is_called:
            bound = self._bind(instance, owner)
            return guard_function(bound, self._origin, self._call, self._check, subject)
        if instance is None:
            return self.member
        with Calling(self._origin, self._call) as calling:
            return calling.checked(subject, self._bind(instance, owner), self._check)

    def _bind(self, instance: Any, owner: type) -> Any:
        bind = getattr(type(self.member), "__get__", None)
        return self.member if bind is None else bind(self.member, instance, owner)


class _GuardedBlock(AbstractContextManager[Any]):
    """A block of a plugin's; what is raised inside of it is not the plugin's doing."""

    def __init__(self, block: AbstractContextManager[Any], calling: Calling) -> None:
        self._block = block
        self._calling = calling

    def __enter__(self) -> Any:
        with self._calling:
            return self._block.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        try:
            return self._block.__exit__(kind, error, traceback)
        except BaseException as raised:
            if raised is error:
                raise
            with self._calling:
                raise


def _is_out_of_memory(error: BaseException) -> bool:
    # Without torch nothing has run that could have needed more than there is.
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from editbench.models.out_of_memory import is_out_of_memory

    return is_out_of_memory(error)
