"""Coroutines that run to their end even if their callers stop waiting: a store may persist what a client gave up."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from ..util.deferred import Waiters
from ..util.logs import Logger
from .faults import Fault, systemFailure
from .stores.interfaces import LimitExceeded, NoSuchObject, StoreUnavailable

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Steps: TypeAlias = Coroutine[Deferred[Any], Any, _T]


class TaskOwner:
    """Owns coroutines. Cancelling the Deferred that stands for one ends the waiting, never the coroutine."""

    _log = Logger()

    def __init__(self) -> None:
        # The waiting tasks of each busy key, with the Deferreds for their outcomes.
        self._queues: dict[Hashable, deque[tuple[Callable[[], _Steps[Any]], Deferred[Any]]]] = {}
        self._idle: Waiters[None] = Waiters()

    def start(self, steps: _Steps[_T]) -> Deferred[_T]:
        """Start a coroutine at once; fires with its outcome."""
        return self.serialized(object(), lambda: steps)

    def serialized(self, key: Hashable, steps: Callable[[], _Steps[_T]]) -> Deferred[_T]:
        """:meth:`start` a coroutine when all that were given before under the same *key* have ended."""
        waiter: Deferred[_T] = Deferred()
        isFree = key not in self._queues
        self._queues.setdefault(key, deque()).append((steps, waiter))
        if isFree:
            Deferred.fromCoroutine(self._workThrough(key))
        return waiter

    def isBusy(self, key: Hashable) -> bool:
        return key in self._queues

    def whenIdle(self) -> Deferred[None]:
        return self._idle.wait() if self._queues else succeed(None)

    async def _workThrough(self, key: Hashable) -> None:
        queue = self._queues[key]
        # A loop, because a chain of Deferreds that fire each other overflows the stack when hundreds wait.
        while queue:
            steps, waiter = queue.popleft()
            try:
                result = await steps()
            except (Fault, StoreUnavailable) as error:
                # Its traceback is not needed, and would be a cycle: from here it leads to `waiter`.
                waiter.errback(Failure(error.with_traceback(None)))
            except Exception:
                if waiter.called:
                    self._log.failure("A task whose caller has stopped waiting failed", Failure())
                waiter.errback(Failure())
            else:
                waiter.callback(result)
        del self._queues[key]
        if not self._queues:
            self._idle.fire(None)


class Turns:
    """Divides work between turns of the reactor. Between two turns come heartbeats."""

    #: Seconds of work in one reactor turn. Sending the data then takes about as long again.
    SLICE = 0.001

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._began = 0.0
        self._next: IDelayedCall | None = None
        self._waiting: deque[Deferred[None]] = deque()
        self._isStopped = False

    async def take(self) -> None:
        while self._isSpent():
            turn: Deferred[None] = Deferred()
            self._waiting.append(turn)
            await turn

    def _isSpent(self) -> bool:
        if self._isStopped:
            return False
        now = self._clock.seconds()
        if self._next is None:
            self._next = self._clock.callLater(0, self._turn)
            self._began = now
        return now - self._began >= self.SLICE

    def _turn(self) -> None:
        self._next = None
        while self._waiting and not self._isSpent():
            # One whose client has gone has been called.
            if not (turn := self._waiting.popleft()).called:
                turn.callback(None)

    def stop(self) -> None:
        """Leave nothing on the reactor; what waits goes on."""
        self._isStopped = True
        if self._next is not None:
            self._next.cancel()
            self._turn()


@attrs.define(eq=False, slots=False)
class Part:
    """A part of the rules. Changes of one registration wait for each other, by the key ``(scope, id)``."""

    _store: Any
    _tasks: TaskOwner
    _clock: IReactorTime
    _wallClock: Callable[[], float]


_O = TypeVar("_O", bound=Part)


def serialized(
    key: Callable[..., Hashable],
) -> Callable[[Callable[Concatenate[_O, _P], _Steps[_T]]], Callable[Concatenate[_O, _P], Deferred[_T]]]:
    """Let the part's TaskOwner own a coroutine method. Calls with the same *key* wait for each other."""

    def decorate(method: Callable[Concatenate[_O, _P], _Steps[_T]]) -> Callable[Concatenate[_O, _P], Deferred[_T]]:
        @wraps(method)
        def start(self: _O, /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
            return self._tasks.serialized(key(*args, **kwargs), lambda: method(self, *args, **kwargs))

        return start

    return decorate


#: As :func:`serialized`, and calls do not wait for each other.
owned = serialized(lambda *args, **kwargs: object())


async def available(result: Awaitable[_T], *, missing: Fault | None = None, full: Fault | None = None) -> _T:
    """The result of a store. If it is unavailable, that is a 503; the faults are for objects *missing* and too many."""
    try:
        return await result
    except StoreUnavailable as reason:
        raise systemFailure() from reason
    except (NoSuchObject, LimitExceeded) as error:
        raise (missing if isinstance(error, NoSuchObject) else full) or error
