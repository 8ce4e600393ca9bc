"""A network to etcd that holds, delays or loses what a test says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.python.components import proxyForInterface
from twisted.web.client import BrowserLikePolicyForHTTPS, readBody
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from txserviceregistry.http.messages import BytesProducer
from txserviceregistry.http.pool import ConnectionPool, PooledAgent


def _nothing(body: bytes) -> bool:
    return False


@implementer(IAgent)
class TroubledAgent:
    """
    A network to etcd that does to some requests what a test says.

    :ivar holds: says of a request's body whether it does not arrive before :meth:`release`.
    :ivar delays: says of a request's body whether its response waits for :meth:`release`.
    :ivar loses: says of a request's body whether its response gets lost.
    :ivar isDeaf: whether nothing arrives any more of a watch's response.
    :ivar isDelayed: whether that waits for :meth:`catchUp`.
    :ivar watching: what receives the responses of watches.
    :ivar lost: how many responses got lost.
    :ivar held: how many requests do not arrive now.
    """

    def __init__(self) -> None:
        self.holds: Callable[[bytes], bool] = _nothing
        self.delays: Callable[[bytes], bool] = _nothing
        self.loses: Callable[[bytes], bool] = _nothing
        self.isDeaf = False
        self.isDelayed = False
        self.watching: set[Any] = set()
        self.lost = 0
        self._agent = PooledAgent(reactor, BrowserLikePolicyForHTTPS(), 60, ConnectionPool(reactor, 0, streams=True))
        self._held: list[Callable[[], None]] = []
        self._delayed: list[Callable[[], None]] = []

    @property
    def held(self) -> int:
        """How many requests and responses do not arrive now."""
        return len(self._held)

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """See IAgent."""
        body = bodyProducer.body if isinstance(bodyProducer, BytesProducer) else b""
        if uri.endswith(b"/watch"):
            return self._agent.request(method, uri, headers, bodyProducer).addCallback(Muffled, self)
        if self.holds(body):
            asked: Deferred[Any] = Deferred()

            def arrive() -> None:
                # Also after the sender has stopped to wait for it.
                answered = self._agent.request(method, uri, headers, BytesProducer(body))
                if not asked.called:
                    answered.chainDeferred(asked)
                else:
                    answered.addCallback(readBody).addErrback(lambda failure: None)

            self._held.append(arrive)
            return asked
        answered = self._agent.request(method, uri, headers, bodyProducer)
        if self.delays(body):
            return answered.addCallback(self._delay)
        return answered.addCallback(self._lose) if self.loses(body) else answered

    def _delay(self, response: IResponse) -> Deferred[IResponse]:
        answered: Deferred[IResponse] = Deferred()

        def arrive() -> None:
            if not answered.called:
                answered.callback(response)

        self._held.append(arrive)
        return answered

    async def _lostResponse(self, response: IResponse) -> IResponse:
        await readBody(response)
        self.lost += 1
        raise ConnectionLost()

    def _lose(self, response: IResponse) -> Deferred[IResponse]:
        return Deferred.fromCoroutine(self._lostResponse(response))

    def release(self) -> None:
        """Held bytes arrive, and nothing is held any more."""
        self.holds = self.delays = _nothing
        held, self._held = self._held, []
        for arrive in held:
            arrive()

    def watched(self, receive: Callable[[bytes], None], data: bytes) -> None:
        """A part of a watch's response has come."""
        if self.isDelayed:
            self._delayed.append(lambda: receive(data))
        elif not self.isDeaf:
            receive(data)

    def catchUp(self) -> None:
        """Delayed bytes arrive, and nothing is delayed any more."""
        self.isDelayed = False
        delayed, self._delayed = self._delayed, []
        for arrive in delayed:
            arrive()


class Muffled(proxyForInterface(IResponse)):  # type: ignore[misc]  # made there and then
    """A watch's response, of which an agent decides when it arrives."""

    def __init__(self, response: IResponse, agent: TroubledAgent) -> None:
        super().__init__(response)
        self.agent = agent

    def deliverBody(self, protocol: Any) -> None:
        """See IResponse."""
        receive = protocol.dataReceived
        protocol.dataReceived = lambda data: self.agent.watched(receive, data)
        end = protocol.connectionLost

        def ended(reason: Any) -> None:
            self.agent.watching.discard(protocol)
            end(reason)

        protocol.connectionLost = ended
        self.agent.watching.add(protocol)
        self.original.deliverBody(protocol)
