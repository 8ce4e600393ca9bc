r"""
Endpoints: connect to a tag instead of an address, and listen as a registered service. As strings they are
``registry:TAG[:strategy=…][:timeout=…]`` and ``registered:id=…[:tags=…][:metadata=…][:heartbeatTimeout=…]:endpoint=…``.
"""

from __future__ import annotations

import os
import random as randomModule
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from ipaddress import ip_address
from typing import Any, TypeVar
from weakref import finalize

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IReactorCore,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.python.components import proxyForInterface
from twisted.python.failure import Failure
from zope.interface import implementer

from ..client import Client
from ..errors import InvalidSettings, RegistrationEnded
from ..http.agent import endpointTo
from ..registration import RegisteredService
from ..settings import Settings, readSettings
from ..util.deferred import returnsDeferred, waitFor
from ..util.fields import (
    HEARTBEAT_TIMEOUTS,
    HOST_KEYS,
    ID_RULE,
    LONGEST_INTERVAL,
    PORT_KEYS,
    SERVICE_ID,
    boundedNumber,
    checkedId,
    checkedMetadata,
    checkedTags,
    checkedTimeout,
    parseMetadata,
    parseTags,
)
from ..util.logs import Logger
from .balancing import Balancer, Instance, IStrategy, TryNext, strategyNamed, tryEach
from .directory import THRESHOLD, Directory, Suspects, checkedThreshold

_T = TypeVar("_T")

_CLIENT_KEYS = ("tag", "strategy", "timeout", "region", "zone", "panicThreshold")
_SERVER_KEYS = ("id", "tags", "metadata", "heartbeatTimeout", "endpoint")
_log = Logger()

CONNECT_TIMEOUT = 5.0  # the default of the seconds for each instance to accept a connection


def checkedConnectTimeout(timeout: object) -> float:
    """The timeout of an argument or an endpoint string, in seconds; raises ValueError if it is not valid."""
    return boundedNumber(timeout, 0.001, LONGEST_INTERVAL, "timeout")


def whenLost(protocol: Any, lost: Callable[[], object]) -> None:
    """Call *lost* when a protocol's connection is over."""
    connectionLost = protocol.connectionLost

    def over(*reason: Failure) -> None:
        # A factory may return the same protocol again.
        protocol.connectionLost = connectionLost
        lost()
        connectionLost(*reason)

    protocol.connectionLost = over


