"""The reactor in a console script, and settings whose first source is its options."""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ..errors import InvalidSettings
from ..settings import Settings, readSettings
from .console import Interrupted

_T = TypeVar("_T")

# The settings that a program has options for.
_OPTIONS = {
    "username": "--username",
    "apiKey": "--api-key",
    "baseUrl": "--api-url",
    "authUrl": "--auth-url",
    "region": "--region",
}


def settingsOf(given: Mapping[str, Any]) -> Settings:
    """
    :param given: the values of options, by the names that the settings have for them.
    :raises InvalidSettings: if a setting is wrong, or there are no credentials. Its text names the options.
    """
    arguments: dict[str, Any] = {name: given.get(name) for name in _OPTIONS}
    try:
        return readSettings(**arguments)
    except InvalidSettings as error:
        raise InvalidSettings(inOptions(str(error))) from None


def inOptions(text: str) -> str:
    """*text* of the settings, with the names of options in it."""
    for name, option in _OPTIONS.items():
        text = text.replace(f"the argument {name}", option)
    return text


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
        under.append(Deferred.fromCoroutine(work()))
        under[0].addBoth(finished)

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
