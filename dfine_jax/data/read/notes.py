"""What reading a dataset changed or left out: counted by kind, told once, listed in full where that is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dfine_jax.errors import RepairableError, UserError

REFUSED = "entries that reading refuses were left out"


class Notes:
    """Changes by kind, each with the places where they were made.

    Args:
      lenient: what is wrong is left out and noted instead of being an error, for repairs and for checks that report
        all there is to report.
    """

    def __init__(self, *, lenient: bool = False) -> None:
        self.lenient = lenient
        self.places: dict[str, list[str]] = {}

    def add(self, kind: str, where: str) -> None:
        """Note one change; the kind is a phrase that follows a number, such as ``boxes cut at the border``."""
        self.places.setdefault(kind, []).append(where)

    def refuse(self, message: str, kind: str = REFUSED) -> None:
        """An entry that cannot be used.

        Raises:
          UserError: the message, unless the notes are lenient; then it is noted and the caller leaves the entry out.
            With a kind of its own it is what a repair cures by that.
        """
        if not self.lenient:
            raise UserError(message) if kind == REFUSED else RepairableError(message)
        self.add(kind, message)

    @contextlib.contextmanager
    def leaving_out(self) -> Iterator[None]:
        """An entry whose reading raises a UserError inside is one that cannot be used: ``refuse``."""
        try:
            yield
        except UserError as error:
            self.refuse(str(error))

    def lines(self) -> list[str]:
        """One line for each kind: how often, and where first."""
        return [f"{len(places)} {kind} (first: {places[0]})" for kind, places in self.places.items()]

    def __str__(self) -> str:
        """One line, empty when nothing happened."""
        return "; ".join(self.lines())
