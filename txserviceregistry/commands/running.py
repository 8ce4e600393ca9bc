"""The reactor in a console script, for as long as one coroutine takes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from .outcome import Interrupted

_T = TypeVar("_T")


def runReactor(reactor: Any, work: Callable[[], Coroutine[Deferred[Any], Any, _T]]) -> _T:
    """
    Run the reactor for as long as *work* takes, and return its result. A process can do that once.

    :raises Interrupted: if a signal ended it; or whatever *work* raises.
    """
    outcome: list[_T | Failure] = []
    under: list[Deferred[_T]] = []
    received: list[int] = []

    def finished(result: _T | Failure) -> None:
        outcome.append(result)
        reactor.stop()

    def start() -> None:
        working = Deferred.fromCoroutine(work())
        under.append(working)
        working.addBoth(finished)

    def interrupt(number: int, frame: object) -> None:
        # The same signal again ends the process at once.
        signal.signal(number, signal.SIG_DFL)
        received.append(number)
        reactor.callFromThread(lambda: under[0].cancel())

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    reactor.callWhenRunning(start)
    try:
        reactor.run(installSignalHandlers=False)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise Interrupted(received[0])
    result = outcome[0]
    if isinstance(result, Failure):
        result.raiseException()
    return result
