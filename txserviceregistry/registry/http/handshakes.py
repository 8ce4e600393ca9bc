"""
TLS handshakes, which wait in a queue of their own (:mod:`~txserviceregistry.registry.http.admission`): the server signs
each one, which with a key of 4,096 bits takes as long as some thirty requests.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs
from twisted.internet.interfaces import IProtocolFactory, ITransport
from twisted.internet.protocol import connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from ..fairness import Origin
from .admission import AdmissionQueue
from .connections import peerOf
from .server import ApiSite

# The share of an address is divided evenly between the first steps of handshakes and the later ones, which usually cost
# little: a client that the server has signed for does not wait for all that have just connected.
_FIRST, _LATER = range(2)


class _Handshaking(TLSMemoryBIOProtocol):
    """A TLS connection. The steps of its handshake may wait in the queue; what follows the handshake does not."""

    transport: Any
    _origin: Origin
    # What has come and waits in the queue.
    _held: bytes | None = None
    _isDone = False

    @property
    def _queue(self) -> AdmissionQueue:
        site: ApiSite = self.factory.wrappedFactory
        return site.admission.handshakes

    def makeConnection(self, transport: ITransport) -> None:
        """Called when a client has connected."""
        site: ApiSite = self.factory.wrappedFactory
        peer = peerOf(transport.getPeer())
        self._origin = Origin(peer, _FIRST, site.admission.isKnown(peer))
        self._queue.spend(self._origin, partial(super().makeConnection, transport))

    def dataReceived(self, data: bytes) -> None:
        """Called with what the client sends."""
        if self._isDone:
            super().dataReceived(data)  # type: ignore[no-untyped-call]  # Twisted's own
        elif self._held is not None:
            self._held += data
        elif self._queue.isBusy:
            self._held = data
            self.transport.pauseProducing()
            self._queue.enter(self._origin, self._goOn)
        else:
            self._queue.spend(self._origin, partial(self._shake, data))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called when the connection is gone."""
        self._held = None
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # as above

    def _goOn(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self.transport.resumeProducing()
            self._queue.spend(self._origin, partial(self._shake, held))

    def _shake(self, data: bytes) -> None:
        super().dataReceived(data)  # type: ignore[no-untyped-call]  # as above
        # After the client's last message of the handshake nothing costs a signature.
        handle: Any = self.getHandle()  # type: ignore[no-untyped-call]  # as above
        self._isDone = handle.get_peer_finished() is not None
        self._origin = attrs.evolve(self._origin, connection=_LATER)


class _HandshakingFactory(TLSMemoryBIOFactory):
    protocol = _Handshaking
    noisy = False


def handshakingFactory(contextFactory: Any, factory: IProtocolFactory) -> IProtocolFactory:
    """The factory that a TLS listener serves. Only handshakes of an ApiSite wait in a queue."""
    make = _HandshakingFactory if isinstance(factory, ApiSite) else TLSMemoryBIOFactory
    return make(contextFactory, False, factory)
