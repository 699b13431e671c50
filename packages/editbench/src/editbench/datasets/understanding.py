"""What was understood of a file that is not written as documented."""

from pathlib import Path


class Understanding:
    """Gathers, over the records of a file, how they were read, for one line about it.

    Attributes:
        form: What the file turned out to be, such as ``a JSON array``; empty where that is the
            usual one.
    """

    def __init__(self) -> None:
        self.form = ""
        self._taken: dict[str, str] = {}
        self._ignored: dict[str, list[str]] = {}

    def take(self, name: str, meaning: str) -> None:
        """Note that the field `name` was read as `meaning`."""
        self._taken.setdefault(name, meaning)

    def ignore(self, name: str, reason: str) -> None:
        """Note that the field `name` was not read."""
        names = self._ignored.setdefault(reason, [])
        if name not in names:
            names.append(name)

    def describe(self, path: Path) -> str | None:
        """One line, or None where everything was as documented."""
        parts = [f"read as {self.form}"] if self.form else []
        if self._taken:
            parts.append(", ".join(f"{name} as {what}" for name, what in self._taken.items()))
        if self._ignored:
            groups = (f"{', '.join(names)} ({why})" for why, names in self._ignored.items())
            parts.append(f"ignored: {', '.join(groups)}")
        return f"{path}: {'; '.join(parts)}." if parts else None
