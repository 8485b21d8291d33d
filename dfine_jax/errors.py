"""Errors that are the user's to fix."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: the message says what is wrong, where (file, field, value) and the cure, in one line.

    The ``dfine`` command prints it and exits with status 2; a library caller sees an ordinary exception.
    """


class RepairableError(UserError):
    """Bad annotations that ``dfine check --repair`` cures; the message ends with that command.

    Args:
      cause: what is wrong and where.
      data: the dataset, as ``--data`` names it, where it is known.
    """

    def __init__(self, cause: str, data: object = "DIR") -> None:
        super().__init__(cause, data)
        self.cause, self.data = cause, data

    def __str__(self) -> str:
        """The cause and the cure."""
        return f"{self.cause}; dfine check --data {self.data} --repair OUT cures it"

    def of(self, data: object) -> RepairableError:
        """The same with the name of the dataset."""
        return RepairableError(self.cause, data)
