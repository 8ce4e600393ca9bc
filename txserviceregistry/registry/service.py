"""The registry as a service: everything that a registry is made of, started and stopped in its order."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from errno import EADDRINUSE
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import attrs
from cryptography import x509
from twisted.application.service import Service
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from .._version import __version__
from ..util.deferred import DaemonThreadPool, Waiters, cancel, returnsDeferred
from ..util.logs import Logger, Outage
from .console.console import Console
from .core import Registry
from .datadir import DataDirectory, DataDirectoryError
from .feed import EVENT_RETENTION
from .http.connections import ConnectionLimits, availableFiles
from .http.listening import TLSEndpoint, listenerOf, parseEndpoint
from .http.messages import Response
from .http.pages import LOOPBACK, Health, statusPages
from .http.requestlog import LogFile, RequestLog
from .http.resource import ApiResource
from .http.server import ApiSite
from .identity import SCRYPT_COST, Identity, InvalidUser, newKey
from .limits import Places, RateLimiter, ResourceLimits
from .stores.interfaces import ISharedStore, IStore, ObjectExists, StoreRefused, StoreUnavailable
from .stores.memory import MemoryStore
from .stores.sqlite.store import SqliteStore

#: The default listener of a registry: on this machine only.
DEFAULT_LISTEN = "tcp:8880:interface=127.0.0.1"

#: The name of the user of a new registry.
FIRST_USER = "local"

#: How long requests that are under way may still take when the registry stops, and all of the stopping, in seconds.
DRAIN_SECONDS = 1.0
END_SECONDS = 4.0
#: Seconds between two attempts to open a shared store, and the most that connections wait for a node to join.
RETRY = 0.5
JOINING = 1.0


class StartFailed(Exception):
    """The registry can't start; the text, one line, says why."""


