"""Errors a user can mend, and how their messages are built.

Every message reads ``<operation>: <what is wrong>, got <value>[; expected <value>]. <what to do>``.
The command line turns an `EditbenchError` into one line on stderr and exit code 2; any other
exception is a defect and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class EditbenchError(Exception):
    """Base of every error that bad input or a bad environment can cause."""


class DataError(EditbenchError):
    """A dataset, facts or corpus file cannot be read, or one of its records is malformed."""


class ModelError(EditbenchError):
    """A model cannot be loaded, or its architecture offers no place to edit."""


class RequestError(EditbenchError):
    """An edit request is malformed or conflicts with another one."""


class ConfigError(EditbenchError):
    """An option, configuration file or combination of settings is invalid."""


class EditError(EditbenchError):
    """An edit cannot be computed, read, or put on this model."""


class DeviceMemoryError(EditbenchError):
    """A device has too little memory for the smallest piece of some work."""


class SecondMomentError(EditbenchError):
    """Second moments are missing, malformed, or belong to another model."""


class PluginError(EditbenchError):
    """A plugin cannot be loaded or breaks the contract of its hook."""


class RunError(EditbenchError):
    """A run folder cannot be created, resumed or read."""


class TraceError(EditbenchError):
    """Nothing can be traced, or a trace folder cannot be created, resumed or read."""


class UnknownNameError(EditbenchError):
    """A name that no plugin registers; the message suggests the nearest one."""

    def __init__(self, kind: str, name: str, available: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.available = sorted(available)
        nearest = difflib.get_close_matches(name, self.available, n=1)
        suggestion = f" Did you mean '{nearest[0]}'?" if nearest else ""
        listing = ", ".join(self.available) or "none"
        super().__init__(f"unknown {kind} '{name}'.{suggestion} Available: {listing}.")
