"""View: the zone as the directory has it."""

from __future__ import annotations

import time
from collections.abc import Callable

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..discovery import Directory
from ..discovery.suspects import THRESHOLD, Suspects
from ..types import Service as ServiceRecord
from .zone import Zone

#: Seconds of work on changes, after which queries are answered first.
SLICE = 0.003
# Changes between two looks at the time.
_STEP = 8


class View(MultiService):
    """
    Brings a zone up to date after changes, in slices between queries. While the registry is unreachable, the zone keeps
    what it has.

    :param directory: becomes a child of this service.
    :param panicThreshold: see :class:`~txserviceregistry.discovery.suspects.Suspects`.
    :param whenReady: called when there has been a list of services.
    :param timer: seconds, for the length of a slice.
    :ivar isReady: whether there has been a list of services.
    """

    def __init__(
        self,
        directory: Directory,
        zone: Zone,
        clock: IReactorTime,
        panicThreshold: float = THRESHOLD,
        whenReady: Callable[[], object] = lambda: None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        MultiService.__init__(self)
        self.zone = zone
        self.isReady = False
        self._directory = directory
        self._clock = clock
        self._whenReady = whenReady
        self._timer = timer
        self._isListed = False
        # The last change of each service that the zone does not have yet.
        self._changes: dict[str, ServiceRecord | None] = {}
        self._call: IDelayedCall | None = None
        self._suspects = Suspects(directory, clock, panicThreshold)
        self._suspects.onChange(self._changed)
        Service.setServiceParent(directory, self)

    def startService(self) -> None:
        """Begin."""
        MultiService.startService(self)
        self._directory.whenReady().addCallback(self._listed)

    def stopService(self) -> Deferred[None]:
        """Fires when nothing is left on the reactor."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        stopped: Deferred[None] = MultiService.stopService(self)
        return stopped

    def _listed(self, _: None) -> None:
        self._isListed = True
        self._schedule()

    def _changed(self, kind: str, service: ServiceRecord) -> None:
        self._changes[service["id"]] = None if kind in ("remove", "timeout") else service
        self._schedule()

    def _schedule(self) -> None:
        if self._call is None and self.running:
            self._call = self._clock.callLater(0, self._apply)

    def _apply(self) -> None:
        self._call = None
        end = self._timer() + SLICE
        while self._changes and self._timer() < end:
            for _ in range(min(_STEP, len(self._changes))):
                self.zone.put(*self._changes.popitem())
        if self._changes:
            self._schedule()
        elif self._isListed and not self.isReady:
            self.isReady = True
            self._whenReady()
