"""The states of services: an operator's word that one gets no new work (``drain``), or no traffic at all (``out``)."""

from __future__ import annotations

import attrs
from twisted.internet.interfaces import IDelayedCall

from ..util.logs import Logger
from .faults import limitReached
from .feed import EventFeed
from .model import Page
from .stores.interfaces import UP, StateRecord, StoreUnavailable
from .tasks import Part, available, owned


@attrs.define(eq=False, slots=False)
class ServiceStates(Part):
    """The states of all tenants' services. Each may have a *maximum* of records."""

    #: Seconds from one look at what has ended to the next, at most: the wall clock may be set, and other registries
    #: make records too. And at least: many states may end one after the other.
    LOOK = 10.0
    PAUSE = 0.25

    _log = Logger()

    _feed: EventFeed
    _maximum: int
    _looking: IDelayedCall | None = attrs.field(init=False, default=None)
    _isStopped: bool = attrs.field(init=False, default=False)

    def start(self) -> None:
        """Begin to look for records that have ended."""
        self._look()

    def stop(self) -> None:
        """Leave nothing on the reactor."""
        self._isStopped = True
        call, self._looking = self._looking, None
        if call is not None:
            call.cancel()

    @owned
    async def set(self, tenant: str, id: str, state: str, reason: str = "", seconds: int | None = None) -> None:
        """Set the state of a service, registered or not, for so many *seconds*; ``up`` without a reason clears it."""
        isSet = state != UP or reason
        ends = int(self._wallClock() * 1000) + seconds * 1000 if seconds is not None and isSet else None
        record = StateRecord(id, state, reason, ends)
        full = limitReached("service_state", self._maximum)
        if await available(self._store.setState(tenant, record, self._maximum), full=full):
            self._feed.notify((tenant,), "service.state")
        self._lookAt(ends)

    @owned
    async def get(self, tenant: str, id: str) -> StateRecord:
        """The state of a service, whether or not it is registered."""
        record: StateRecord = await available(self._store.getState(tenant, id))
        return record

    @owned
    async def list(self, tenant: str, marker: str | None, limit: int) -> Page:
        """A page of states by id, from *marker* on."""
        records = await available(self._store.listStates(tenant, marker, limit + 1))
        return Page.of([record.toJSON() for record in records], limit)

    def _look(self) -> None:
        self._looking = None
        self._tasks.start(self._end())

    async def _end(self) -> None:
        next: int | None = None
        try:
            tenants, next = await self._store.endStates()
            self._feed.notify(tenants, "service.state")
        except StoreUnavailable:
            pass  # that is logged elsewhere
        except Exception:
            self._log.failure("Cannot end the states of services (retrying)")
        if not self._isStopped:
            self._looking = self._clock.callLater(self.LOOK, self._look)
            self._lookAt(next)

    def _lookAt(self, ends: int | None) -> None:
        """Look no later than when a record ends, in milliseconds since the epoch."""
        if ends is not None and self._looking is not None:
            wait = max(ends / 1000 - self._wallClock(), self.PAUSE)
            if self._clock.seconds() + wait < self._looking.getTime():
                self._looking.reset(wait)
