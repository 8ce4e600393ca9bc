"""
The site: what serves the API to real connections, paces how they are accepted, and closes them in good order.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IListeningPort, IReactorTime
from twisted.web import server

from ...util.waiters import Waiters
from .admission import AdmissionQueue, KnownAddresses
from .channel import Api, ApiChannel
from .connections import ConnectionLimits, Connections
from .requests import ApiRequest

#: How many connections a listener accepts in one turn of the reactor.
ACCEPTS = 10


class ApiSite(server.Site):
    """
    Serves the API to real connections: one resource to every path. It can be drained.

    :param resource: the API.
    :param reactor: for timeouts.
    :param limits: what clients may take.
    """

    resource: Api
    protocol = ApiChannel  # type: ignore[assignment]  # Twisted names a private wrapper that switches to HTTP/2
    requestFactory = ApiRequest
    displayTracebacks = False
    noisy = False

    def __init__(
        self,
        resource: Api,
        reactor: IReactorTime,
        limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 (it is immutable)
    ) -> None:
        server.Site.__init__(self, resource, reactor=reactor, timeout=None, parsePOSTFormSubmission=False)
        self.limits = limits
        self.connections = Connections(limits, reactor)
        self.queue = AdmissionQueue(reactor)
        self.handshakes = AdmissionQueue(reactor)
        self.addresses = KnownAddresses(reactor)
        self._ports: list[Any] = []
        self._isPaced = False
        self._channels: set[ApiChannel] = set()
        self._drained: Waiters[None] = Waiters()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Called when a client connects."""
        channel = server.Site.buildProtocol(self, addr)
        # Else Twisted has the factory log each response; there is an access log of our own.
        channel.factory = None
        return channel

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 is what the API's framing is about."""
        return [b"http/1.1"]

    def pace(self, port: IListeningPort) -> None:
        """Let a listener of this site accept only a few connections in a turn of the reactor."""
        if hasattr(port, "numberAccepts"):
            self._ports.append(port)
            self._slowDown()

    def _slowDown(self) -> None:
        self._isPaced = False
        for port in self._ports:
            # Twisted begins with 100, and accepts 20 more each time that there were so many.
            port.numberAccepts = ACCEPTS

    def opened(self, channel: ApiChannel) -> None:
        """A client has connected."""
        if self._ports and not self._isPaced:
            self._isPaced = True
            self.reactor.callLater(0, self._slowDown)
        self._channels.add(channel)
        self.connections.opened(channel)

    def closed(self, channel: ApiChannel) -> None:
        """A connection is gone."""
        self._channels.discard(channel)
        self.connections.closed(channel)
        if not self._channels:
            self.queue.stop()
            self.handshakes.stop()
            self._drained.fire(None)

    def drain(self, seconds: float) -> Deferred[None]:
        """
        Close every connection: idle ones now, the others with the response to their request.

        :param seconds: after so long, connections are closed whatever happens on them.
        :return: fires when no connection is left.
        """
        if not self._channels:
            return succeed(None)
        drained = self._drained.wait()
        abort = self.reactor.callLater(seconds, self._abort)
        for channel in list(self._channels):
            channel.endSoon()

        def done(result: None) -> None:
            if abort.active():
                abort.cancel()

        return drained.addCallback(done)

    def _abort(self) -> None:
        for channel in list(self._channels):
            channel.transport.abortConnection()
