"""What a program is told while its run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from dfine_jax.errors import UserError

_NAMES = ("on_step", "on_epoch", "on_end")


class Callbacks:
    """Tells objects that have any of ``on_step(step, values)``, ``on_epoch(epoch, row)`` and ``on_end(result)``.

    Steps and epochs count from 1; values are the loss, its terms by ``kind/where`` and the norm of the gradient; a row
    is a line of ``metrics.csv``; the result is that of ``train``. An error in one asks the run to end as a signal does,
    with everything saved; ``end`` raises it then.

    Args:
      request_stop: asks the run to end, with the reason.

    Raises:
      UserError: an object has none of them.
    """

    def __init__(self, given: Sequence[Any], request_stop: Callable[[str], None]) -> None:
        for one in given:
            if not any(callable(getattr(one, name, None)) for name in _NAMES):
                raise UserError(f"callback {one!r} has none of {', '.join(_NAMES)}; define one of them as a method")
        self._given, self._request_stop = tuple(given), request_stop
        self.error: Exception | None = None

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """After the 1-based ``step``."""
        self._tell("on_step", step, values)

    def epoch(self, epoch: int, row: Mapping[str, Any]) -> None:
        """After the 1-based ``epoch``, with its evaluation."""
        self._tell("on_epoch", epoch, row)

    def end(self, result: Any) -> None:
        """When all is saved; raises what went wrong in a callback before."""
        for one in self._given:
            if method := getattr(one, "on_end", None):
                method(result)
        if self.error is not None:
            raise self.error

    def _tell(self, name: str, *values: Any) -> None:
        for one in self._given:
            if self.error is None and (method := getattr(one, name, None)):
                with _Kept(self, name):
                    method(*values)

    def failed(self, name: str, error: Exception) -> None:
        """Remember what went wrong, and ask the run to end."""
        self.error = error
        self._request_stop(f"{type(error).__name__} in {name} of a callback")


class _Kept:
    """An error inside is kept for the end of the run."""

    def __init__(self, callbacks: Callbacks, name: str) -> None:
        self._callbacks, self._name = callbacks, name

    def __enter__(self) -> _Kept:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self._callbacks.failed(self._name, error)
        return True
