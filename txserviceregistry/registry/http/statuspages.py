"""The pages beside the API, for operators and monitoring, which need no token: health, metrics, the description."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from ..._version import __version__, installCommand
from ...util.deferred import SingleFlight, returnsDeferred
from ...util.logs import Logger
from ..faults import NO_STORE, Fault, forbidden
from ..stores.interfaces import IStore, StoreUnavailable
from . import openapi
from .connections import ipOf
from .messages import Response

#: By path, the handlers of pages.
Pages: TypeAlias = Mapping[str, Callable[[Request], Awaitable[Response]]]

#: The clients that may read the metrics: all, those on this machine, none.
ANYWHERE = "anywhere"
LOOPBACK = "loopback"
OFF = "off"

#: The states of a store: it works; it can't be written or read; it does not answer.
OK = "ok"
UNAVAILABLE = "unavailable"
SILENT = "not answering"

#: How long the result of a probe is used, and how long the page waits for one, in seconds.
BELIEF = 1.0
PATIENCE = 2.0


class Health:
    """Whether the store can be read and written. A probe counts for a second, to spare the disk."""

    _log = Logger()

    def __init__(self, store: IStore, clock: IReactorTime) -> None:
        self._store = store
        self._clock = clock
        self._started = clock.seconds()
        self._probing: SingleFlight[str, None] = SingleFlight()
        # The state of the store, and until when it is believed.
        self._found = "", clock.seconds()

    @returnsDeferred
    async def report(self) -> dict[str, Any]:
        """Fires with the health of the registry now, or less than a second ago, as JSON; within two seconds."""
        if self._clock.seconds() >= self._found[1]:
            try:
                # All requests wait for the same probe, also for one that hangs.
                await self._probing.do("", self._probe).addTimeout(PATIENCE, self._clock)
            except TimeoutError:
                self._find(SILENT)
        return {
            "store": {"name": self._store.name, "state": self._found[0]},
            "uptime": round(self._clock.seconds() - self._started, 3),
            "version": __version__,
        }

    @returnsDeferred
    async def _probe(self) -> None:
        try:
            await self._store.probe()
        except Exception as error:
            self._find(UNAVAILABLE)
            if not isinstance(error, StoreUnavailable):
                self._log.failure("Internal error while probing the store")
        else:
            self._find(OK)

    def _find(self, state: str) -> None:
        self._found = state, self._clock.seconds() + BELIEF


def statusPages(health: Health, makeMetrics: Callable[[], Callable[[], Response]], audience: str = LOOPBACK) -> Pages:
    """The pages of a registry. The *audience* may have the metrics, which are made when they are first asked for."""
    metrics = lru_cache(maxsize=1)(makeMetrics)

    async def getHealth(request: Request) -> Response:
        report = await health.report()
        return Response(200 if report["store"]["state"] == OK else 503, report, NO_STORE)

    async def getLife(request: Request) -> Response:
        return Response(200, {"state": "alive"}, NO_STORE)

    async def getDescription(request: Request) -> Response:
        return Response(200, text=openapi.document())

    async def getMetrics(request: Request) -> Response:
        address = request.getClientAddress()
        host = ipOf(address)
        isLocal = isinstance(address, UNIXAddress) if host is None else host.is_loopback
        if audience != ANYWHERE and not isLocal:
            raise forbidden("Metrics are available only on the registry's machine (see its option --metrics)")
        try:
            page = metrics()
        except ImportError:
            details = f"Run {installCommand('metrics')} where the registry runs"
            raise Fault("notImplementedError", "prometheus_client is not installed", details)
        return page()

    pages = {"/health": getHealth, "/health/ready": getHealth, "/health/live": getLife, openapi.PATH: getDescription}
    return pages if audience == OFF else {**pages, "/metrics": getMetrics}
