"""
What the store said about users and tokens: believed for a second, and longer while the store does not answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from ...util.deferred import returnsDeferred
from ...util.singleflight import BoundedCache, SingleFlight
from ..stores.interfaces import NoSuchObject, StoreUnavailable

_T = TypeVar("_T")

#: What the store said is believed for so many seconds,
BELIEF = 1.0
#: and if it does not answer within so many, what it said before: a disk that hangs must not cost a service that lives
#: for three seconds its heartbeat.
PATIENCE = 0.1


class StoreCache(Generic[_T]):
    """
    What the store said, by key, for as long as it is to be believed.

    :param read: asks the store.
    :param clock: for the time and the patience.
    """

    def __init__(self, read: Callable[[str], Deferred[_T]], clock: IReactorTime) -> None:
        self._read = read
        self._clock = clock
        self._said: BoundedCache[str, tuple[_T, float]] = BoundedCache()
        self._reading: SingleFlight[str, _T] = SingleFlight()

    def recent(self, key: str) -> _T | None:
        """What the store said within the last second, without asking it."""
        said = self._said.get(key)
        return said[0] if said is not None and 0 <= self._clock.seconds() - said[1] < BELIEF else None

    def last(self, key: str) -> _T | None:
        """What the store said last, however long ago that was, without asking it."""
        said = self._said.get(key)
        return None if said is None else said[0]

    async def get(self, key: str) -> _T:
        """
        What the store says now; while it is in trouble or takes long, what it said last.

        :raises NoSuchObject: if it has none.
        :raises StoreUnavailable: if it can't be asked and was not asked before.
        """
        reading = self._reading.do(key, lambda: self._ask(key))
        said = self._said.get(key)
        if said is None or reading.called:
            return await reading
        reading.addTimeout(PATIENCE, self._clock, lambda _result, _seconds: said[0])
        return await reading

    @returnsDeferred
    async def _ask(self, key: str) -> _T:
        asked = self._clock.seconds()
        try:
            value = await self._read(key)
        except NoSuchObject:
            self._said.drop(key)
            raise
        except StoreUnavailable:
            said = self._said.get(key)
            if said is None:
                raise
            return said[0]
        said = self._said.get(key)
        if said is None or said[1] < asked:
            # Else it was written while it was being read, and what was read may be older.
            self._said.put(key, (value, asked))
        return value

    def learn(self, key: str, value: _T) -> None:
        """Take what has just been written to the store."""
        self._said.put(key, (value, self._clock.seconds()))

    def forget(self, key: str) -> None:
        """Ask the store the next time."""
        self._said.drop(key)

    def items(self) -> list[tuple[str, _T]]:
        """All that is known of what the store said."""
        return [(key, said[0]) for key, said in self._said.items()]
