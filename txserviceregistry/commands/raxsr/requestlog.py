"""Requests and responses, with secrets redacted, for ``--debug``, ``-v`` and ``--log-file``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from ...http.agent import httpAgent
from ...http.bodies import BytesProducer, WholeResponse
from ...http.jsontransport import TIMEOUT
from ...http.pool import ConnectionPool
from ...http.tls import tlsPolicy
from ...settings import Settings
from ...util.escaping import escaped
from ...util.redaction import encodings, redacted

_REDACTED = "***"

# The members of JSON objects whose values are secret.
_SECRET_MEMBERS = {"apikey", "api_key", "password", "token"}

_MAX_CONNECTIONS = 2


@attrs.frozen
class LogTarget:
    """
    A place for requests and responses.

    :ivar write: takes a line.
    :ivar hasBodies: whether it gets the bodies too.
    """

    write: Callable[[str], None]
    hasBodies: bool


@implementer(IAgent)
class RequestLoggingAgent:
    """
    Logs each request and each response of another agent.

    :param agent: sends the requests, and returns whole responses.
    :param pool: the agent's connections.
    """

    def __init__(self, agent: IAgent, pool: ConnectionPool, targets: Sequence[LogTarget], apiKey: str) -> None:
        self._agent = agent
        self._pool = pool
        self._targets = targets
        self._secrets = encodings(apiKey)

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        request = f"{method.decode('ascii')} {uri.decode('ascii')}"
        began = time.monotonic()
        self._log(">", request, bodyProducer.body if isinstance(bodyProducer, BytesProducer) else b"")

        def taken() -> str:
            return f"after {(time.monotonic() - began) * 1000:.0f} ms"

        def succeeded(response: Any) -> Any:
            body = response.body if isinstance(response, WholeResponse) else b""
            self._log("<", f"{response.code} {taken()}, {request}", body)
            return response

        def failed(failure: Failure) -> Failure:
            self._log("<", f"no response {taken()}, {request}: {type(failure.value).__name__}", b"")
            return failure

        return self._agent.request(method, uri, headers, bodyProducer).addCallbacks(succeeded, failed)

    def close(self) -> Deferred[None]:
        """Fires when all connections are closed."""
        return self._pool.close()

    def _log(self, mark: str, line: str, body: bytes) -> None:
        try:
            text = json.dumps(self._withoutSecrets(json.loads(body)), ensure_ascii=False) if body else ""
        except (ValueError, RecursionError):
            text = body.decode("utf-8", "replace")
        for index, shown in enumerate(filter(None, (line, text))):
            hidden = f"{mark} {escaped(redacted(shown, self._secrets, _REDACTED))}"
            for target in self._targets:
                if index == 0 or target.hasBodies:
                    target.write(hidden)

    def _withoutSecrets(self, value: Any, secret: bool = False) -> Any:
        """*value* with secrets redacted, which are remembered: they may follow in another place."""
        if isinstance(value, dict):
            # The Auth API's token is an object with more members than its id.
            return {
                name: self._withoutSecrets(member, name.lower() in _SECRET_MEMBERS or (secret and name == "id"))
                for name, member in value.items()
            }
        if isinstance(value, list):
            return [self._withoutSecrets(member) for member in value]
        if secret and isinstance(value, str):
            self._secrets |= encodings(value)
            return _REDACTED
        return value


def loggingAgent(reactor: Any, settings: Settings, targets: Sequence[LogTarget]) -> RequestLoggingAgent:
    """An agent like the client's own, whose requests are logged."""
    pool = ConnectionPool(reactor, _MAX_CONNECTIONS)
    policy = tlsPolicy(settings.verify, settings.caFile, caSource=settings.sources.get("caFile"))
    agent = httpAgent(reactor, policy, TIMEOUT / max(1, len(settings.baseUrls)), pool)
    return RequestLoggingAgent(agent, pool, targets, settings.apiKey)
