"""A client with the settings of a command line, for as long as a command needs it."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Mapping
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
from .requestlog import LogTarget, loggingAgent

_T = TypeVar("_T")


def withClient(
    options: argparse.Namespace,
    stderr: TextIO,
    work: Callable[[Client], Awaitable[_T]],
    log: Callable[[str], None] | None = None,
) -> _T:
    """
    Run the reactor for as long as *work* takes, and return its result. A process can do that once.

    :param options: the options of every command.
    :param log: takes the lines for ``--log-file``.
    :raises CommandFailed: if no registry can be reached; or whatever *work* raises.
    :raises Interrupted: if a signal ended it.
    """
    from twisted.internet import reactor

    settings = findSettings(options)
    targets = [LogTarget(log, True)] if log is not None else []
    if options.debug or options.verbose:
        hasBodies = options.debug or options.verbose > 1
        targets.append(LogTarget(lambda line: print(line, file=stderr, flush=True), hasBodies))
    useMonotonic(reactor)
    # Errors are raised, and not logged.
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)

    async def working() -> _T:
        agent = loggingAgent(reactor, settings, targets) if targets else None
        try:
            async with Client(reactor=reactor, settings=settings, agent=agent) as client:
                return await work(client)
        finally:
            if agent is not None:
                await agent.close()

    try:
        return runReactor(reactor, working)
    except (ConnectionFailed, RequestTimedOut, MalformedResponse, APIError) as error:
        if isinstance(error, APIError) and not error.doubt:
            raise
        urls = {"baseUrl": settings.baseUrls, "authUrl": settings.authUrls}
        raise _withSources(
            error, settings, {name: f"the URL {', '.join(each)}" for name, each in urls.items()}
        ) from None
    except AuthenticationFailed as error:
        raise _withSources(error, settings, {"username": "the username", "apiKey": "the API key"}) from None


def _withSources(error: Exception, settings: Settings, names: Mapping[str, str]) -> CommandFailed:
    """The error, and the sources of the settings that may have caused it, with a name for each setting."""
    sources = ", and ".join(
        f"{name} is set by {inOptions(settings.sources[setting])}"
        for setting, name in names.items()
        if setting in settings.sources
    )
    text = str(error)
    return CommandFailed(f"{text}{' ' if text.endswith('?') else '. '}{sources[:1].upper()}{sources[1:]}")


def findSettings(options: argparse.Namespace) -> Settings:
    """
    The settings; options come before all other sources.

    :raises UsageError: if an option is invalid.
    :raises InvalidSettings: if another setting is, or there are no credentials.
    """
    try:
        return settingsOf(vars(options))
    except InvalidSettings as error:
        if str(error).startswith("--"):
            raise UsageError(str(error)) from None
        raise
