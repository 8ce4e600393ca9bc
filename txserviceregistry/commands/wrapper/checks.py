"""
Whether a process is well, seen from outside: a port that takes connections, or a URL that answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.web.client import HTTPConnectionPool
from twisted.web.http_headers import Headers

from ..._version import __version__
from ...heartbeats.healthcheck import HealthCheck, HealthCheckFailed
from ...http.agent import describeFailure, endpointTo, httpAgent
from ...http.queueing import QueueingAgent
from ...http.resolving import stageOf
from ...http.tls import tlsPolicy
from ...util.deferred import returnsDeferred

#: Looks once: fires with ``True`` if all is well, and fails with the reason if not.
Probe = Callable[[], Deferred[bool]]

_LOCAL = "127.0.0.1"
# Seconds to connect, at most: a check gives up long before.
_CONNECT_TIMEOUT = 30.0
# Seconds to the second look, so that the registration of a program that starts fast follows soon. Until the first pass
# the seconds from one look to the next grow to this part of those since the start.
_FIRST_INTERVAL = 0.5
_FIRST_SHARE = 0.1
# A program takes its time to start: a check that fails in its first seconds is not logged.
_START = 10.0


class _Knock(Protocol):
    """A connection that is all that is asked for."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()


def makeProbe(reactor: Any, text: str) -> Probe:
    """
    :param reactor: connects.
    :param text: ``tcp:PORT`` or ``tcp:HOST:PORT``: something there takes connections; ``http://HOST:PORT/PATH``: it
        answers with a 2xx or a 3xx, body and all. Of ``https://`` the certificate is not verified.
    :raises ValueError: if it is none of these.
    """
    scheme = text.partition(":")[0].lower()
    try:
        if scheme == "tcp":
            return _tcpProbe(reactor, text)
        if scheme in ("http", "https"):
            return _httpProbe(reactor, text)
    except ValueError:
        pass
    raise ValueError(f"{text!r} is none of tcp:PORT, tcp:HOST:PORT, http://HOST:PORT/PATH and https://HOST:PORT/PATH")


def _tcpProbe(reactor: Any, text: str) -> Probe:
    rest = text.partition(":")[2]
    parts = urlsplit("//" + (rest if ":" in rest else f"{_LOCAL}:{rest}"))
    if not parts.hostname or not parts.port or parts.path or parts.username is not None:
        raise ValueError(text)
    endpoint = endpointTo(reactor, parts.hostname, parts.port, _CONNECT_TIMEOUT)

    @returnsDeferred
    async def probe() -> bool:
        try:
            await endpoint.connect(Factory.forProtocol(_Knock))
        except Exception as error:
            raise _reasonFor(error, reactor, parts)
        return True

    return probe


def _reasonFor(error: Exception, reactor: Any, parts: SplitResult) -> Exception:
    """What a look fails with. One that was ended took too long, most likely; the reason is what it was waiting for."""
    if not isinstance(error, CancelledError):
        return HealthCheckFailed(describeFailure(error))
    stage = stageOf(reactor, parts.hostname or "")
    return HealthCheckFailed(stage) if stage else error


def _httpProbe(reactor: Any, text: str) -> Probe:
    parts = urlsplit(text)
    # Asking for the port finds one that is none.
    if not parts.hostname or parts.username is not None or parts.port == 0:
        raise ValueError(text)
    url = parts._replace(path=parts.path or "/", fragment="").geturl().encode("ascii")
    pool = HTTPConnectionPool(reactor, persistent=False)
    agent = QueueingAgent(httpAgent(reactor, tlsPolicy(verify=False), _CONNECT_TIMEOUT, pool))
    headers = Headers({"User-Agent": [f"service-registry-wrapper/{__version__}"]})

    @returnsDeferred
    async def probe() -> bool:
        # The whole body is here then, and the connection at its end.
        try:
            response = await agent.request(b"GET", url, headers)
        except Exception as error:
            raise _reasonFor(error, reactor, parts)
        if not 200 <= response.code < 400:
            raise HealthCheckFailed(f"HTTP status {response.code}")
        return True

    return probe


class Checker(HealthCheck):
    """
    Looks regularly, and remembers what it saw last.

    :ivar passing: whether it was well.
    """

    def __init__(
        self,
        serviceId: str,
        name: str,
        probe: Probe,
        *,
        interval: float,
        timeout: float,
        clock: Any,
        passed: Callable[[], None],
    ) -> None:
        """
        :param serviceId: the service, for the log.
        :param name: what is looked at, for the log.
        :param probe: looks.
        :param interval: seconds from one look to the next. Before the first pass they may be shorter.
        :param timeout: seconds that one look may take.
        :param clock: the reactor.
        :param passed: called when it passes for the first time.
        """
        super().__init__(probe, serviceId, clock, name=f"health check {name}")
        self.passing = False
        self._interval = interval
        self._timeout = timeout
        self._firstPass: Callable[[], None] | None = passed
        self._isLooking = False
        self._looking: Deferred[None] = succeed(None)

    def start(self) -> None:
        """Begin to look."""
        self._isLooking = True
        self._looking = self._lookAgainAndAgain().addErrback(lambda failure: failure.trap(CancelledError))

    def stop(self) -> None:
        """Look no more."""
        self._isLooking = False
        self._looking.cancel()

    @returnsDeferred
    async def _lookAgainAndAgain(self) -> None:
        began = self._clock.seconds()
        while self._isLooking:
            looked = self._clock.seconds()
            interval, suspended, isStarting = self._interval, "heartbeats", False
            if self._firstPass is not None:
                interval = min(interval, max(_FIRST_INTERVAL, _FIRST_SHARE * (looked - began)))
                suspended, isStarting = "registration", looked - began < _START
            self.passing = await self.passes(self._timeout, suspended, isStarting=isStarting)
            if self.passing and self._firstPass is not None:
                passed, self._firstPass = self._firstPass, None
                passed()
                interval = self._interval
            await deferLater(self._clock, max(0.0, looked + interval - self._clock.seconds()), lambda: None)
