"""One idiom for asynchronous code: coroutines inside, Deferreds at the public edge."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

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
        if isinstance(result, Failure):
            # The waiter handles the failure.
            waiter.errback(result)
            return None
        waiter.callback(result)
        return result

    work.addBoth(relay)
    return waiter
