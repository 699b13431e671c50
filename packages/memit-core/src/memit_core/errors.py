"""What can be wrong with the arguments of this package.

Every message reads ``<operation>: <what is wrong>, got <value>[; expected <value>]. <what to do>``.
"""


class MemitCoreError(ValueError):
    """Base of every error that an argument, a file or a model can cause."""


class ShapeError(MemitCoreError):
    """An argument has the wrong shape, dtype or type."""


class IllPosedError(MemitCoreError):
    """The numbers have no trustworthy answer: singular, not finite, or not symmetric."""