@implementer(IStreamClientEndpoint)
class RegistryEndpoint:
    """
    Connects to a service with a tag. Each :meth:`connect` picks an instance by the strategy, and another one when that
    can't be connected to. An instance that refuses is not picked for a while.
    """

    def __init__(
        self,
        reactor: Any,
        directory: Directory,
        tag: str,
        *,
        strategy: str | IStrategy = "round-robin",
        timeout: float = CONNECT_TIMEOUT,
        near: Mapping[str, str] | None = None,
        panicThreshold: float = THRESHOLD,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        """
        :param reactor: connects.
        :param directory: a running :class:`~txserviceregistry.discovery.Directory`. The caller stops it.
        :param strategy: ``round-robin``, ``random``, ``least-connections``, or a strategy object.
        :param timeout: seconds for each instance to accept a connection, at least 0.001, and for the directory's first
            listing.
        :param near: the client's own ``region`` and ``zone``: instances there are preferred.
        :param panicThreshold: when a larger part of the instances expires within one heartbeat timeout, three at least,
            they stay in use, until enough of them are registered again; 0 to 1, 0 for never.
        :param random: returns numbers from 0 to 1 to a strategy that is given by name.
        :raises ValueError: if there is no such strategy, *near* has other keys, or *timeout* or *panicThreshold* is not
            such a number.
        """
        self._reactor = reactor
        self._timeout = checkedConnectTimeout(timeout)
        suspects = Suspects(directory, reactor, panicThreshold)
        self._balancer = Balancer(directory, tag, reactor, strategy, near, random, suspects)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """
        Fires with the protocol, connected. Fails with :class:`~txserviceregistry.errors.NoServiceAvailable` if there is
        no service with the tag, or none that can be connected to; the text has the reasons. It may be cancelled.
        """

        async def attempt(instance: Instance, ended: Callable[[], None]) -> IProtocol:
            endpoint = endpointTo(self._reactor, instance.host, instance.port, self._timeout)
            try:
                protocol: IProtocol = await endpoint.connect(protocolFactory)
            except (ConnectError, OSError) as error:
                raise TryNext(error)
            whenLost(protocol, ended)
            return protocol

        return tryEach(self._balancer, attempt, self._timeout)


class Shared:
    """A client and a directory that endpoint strings share, until the last of their users has released it."""

    def __init__(self, reactor: Any, key: object, settings: Settings) -> None:
        self.reactor = reactor
        self.key = key
        self.client = Client(reactor=reactor, settings=settings)
        #: Each user, and what it does before everything is closed; its Deferred is waited for.
        self.users: dict[object, Callable[[], object]] = {}
        #: Fires when everything is closed, once that has begun.
        self.ending: Deferred[None] | None = None
        self._directory: Directory | None = None
        self._trigger: Any = None
        if IReactorCore.providedBy(reactor):
            # A twistd application stops its servers in the same phase; those are waited for.
            self._trigger = reactor.addSystemEventTrigger("before", "shutdown", self.end)

    @property
    def directory(self) -> Directory:
        """The directory, which is started with its first use."""
        if self._directory is None:
            self._directory = Directory(self.client)
            self._directory.startService()
        return self._directory

    def release(self, user: object) -> Deferred[None]:
        """End a use, once or more often; fires when everything that is closed because of it is closed."""
        if self.ending is None:
            self.users.pop(user, None)
        return self.end() if self.ending is not None or not self.users else succeed(None)

    def end(self) -> Deferred[None]:
        """Close everything, after all users have left."""
        if self.ending is None:
            self.ending = Deferred()
            self._end().chainDeferred(self.ending)
        return waitFor(self.ending)

    @returnsDeferred
    async def _end(self) -> None:
        def failed(failure: Any) -> None:
            _log.failure("Closing a shared client failed", failure)

        await gatherResults([maybeDeferred(leave).addErrback(failed) for leave in self.users.values()])
        if self._directory is not None:
            await self._directory.stopService()
        await self.client.close().addErrback(failed)
        _open.remove(self)
        if self._trigger is not None:
            try:
                self.reactor.removeSystemEventTrigger(self._trigger)
            except (KeyError, ValueError):
                # The shutdown has begun, and has removed it.
                pass


_open: list[Shared] = []  # those that are not closed yet


def share(reactor: Any, user: object) -> Shared:
    """Let *user* share the client of the registry that the settings name; raises InvalidSettings."""
    settings = readSettings()
    # A client rereads the key in a file.
    key = attrs.evolve(settings, apiKey="" if settings.raxrcPath else settings.apiKey)
    for shared in _open:
        if shared.reactor is reactor and shared.key == key and shared.ending is None:
            break
    else:
        shared = Shared(reactor, key, settings)
        _open.append(shared)
    shared.users[user] = lambda: None
    return shared


@returnsDeferred
async def closeShared(reactor: Any = None) -> None:
    """
    Close what endpoint strings share on a reactor, by default the global one, at the end of a test that has used such
    strings. (A reactor that shuts down does it by itself.) Fires with ``None`` when nothing is left on the reactor.

    Servers of ``registered:…`` that still listen are deregistered first; their ports stay open. A server that is being
    deregistered is waited for. Endpoints that are used again afterwards begin anew.
    """
    if reactor is None:
        from twisted.internet import reactor
    await gatherResults([shared.end() for shared in list(_open) if shared.reactor is reactor])


class RegisteredPort(proxyForInterface(IListeningPort, "_port")):  # type: ignore[misc] # a class made by Twisted
    """
    A port that listens, and the service that is registered while it does.

    :ivar service: the :class:`~txserviceregistry.RegisteredService`. Call its ``drain(seconds)`` before
        :meth:`stopListening`, so that clients that have just looked it up are not refused.
    """

    def __init__(self, port: IListeningPort, service: RegisteredService, release: Callable[[], Deferred[None]]) -> None:
        super().__init__(port)
        self.service = service
        self._release = release
        self._stopping: Deferred[None] | None = None

    def stopListening(self) -> Deferred[None]:
        """
        Remove the service from the registry, and then close the port. Fires with ``None`` when both are done. A
        registry that does not respond is given three seconds.
        """
        if self._stopping is None:
            self._stopping = self._stop()
        return waitFor(self._stopping)

    @returnsDeferred
    async def _stop(self) -> None:
        try:
            await self.service.stopService()
            await maybeDeferred(self._port.stopListening)
        finally:
            await self._release()


@implementer(IStreamServerEndpoint)
class RegisteredEndpoint:
    """
    Listens, and is a registered service while it listens.

    The port's number is added to the metadata, and so is the host, if the port is bound to one address. Otherwise the
    host is the local address of the connection to the registry. Metadata that are given are not replaced.
    """

    def __init__(
        self,
        client: Client | Callable[[object], Shared],
        endpoint: IStreamServerEndpoint,
        serviceId: str,
        heartbeatTimeout: int = 30,
        tags: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """
        :param client: sends the requests, and the caller closes it; or a function that lets a user share one.
        :param endpoint: the endpoint to listen on.
        :param serviceId: see :class:`~txserviceregistry.RegisteredService`, here and below.
        :raises TypeError: if one of them has a wrong type.
        :raises ValueError: if the id or the timeout is not valid.
        """
        self._client = client
        self._endpoint = endpoint
        self._serviceId = checkedId(serviceId)
        self._heartbeatTimeout = checkedTimeout(heartbeatTimeout)
        self._tags = checkedTags(tags)
        self._metadata = checkedMetadata(metadata)

    @returnsDeferred
    async def listen(self, protocolFactory: IProtocolFactory) -> RegisteredPort:
        """
        Listen, and register in the background, also if the registry is not reachable yet. Fires with a
        :class:`RegisteredPort` when the port is open. Fails as the wrapped endpoint does, and with
        :class:`~txserviceregistry.errors.InvalidSettings` if no settings name the registry.
        """
        user, shared, client = object(), None, self._client
        if callable(client):
            shared = client(user)
            client = shared.client

        def release() -> Deferred[None]:
            return succeed(None) if shared is None else shared.release(user)

        try:
            port = await self._endpoint.listen(protocolFactory)
            if shared is not None and shared.ending is not None:
                await maybeDeferred(port.stopListening)
                raise RegistrationEnded(f"Service {self._serviceId} was stopped before it was registered")
        except BaseException:
            await release()
            raise
        metadata, address = dict(self._metadata), port.getHost()
        if isinstance(address, (IPv4Address, IPv6Address)):
            if not any(key in metadata for key in PORT_KEYS):
                metadata["port"] = str(address.port)
            isAnywhere = ip_address(address.host.partition("%")[0]).is_unspecified
            if not isAnywhere and not any(key in metadata for key in HOST_KEYS):
                metadata["host"] = address.host
        else:
            text = "Service {id} listens on {address}, not on a host and port: its metadata have no address"
            _log.info(text, id=self._serviceId, address=address)
        service = RegisteredService(client, self._serviceId, self._heartbeatTimeout, self._tags, metadata)
        service.startService()
        if shared is not None:
            shared.users[user] = service.stopService
        return RegisteredPort(port, service, release)


@implementer(IStreamClientEndpoint)
@attrs.define(eq=False)
class SharedRegistryEndpoint:
    """A RegistryEndpoint over the directory that all strings share, from its first connect until it is garbage."""

    _reactor: Any
    _tag: str
    _options: Mapping[str, Any]
    _shared: Shared | None = attrs.field(default=None, init=False)
    _end: Callable[[], object] = attrs.field(default=lambda: None, init=False)
    _endpoint: Any = attrs.field(default=None, init=False)

    @returnsDeferred
    async def connect(self, protocolFactory: IProtocolFactory) -> IProtocol:
        """See RegistryEndpoint; fails with InvalidSettings too, if no settings name the registry."""
        if self._shared is None or self._shared.ending is not None:
            self._end()
            user = object()
            self._shared = shared = share(self._reactor, user)
            # The garbage collector runs in any thread, and within any call.
            self._end = end = finalize(self, self._reactor.callFromThread, shared.release, user)
            end.atexit = False
            self._endpoint = RegistryEndpoint(self._reactor, shared.directory, self._tag, **self._options)
        # This coroutine refers to the endpoint until it ends.
        protocol: IProtocol = await self._endpoint.connect(protocolFactory)
        return protocol


def _exits(function: Callable[..., _T]) -> Callable[..., _T]:
    """*function*, whose errors end a twistd that starts with one line instead of a traceback."""

    @wraps(function)
    def orExit(reactor: Any, *args: Any, **kwargs: Any) -> _T:
        try:
            return function(reactor, *args, **kwargs)
        except (ValueError, InvalidSettings) as error:
            # "python -m twisted" is twist.
            program = os.path.basename(sys.argv[0].removesuffix("/__main__.py")).removesuffix(".py")
            if program in ("twist", "twistd", "twisted") and not getattr(reactor, "running", False):
                raise SystemExit(f"{program}: {error}")
            raise

    return orExit


# twistd reads strings before it becomes a daemon: the following connects, opens and schedules nothing.


@_exits
def parseRegistry(reactor: Any, *args: str, **kwargs: str) -> SharedRegistryEndpoint:
    """``registry:TAG``, with the parameters of RegistryEndpoint; ``region=`` and ``zone=`` are its *near*."""
    for name in kwargs:
        if name not in _CLIENT_KEYS:
            raise ValueError(f"registry: unknown parameter {name!r} (known: {', '.join(_CLIENT_KEYS)})")
    tags = [*args, *([kwargs["tag"]] if "tag" in kwargs else [])]
    if len(tags) != 1 or not tags[0]:
        raise ValueError(
            r"registry: one tag is required, as in registry:web:strategy=random (a colon within a tag is written \:)"
        )
    near = {name: kwargs.pop(name) for name in ("region", "zone") if name in kwargs}
    options: dict[str, Any] = {name: value for name, value in kwargs.items() if name != "tag"}
    try:
        strategyNamed(options.get("strategy", "random"))
        checkedConnectTimeout(options.get("timeout", CONNECT_TIMEOUT))
        checkedThreshold(options.get("panicThreshold", THRESHOLD))
    except ValueError as error:
        raise ValueError(f"registry: {error}") from None
    return SharedRegistryEndpoint(reactor, tags[0], {**options, "near": near})


@_exits
def parseRegistered(reactor: Any, *args: str, **kwargs: str) -> RegisteredEndpoint:
    r"""
    ``registered:id=ID:endpoint=ENDPOINT``, with ``tags=``, ``metadata=`` and ``heartbeatTimeout=``. A comma within a
    tag or a value is escaped with two backslashes (``\\,``), because the string's own parser removes one.
    """
    nested = kwargs.get("endpoint", "")
    pieces = [*args, *(f"{name}={value}" for name, value in kwargs.items() if name not in _SERVER_KEYS)]
    if pieces and ":" in "".join((nested, *pieces)):
        # The endpoint was escaped, another value was not.
        known = f"(known: {', '.join(_SERVER_KEYS)})"
        raise ValueError(
            rf"registered: unknown parameter {':'.join(pieces)!r} {known}. A colon within a value is written \:"
        )
    if pieces:
        values = {"id": "web1", **kwargs, "endpoint": ":".join([nested, *pieces] if nested else pieces)}
        right = ":".join(f"{name}={quoteStringArgument(values[name])}" for name in _SERVER_KEYS if name in values)
        raise ValueError(f"registered: the colons of the wrapped endpoint have to be escaped. Write registered:{right}")
    for name in ("id", "endpoint"):
        if not kwargs.get(name):
            raise ValueError(rf"registered: {name}= is missing, as in registered:id=web1:endpoint=tcp\:8080")
    id, timeout = kwargs["id"], kwargs.get("heartbeatTimeout", "30")
    if not SERVICE_ID.fullmatch(id):
        raise ValueError(f"registered: id={id} is not valid: it has {ID_RULE}")
    if not re.fullmatch("[0-9]{1,3}", timeout) or int(timeout) not in HEARTBEAT_TIMEOUTS:
        raise ValueError(f"registered: heartbeatTimeout={timeout} is not a whole number of seconds from 3 to 120")
    try:
        metadata = parseMetadata(kwargs.get("metadata", ""))
    except ValueError as error:
        raise ValueError(rf"registered: metadata: {error}; in an endpoint string that is \\,")
    try:
        endpoint = serverFromString(reactor, nested)
    except RuntimeError:
        # Twisted's parser raises this for a backslash at the end.
        raise ValueError(rf"registered: endpoint={nested} ends in a backslash that escapes nothing")
    except (TypeError, ValueError, LookupError, OSError) as error:
        raise ValueError(f"registered: endpoint={nested} is not a server endpoint: {error}")
    tags = parseTags(kwargs.get("tags", ""))
    return RegisteredEndpoint(partial(_exits(share), reactor), endpoint, id, int(timeout), tags, metadata)
