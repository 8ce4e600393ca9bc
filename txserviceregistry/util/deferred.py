"""Idioms for asynchronous code: coroutines inside, Deferreds at the public edge, one Deferred for each waiter."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator
from functools import wraps
from typing import Any, Generic, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

_P = ParamSpec("_P")
_T = TypeVar("_T")


def returnsDeferred(function: Callable[_P, Coroutine[Deferred[Any], Any, _T]]) -> Callable[_P, Deferred[_T]]:
    """Let a coroutine function return a Deferred: it starts at once, and cancelling cancels what it awaits."""

    @wraps(function)
    def asDeferred(*args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        return Deferred.fromCoroutine(function(*args, **kwargs))

    return asDeferred


def cancelWith(call: IDelayedCall, work: Deferred[_T]) -> Deferred[_T]:
    """*work*, which cancels a delayed *call* when it is done."""

    def over(result: Any) -> Any:
        if call.active():
            call.cancel()
        return result

    return work.addBoth(over)


def waitFor(work: Deferred[_T]) -> Deferred[_T]:
    """
    One waiter's own Deferred for *work* with another owner: cancelling it leaves *work* alone. (When two coroutines
    await one Deferred, cancelling one gives the other ``None``.)
    """
    waiter: Deferred[_T] = Deferred()

    def relay(result: _T | Failure) -> _T | Failure | None:
        if waiter.called:
            return result
        waiter.callback(result)
        # The waiter handles a failure.
        return None if isinstance(result, Failure) else result

    work.addBoth(relay)
    return waiter


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
