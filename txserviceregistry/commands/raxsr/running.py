"""
From a command line to the registry: settings, and a client for as long as it is needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import TextIO, TypeVar

from twisted.logger import globalLogBeginner

from ...client import Client
from ...clock import useMonotonic
from ...errors import (
    APIError,
    AuthenticationFailed,
    ConnectionFailed,
    InvalidSettings,
    MalformedResponse,
    RequestTimedOut,
)
from ...settings import Settings
from ..optionsettings import inOptions, settingsOf
from ..outcome import CommandFailed, UsageError
from ..running import runReactor
from .exchange import View, shownAgent

_T = TypeVar("_T")


def withClient(
    options: argparse.Namespace,
    stderr: TextIO,
    work: Callable[[Client], Awaitable[_T]],
    log: Callable[[str], None] | None = None,
) -> _T:
    """
    Run the reactor for as long as *work* takes. A process can do that once.

    :param options: the options that every command has.
    :param stderr: where ``--debug`` and ``-v`` write.
    :param work: gets the client, which is closed after it.
    :param log: takes the lines for ``--log-file``.
    :return: what *work* gives.
    :raises CommandFailed: if there is no registry to be reached; or whatever *work* raises.
    :raises Interrupted: if a signal ended it.
    """
    from twisted.internet import reactor

    settings = findSettings(options)
    views = [View(log, True)] if log is not None else []
    if options.debug or options.verbose:
        views.append(View(lambda line: print(line, file=stderr, flush=True), options.debug or options.verbose > 1))
    useMonotonic(reactor)
    # Nobody reads a log here, and what is wrong is told otherwise.
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)

    async def working() -> _T:
        agent = shownAgent(reactor, settings, views) if views else None
        try:
            async with Client(reactor=reactor, settings=settings, agent=agent) as client:
                return await work(client)
        finally:
            if agent is not None:
                await agent.close()

    try:
        return runReactor(reactor, working)
    except (ConnectionFailed, RequestTimedOut, MalformedResponse) as error:
        raise CommandFailed(_sentences(str(error), whereFrom(settings))) from None
    except APIError as error:
        if not error.doubt:
            raise
        raise CommandFailed(_sentences(str(error), whereFrom(settings))) from None
    except AuthenticationFailed as error:
        raise CommandFailed(_sentences(str(error), whoseCredentials(settings))) from None


def findSettings(options: argparse.Namespace) -> Settings:
    """
    The settings, of which the options are the first to be asked.

    :raises UsageError: if an option can't be used.
    :raises InvalidSettings: if another setting can't, or there are no credentials.
    """
    try:
        return settingsOf(vars(options))
    except InvalidSettings as error:
        if str(error).startswith("--"):
            raise UsageError(str(error)) from None
        raise


def whereFrom(settings: Settings) -> str:
    """Which URL it is that was tried, and who said so."""
    said = [
        f"{', '.join(urls)} is what {inOptions(settings.sources[name])} says"
        for name, urls in (("baseUrl", settings.baseUrls), ("authUrl", settings.authUrls))
        if name in settings.sources
    ]
    return ", and ".join(said)


def whoseCredentials(settings: Settings) -> str:
    """Who said as whom to ask. The user's name is in the error, and the key is nobody's business."""
    said = [
        f"{what} is what {inOptions(settings.sources[name])} says"
        for name, what in (("username", "the username"), ("apiKey", "the API key"))
        if name in settings.sources
    ]
    text = ", and ".join(said)
    return text[:1].upper() + text[1:]


def _sentences(first: str, second: str) -> str:
    return f"{first}{' ' if first.endswith('?') else '. '}{second}"
