"""A client with the settings of a command line, for as long as a command needs it, and the log of its requests."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from ... import errors
from ...client import Client
from ...clock import useMonotonic
from ...http.jsontransport import TIMEOUT
from ...http.messages import BytesProducer, WholeResponse
from ...http.pool import ConnectionPool, PooledAgent
from ...http.tls import tlsPolicy
from ...settings import Settings
from ...util.fields import encodings, escaped, redacted
from ..console import CommandFailed, UsageError, inOptions, runReactor, settingsOf

_T = TypeVar("_T")
_REDACTED = "***"
# The members of JSON objects whose values are secret.
_SECRET_MEMBERS = {"apikey", "api_key", "password", "token"}
_MAX_CONNECTIONS = 2


def withClient(
    options: argparse.Namespace, work: Callable[[Client], Awaitable[_T]], log: Callable[[str], None] | None = None
) -> _T:
    """Run the reactor for as long as *work* takes, and return its result. *log* takes the lines for ``--log-file``."""
    from twisted.internet import reactor

    try:
        settings = settingsOf(vars(options))
    except errors.InvalidSettings as error:
        raise UsageError(str(error)) if str(error).startswith("--") else error from None
    # 1 is for the first line of each request and response, 2 for their bodies too.
    detail = 2 if options.debug else options.verbose

    def write(*texts: str) -> None:
        for level, text in enumerate(filter(None, texts), 1):
            if log is not None:
                log(text)
            if level <= detail:
                print(text, file=sys.stderr, flush=True)

    useMonotonic(reactor)
    # Errors are raised, and not logged.
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)

    async def working() -> _T:
        agent = RequestLoggingAgent(reactor, settings, write) if detail or log is not None else None
        try:
            async with Client(reactor=reactor, settings=settings, agent=agent) as client:
                return await work(client)
        finally:
            if agent is not None:
                await agent.pool.close()

    try:
        return runReactor(reactor, working)
    except (errors.ConnectionFailed, errors.RequestTimedOut, errors.MalformedResponse, errors.APIError) as error:
        if isinstance(error, errors.APIError) and not error.doubt:
            raise
        urls = (("baseUrl", settings.baseUrls), ("authUrl", settings.authUrls))
        raise _withSources(error, settings, {name: f"the URL {', '.join(each)}" for name, each in urls}) from None
    except errors.AuthenticationFailed as error:
        raise _withSources(error, settings, {"username": "the username", "apiKey": "the API key"}) from None


def _withSources(error: Exception, settings: Settings, names: Mapping[str, str]) -> CommandFailed:
    """The error, and the sources of the settings that may have caused it."""
    sources = ", and ".join(
        f"{name} is set by {inOptions(settings.sources[setting])}"
        for setting, name in names.items()
        if setting in settings.sources
    )
    text = str(error)
    return CommandFailed(f"{text}{' ' if text.endswith('?') else '. '}{sources[:1].upper()}{sources[1:]}")


@implementer(IAgent)
class RequestLoggingAgent:
    """An agent like the client's own, which logs each request and each response, with secrets redacted."""

    def __init__(self, reactor: Any, settings: Settings, write: Callable[[str, str], object]) -> None:
        self.pool = ConnectionPool(reactor, _MAX_CONNECTIONS)
        policy = tlsPolicy(settings.verify, settings.caFile, caSource=settings.sources.get("caFile"))
        self._agent = PooledAgent(reactor, policy, TIMEOUT / max(1, len(settings.baseUrls)), self.pool)
        self._write = write
        self._secrets = encodings(settings.apiKey)

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        request = f"{method.decode('ascii')} {uri.decode('ascii')}"
        began = time.monotonic()
        self._log(f"> {request}", bodyProducer.body if isinstance(bodyProducer, BytesProducer) else b"")

        def ended(response: Any) -> Any:
            taken = f"after {(time.monotonic() - began) * 1000:.0f} ms, {request}"
            if isinstance(response, Failure):
                self._log(f"< no response {taken}: {type(response.value).__name__}", b"")
            else:
                self._log(f"< {response.code} {taken}", response.body if isinstance(response, WholeResponse) else b"")
            return response

        return self._agent.request(method, uri, headers, bodyProducer).addBoth(ended)

    def _log(self, line: str, body: bytes) -> None:
        try:
            text = json.dumps(json.loads(body, object_hook=self._withoutSecrets), ensure_ascii=False) if body else ""
        except (ValueError, RecursionError):
            text = body.decode("utf-8", "replace")
        texts = (line, text and f"{line[0]} {text}")
        self._write(*(escaped(redacted(each, self._secrets, _REDACTED)) for each in texts))

    def _withoutSecrets(self, members: dict[str, Any]) -> dict[str, Any]:
        """An object of JSON with its secrets redacted, which are remembered: they may follow in another place."""
        for name, value in members.items():
            # The Auth API's token is an object with more members than its id.
            holder, key = (value, "id") if isinstance(value, dict) else (members, name)
            if name.lower() in _SECRET_MEMBERS and isinstance(holder.get(key), str):
                self._secrets |= encodings(holder[key])
                holder[key] = _REDACTED
        return members
