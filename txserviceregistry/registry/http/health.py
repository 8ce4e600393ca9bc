"""
Health: whether the registry can do its work now.

It can when its store can be written and read. The store's probe finds that out, once for all requests at the same time,
and the result counts for a second: so the answer is true, and asking can't wear out a disk.
"""

from __future__ import annotations

import attrs
from twisted.internet.defer import Deferred, TimeoutError, succeed
from twisted.internet.interfaces import IReactorTime

from ..._version import __version__
from ...util.deferred import returnsDeferred
from ...util.logs import Logger
from ...util.singleflight import SingleFlight
from ..stores.interfaces import IStore, StoreUnavailable

#: The states of a store: it works; it says that it can't be written or read; it does not answer.
OK = "ok"
UNAVAILABLE = "unavailable"
SILENT = "not answering"

#: What was found out is believed for so many seconds.
BELIEF = 1.0
#: A store that has not answered after so many seconds is not of much use to those who wait for it.
PATIENCE = 2.0


@attrs.frozen
class Report:
    """
    How a registry is.

    :ivar store: the store's name.
    :ivar state: one of :data:`OK`, :data:`UNAVAILABLE` and :data:`SILENT`.
    :ivar uptime: for how long it has been running, in seconds.
    :ivar version: the release of txserviceregistry.
    """

    store: str
    state: str
    uptime: float
    version: str = __version__

    @property
    def isWell(self) -> bool:
        """Whether it can do its work."""
        return self.state == OK


class Health:
    """
    Finds out how a registry is.

    :param store: its store, open.
    :param clock: the reactor; its seconds should be monotonic (:mod:`txserviceregistry.clock`). The uptime counts from
        now.
    """

    _log = Logger()

    def __init__(self, store: IStore, clock: IReactorTime) -> None:
        self._store = store
        self._clock = clock
        self._started = clock.seconds()
        self._probing: SingleFlight[str, str] = SingleFlight()
        self._found: tuple[str, float] | None = None

    def report(self) -> Deferred[Report]:
        """
        :return: fires with how the registry is now, or was less than a second ago; within two seconds.
        """
        return self._state().addCallback(
            lambda state: Report(self._store.name, state, self._clock.seconds() - self._started)
        )

    def _state(self) -> Deferred[str]:
        if self._found is not None and 0 <= self._clock.seconds() - self._found[1] < BELIEF:
            return succeed(self._found[0])
        # A probe that hangs is the only one: who asks meanwhile waits for the same one.
        answer = self._probing.do("", self._probe)
        if not answer.called:
            answer.addTimeout(PATIENCE, self._clock)
        return answer.addErrback(lambda reason: reason.trap(TimeoutError) and self._find(SILENT))

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