@attrs.define(eq=False, repr=False, slots=False)
class RegistryService(Service):
    """
    A registry. Nothing is opened before it starts. Times are in seconds.

    The first start with a new store creates a user and writes the credentials to ``raxrc`` in the data directory. If
    the file has credentials already, the user gets these. A store whose users were all removed gets none.

    :param dataDir: the data directory; it is created if it does not exist.
    :param store: ``"sqlite"``, ``"memory"``, or a function that makes another store.
    :param endpoints: listened on; strings are those of :func:`~twisted.internet.endpoints.serverFromString`.
    :param limits: how many objects an account may have.
    :param fenceFrom: the least fence of a lock, and *locksHeldBack*: how long after the start no lock can be acquired,
        after the restore of a backup.
    :param rateLimit: how many GETs an account may make in the *rateWindow*; ``None`` for no limit.
    :param connectionLimits: how many may connect and wait, and for how long.
    :param tokenLifetime: how long an auth token counts.
    :param eventRetention: how long events are kept.
    :param metrics: the clients that may read ``/metrics``: ``"loopback"`` (on this machine), ``"anywhere"``, ``"off"``.
    :param accessLog: the file that the access log is added to, ``"-"`` for the standard output; none if ``None``.
    :param auditLog: the same for the audit log.
    :param consoleNames: the host names under which the console is served, beside those of the loopback and the
        listeners' own addresses; ``None`` for no console.
    :param wallClock: since the epoch.
    :param keyCost: scrypt's *n* for API keys that are hashed from now on: a power of two, for tests ``2``.
    :ivar urls: the base URLs of the API, one for each listener with an address, once it listens; *where* also has the
        other endpoints, such as local sockets.
    :ivar hasCredentials: whether the ``raxrc`` has credentials, once it listens.
    """

    name = "registry"
    _log = Logger()

    _reactor: Any
    _dataDir: str | os.PathLike[str]
    _store: str | Callable[[], IStore] = "sqlite"
    _endpoints: Sequence[str | IStreamServerEndpoint] = (DEFAULT_LISTEN,)
    _limits: ResourceLimits = ResourceLimits()  # noqa: RUF009 (it is immutable)
    _fenceFrom: int = 0
    _locksHeldBack: float = 0.0
    _rateLimit: int | None = 500_000
    _rateWindow: float = 86_400.0
    _connectionLimits: ConnectionLimits = ConnectionLimits()  # noqa: RUF009 (as above)
    _tokenLifetime: float = 86_400.0
    _eventRetention: float = EVENT_RETENTION
    _metrics: str = LOOPBACK
    _accessLog: str | os.PathLike[str] | None = None
    _auditLog: str | os.PathLike[str] | None = None
    _consoleNames: Collection[str] | None = ()
    _wallClock: Callable[[], float] = time.time
    _keyCost: int = SCRYPT_COST
    urls: list[str] = attrs.field(init=False, factory=list)
    where: str = attrs.field(init=False, default="")
    hasCredentials: bool = attrs.field(init=False, default=False)
    health: Health | None = attrs.field(init=False, default=None)
    # The names and functions of what has to be ended, in the opposite order.
    _endings: list[tuple[str, Callable[[], object]]] = attrs.field(init=False, factory=list)
    _starting: Deferred[None] | None = attrs.field(init=False, default=None)
    _outcome: list[IListeningPort] | StartFailed | None = attrs.field(init=False, default=None)
    _waiting: Waiters[list[IListeningPort]] = attrs.field(init=False, factory=Waiters)
    # Each endpoint, and the port that it has made.
    _listening: list[tuple[IStreamServerEndpoint, IListeningPort]] = attrs.field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        if not callable(self._store) and self._store not in ("sqlite", "memory"):
            raise ValueError(f"store is {self._store!r}, but it has to be 'sqlite', 'memory' or a function")
        self._directory = DataDirectory(Path(self._dataDir))

    @staticmethod
    def runsOver(dataDir: str | os.PathLike[str]) -> bool:
        """Whether a registry, in whatever process, runs over a data directory now."""
        return DataDirectory(Path(dataDir)).isTaken()

    @property
    def raxrcPath(self) -> str:
        """The file with URLs and credentials for the programs of this machine."""
        return str(self._directory.raxrcPath)

    def whenListening(self) -> Deferred[list[IListeningPort]]:
        """Fires with the ports when it listens; fails with :class:`StartFailed` when all is closed again."""
        waiter = self._waiting.wait()
        if self._outcome is not None:
            self._tell(self._outcome)
        return waiter

    def startService(self) -> None:
        Service.startService(self)
        self._outcome = None
        self._starting = self._begin()

    @returnsDeferred
    async def stopService(self) -> None:
        """Stop listening, let requests that are under way finish, then end the rest, within seconds."""
        Service.stopService(self)
        starting, self._starting = self._starting, None
        if starting is not None:
            # A start that is under way undoes itself.
            starting.cancel()
            await starting
        wasListening = isinstance(self._outcome, list)
        if wasListening:
            self._log.info("The registry stops")
        await self._end()
        if wasListening:
            self._log.info("The registry has stopped")

    def reloadCertificates(self) -> None:
        """Read the certificates of the listeners and their keys now, instead of with the next connection."""
        for endpoint in self._secureEndpoints():
            endpoint.reload()

    @returnsDeferred
    async def _begin(self) -> None:
        try:
            # Until then the caller of startService can ask for the outcome.
            await deferLater(self._reactor, 0)
            ports = await self._open()
        except BaseException as error:
            outcome = self._explained(error)
            await self._end()
            self._tell(outcome)
            return
        self._log.info("The registry listens on {where}", where=self.where)
        self._tell(ports)

    async def _open(self) -> list[IListeningPort]:
        endpoints = [self._endpoint(each) for each in self._endpoints]
        self._directory.open()
        self._endings.append(("the data directory", self._directory.close))
        store = self._makeStore()
        self._endings.append(("the store", store.close))
        # Other stores than a registry's own file are new if they have no users.
        isNew = self._store != "sqlite" or not self._directory.hasStore()
        if isNew and self._store == "sqlite":
            # First the file, then the store: a crash in between must not leave a registry without credentials.
            self._firstCredentials()
        await self._untilAvailable(store, store.open)
        if ISharedStore.providedBy(store):
            isNew = store.isNew
        threads = DaemonThreadPool(0, 1, name="API key")
        threads.start()
        self._endings.append(("the thread for API keys", threads.stop))
        clocks: dict[str, Any] = {"clock": self._reactor, "wallClock": self._wallClock}
        hasher = partial(deferToThreadPool, self._reactor, threads)
        identity = Identity(store, **clocks, tokenLifetime=self._tokenLifetime, hasher=hasher, cost=self._keyCost)
        await self._untilAvailable(store, partial(self._makeFirstUser, identity, isNew=isNew))
        self.hasCredentials = self._directory.credentials() is not None
        connectionLimits = self._possibleLimits()
        held = Places(connectionLimits.held)
        registry = Registry(
            store,
            **clocks,
            limits=self._limits,
            eventRetention=self._eventRetention,
            followers=Places(connectionLimits.followers, connectionLimits.followersPerTenant, held),
            streams=Places(connectionLimits.streams, connectionLimits.streamsPerTenant, held),
            fenceFrom=self._fenceFrom,
            locksHeldBack=max(self._locksHeldBack, self._directory.heldBack(self._wallClock())),
        )
        self._endings.append(("the rules", registry.stop))
        rateLimiter = RateLimiter(self._reactor.seconds, self._rateLimit, self._rateWindow)
        logs = self._openLog(self._accessLog, "access log"), self._openLog(self._auditLog, "audit log")
        requestLog = RequestLog(*logs, seconds=self._reactor.seconds, wallClock=self._wallClock)
        resource = ApiResource(registry, identity, rateLimiter=rateLimiter, limits=self._limits, requestLog=requestLog)
        site = ApiSite(resource, self._reactor, connectionLimits)

        def makeMetrics() -> Callable[[], Response]:
            # It needs an extra.
            from .http.metrics import Metrics

            return Metrics(registry, store, identity.statistics, site, self._certificates).page

        self.health = Health(store, self._reactor)
        resource.pages = statusPages(self.health, makeMetrics, self._metrics)
        if self._consoleNames is not None:
            resource.handlers.console = Console(
                resource, registry, store, identity, self.health, names=self._consoleNames, **clocks
            )
        self._endings.append(("the connections", lambda: site.connections.drain(DRAIN_SECONDS, registry.endWaiting)))
        self._endings.append(("the authentications", identity.stop))
        ports = [await self._listen(endpoint, site) for endpoint in endpoints]
        if ISharedStore.providedBy(store):
            # A node that can't join responds 503, so that clients and proxies use others.
            late = self._reactor.callLater(JOINING, _accept, ports, True)
            self._endings.append(("the wait for the cluster", partial(cancel, late)))
        # Last, because a node that joins a cluster and leaves it again and again keeps all services from expiring.
        await registry.start()
        self._logStart(store, registry)
        _accept(ports, True)
        self._listening = list(zip(endpoints, ports, strict=True))
        self._publishUrls()
        for endpoint in self._secureEndpoints():
            endpoint.onChange = self._certificateChanged
        return ports

    async def _untilAvailable(self, store: IStore, step: Callable[[], Awaitable[None]]) -> None:
        """Do a step of the start, again and again if the store is shared: what it runs on may start later."""
        texts = "Store unavailable at the start (retrying): {reason}", "Store available after {seconds:.1f} s"
        waiting = Outage(self._log, self._reactor, *texts)
        while True:
            try:
                await step()
            except StoreUnavailable as error:
                if not ISharedStore.providedBy(store):
                    raise
                waiting.failed(reason=str(error))
                await deferLater(self._reactor, RETRY)
            else:
                waiting.succeeded()
                return

    def _firstCredentials(self) -> tuple[str, str]:
        """The name and the API key in the ``raxrc``, which get there if they are not."""
        credentials = self._directory.credentials()
        if credentials is None:
            credentials = FIRST_USER, newKey()
            self._directory.keepCredentials(*credentials)
        return credentials

    async def _makeFirstUser(self, identity: Identity, *, isNew: bool) -> None:
        if await identity.listUsers():
            return
        # The users of an older store were removed, unless their credentials are in the raxrc; that is not undone.
        areThere = self._directory.credentials() is not None
        if not (isNew or areThere):
            self._log.warn("No users exist; all requests will be rejected (service-registry-users add creates one)")
            return
        name, key = self._firstCredentials()
        try:
            await identity.addUser(name, key=key)
        except ObjectExists:
            # Another registry over the same store has added it, with another key.
            if not areThere:
                self._directory.keepCredentials(None, None)
        else:
            self._log.info("Created user {user}; the API key is in {raxrc}", user=name, raxrc=self.raxrcPath)

    def _publishUrls(self) -> None:
        """Write the URLs of the registry into the data directory, for the programs of this machine."""
        found = [*starmap(listenerOf, self._listening)]
        listeners = [each for each in found if each is not None]
        self.urls = [listener.root + "/v1.0" for listener in listeners]
        others = [str(given) for given, each in zip(self._endpoints, found, strict=False) if each is None]
        self.where = ", ".join(self.urls + others)
        if listeners:
            # On loopback no name has to be resolved, and no certificate trusted.
            best = next((listener for listener in listeners if listener.isLocal), listeners[0])
            self._directory.keepUrls(best.root + "/v1.0", best.root + "/v2.0", best.ownAuthority)

    def _certificateChanged(self) -> None:
        # Its names may have changed, and a self-signed one has to be trusted.
        try:
            self._publishUrls()
        except DataDirectoryError as error:
            self._log.error("Cannot publish the new certificate on this machine: {reason}", reason=str(error))

    def _secureEndpoints(self) -> list[TLSEndpoint]:
        return [endpoint for endpoint, _ in self._listening if isinstance(endpoint, TLSEndpoint)]

    def _certificates(self) -> dict[str, x509.Certificate]:
        return {endpoint.path: endpoint.certificate for endpoint in self._secureEndpoints()}

    def _logStart(self, store: IStore, registry: Registry) -> None:
        services = registry.counts()
        self._log.info(
            "The registry (txserviceregistry {version}) starts with its {store} store{where}: "
            "{services} services of {tenants} tenants",
            version=__version__,
            store=store.name,
            where=f" {self._directory.storePath}" if isinstance(store, SqliteStore) else "",
            services=sum(services.values()),
            tenants=len(services),
        )

    def _openLog(self, target: str | os.PathLike[str] | None, name: str) -> LogFile | None:
        if target is None:
            return None
        log = LogFile(os.fspath(target), self._reactor, name)
        log.start()
        self._endings.append((f"the {name}", log.stop))
        return log

    def _possibleLimits(self) -> ConnectionLimits:
        limits = self._connectionLimits.within(files := availableFiles())
        if limits.connections < self._connectionLimits.connections:
            self._log.warn(
                "Connections limited to {connections}: this process may open {files} files (raise ulimit -n, or "
                "LimitNOFILE in systemd)",
                connections=limits.connections,
                files=files,
            )
        return limits

    def _endpoint(self, endpoint: str | IStreamServerEndpoint) -> IStreamServerEndpoint:
        if not isinstance(endpoint, str):
            return endpoint
        try:
            return parseEndpoint(self._reactor, endpoint)
        except Exception as error:
            # Parsers of plugins raise anything.
            raise StartFailed(f"can't listen on {endpoint}: {error}")

    def _makeStore(self) -> IStore:
        if callable(self._store):
            return self._store()
        if self._store == "memory":
            return MemoryStore(wallClock=self._wallClock)
        path, hold = self._directory.storePath, self._directory.hold
        return SqliteStore(path, reactor=self._reactor, wallClock=self._wallClock, guard=hold, exclusive=True)

    async def _listen(self, endpoint: IStreamServerEndpoint, site: ApiSite) -> IListeningPort:
        try:
            port: IListeningPort = await endpoint.listen(site)
        except CannotListenError as error:
            kind, place = ("socket", os.fsdecode(error.port)) if isinstance(error.port, bytes) else ("port", error.port)
            where = f"{error.interface}:{place}" if error.interface else f"{kind} {place}"
            reason = getattr(error.socketError, "strerror", None) or error.socketError
            inUse = reason == "Cannot acquire lock" or getattr(error.socketError, "errno", None) == EADDRINUSE
            advice = f". Stop the process that has the {kind}, or choose another {kind}" if inUse else ""
            raise StartFailed(f"can't listen on {where}: {reason}{advice}")
        except Exception as error:
            # Endpoints of plugins raise anything.
            raise StartFailed(f"can't listen: {error}")
        self._endings.append(("a listener", port.stopListening))
        site.pace(port)
        _accept([port], False)
        return port

    def _explained(self, error: BaseException) -> StartFailed:
        if isinstance(error, (StartFailed, DataDirectoryError, StoreRefused, StoreUnavailable, InvalidUser)):
            return StartFailed(" ".join(str(error).split()))
        if not self.running:
            return StartFailed("stopped before it was listening")
        self._log.failure("The registry can't start", Failure(error))
        return StartFailed(f"internal error ({type(error).__name__}); see the log")

    def _tell(self, outcome: list[IListeningPort] | StartFailed) -> None:
        self._outcome = outcome
        if isinstance(outcome, StartFailed) and not self._waiting and self.running:
            self._log.error("The registry can't start: {reason}", reason=str(outcome))
        self._waiting.fire(Failure(outcome) if isinstance(outcome, StartFailed) else outcome)

    async def _end(self) -> None:
        self.urls, self.where, self._listening = [], "", []
        latest = self._reactor.seconds() + END_SECONDS
        while self._endings:
            what, end = self._endings.pop()
            # Late ones have a moment too: unlocking and closing take no time when nothing is wrong.
            left = max(latest - self._reactor.seconds(), 0.1)

            def late(outcome: object, seconds: float, what: str = what) -> None:
                self._log.warn("Did not close {what} within {seconds:.1f} s", what=what, seconds=seconds)

            try:
                await maybeDeferred(end).addTimeout(left, self._reactor, late)
            except Exception:
                self._log.failure("Cannot close {what}", what=what)


def _accept(ports: Sequence[Any], does: bool) -> None:
    """Let listeners accept connections, or let these wait in the backlog. A plugin's listener may not be able to."""
    for port in ports:
        if isinstance(port, FileDescriptor):
            (port.startReading if does else port.stopReading)()  # type: ignore[no-untyped-call]  # Twisted's own
