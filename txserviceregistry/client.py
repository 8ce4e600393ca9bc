"""Client. ``APIError`` and ``HeartBeater`` are here too, as in txServiceRegistry's ``client`` module."""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import EllipsisType
from typing import Any

import attrs
from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IAgent

from .api.auth import Credentials, KeystoneAuthenticator, RetryingAuthAgent, Session, isAuthFault
from .api.events import EventsClient
from .api.groups import AccountClient, ConfigurationClient, LocksClient
from .api.services import ListCache
from .api.transport import Transport, isRegistryFault
from .clock import SuspendWatch, bootTime, machineSuspended
from .errors import APIError, ConnectionFailed, InvalidSettings
from .heartbeats.heartbeater import HeartBeater
from .heartbeats.services import ServicesClient
from .http.jsontransport import TIMEOUT, JSONTransport
from .http.messages import Lane
from .http.pool import ConnectionPool, PooledAgent, QueueingAgent
from .http.tls import tlsPolicy
from .settings import DEFAULT_REGION, Settings, parseUrls, readSettings
from .util.deferred import returnsDeferred, waitFor
from .util.fields import LONGEST_INTERVAL, boundedNumber

__all__ = ["APIError", "Client", "HeartBeater"]

# The settings that a running client can't change.
_CHANGES = {
    "username": "user",
    "baseUrls": "URL of the registry",
    "authUrls": "URL of the Auth API",
    "raxrcPath": "file for the API key",
}


