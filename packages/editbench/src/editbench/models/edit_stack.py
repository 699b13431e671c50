"""What has been put on a model, in order, and how to have the model without it for a while."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

PutOn = Callable[[], AbstractContextManager[None]]


class EditStack:
    """The edits that are on a model.

    They may come off in any order: those above one that is taken off come off before it, and are
    put on again after it.

    Attributes:
        is_putting_on: Whether an edit is just being put on.
    """

    def __init__(self) -> None:
        self._on: list[Application] = []
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

    def put_on(
        self, put_on: PutOn, *, identity: Callable[[], str], changes_weights_alone: bool
    ) -> AbstractContextManager[None]:
        """Make the context manager that puts an edit on and notes it.

        Args:
            put_on: Makes the context manager that puts it on; called each time that it is put on.
            identity: Tells the edit from others that change something else.
            changes_weights_alone: Whether the weights, as they are then, say all that it does.
        """
        # An edit may consist of others: then what is on is the whole.
        if self.is_putting_on:
            return put_on()
        return Application(self, put_on, identity, changes_weights_alone)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Take everything off for the length of a ``with`` body."""
        every = tuple(self._on)
        self._take_off(every)
        try:
            yield
        finally:
            self._put_back(every)

    def _enter(self, application: "Application") -> None:
        self.is_putting_on = True
        try:
            application.enter()
        finally:
            self.is_putting_on = False
        self._on.append(application)

    def _take_off(self, some: "Sequence[Application]") -> None:
        for each in reversed(some):
            self._on.remove(each)
            each.exit()

    def _put_back(self, some: "Sequence[Application]") -> None:
        for each in some:
            self._enter(each)

    def _remove(
        self,
        application: "Application",
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if application not in self._on:  # what it needed was taken off before it
            return None
        above = self._on[self._on.index(application) + 1 :]
        self._take_off(above)
        self._on.remove(application)
        try:
            return application.exit(error_type, error, traceback)
        finally:
            self._put_back(above)


class Application(AbstractContextManager[None]):
    """One edit on its model for the length of a ``with`` body; `EditStack.put_on` makes it."""

    def __init__(
        self,
        stack: EditStack,
        put_on: PutOn,
        identity: Callable[[], str],
        changes_weights_alone: bool,
    ) -> None:
        self.identity = identity
        self.changes_weights_alone = changes_weights_alone
        self._stack = stack
        self._put_on = put_on
        self._context: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        self._stack._enter(self)

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._stack._remove(self, error_type, error, traceback)

    def enter(self) -> None:
        """Put the edit on."""
        context = self._put_on()
        context.__enter__()
        self._context = context

    def exit(
        self,
        error_type: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> bool | None:
        """Take the edit off."""
        assert self._context is not None
        context, self._context = self._context, None
        return context.__exit__(error_type, error, traceback)
