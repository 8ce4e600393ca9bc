"""
From a command line to the registry: settings, a client, and the reactor for as long as it is needed.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TextIO, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner
from twisted.python.failure import Failure

from ...client import Client
from ...clock import useMonotonic
from ...errors import ConnectionFailed, InvalidSettings, MalformedResponse, RequestTimedOut
from ...settings import Settings, readSettings
from .exchange import shownAgent
from .outcome import CommandFailed, Interrupted, UsageError

__all__ = ["findSettings", "runReactor", "withClient"]

_T = TypeVar("_T")

# Our options, by the names that the settings have for them.
_OPTIONS = {
    "username": "--username",
    "apiKey": "--api-key",
    "baseUrl": "--api-url",
    "authUrl": "--auth-url",
    "region": "--region",
}


def withClient(options: argparse.Namespace, stderr: TextIO, work: Callable[[Client], Awaitable[_T]]) -> _T:
    """
    Run the reactor for as long as *work* takes. A process can do that once.

    :param options: the options that every command has.
    :param stderr: where ``--debug`` writes.
    :param work: gets the client, which is closed after it.
    :return: what *work* gives.
    :raises CommandFailed: if there is no registry to be reached; or whatever *work* raises.
    :raises Interrupted: if a signal ended it.
    """
    from twisted.internet import reactor

    settings = findSettings(options)
    useMonotonic(reactor)
    # Nobody reads a log here, and what is wrong is told otherwise.
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)

    async def working() -> _T:
        agent = shownAgent(reactor, settings, stderr) if options.debug else None
        try:
            async with Client(reactor=reactor, settings=settings, agent=agent) as client:
                return await work(client)
        finally:
            if agent is not None:
                await agent.close()

    try:
        return runReactor(reactor, working)
    except (ConnectionFailed, RequestTimedOut, MalformedResponse) as error:
        raise CommandFailed(f"{error}. {whereFrom(settings)}") from None


def findSettings(options: argparse.Namespace) -> Settings:
    """
    The settings, of which the options are the first to be asked.

    :raises UsageError: if an option can't be used.
    :raises InvalidSettings: if another setting can't, or there are no credentials.
    """
    try:
        return readSettings(**{name: getattr(options, name) for name in _OPTIONS})
    except InvalidSettings as error:
        text = _inOptions(str(error)).replace("Give username and apiKey", "Give --username and --api-key")
        kind = UsageError if text.startswith("--") else InvalidSettings
        raise kind(text) from None


def whereFrom(settings: Settings) -> str:
    """Which URL it is that was tried, and who said so."""
    said = [
        f"{', '.join(urls)} is what {_inOptions(settings.sources[name])} says"
        for name, urls in (("baseUrl", settings.baseUrls), ("authUrl", settings.authUrls))
        if name in settings.sources
    ]
    return ", and ".join(said)


def _inOptions(text: str) -> str:
    for name, option in _OPTIONS.items():
        text = text.replace(f"the argument {name}", option)
    return text


def runReactor(reactor: Any, work: Callable[[], Coroutine[Deferred[Any], Any, _T]]) -> _T:
    """
    Run the reactor for as long as *work* takes; a signal cancels it. A process can do that once.

    :return: what *work* gives.
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
        # Whoever does not want to wait for an orderly end sends the signal again.
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
