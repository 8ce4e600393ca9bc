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

from .._version import __version__
from ..agents import QueueingAgent
from ..connecting import endpointTo, httpAgent
from ..deferred import returnsDeferred
from ..logs import Logger
from ..resolving import stageOf
from ..tls import tlsPolicy

__all__ = ["Checker", "Probe", "makeProbe"]

#: Looks once: fires with ``None`` if all is well, and fails if not.
Probe = Callable[[], Deferred[None]]

_LOCAL = "127.0.0.1"
# Seconds to connect, at most: a check gives up long before.
_CONNECT_TIMEOUT = 30.0
# Until the first pass it is looked at least this often (seconds), so that a program that starts fast is known fast.
_FIRST_INTERVAL = 0.5
# A program takes its time to start: nothing is said of a check that fails in its first seconds.
_START = 10.0


class _Failed(Exception):
    """The answer was not one of somebody who is well."""


class _StillResolving(Exception):
    """The time was over before there was an address to look at; the text is the stage."""


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
    async def probe() -> None:
        try:
            await endpoint.connect(Factory.forProtocol(_Knock))
        except CancelledError:
            raise _stillResolving(reactor, parts)

    return probe


def _stillResolving(reactor: Any, parts: SplitResult) -> Exception:
    """What a look fails with that was ended: most likely it took too long."""
    stage = stageOf(reactor, parts.hostname or "")
    return _StillResolving(stage) if stage else CancelledError()


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
    async def probe() -> None:
        # The whole body is here then, and the connection at its end.
        try:
            response = await agent.request(b"GET", url, headers)
        except CancelledError:
            raise _stillResolving(reactor, parts)
        if not 200 <= response.code < 400:
            raise _Failed(f"it was answered with {response.code}")

    return probe


class Checker:
    """
    Looks regularly, and remembers what it saw last.

    :ivar passing: whether it was well.
    """

    _log = Logger()

    def __init__(
        self, name: str, probe: Probe, *, interval: float, timeout: float, clock: Any, passed: Callable[[], None]
    ) -> None:
        """
        :param name: what is looked at, for texts.
        :param probe: looks.
        :param interval: seconds from one look to the next. Before the first pass they are shorter.
        :param timeout: seconds that one look may take.
        :param clock: the reactor.
        :param passed: called when it passes for the first time.
        """
        self.passing = False
        self._name = name
        self._probe = probe
        self._interval = interval
        self._timeout = timeout
        self._clock = clock
        self._firstPass: Callable[[], None] | None = passed
        self._told = False
        self._running = False
        self._looking: Deferred[None] = succeed(None)

    def start(self) -> None:
        """Begin to look."""
        self._running = True
        self._looking = self._lookAgainAndAgain().addErrback(lambda failure: failure.trap(CancelledError))

    def stop(self) -> None:
        """Look no more."""
        self._running = False
        self._looking.cancel()

    @returnsDeferred
    async def _lookAgainAndAgain(self) -> None:
        began = self._clock.seconds()
        while self._running:
            looked = self._clock.seconds()
            trouble = await self._look()
            if not self._running:
                # A look that is cancelled fails in ways of its own.
                return
            self.passing = trouble is None
            if trouble is None:
                self._passed()
            elif not self._told and (self._firstPass is None or looked - began >= _START):
                self._told = True
                self._log.warn("The check {name} fails: {trouble}", name=self._name, trouble=trouble)
            interval = self._interval if self._firstPass is None else min(self._interval, _FIRST_INTERVAL)
            await deferLater(self._clock, max(0.0, looked + interval - self._clock.seconds()), lambda: None)

    def _passed(self) -> None:
        if self._told:
            self._told = False
            self._log.info("The check {name} passes", name=self._name)
        passed, self._firstPass = self._firstPass, None
        if passed is not None:
            passed()

    async def _look(self) -> str | None:
        """What is wrong, if anything is."""
        late: list[float] = []

        def tooLate(result: Any, timeout: float) -> Any:
            late.append(timeout)
            return result

        try:
            await self._probe().addTimeout(self._timeout, self._clock, tooLate)
        except Exception as error:
            if late:
                stage = f", {error}" if isinstance(error, _StillResolving) else ""
                return f"no answer after {late[0]:g} s{stage}"
            return str(error) or type(error).__name__
        return None
