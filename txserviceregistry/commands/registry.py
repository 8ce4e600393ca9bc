"""``twistd -n --pidfile= service-registry``: runs the registry."""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs
from twisted.application.service import IService, Service
from twisted.internet.interfaces import IListeningPort
from twisted.logger import ILogObserver
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from ..registry.console.console import splitHost
from ..registry.http.connections import ConnectionLimits, raiseFileLimit
from ..registry.http.listening import EndpointError, parseEndpoint
from ..registry.http.pages import ANYWHERE, LOOPBACK, OFF, SILENT
from ..registry.http.requestlog import STDOUT
from ..registry.limits import ResourceLimits
from ..registry.service import DEFAULT_LISTEN, RegistryService, StartFailed
from ..settings import defaultDataDir
from ..util.deferred import returnsDeferred
from ..util.fields import parseCount, parseDuration, parseRate
from ..util.files import absolutePath
from .stores import ETCD, ETCD_OPTIONS, EtcdFactory, checkStore, etcdStore
from .twistd import (
    Notifier,
    Option,
    TwistdOptions,
    collectSeldom,
    endProcess,
    jsonObserver,
    oneOf,
    onHangup,
    prepare,
    say,
)

# Tokens end in whole seconds. A feed without a marker shows the last hour.
_TOKEN_LIFETIME = partial(parseDuration, least="1s", most="3650d")
_RETENTION = partial(parseDuration, least="1h")
_AUDIENCE = oneOf(LOOPBACK, ANYWHERE, OFF)
_NO_LOG = "off"
# A client on a slow network must be able to send a batch of heartbeats; its own timeout is two minutes.
_REQUEST = partial(parseDuration, least="1s", most="120s")
_SOME = partial(parseCount, least=1)  # without a connection there are no requests
_FENCE = partial(parseCount, most=2**52)  # milliseconds since the epoch, or a little more; JSON keeps it exact
_HOLD = partial(parseDuration, most="1d")
_STORE = oneOf("sqlite", "memory", ETCD)


def parsedEndpoint(description: str) -> str:
    """An endpoint string of Twisted's, or ``ValueError``."""
    from twisted.internet import reactor

    try:
        parseEndpoint(reactor, description)
    except EndpointError as error:
        raise ValueError(f"can't use {description!r}: {error}") from None
    except Exception as error:
        # The parsers raise anything from ValueError to RuntimeError, with texts that rarely help.
        raise ValueError(f"{description!r} is not an endpoint ({error}); an example is {DEFAULT_LISTEN}") from None
    return description


def _logTarget(text: str) -> str | None:
    # A process in the background has another working directory.
    return text if text == STDOUT else None if text == _NO_LOG else absolutePath(text)


def _consoleHost(text: str) -> str:
    if not splitHost(text)[0]:
        raise ValueError(f"{text!r} is not a host name such as registry.example.com")
    return text


class Options(TwistdOptions):
    program = "service-registry"
    synopsis = "[--listen ENDPOINT]… [--data-dir DIR] [--config FILE] [options]"
    longdesc = (
        "Runs a service registry. On its first start it creates a user and writes the credentials to the file "
        "'raxrc' in the data directory, where tools and clients on this machine find them. "
        "A duration is 90s, 15m, 24h, 30d or plain seconds. "
        "Example: twistd -n --pidfile= service-registry --listen tcp:8880:interface=127.0.0.1"
    )
    table = (
        Option(
            "listen", "l", DEFAULT_LISTEN, "Endpoint to listen on; may be given several times.", parsedEndpoint, True
        ),
        Option("data-dir", "d", None, "The data directory (default: ~/.local/state/txserviceregistry).", absolutePath),
        Option("store", "s", "sqlite", "The store: sqlite (a file in the data directory), memory or etcd.", _STORE),
        *ETCD_OPTIONS,
        Option("max-services", None, "100000", "Maximum number of services of an account.", parseCount),
        Option("max-configuration-values", None, "100000", "Maximum number of values of an account.", parseCount),
        Option("max-locks", None, "10000", "Maximum number of locks of an account.", parseCount),
        Option("fence-from", None, "0", "After a restore: the smallest fence of new locks.", _FENCE),
        Option("no-locks-for", None, "0s", "After a restore: no lock can be acquired for this duration.", _HOLD),
        Option("rate-limit", None, "500000/24h", "Maximum number of GETs of an account, N/PERIOD, or off.", parseRate),
        Option("token-lifetime", None, "24h", "How long an auth token is valid: a duration.", _TOKEN_LIFETIME),
        Option("metrics", None, LOOPBACK, "Clients that may read /metrics: loopback, anywhere or off.", _AUDIENCE),
        Option("log-format", None, "text", "Format of the operations log: text or json.", oneOf("text", "json")),
        Option("access-log", None, _NO_LOG, "File with a line for each request, - for stdout, or off.", _logTarget),
        Option("audit-log", None, _NO_LOG, "File with a line for each change, - for stdout, or off.", _logTarget),
        Option("console", None, "on", "Whether to serve the web console at /console: on or off.", oneOf("on", "off")),
        Option("console-host", None, None, "Another host name of the console; may be repeated.", _consoleHost, True),
        Option("max-connections", None, "10000", "Maximum number of connections.", _SOME),
        Option("max-connections-per-client", None, "5000", "Maximum number of connections from one address.", _SOME),
        Option("max-followers", None, "5000", "Maximum number of requests that wait (for events, locks).", parseCount),
        Option("max-followers-per-tenant", None, "2500", "Maximum number of them of an account.", parseCount),
        Option("max-streams", None, "10000", "Maximum number of event streams.", parseCount),
        Option("max-streams-per-tenant", None, "5000", "Maximum number of event streams of an account.", parseCount),
        Option("request-timeout", None, "30s", "Maximum time to receive a request: a duration.", _REQUEST),
        Option("event-retention", None, "30d", "How long events are kept: a duration of 1h or more.", _RETENTION),
    )

    def postOptions(self) -> None:
        TwistdOptions.postOptions(self)
        self["data-dir"] = self["data-dir"] or defaultDataDir()
        checkStore(self["store"], self.given)
        if self["store"] == ETCD:
            from twisted.internet import reactor

            # Here, so that errors are usage errors.
            self["store"] = etcdStore(self, reactor)
        self.observer = jsonObserver(self.parent) if self["log-format"] == "json" else None


