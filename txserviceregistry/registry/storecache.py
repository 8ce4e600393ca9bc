"""Results of the store that are used for a while, or for as long as it can't be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import attrs
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime

from ..util.deferred import BoundedCache, SingleFlight, returnsDeferred
from .stores.interfaces import NoSuchObject, StoreUnavailable

_T = TypeVar("_T")

#: How long a result of the store is used without asking again, in seconds.
MAX_AGE = 1.0
#: When the store does not answer within so many seconds, its last result is used: a disk that hangs must not cost a
#: service with a heartbeat timeout of three seconds its registration.
PATIENCE = 0.1


@attrs.define(eq=False, repr=False)
class StoreCache(Generic[_T]):
    """Results of the store, by key."""

    _read: Callable[[str], Deferred[_T]]
    _clock: IReactorTime
    # With the time at which the store was asked.
    results: BoundedCache[str, tuple[_T, float]] = attrs.field(init=False, factory=BoundedCache)
    _reading: SingleFlight[str, _T] = attrs.field(init=False, factory=SingleFlight)

    def recent(self, key: str) -> _T | None:
        """A result of the store that is at most a second old, without asking it."""
        result = self.results.get(key)
        return result[0] if result is not None and 0 <= self._clock.seconds() - result[1] < MAX_AGE else None

    def last(self, key: str) -> _T | None:
        """The last result of the store, however old, without asking it."""
        result = self.results.get(key)
        return None if result is None else result[0]

    async def get(self, key: str) -> _T:
        """The result of the store now; while it fails or takes long, the last one."""
        last = self.last(key)
        reading = self._reading.do(key, lambda: self._ask(key))
        if last is None:
            return await reading
        try:
            return await reading.addTimeout(PATIENCE, self._clock)
        except (StoreUnavailable, TimeoutError):
            return last

    @returnsDeferred
    async def _ask(self, key: str) -> _T:
        asked = self._clock.seconds()
        try:
            value = await self._read(key)
        except NoSuchObject:
            self.forget(key)
            raise
        if key not in self.results or self.results[key][1] < asked:
            # Else it was written while it was being read, and the result may be older.
            self.results.put(key, (value, asked))
        return value

    def forget(self, key: str) -> None:
        """Ask the store the next time."""
        self.results.pop(key, None)
