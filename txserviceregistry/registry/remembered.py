"""
What a process remembers of its store: bounded in size and time, asked for once however many want it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..util.deferred import returnsDeferred
from .stores.interfaces import NoSuchObject, StoreUnavailable

__all__ = ["Believed", "Memory", "Shared"]

_K = TypeVar("_K")
_T = TypeVar("_T")

#: What the store said is believed for so many seconds,
BELIEF = 1.0
#: and if it does not answer within so many, what it said before: a disk that hangs must not cost a service that lives
#: for three seconds its heartbeat.
PATIENCE = 0.1
#: How many things a table in memory may hold.
REMEMBERED = 10_000


class Memory(Generic[_K, _T]):
    """
    A table of bounded size that forgets what was put into it longest ago.
    """

    def __init__(self) -> None:
        self._items: dict[_K, _T] = {}

    def get(self, key: _K) -> _T | None:
        """What is remembered under *key*, or ``None``."""
        return self._items.get(key)

    def put(self, key: _K, value: _T) -> None:
        """Remember *value*, as the newest."""
        self._items.pop(key, None)
        self._items[key] = value
        if len(self._items) > REMEMBERED:
            del self._items[next(iter(self._items))]

    def drop(self, key: _K) -> None:
        """Forget *key*, if it is there."""
        self._items.pop(key, None)

    def items(self) -> list[tuple[_K, _T]]:
        """All that is remembered, oldest first."""
        return list(self._items.items())


class Shared(Generic[_K, _T]):
    """
    Work that several callers want at the same time and that is done once. Each gets a Deferred of its own, so that
    one who cancels takes nothing away from the others.
    """

    def __init__(self) -> None:
        self._waiting: dict[_K, list[Deferred[_T]]] = {}

    def __len__(self) -> int:
        """How many works are under way."""
        return len(self._waiting)

    def do(self, key: _K, work: Callable[[], Deferred[_T]]) -> Deferred[_T]:
        """
        :param key: works of the same key are one.
        :param work: begins the work, unless it is under way.
        :return: fires with what the work brings.
        """
        waiter: Deferred[_T] = Deferred()
        if key in self._waiting:
            self._waiting[key].append(waiter)
            return waiter
        self._waiting[key] = [waiter]

        def done(result: _T | Failure) -> None:
            for each in self._waiting.pop(key):
                each.callback(result)

        work().addBoth(done)
        return waiter


class Believed(Generic[_T]):
    """
    What the store said, by key, for as long as it is to be believed.

    :param read: asks the store.
    :param clock: for the time and the patience.
    """

    def __init__(self, read: Callable[[str], Deferred[_T]], clock: IReactorTime) -> None:
        self._read = read
        self._clock = clock
        self._said: Memory[str, tuple[_T, float]] = Memory()
        self._reading: Shared[str, _T] = Shared()

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
