"""Health checks of a process from outside: a port that accepts connections, a URL that responds, or a command."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import SplitResult, urlsplit

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.web.http_headers import Headers

from ..._version import __version__
from ...heartbeats.attempts import HealthCheck, HealthCheckFailed
from ...http.agent import describeFailure, endpointTo, stageOf
from ...http.pool import ConnectionPool, InsecureConnection, PooledAgent, QueueingAgent
from ...http.tls import tlsPolicy
from ...util.deferred import returnsDeferred
from .process import runShell, startEnvironment

#: Checks once: fires with ``True`` if the process is healthy, and fails with the reason if not.
Probe = Callable[[], Deferred[bool]]

# A URL that can be sent.
_PLAIN = re.compile(r"[!-~]+")
# Seconds to connect, at most. The timeout of a check is shorter.
_CONNECT_TIMEOUT = 30.0
# Seconds between two checks before the first pass, so that a program that starts fast is registered soon.
_FIRST_INTERVAL = 0.5
# Checks that fail in the first seconds of a program are not logged.
_START = 10.0

# Variables of the service manager for the wrapped command.
_NOT_INHERITED = (b"NOTIFY_SOCKET", b"LISTEN_PID", b"LISTEN_FDS", b"LISTEN_FDNAMES", b"WATCHDOG_PID", b"WATCHDOG_USEC")


def makeProbe(reactor: Any, text: str, serviceId: str = "") -> Probe:
    """The check of ``--check``; ``ValueError`` if the text is not one. Certificates are not verified."""
    scheme, _, rest = text.partition(":")
    scheme = scheme.lower()
    if scheme == "exec" and rest.strip():
        return _commandProbe(rest, serviceId)
    address = rest if ":" in rest else f"127.0.0.1:{rest}"
    try:
        parts = urlsplit(f"tcp://{address}" if scheme == "tcp" else text)
        if parts.hostname and parts.username is None and parts.port != 0:
            if scheme in ("http", "https") and _PLAIN.fullmatch(text):
                url = parts._replace(path=parts.path or "/", fragment="").geturl().encode("ascii")
                pool = ConnectionPool(reactor, 0, streams=True)
                agent = QueueingAgent(PooledAgent(reactor, tlsPolicy(verify=False), _CONNECT_TIMEOUT, pool))
                return _networkProbe(reactor, parts, partial(_get, agent, url))
            if scheme == "tcp" and parts.port and not parts.path:
                endpoint = endpointTo(reactor, parts.hostname, parts.port, _CONNECT_TIMEOUT)
                return _networkProbe(reactor, parts, partial(_connect, endpoint))
    except ValueError:
        pass  # an invalid port
    forms = "tcp:PORT, tcp:HOST:PORT, exec:COMMAND, http://HOST:PORT/PATH or https://HOST:PORT/PATH"
    raise ValueError(f"{text!r} is not {forms}")


def _networkProbe(reactor: Any, parts: SplitResult, attempt: Callable[[], Awaitable[None]]) -> Probe:
    @returnsDeferred
    async def probe() -> bool:
        try:
            await attempt()
        except HealthCheckFailed:
            raise
        except CancelledError:
            # It took too long: the reason is the stage that it was in.
            stage = stageOf(reactor, parts.geturl())
            if not stage:
                raise
            raise HealthCheckFailed(stage)
        except InsecureConnection as error:
            raise HealthCheckFailed(str(error))
        except Exception as error:
            raise HealthCheckFailed(describeFailure(error))
        return True

    return probe


async def _connect(endpoint: Any) -> None:
    connection = await endpoint.connect(Factory.forProtocol(Protocol))
    connection.transport.loseConnection()


async def _get(agent: QueueingAgent, url: bytes) -> None:
    # This fires when the body is complete and the connection closed.
    response = await agent.request(b"GET", url, Headers({"User-Agent": [f"service-registry-wrapper/{__version__}"]}))
    if not 200 <= response.code < 400:
        raise HealthCheckFailed(f"HTTP status {response.code}")


def _commandProbe(command: str, serviceId: str) -> Probe:
    environment = {**startEnvironment(), b"SERVICE_REGISTRY_ID": os.fsencode(serviceId)}
    for name in _NOT_INHERITED:
        environment.pop(name, None)

    @returnsDeferred
    async def probe() -> bool:
        problem = await runShell(command, environment)
        if problem is not None:
            raise HealthCheckFailed(problem)
        return True

    return probe


class Checker(HealthCheck):
    """
    Checks regularly, and calls *passed* when the check passes for the first time. It is *passing* when the last
    ``--rise`` checks succeeded, until the last ``--fall`` checks failed.
    """

    def __init__(self, options: Mapping[str, Any], probe: Probe, clock: Any, passed: Callable[[], object]) -> None:
        super().__init__(probe, options["id"], clock, name=f"health check {options['check'].partition('?')[0]}")
        self.passing = False
        self._options = options
        self._firstPass: Callable[[], object] | None = passed
        # How many checks in a row had another result than the present state.
        self._others = 0
        self._isRunning = False
        self._checking: Deferred[None] = succeed(None)

    def __call__(self) -> bool:
        return self.passing

    def start(self) -> None:
        self._isRunning = True
        self._checking = self._checkRegularly().addErrback(lambda failure: failure.trap(CancelledError))

    def stop(self) -> None:
        # It may be called by passed(), where cancelling does not end the loop.
        self._isRunning = False
        self._checking.cancel()

    def _call(self, timeout: float) -> Deferred[str | None]:
        return super()._call(timeout).addCallback(self._count)

    def _count(self, reason: str | None) -> str | None:
        """The reason why it fails, after a check with this one."""
        self._others = 0 if (reason is None) == self.passing else self._others + 1
        if 0 < self._others < self._options["fall" if self.passing else "rise"]:
            return None if self.passing else f"{self._others} of {self._options['rise']} checks succeeded"
        self._others = 0
        return reason

    @returnsDeferred
    async def _checkRegularly(self) -> None:
        began = self._clock.seconds()
        while self._isRunning:
            checked, interval = self._clock.seconds(), self._options["check-interval"]
            isStarting = self._firstPass is not None and checked - began < _START
            suspended = "heartbeats" if self._firstPass is None else "registration"
            self.passing = await self.passes(self._options["check-timeout"], suspended, isStarting=isStarting)
            if self.passing and self._firstPass is not None:
                passed, self._firstPass = self._firstPass, None
                passed()
            if self._firstPass is not None:
                interval = min(interval, _FIRST_INTERVAL)
            await deferLater(self._clock, max(0.0, checked + interval - self._clock.seconds()))
