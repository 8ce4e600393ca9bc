"""
What goes to the registry and what comes back, without the secrets in it, for ``--debug``, ``-v`` and ``--log-file``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
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

_BLANK = "***"

# What the values of these members are is nobody's business, whatever object they are members of.
_SECRET_MEMBERS = {"apikey", "api_key", "password", "token"}

_MAX_CONNECTIONS = 2


@attrs.frozen
class View:
    """
    Where an exchange is shown.

    :ivar write: takes a line.
    :ivar hasBodies: whether the bodies are shown too.
    """

    write: Callable[[str], None]
    hasBodies: bool


@implementer(IAgent)
class ExchangeShown:
    """
    Shows each request and each answer of another agent.

    :param agent: does the requests, and gives whole responses.
    :param pool: the agent's connections.
    :param views: where it is shown.
    :param apiKey: the user's key, which is not.
    """

    def __init__(self, agent: IAgent, pool: ConnectionPool, views: Sequence[View], apiKey: str) -> None:
        self._agent = agent
        self._pool = pool
        self._views = views
        self._secrets = encodings(apiKey)

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """See :class:`~twisted.web.iweb.IAgent`."""
        asked = f"{method.decode('ascii')} {uri.decode('ascii')}"
        began = time.monotonic()
        self._show(">", asked, bodyProducer.body if isinstance(bodyProducer, BytesProducer) else b"")

        def taken() -> str:
            return f"after {(time.monotonic() - began) * 1000:.0f} ms"

        def answered(response: Any) -> Any:
            body = response.body if isinstance(response, WholeResponse) else b""
            self._show("<", f"{response.code} {taken()}, {asked}", body)
            return response

        def failed(failure: Failure) -> Failure:
            self._show("<", f"no answer {taken()}, {asked}: {type(failure.value).__name__}", b"")
            return failure

        return self._agent.request(method, uri, headers, bodyProducer).addCallbacks(answered, failed)

    def close(self) -> Deferred[None]:
        """
        :return: fires when all connections are closed.
        """
        return self._pool.close()

    def _show(self, mark: str, line: str, body: bytes) -> None:
        try:
            text = json.dumps(self._withoutSecrets(json.loads(body)), ensure_ascii=False) if body else ""
        except (ValueError, RecursionError):
            text = body.decode("utf-8", "replace")
        for index, shown in enumerate(filter(None, (line, text))):
            hidden = f"{mark} {escaped(redacted(shown, self._secrets, _BLANK))}"
            for view in self._views:
                if index == 0 or view.hasBodies:
                    view.write(hidden)

    def _withoutSecrets(self, value: Any, secret: bool = False) -> Any:
        """*value* without secrets. What was found to be one is remembered, for it may come back elsewhere."""
        if isinstance(value, dict):
            # The Auth API's token is an object, which says more than its id.
            return {
                name: self._withoutSecrets(member, name.lower() in _SECRET_MEMBERS or (secret and name == "id"))
                for name, member in value.items()
            }
        if isinstance(value, list):
            return [self._withoutSecrets(member) for member in value]
        if secret and isinstance(value, str):
            self._secrets |= encodings(value)
            return _BLANK
        return value


def shownAgent(reactor: Any, settings: Settings, views: Sequence[View]) -> ExchangeShown:
    """
    An agent like the client's own, but with nothing hidden except secrets.

    :param reactor: connects.
    :param settings: what is known about TLS, and the key.
    :param views: where the exchange is shown.
    """
    clock: IReactorTime = reactor
    pool = ConnectionPool(clock, _MAX_CONNECTIONS)
    policy = tlsPolicy(settings.verify, settings.caFile, caSource=settings.sources.get("caFile"))
    connectTimeout = TIMEOUT / max(1, len(settings.baseUrls))
    agent = httpAgent(reactor, policy, connectTimeout, pool)
    return ExchangeShown(agent, pool, views, settings.apiKey)
