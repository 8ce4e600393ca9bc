"""Settling: many changes in a short time as one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..util.logs import Listeners, Logger
from ..util.parsing import LONGEST_INTERVAL, boundedNumber

# A listener is called so many times its settling time after the first change at the latest.
_MOST = 4


class Settling:
    """
    Collects changes, and calls a listener with all of them when there was none for a while.

    :param listener: called with a list of the changes, in their order.
    :param settle: seconds without a change, after which it is called; at most four times as long after the first one.
    :raises ValueError: if *settle* is not a finite number of 0 or more.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, settle: float, listener: Callable[[list[Any]], object]) -> None:
        self._clock = clock
        self._settle = boundedNumber(settle, 0.0, LONGEST_INTERVAL)
        self._listeners: Listeners[[list[Any]]] = Listeners(self._log, "settled changes")
        self._listeners.add(listener)
        self._changes: list[Any] = []
        self._latest = 0.0
        self._call: IDelayedCall | None = None

    def add(self, *change: Any) -> None:
        """Something has changed. Several arguments are one tuple."""
        now = self._clock.seconds()
        if self._call is None:
            self._latest = now + _MOST * self._settle
            self._call = self._clock.callLater(self._settle, self.flush)
        else:
            self._call.reset(max(0.0, min(self._settle, self._latest - now)))
        self._changes.append(change if len(change) > 1 else change[0])

    def flush(self) -> None:
        """Call the listener now, if there is a change."""
        changes = self.drop()
        if changes:
            self._listeners.call(changes)

    def drop(self) -> list[Any]:
        """Forget the changes, which are returned, and leave nothing on the reactor."""
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()
        changes, self._changes = self._changes, []
        return changes