def sayWhere(registry: RegistryService) -> None:
    say(f"The registry listens on {registry.where}")
    if registry.hasCredentials:
        say(f"Credentials for this machine are in {registry.raxrcPath}")
    else:
        say(f"There are no credentials in {registry.raxrcPath}: service-registry-users lists and adds users")


@attrs.define(eq=False, repr=False, slots=False)
class RegistryProcess(Service):
    """A registry as a process. SIGHUP reloads certificates."""

    name = "service-registry"

    _reactor: Any
    registry: RegistryService
    _etcd: EtcdFactory | None
    _observer: ILogObserver | None  # instead of twistd's own; the output is its alone
    _notifier: Notifier = attrs.field(init=False, factory=Notifier)

    def setServiceParent(self, parent: Any) -> None:
        # twistd looks for the log's observer in its application.
        if self._observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer)
        Service.setServiceParent(self, parent)

    def startService(self) -> None:
        Service.startService(self)
        self._endHangup = onHangup(self._reactor, self._reload)
        self.registry.startService()
        self.registry.whenListening().addCallbacks(self._listening, self._failed)

    @returnsDeferred
    async def stopService(self) -> None:
        Service.stopService(self)
        self._notifier.send(b"STOPPING=1")
        self._notifier.stop()
        await self.registry.stopService()
        # A terminal that is closed before does not cut that short.
        self._endHangup()

    def _reload(self) -> None:
        self.registry.reloadCertificates()
        if self._etcd is not None:
            self._etcd.reload()

    def _listening(self, ports: list[IListeningPort]) -> None:
        if self._observer is None:
            sayWhere(self.registry)
        self._notifier.send(b"READY=1", f"STATUS=Listening on {self.registry.where}".encode())
        self._notifier.watch(self._reactor, self._isWorking)

    async def _isWorking(self) -> bool:
        # A store that says that it is unavailable recovers without a restart.
        return self.registry.health is not None and (await self.registry.health.report())["store"]["state"] != SILENT

    def _failed(self, failure: Failure) -> None:
        if self.running:
            failure.trap(StartFailed)
            endProcess(self._reactor, f"twistd service-registry: {failure.getErrorMessage()}")


def makeService(options: Options) -> IService:
    from twisted.internet import reactor

    prepare(reactor)
    collectSeldom()
    rateLimit, rateWindow = options["rate-limit"]
    connectionLimits = ConnectionLimits(
        connections=options["max-connections"],
        perClient=options["max-connections-per-client"],
        requestSeconds=options["request-timeout"],
        followers=options["max-followers"],
        followersPerTenant=options["max-followers-per-tenant"],
        streams=options["max-streams"],
        streamsPerTenant=options["max-streams-per-tenant"],
    )
    raiseFileLimit(connectionLimits)
    store = options["store"]
    registry = RegistryService(
        reactor,
        dataDir=options["data-dir"],
        store=store,
        endpoints=options["listen"],
        limits=ResourceLimits(options["max-services"], options["max-configuration-values"], options["max-locks"]),
        fenceFrom=options["fence-from"],
        locksHeldBack=options["no-locks-for"],
        connectionLimits=connectionLimits,
        rateLimit=rateLimit,
        rateWindow=rateWindow,
        tokenLifetime=options["token-lifetime"],
        eventRetention=options["event-retention"],
        metrics=options["metrics"],
        accessLog=options["access-log"],
        auditLog=options["audit-log"],
        consoleNames=options["console-host"] or () if options["console"] == "on" else None,
    )
    return RegistryProcess(reactor, registry, store if isinstance(store, EtcdFactory) else None, options.observer)
