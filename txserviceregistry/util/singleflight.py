"""Work that several callers want at the same time and that is done once; a cache of bounded size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from .waiters import Waiters

_K = TypeVar("_K")
_T = TypeVar("_T")

#: How many items a BoundedCache may hold.
CAPACITY = 10_000


class BoundedCache(dict[_K, _T]):
    """A cache of bounded size, in the order in which items were put; the oldest one goes first."""

    def put(self, key: _K, value: _T) -> None:
        """Keep *value*, as the newest."""
        self.pop(key, None)
        self[key] = value
        if len(self) > CAPACITY:
            del self[next(iter(self))]

    def drop(self, key: _K) -> None:
        """Forget *key*, if it is there."""
        self.pop(key, None)


class SingleFlight(Generic[_K, _T]):
    """Work that several callers want at the same time and that is done once. Each has a Deferred of its own."""

    def __init__(self) -> None:
        self._waiting: dict[_K, Waiters[_T]] = {}

    def __len__(self) -> int:
        """How many pieces of work are under way."""
        return len(self._waiting)

    def do(self, key: _K, work: Callable[[], Deferred[_T]]) -> Deferred[_T]:
        """The result of *work*, which is begun unless work with the same *key* is under way."""
        if key in self._waiting:
            return self._waiting[key].wait()
        waiters = self._waiting[key] = Waiters()
        waiter = waiters.wait()

        def done(result: _T | Failure) -> None:
            del self._waiting[key]
            waiters.fire(result)

        work().addBoth(done)
        return waiter