class Client(AbstractAsyncContextManager["Client"]):
    """
    A client of a service registry, with the credentials of one user::

        client = Client("joe", "the key", baseUrl="https://registry.example.org/v1.0")
        service = await client.services.get("web1")

    Arguments that are not given are looked up: see :func:`~txserviceregistry.settings.readSettings`. No request is sent
    before the first call.

    :ivar services: :class:`~txserviceregistry.heartbeats.services.ServicesClient`.
    :ivar configuration: :class:`~txserviceregistry.api.groups.ConfigurationClient`.
    :ivar locks: :class:`~txserviceregistry.api.groups.LocksClient`.
    :ivar events: :class:`~txserviceregistry.api.events.EventsClient`.
    :ivar account: :class:`~txserviceregistry.api.groups.AccountClient`.
    :ivar treq: treq's :class:`~treq.client.HTTPClient` over the same connections, for other requests to the registry.
        Every URL gets the auth token: use it only for the registry.
    :ivar clock: the *reactor*.
    :ivar bootTime: returns the seconds since the machine was started, suspends included.
    :ivar settings: the settings in use. The API key changes if its file has another one at the next authentication.
    """

    def __init__(
        self,
        username: str | None = None,
        apiKey: str | None = None,
        region: str = DEFAULT_REGION,
        baseUrl: str | Sequence[str] | None = None,
        agent: IAgent | None = None,
        *,
        authUrl: str | Sequence[str] | None = None,
        reactor: Any = None,
        timeout: float = TIMEOUT,
        maxConnections: int = 2,
        cache: ListCache | EllipsisType | None = ...,
        settings: Settings | None = None,
        random: Callable[[], float] = randomModule.random,
        suspended: Callable[[], float] = machineSuspended,
        bootTime: Callable[[], float] = bootTime,
        traceparent: Callable[[], str | None] | None = None,
    ) -> None:
        """
        :param username: the user's name.
        :param apiKey: the user's key.
        :param region: the registry's region in the Auth API's catalog, if no *baseUrl* is set.
        :param baseUrl: the registry's URL, without the tenant; or several URLs of one registry.
        :param agent: sends the requests; by default an agent with a connection pool of its own.
        :param authUrl: the Auth API's URL, or several; by default beside the registry, at ``/v2.0``.
        :param reactor: connects and keeps time; the global reactor if it is not given.
        :param timeout: seconds that a request may take in all.
        :param maxConnections: the maximum number of requests to one server at a time; others wait. Heartbeats,
            registrations and other requests for one service are counted by themselves, without up to six that have had
            no response for 0.3 s. Requests that wait for events or locks are not counted.
        :param cache: keeps the last pages of ``services.list``; one of its own by default, ``None`` for no cache.
        :param settings: the result of :func:`~txserviceregistry.settings.readSettings`, instead of the arguments above.
        :param random: returns numbers from 0 to 1; selects the first of several URLs.
        :param suspended: returns the seconds for which this machine has been suspended in all.
        :param bootTime: returns the seconds of a clock that runs during a suspend and never steps; locks use it.
        :param traceparent: returns the value of the W3C header ``traceparent`` for a request that begins, or ``None``.
        :raises InvalidSettings: if a setting can't be used, or there are no credentials.
        """
        if reactor is None:
            from twisted.internet import reactor
        if settings is None:
            # The default region can't be told from the same word as an argument; it is the weaker of the two.
            named = None if region == DEFAULT_REGION else region
            given: Any = {"username": username, "apiKey": apiKey, "region": named}
            settings = readSettings(**given, baseUrl=baseUrl, authUrl=authUrl, tls=agent is None)
        try:
            timeout = boundedNumber(timeout, 0.0, LONGEST_INTERVAL, "timeout")
            maxConnections = int(boundedNumber(maxConnections, 1, 10_000, "maxConnections"))
        except ValueError as error:
            raise InvalidSettings(str(error))
        self.settings = settings
        self.clock: IReactorTime = reactor
        self.bootTime = bootTime
        self._pools: list[ConnectionPool] = []
        streaming: IAgent
        # The agent, or the pool, which may know local addresses.
        self._addresses: Any = agent
        if agent is None:
            self._addresses = pool = ConnectionPool(reactor, 2 * maxConnections)
            self._pools = [pool, ConnectionPool(reactor, 0, streams=True)]
            policy = tlsPolicy(settings.verify, settings.caFile, caSource=settings.sources.get("caFile"))
            # A server that does not even answer the connecting leaves the others their share of the time.
            connectTimeout = timeout / max(1, len(settings.baseUrls))
            agent, streaming = (PooledAgent(reactor, policy, connectTimeout, each) for each in self._pools)
        else:
            streaming = agent
        suspends = SuspendWatch(reactor, suspended, self._closeIdle)
        urgent = QueueingAgent(agent, maxConnections, suspends, clock=reactor)
        lanes = {
            Lane.ORDINARY: QueueingAgent(agent, maxConnections, suspends),
            Lane.URGENT: urgent,
            Lane.HEARTBEAT: QueueingAgent(agent, maxConnections, clock=reactor, slots=urgent.slots),
            Lane.WAITING: QueueingAgent(agent, 1000, suspends),
        }
        self._queues = list(lanes.values())
        common: Any = {"timeout": timeout, "random": random, "onForeign": self._closeIdle}
        auth = JSONTransport(
            lanes[Lane.URGENT], reactor, settings.authUrls, name="the Auth API", isFault=isAuthFault, **common
        )
        credentials = Credentials(settings.username, settings.apiKey)
        authenticator = KeystoneAuthenticator(auth, credentials, clock=reactor, lookUp=self._currentCredentials)
        servers = partial(JSONTransport, lanes[Lane.ORDINARY], reactor, lanes=lanes, isFault=isRegistryFault, **common)
        self._transport = Transport(servers, reactor, authenticator, self._basesFor, streaming, timeout, traceparent)
        pages = ListCache() if cache is ... else cache
        self.services = ServicesClient(self._transport, reactor, pages, connections=maxConnections, suspends=suspends)
        self.configuration = ConfigurationClient(self._transport)
        self.locks = LocksClient(self._transport)
        self.events = EventsClient(self._transport, suspends)
        self.account = AccountClient(self._transport)
        self.treq = HTTPClient(RetryingAuthAgent(lanes[Lane.ORDINARY], authenticator))
        # Shared by the services that read the event feed through this client.
        self.shared: dict[object, Any] = {}
        self._closing: Deferred[None] | None = None

    @classmethod
    def fromSettings(cls, reactor: Any = None) -> Client:
        """A client without arguments: with the settings of the environment, INI files, or this machine's registry."""
        return cls(reactor=reactor)

    def __repr__(self) -> str:
        urls = self.settings.baseUrls or self.settings.authUrls
        return f"<Client of {self.settings.username!r} at {', '.join(urls)}>"

    @property
    def extensions(self) -> frozenset[str]:
        """The extensions of the API that the registry has, by its last response; empty before the first."""
        return self._transport.extensions

    def pause(self, seconds: float) -> Deferred[None]:
        """Wait on this client's clock. Fails with ``ConnectionFailed`` when the client is closed before."""
        return self._transport.pause(seconds)

    @returnsDeferred
    async def localAddress(self) -> str:
        """
        The local address of a connection to the registry, which is opened if need be. Fails as any request does, and
        with ``InvalidSettings`` if the client was given an agent that does not know it.
        """
        find = getattr(self._addresses, "localAddress", None)
        if find is None:
            raise InvalidSettings(
                "The local address is unknown, because the client was given an agent. Set host in the metadata"
            )
        if not self._transport.servers or find(self._transport.baseUrl) is None:
            await self.account.getLimits()
        address: str | None = find(self._transport.baseUrl)
        if address is None:
            raise ConnectionFailed(f"The local address of a connection to {self._transport.baseUrl} is unknown")
        return address

    def onLocalAddress(self, listener: Callable[[str], object]) -> Callable[[], None]:
        """
        Call *listener* with the new address whenever a connection to the registry has another local address than the
        one before: the machine has moved to another network. Returns a function that removes the listener.
        """
        watch = getattr(self._addresses, "onLocalAddress", lambda listener: lambda: None)
        end: Callable[[], None] = watch(lambda url, address: self._transport.isServer(url) and listener(address))
        return end

    def close(self) -> Deferred[None]:
        """
        Close the client: requests fail with ``ConnectionFailed``, HeartBeaters stop, and connections are closed. The
        services stay registered until they expire. Fires when nothing of this client is left on the reactor.
        """
        if self._closing is None:
            self._closing = self._close()
        return waitFor(self._closing)

    async def __aexit__(self, *details: object) -> None:
        await self.close()

    @returnsDeferred
    async def _close(self) -> None:
        self.services.close()
        self._transport.close()
        for queue in self._queues:
            queue.close()
        self.events.closeStreams()
        for pool in self._pools:
            await pool.close()

    def _closeIdle(self) -> None:
        # They may be dead after a suspend, or lead to another program than the registry.
        if self._pools:
            self._pools[0].closeCachedConnections()  # type: ignore[no-untyped-call] # Twisted has no types there

    def _currentCredentials(self) -> Credentials:
        known = self.settings
        if known.readAgain is not None:
            found = known.readAgain()
            # A key is only sent to the registry in its settings.
            changed = [what for name, what in _CHANGES.items() if getattr(found, name) != getattr(known, name)]
            if changed:
                raise InvalidSettings(
                    f"The settings have another {' and another '.join(changed)} now. Restart the program to use it"
                )
            self.settings = known = attrs.evolve(known, apiKey=found.apiKey, sources=found.sources)
        return Credentials(known.username, known.apiKey)

    def _basesFor(self, session: Session) -> Sequence[str]:
        if self.settings.baseUrls:
            return self.settings.baseUrls
        urls, region = session.registryUrls(), self.settings.region
        found = [url for name, url in urls.items() if len(urls) == 1 or name.lower() == region.lower()]
        if not found:
            regions = ", ".join(sorted(urls)) or "none"
            raise InvalidSettings(
                f"The Auth API's catalog has no service registry for region {region!r} (it has: {regions}). "
                "Set RAXSR_API_URL, or another RAXSR_REGION"
            )
        return parseUrls(found, "the Auth API's catalog")
