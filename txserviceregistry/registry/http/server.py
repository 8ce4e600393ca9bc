"""
The site: serves the API to real connections, and paces how they are accepted.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IAddress, IListeningPort, IReactorTime
from twisted.web import server

from .admission import Admission
from .channel import ApiChannel, ApiRequest
from .connections import ConnectionLimits, Connections
from .resource import ApiResource

#: How many connections a listener accepts in one turn of the reactor.
ACCEPTS = 10


class ApiSite(server.Site):
    """Serves the API to real connections: one resource to every path."""

    protocol = ApiChannel  # type: ignore[assignment]  # Twisted names a private wrapper that switches to HTTP/2
    requestFactory = ApiRequest
    displayTracebacks = False
    noisy = False

    def __init__(
        self,
        resource: ApiResource,
        reactor: IReactorTime,
        limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 (it is immutable)
    ) -> None:
        server.Site.__init__(self, resource, reactor=reactor, timeout=None, parsePOSTFormSubmission=False)
        self.admission = Admission(reactor)
        self.connections = Connections(limits, reactor, self.admission.stop)
        self._ports: list[Any] = []
        self._isPaced = False

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Called when a client connects."""
        if self._ports and not self._isPaced:
            self._isPaced = True
            self.reactor.callLater(0, self._slowDown)
        channel: Any = server.Site.buildProtocol(self, addr)
        channel.resource, channel.admission, channel.connections = self.resource, self.admission, self.connections
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
