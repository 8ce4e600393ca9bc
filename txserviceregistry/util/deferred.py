"""Asynchronous code: coroutines and Deferreds, waiters, limits, shared work, batches, caches, threads and retries."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial, wraps
from heapq import heappop, heappush
from itertools import count
from threading import Thread
from typing import Any, Generic, ParamSpec, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

#: The errors of an application's work that was cancelled: a Deferred of an asyncio task has asyncio's own.
CANCELLED = (CancelledError, asyncio.CancelledError)

_K = TypeVar("_K", bound=Hashable)
_P = ParamSpec("_P")
_T = TypeVar("_T")

#: How many items a BoundedCache may hold.
CAPACITY = 10_000

#: The shortest time after which a try is late, in seconds: a real network needs as much.
SHORTEST_TRY = 0.05
#: The longest delay between two tries, in seconds, however long nothing has answered.
LONGEST_DELAY = 15.0

# The longest time after which a try is late that began after the deadline, in seconds.
_LONGEST_AFTER = 10.0
# The seconds that a try has in all: connecting, a TLS handshake and a response over a slow network.
_RUN = 3.0
# The most late tries of one thing at once.
_MOST_LATE = 5


def returnsDeferred(function: Callable[_P, Coroutine[Deferred[Any], Any, _T]]) -> Callable[_P, Deferred[_T]]:
    """Let a coroutine function return a Deferred: it starts at once, and cancelling cancels what it awaits."""

    @wraps(function)
    def asDeferred(*args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        return Deferred.fromCoroutine(function(*args, **kwargs))

    return asDeferred


def cancel(call: IDelayedCall | None) -> None:
    """Cancel a delayed call, if it is there and not over."""
    if call is not None and call.active():
        call.cancel()


def cancelWith(call: IDelayedCall, work: Deferred[_T]) -> Deferred[_T]:
    """*work*, which cancels a delayed *call* when it is done."""

    def over(result: Any) -> Any:
        cancel(call)
        return result

    return work.addBoth(over)


def waitFor(work: Deferred[_T]) -> Deferred[_T]:
    """One waiter's own Deferred for *work*. Cancelling it leaves *work* alone, and gives no other waiter ``None``."""
    waiter: Deferred[_T] = Deferred()

    def relay(result: _T | Failure) -> _T | Failure | None:
        if waiter.called:
            return result
        waiter.callback(result)
        # The waiter handles a failure.
        return None if isinstance(result, Failure) else result

    work.addBoth(relay)
    return waiter


@attrs.define(eq=False, repr=False)
class Waiters(Generic[_T]):
    """Deferreds that wait for the same event. *abandoned* is called when the last one has been cancelled."""

    _abandoned: Callable[[], object] = lambda: None
    _waiting: dict[Deferred[_T], None] = attrs.field(factory=dict, init=False)

    def wait(self) -> Deferred[_T]:
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


class PrioritySemaphore:
    """Up to *most* requests at a time; of the others, which may be thousands, the next has the nearest deadline."""

    def __init__(self, most: int = 100) -> None:
        self._free = most
        self._isGiving = False
        # Requests with the same deadline keep their order.
        self._waiting: list[tuple[float, int, Deferred[None]]] = []
        self._order = count()

    def take(self, deadline: float) -> Deferred[None]:
        """Wait for a place, to be given back. May be cancelled. The *deadline* is in seconds of one clock for all."""
        if self._free and not self._isGiving:
            self._free -= 1
            return succeed(None)
        turn: Deferred[None] = Deferred()
        heappush(self._waiting, (deadline, next(self._order), turn))
        return turn

    def give(self) -> None:
        self._free += 1
        # Requests that are answered at once (in memory) come back here while they are sent: one loop is enough.
        if self._isGiving:
            return
        self._isGiving = True
        try:
            while self._free and self._waiting:
                _, _, turn = heappop(self._waiting)
                # One that was cancelled has been called too.
                if not turn.called:
                    self._free -= 1
                    turn.callback(None)
        finally:
            self._isGiving = False


