"""What has been put on a model, in order, and how to have the model without it for a while."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

PutOn = Callable[[], AbstractContextManager[None]]


@dataclass(eq=False, slots=True)
class _Application:
    """One edit for the length of a ``with`` body: how it is put on, and how it is on now."""

    put_on: PutOn
    identity: Callable[[], str]
    changes_weights_alone: bool
    context: AbstractContextManager[None] = field(default_factory=nullcontext)


class EditStack:
    """The edits that are on a model.

    They may come off in any order: those above one that is taken off come off before it, and are
    put on again after it.

    Attributes:
        is_putting_on: Whether an edit is just being put on.
    """

    def __init__(self) -> None:
        self._on: list[_Application] = []
        self.is_putting_on = False

    def __len__(self) -> int:
        return len(self._on)

    @property
    def identities(self) -> tuple[str, ...]:
        """What is on, from the first."""
        return tuple(each.identity() for each in self._on)

    @property
    def marks(self) -> tuple[str, ...]:
        """What is on besides weights, from the first."""
        return tuple(each.identity() for each in self._on if not each.changes_weights_alone)

    @contextmanager
    def put_on(
        self, put_on: PutOn, *, identity: Callable[[], str], changes_weights_alone: bool
    ) -> Iterator[None]:
        """Put an edit on for the length of a ``with`` body, and note it.

        Args:
            put_on: Makes the context manager that puts it on; called each time that it is put on.
            identity: Tells the edit from others that change something else.
            changes_weights_alone: Whether the weights, as they are then, say all that it does.
        """
        # An edit may consist of others: then what is on is the whole.
        if self.is_putting_on:
            with put_on():
                yield
            return
        application = _Application(put_on, identity, changes_weights_alone)
        self._put_back([application])
        try:
            yield
        except BaseException:
            if not self._remove(application, *sys.exc_info()):
                raise
        else:
            self._remove(application, None, None, None)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Take everything off for the length of a ``with`` body."""
        every = tuple(self._on)
        self._take_off(every)
        try:
            yield
        finally:
            self._put_back(every)

    def _put_back(self, some: Sequence[_Application]) -> None:
        for each in some:
            self.is_putting_on = True
            try:
                each.context = each.put_on()
                each.context.__enter__()
            finally:
                self.is_putting_on = False
            self._on.append(each)

    def _take_off(self, some: Sequence[_Application]) -> None:
        for each in reversed(some):
            self._on.remove(each)
            each.context.__exit__(None, None, None)

    def _remove(self, application: _Application, *error: Any) -> bool | None:
        if application not in self._on:  # what it needed was taken off before it
            return None
        above = self._on[self._on.index(application) + 1 :]
        self._take_off(above)
        self._on.remove(application)
        try:
            return application.context.__exit__(*error)
        finally:
            self._put_back(above)
