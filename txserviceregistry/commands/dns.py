"""``twistd -n --pidfile= service-registry-dns``: answers DNS queries for services."""

from __future__ import annotations

import gc
import re
from functools import partial
from typing import Any

import attrs
from twisted.application.service import IService, MultiService
from twisted.internet.defer import gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort

from ..client import Client
from ..discovery import Directory
from ..discovery.directory import THRESHOLD
from ..errors import InvalidSettings
from ..settings import readSettings
from ..util.deferred import returnsDeferred
from ..util.fields import boundedNumber, netloc, parseDuration
from ..util.files import absolutePath
from .twistd import Option, TwistdOptions, prepare, say

_MISSING = "dnspython is missing: pip install 'twisted-service-registry[dns]'"
_LISTENER = re.compile(r"(udp|tcp):([0-9]{1,5})(?::interface=((?:\\:|[0-9A-Za-z.])+))?")
_EXAMPLES = r"udp:8600, tcp:8600:interface=0.0.0.0 or udp:53:interface=\:\:1"
# Bytes read in one turn of the reactor, so that a flood leaves time for everything else.
_BYTES_IN_A_TURN = 16 * 1024


@attrs.frozen
class Listener:
    kind: str  # udp or tcp
    port: int
    interface: str = "127.0.0.1"

    def __str__(self) -> str:
        return f"{netloc(self.interface, self.port)} ({self.kind.upper()})"


def _listener(text: str) -> Listener:
    found = _LISTENER.fullmatch(text)
    if found is None or int(found[2]) > 65535:
        raise ValueError(f"{text!r} is not a listener; examples are {_EXAMPLES}")
    return Listener(found[1], int(found[2]), (found[3] or "127.0.0.1").replace("\\:", ":"))


def _domain(text: str) -> Any:
    try:
        import dns.exception
        import dns.name
    except ImportError:
        raise ValueError(_MISSING) from None
    try:
        return dns.name.from_text(text)
    except dns.exception.DNSException as error:
        raise ValueError(f"{text!r} is not a domain: {error}") from None


class Options(TwistdOptions):
    program = "service-registry-dns"
    synopsis = "[--listen udp:PORT] [--listen tcp:PORT] [--domain NAME] [--config FILE] [options]"
    longdesc = (
        "Answers DNS queries with the services of a registry: addresses for TAG.service.DOMAIN, SRV records for "
        "_TAG._tcp.service.DOMAIN, one service for ID.id.DOMAIN. While the registry is unreachable it answers with the "
        "services that it knows. The registry is the one of the environment (RAXSR_API_URL, …) or ~/.raxrc, else the "
        "one that uses the data directory. "
        "Example: twistd -n --pidfile= service-registry-dns --listen udp:8600 --listen tcp:8600"
    )
    _LISTEN = "udp:PORT or tcp:PORT, perhaps with :interface=ADDRESS, repeatable (default: udp:8600, tcp:8600)."
    _TTL = "How long resolvers may cache an answer, also a negative one: a duration."
    _PANIC = "Share of a tag's services, 0 to 1: if more expire at once, they stay in use; 0: never."
    table = (
        Option("listen", "l", None, _LISTEN, _listener, True),
        Option("domain", None, "registry.", "The domain to answer for.", _domain),
        Option("ttl", None, "5s", _TTL, partial(parseDuration, least="0s", most="1d")),
        Option("panic-threshold", None, str(THRESHOLD), _PANIC, partial(boundedNumber, least=0.0, most=1.0)),
        Option("cache", None, None, "File that keeps the services, for a start without the registry.", absolutePath),
    )

    def postOptions(self) -> None:
        TwistdOptions.postOptions(self)
        self["listen"] = self["listen"] or [Listener("udp", 8600), Listener("tcp", 8600)]


def settle() -> None:
    """Exclude all present objects from Python's garbage collection: examining 10,000 services takes 50 ms each time."""
    gc.collect()
    gc.freeze()


@attrs.define(eq=False, repr=False, slots=False)
class DnsProcess(MultiService):
    name = "service-registry-dns"

    _reactor: Any
    _client: Client
    _view: Any  # not started
    _listeners: list[Listener]
    _ports: list[IListeningPort] = attrs.field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        MultiService.__init__(self)
        self._view.setServiceParent(self)

    def privilegedStartService(self) -> None:
        for listener in self._listeners:
            try:
                port = self._listen(listener)
            except CannotListenError as error:
                reason = f"can't listen on {listener}: {error.socketError}"
                raise SystemExit(f"twistd service-registry-dns: {reason}") from None
            self._ports.append(port)
            say(f"Answering DNS queries on {attrs.evolve(listener, port=port.getHost().port)}")

    def _listen(self, listener: Listener) -> Any:
        from ..dns.server import TcpServer, UdpServer

        if listener.kind == "tcp":
            factory = TcpServer(self._view, self._reactor)
            return self._reactor.listenTCP(listener.port, factory, interface=listener.interface)
        port = self._reactor.listenUDP(listener.port, UdpServer(self._view, self._reactor), listener.interface)
        port.maxThroughput = _BYTES_IN_A_TURN
        return port

    @returnsDeferred
    async def stopService(self) -> None:
        await gatherResults([maybeDeferred(port.stopListening) for port in self._ports])
        await MultiService.stopService(self)
        await self._client.close()


def makeService(options: Options) -> IService:
    from twisted.internet import reactor

    from ..dns.server import View
    from ..dns.zone import Zone

    try:
        settings = readSettings()
    except InvalidSettings as error:
        raise SystemExit(f"twistd service-registry-dns: {error}") from None
    prepare(reactor)
    client = Client(reactor=reactor, settings=settings)
    directory, zone = Directory(client, path=options["cache"]), Zone(options["domain"], int(options["ttl"]))
    view = View(directory, zone, client.clock, options["panic-threshold"], settle)
    return DnsProcess(reactor, client, view, options["listen"])
