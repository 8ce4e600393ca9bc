"""Many Deferreds for one event."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

_T = TypeVar("_T")


class Waiters(Generic[_T]):
    """
    Deferreds that wait for the same event. Each has one owner, who may cancel it.

    :param abandoned: called when the last one has been cancelled.
    """

    __slots__ = ("_abandoned", "_waiting")

    def __init__(self, abandoned: Callable[[], object] = lambda: None) -> None:
        self._abandoned = abandoned
        self._waiting: dict[Deferred[_T], None] = {}

    def wait(self) -> Deferred[_T]:
        """Another one, which fires at the next :meth:`fire`."""
        waiter: Deferred[_T] = Deferred(self._cancelled)
        self._waiting[waiter] = None
        return waiter

    def fire(self, outcome: _T | Failure, among: Iterable[Deferred[_T]] | None = None) -> None:
        """Fire the waiting Deferreds, or only those *among* them. Deferreds added meanwhile wait for the next time."""
        fired = [waiter for waiter in (self if among is None else among) if waiter in self._waiting]
        for waiter in fired:
            del self._waiting[waiter]
        for waiter in fired:
            # One may cancel another.
            if not waiter.called:
                waiter.callback(outcome)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Deferred[_T]]:
        return iter(self._waiting)

    def _cancelled(self, waiter: Deferred[_T]) -> None:
        # It is not there any more while fire() goes through those that waited.
        if self._waiting.pop(waiter, self) is None and not self._waiting:
            self._abandoned()