class SingleFlight(Generic[_K, _T]):
    """Work that several callers want at the same time and that is done once."""

    def __init__(self) -> None:
        self._waiting: dict[_K, Waiters[_T]] = {}

    def __len__(self) -> int:
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


@attrs.define(eq=False, repr=False)
class Gathering(Generic[_K, _T]):
    """Collects keys during one reactor turn. In the next, *work* returns the results for each batch of *most* keys."""

    _clock: IReactorTime
    _most: int
    _work: Callable[[Sequence[_K]], Awaitable[Mapping[_K, _T]]]
    _waiting: dict[_K, Waiters[_T]] = attrs.field(factory=dict, init=False)

    def do(self, one: _K) -> Deferred[_T]:
        """Add a key to the next batch, if it is not in it yet. Fires with its result."""
        if not self._waiting:
            self._clock.callLater(0, self._begin)
        return self._waiting.setdefault(one, Waiters()).wait()

    def _begin(self) -> None:
        waiting, self._waiting = list(self._waiting.items()), {}
        for begin in range(0, len(waiting), self._most):
            Deferred.fromCoroutine(self._do(dict(waiting[begin : begin + self._most])))

    async def _do(self, waiting: Mapping[_K, Waiters[_T]]) -> None:
        try:
            outcomes: Mapping[_K, _T | Failure] = await self._work(list(waiting))
        except Exception:
            outcomes = dict.fromkeys(waiting, Failure())
        for one, waiters in waiting.items():
            waiters.fire(outcomes[one])


class BoundedCache(dict[_K, _T]):
    """A cache of bounded size; the oldest item goes first."""

    def put(self, key: _K, value: _T) -> None:
        self.pop(key, None)
        self[key] = value
        if len(self) > CAPACITY:
            del self[next(iter(self))]


class DaemonThreadPool(ThreadPool):
    """A thread pool whose work may hang at the end of the process: a host name's lookup, a write into a pipe."""

    # As a plain class attribute it would become a method from Python 3.14 on.
    threadFactory = staticmethod(partial(Thread, daemon=True))  # type: ignore[assignment] # makes threads, as the class does


@attrs.define
class Backoff:
    """Delays between failed tries: zero, then *base* doubled up to *maximum* seconds, each less up to half of it."""

    _base: float
    _maximum: float
    _random: Callable[[], float]
    failures: int = attrs.field(default=0, init=False)

    def next(self) -> float:
        self.failures += 1
        if self.failures == 1:
            return 0.0
        # A failure that lasts for years must not end in an overflow.
        full = min(self._maximum, self._base * 2.0 ** min(self.failures - 2, 32))
        return full * (1.0 - 0.5 * self._random())

    def reset(self) -> None:
        self.failures = 0


def patienceFor(left: float, heartbeatTimeout: float) -> float:
    """Seconds after which a try is late: a third of those *left* to the deadline."""
    return min(_LONGEST_AFTER, heartbeatTimeout / 3) if left <= 0 else max(left / 3, SHORTEST_TRY)


def delayBefore(delay: float, left: float, shortest: float = SHORTEST_TRY) -> float:
    """Seconds to wait before the next try: at most a quarter of those *left*, so that two tries have a third each."""
    return min(delay, max(left / 4, shortest)) if left > 0 else delay


def runOnAfter(patience: float) -> float:
    """Seconds for which a late try runs on beside the next one, which would else need a connection of its own."""
    return max(0.0, _RUN - patience)


class LateTries:
    """The late tries of one thing. When there are too many, the oldest is cancelled."""

    def __init__(self) -> None:
        self._running: dict[Deferred[Any], None] = {}

    def add(self, work: Deferred[Any]) -> None:
        self._running[work] = None
        work.addBoth(self._over, work)
        if len(self._running) > _MOST_LATE:
            next(iter(self._running)).cancel()

    def _over(self, result: Any, work: Deferred[Any]) -> Any:
        self._running.pop(work, None)
        return result

    def end(self) -> None:
        for work in tuple(self._running):
            work.cancel()
