"""
RegistryAgent: HTTP requests to a tag instead of a host: ``registry://web/status``.
"""

from __future__ import annotations

import random as randomModule
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.web.client import HTTPConnectionPool
from twisted.web.error import SchemeNotSupported
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from ..http.agent import httpAgent
from ..http.tls import tlsPolicy
from .attempt import BalancedRequest
from .balancing import Balancer, tryEach
from .directory import Directory
from .endpoints import CONNECT_TIMEOUT, checkedConnectTimeout
from .suspects import THRESHOLD, Suspects
from .target import SCHEMES, Target

# Idle connections to one instance that are kept, and for how many seconds: shorter than servers commonly do.
_KEPT_CONNECTIONS = 8
_KEPT_SECONDS = 45.0


@implementer(IAgent)
class RegistryAgent:
    """
    Sends HTTP requests to the instances of a tag.

    ::

        agent = RegistryAgent(reactor, directory)
        response = await treq.client.HTTPClient(agent).get("registry://web/status")

    ``registry://TAG/path`` is HTTP, ``registrys://TAG/path`` is HTTP over TLS. URIs with ``http`` and ``https`` go to
    the server that they name. Connections are kept for each instance.

    If an instance can't be connected to, the next one is tried. If it fails later, before there is a response, the next
    one is tried only if the method is idempotent (GET, HEAD, OPTIONS, TRACE, PUT, DELETE) and the body can be sent
    again (one of up to 64 KiB is kept for that). Any response is the result.

    The ``Host`` header is the instance's address, unless the request has one of its own. A redirect that stays on the
    instance becomes a redirect to the tag. A certificate has to be for the instance's host, or for the name that its
    metadata have as ``tls.name``.
    """

    def __init__(
        self,
        reactor: Any,
        directory: Directory,
        pool: HTTPConnectionPool | None = None,
        *,
        strategy: str = "round-robin",
        timeout: float = CONNECT_TIMEOUT,
        near: Mapping[str, str] | None = None,
        policy: IPolicyForHTTPS | None = None,
        panicThreshold: float = THRESHOLD,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        """
        :param reactor: connects.
        :param directory: a :class:`~txserviceregistry.discovery.Directory` that runs. It stays the caller's.
        :param pool: keeps the connections, and stays the caller's; one of its own by default.
        :param strategy: ``round-robin``, ``random`` or ``least-connections``.
        :param timeout: seconds that each instance is given to accept a connection, 0.001 at least; also for how long
            the directory's first listing is waited for.
        :param near: our own ``region`` and ``zone``, to prefer what is near.
        :param policy: whose certificates are trusted; by default those that browsers trust.
        :param panicThreshold: when a larger part of a tag's instances expires within one heartbeat timeout, three at
            least, they stay in use, until enough of them are registered again; 0 to 1, 0 for never.
        :param random: gives numbers from 0 to 1 to the strategy.
        :raises ValueError: if there is no such strategy, *near* has other keys, or *timeout* or *panicThreshold* is not
            such a number.
        """
        timeout = checkedConnectTimeout(timeout)
        self._reactor = reactor
        self._directory = directory
        suspects = Suspects(directory, reactor, panicThreshold)
        self._options: dict[str, Any] = {"strategy": strategy, "near": near, "random": random, "suspects": suspects}
        _registerSchemes()
        policy = tlsPolicy() if policy is None else policy
        self._ownPool: HTTPConnectionPool | None = None
        if pool is None:
            pool = self._ownPool = HTTPConnectionPool(reactor)
            pool.maxPersistentPerHost = _KEPT_CONNECTIONS
            pool.cachedConnectionTimeout = _KEPT_SECONDS  # type: ignore[assignment] # as good as an int
        self._policy, self._timeout, self._pool = policy, timeout, pool
        self._elsewhere = httpAgent(reactor, policy, timeout, pool)
        self._balancers: dict[str, Balancer] = {}
        # Invalid options are reported now, not with the first request.
        self._balancer("")

    def close(self) -> Deferred[None]:
        """
        Close the idle connections of the agent's own pool.

        :return: fires with ``None`` when they are closed.
        """
        if self._ownPool is None:
            return succeed(None)
        closed: Deferred[None] = self._ownPool.closeCachedConnections()
        return closed

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """
        Send a request.

        :return: fires with the response. Fails with :class:`~txserviceregistry.errors.NoServiceAvailable` if there is
            no service with the tag, or none that can be connected to; otherwise as Twisted's Agent does. It may be
            cancelled.
        """
        try:
            target = Target.read(uri)
        except ValueError as error:
            return fail(SchemeNotSupported(f"{uri!r}: {error}"))
        if target is None:
            return self._elsewhere.request(method, uri, headers, bodyProducer)
        balancer, headers = self._balancer(target.tag), headers or Headers()
        request = BalancedRequest(
            self._reactor, self._policy, self._timeout, self._pool, target, balancer, method, headers, bodyProducer
        )
        return tryEach(balancer, request.attempt, timeout=self._timeout)

    def _balancer(self, tag: str) -> Balancer:
        balancer = self._balancers.get(tag)
        if balancer is None:
            # Tags without services are forgotten: there is no bound to the number of them in mistyped URLs.
            self._balancers = {tag: one for tag, one in self._balancers.items() if not one.isEmpty}
            balancer = Balancer(self._directory, tag, clock=self._reactor, **self._options)
            self._balancers[tag] = balancer
        return balancer


def _registerSchemes() -> None:
    """Let ``urljoin``, with which Twisted's RedirectAgent resolves redirects, accept the schemes of tags."""
    for table in (urllib.parse.uses_netloc, urllib.parse.uses_relative):
        table.extend(scheme for scheme in map(bytes.decode, SCHEMES) if scheme not in table)
