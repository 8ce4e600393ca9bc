"""
Health: whether the store can be read and written now.

The store's probe finds that out, once for all requests at the same time, and its result is used for a second, so the
page can't wear out a disk.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, TimeoutError, succeed
from twisted.internet.interfaces import IReactorTime

from ..._version import __version__
from ...util.deferred import returnsDeferred
from ...util.logs import Logger
from ...util.singleflight import SingleFlight
from ..stores.interfaces import IStore, StoreUnavailable

#: The states of a store: it works; it can't be written or read; it does not answer.
OK = "ok"
UNAVAILABLE = "unavailable"
SILENT = "not answering"

#: How long the result of a probe is used, and how long the page waits for one, in seconds.
BELIEF = 1.0
PATIENCE = 2.0


class Health:
    """The health of a registry over this store, which is open. The uptime counts from now."""

    _log = Logger()

    def __init__(self, store: IStore, clock: IReactorTime) -> None:
        self._store = store
        self._clock = clock
        self._started = clock.seconds()
        self._probing: SingleFlight[str, str] = SingleFlight()
        self._found: tuple[str, float] | None = None

    @returnsDeferred
    async def report(self) -> dict[str, Any]:
        """Fires with the health of the registry now, or less than a second ago, as JSON; within two seconds."""
        return {
            "store": {"name": self._store.name, "state": await self._state()},
            "uptime": round(self._clock.seconds() - self._started, 3),
            "version": __version__,
        }

    def _state(self) -> Deferred[str]:
        if self._found is not None and 0 <= self._clock.seconds() - self._found[1] < BELIEF:
            return succeed(self._found[0])
        # All requests wait for the same probe, also for one that hangs.
        state = self._probing.do("", self._probe)
        if not state.called:
            state.addTimeout(PATIENCE, self._clock)
        return state.addErrback(lambda reason: reason.trap(TimeoutError) and self._find(SILENT))

    @returnsDeferred
    async def _probe(self) -> str:
        try:
            await self._store.probe()
        except StoreUnavailable:
            return self._find(UNAVAILABLE)
        except Exception:
            self._log.failure("Internal error while probing the store")
            return self._find(UNAVAILABLE)
        return self._find(OK)

    def _find(self, state: str) -> str:
        self._found = state, self._clock.seconds()
        return state
