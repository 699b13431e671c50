"""What can be wrong with the arguments of this package.

Every message reads ``<operation>: <what is wrong>, got <value>[; expected <value>]. <what to do>``.
"""


class MemitCoreError(ValueError):
    """Base of every error that an argument or a model can cause."""


class ShapeError(MemitCoreError):
    """An argument has the wrong shape, dtype or type."""


class IllPosedError(MemitCoreError):
    """The numbers have no trustworthy answer: singular, not finite, or not symmetric."""


class IndefiniteError(IllPosedError):
    """A second moment has a negative eigenvalue: it is no mean of k kᵀ.

    Attributes:
        row: Where factorizing it meets that.
    """

    def __init__(self, operation: str, name: str, row: int) -> None:
        super().__init__(
            f"{operation}: `{name}` has a negative eigenvalue, which factorizing it meets at "
            f"[{row}, {row}]; expected E[k kᵀ], which has none. Collect it again."
        )
        self._place = operation, name
        self.row = row

    def at(self, row: int) -> "IndefiniteError":
        """The same of a matrix in which it is another row."""
        return IndefiniteError(*self._place, row)
