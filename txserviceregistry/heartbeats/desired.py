"""
The desired state of the services that a client registered, so that updates outlive an expiration.
"""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any
from weakref import ReferenceType, WeakValueDictionary, ref

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..errors import APIError, BadRequest, Forbidden, NotFound, ServerError, ServiceRegistryError
from ..http.jsontransport import ClientClosed
from ..util.backoff import LONGEST_DELAY, Backoff
from ..util.concurrency import PrioritySemaphore
from ..util.deferred import Waiters, returnsDeferred
from ..util.logs import Logger, Outage
from .fields import FIELDS, DesiredFields, comparable, plain
from .heartbeater import HeartBeater

# So many registrations and updates are remembered, to recognize a service whose registration had no response.
_MOST_SENT = 100
# Seconds to wait after the second try to update a service; then the delays grow.
_SHORTEST_RETRY = 0.1

_UPDATE_FAILED = "Update of service {serviceId} failed: {reason} (retrying)"
_UPDATED = "Service {serviceId} updated after {seconds:.1f} s"


@attrs.frozen
class DesiredStates:
    """
    The desired states of one client's services, and how they are sent.

    :ivar put: sends an update of a service: its id and the fields.
    :ivar turns: bounds the requests under way for them.
    :ivar pause: waits so many seconds, but no longer than the client is open.
    :ivar byId: the states that updates through the client change.
    """

    put: Callable[[str, Mapping[str, Any]], Deferred[Any]]
    turns: PrioritySemaphore
    pause: Callable[[float], Deferred[None]]
    clock: IReactorTime
    random: Callable[[], float] = randomModule.random
    byId: WeakValueDictionary[str, DesiredState] = attrs.field(factory=WeakValueDictionary, init=False)


class _State(Enum):
    """
    The states of the fields in the registry.

    ==========  ===============================================  ==========
    State       Event                                            Next state
    ==========  ===============================================  ==========
    ABSENT      a registration has had its effect                REGISTERED
    REGISTERED  the registry may have other fields than desired  UPDATING
    UPDATING    it has the desired ones                          REGISTERED
    ..          the HeartBeater stops, the client is closed      REGISTERED
    ..          the registry answers with 404                    ABSENT
    any         ``close()``                                      ABSENT
    ==========  ===============================================  ==========

    It does not become UPDATING while a request of :meth:`DesiredState.update` is under way, nor without a HeartBeater
    that would register the service again.
    """

    ABSENT = "absent"
    REGISTERED = "registered"
    UPDATING = "updating"


class DesiredState(DesiredFields):
    """
    The fields that one service should have, and what is known of those that it has in the registry.

    An update changes the desired fields at once, and a registration from then on sends them. They stay unless the
    registry refuses them. If the registry may have other fields (after an update without a response, or an update and a
    registration that were under way together), a service that is :meth:`open` is updated until it has the desired ones.
    """

    _log = Logger()

    def __init__(
        self,
        states: DesiredStates,
        serviceId: str,
        heartbeatTimeout: int,
        payload: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(heartbeatTimeout, payload)
        self.serviceId = serviceId
        self._states = states
        self._state = _State.ABSENT
        self._worker: Deferred[None] | None = None
        # The fields that the registry has (None: not known); those of the last registration: desired, as sent, and the
        # Deferreds that wait for them.
        self._known: Mapping[str, Any] | None = None
        self._posted: tuple[Mapping[str, Any], Mapping[str, Any], tuple[Deferred[None], ...]] = self.fields, {}, ()
        # The fields that were sent, from the last registration that had its effect to the first heartbeat.
        self._sent: list[Mapping[str, Any]] = []
        # How many updates are under way; and how many have begun, and registrations have had their effect.
        self._underWay = 0
        self._writes = 0
        # Timeouts that the registry may have.
        self._timeouts: tuple[int, ...] = (heartbeatTimeout,)
        self._reference: ReferenceType[HeartBeater] | None = None
        self._waiters: Waiters[None] = Waiters()

    @property
    def isDirty(self) -> bool:
        """Whether the registry may have other fields."""
        return self._known is None or comparable(self._known) != comparable(self.wire())

    @property
    def heartBeater(self) -> HeartBeater | None:
        """Sends the service's heartbeats, from :meth:`open` on."""
        return None if self._reference is None else self._reference()

    def setHost(self, host: str) -> None:
        """The address was determined anew."""
        self.host = host
        self.converge()

    # -- its registrations

    def begin(self, isFirst: bool) -> Mapping[str, Any]:
        """
        A registration is about to be sent.

        :param isFirst: whether no earlier one may have had its effect.
        :return: the fields to send.
        """
        if isFirst:
            self._sent.clear()
        wire = self.wire()
        self._posted = self.fields, wire, tuple(self._waiters)
        self._remember(comparable(wire))
        return wire

    def registered(self, *, isLast: bool = True) -> None:
        """
        A registration had its effect.

        :param isLast: whether it is the one that was sent last. If not, the fields in the registry are not known.
        """
        fields, wire, covered = self._posted
        self._sent.clear()
        self._has(wire)
        if isLast:
            self.accepted = fields
            self._remember(comparable(wire))
            self._waiters.fire(None, covered)
        else:
            self._known = None
        self.converge()

    def refusedRegistration(self, error: APIError) -> bool:
        """
        The registry refused the registration that was sent last.

        :return: whether an update may be the reason; it is undone then.
        """
        fields, _, covered = self._posted
        return self._undo(error, fields, covered)

    def _has(self, fields: Mapping[str, Any]) -> None:
        """The registry has our service, with these *fields*."""
        self._writes += 1
        if self._state is _State.ABSENT:
            self._transition(_State.REGISTERED)
        # An update that is under way may have had its effect before or after.
        self._known = None if self._underWay else fields
        if not self._underWay:
            self._setTimeouts(fields["heartbeat_timeout"])

    def resumed(self, found: Mapping[str, Any]) -> None:
        """The service that an earlier process left is continued; the registry has these fields."""
        self._has({name: found[name] for name in FIELDS})

    def _remember(self, sent: Mapping[str, Any]) -> None:
        # A deque of its own for each of thousands of services would take ten times as much memory.
        self._sent = [*self._sent[1 - _MOST_SENT :], sent]

    def isOurs(self, found: Mapping[str, Any]) -> bool:
        """
        Whether a service may be our own, created without a response: no heartbeat was ever sent for it, and each field
        is as a registration or an update sent it.
        """
        return found["last_seen"] is None and all(
            any(name in sent and plain(sent[name]) == found[name] for sent in self._sent) for name in FIELDS
        )

    # -- updates

    def open(self, heartBeater: HeartBeater) -> None:
        """
        Let updates through the client change this state. Only a weak reference to *heartBeater* is kept.
        """
        self._reference = ref(heartBeater)
        self._timeouts = (self.heartbeatTimeout,)
        self._states.byId[self.serviceId] = self
        heartBeater.onStateChange(self._heartBeaterChanged)

    def close(self, reason: Failure) -> None:
        """The service is not registered any more; updates that wait fail with *reason*."""
        self._reference = None
        self._known = None
        if self._states.byId.get(self.serviceId) is self:
            del self._states.byId[self.serviceId]
        self._transition(_State.ABSENT)
        self._waiters.fire(reason)

    async def update(self, payload: Mapping[str, Any]) -> None:
        """Send one update, and desire its fields unless the registry refuses them."""
        changes = self.understood(payload)
        self.change(changes)
        wire = {**payload, **{name: self.wire()[name] for name in changes}}
        try:
            await self._put(wire)
        except APIError as error:
            if not isinstance(error, (NotFound, ServerError)):
                self.takeBack(changes)
            raise
        else:
            self.accepted = {**self.accepted, **changes}
        finally:
            self.converge()

    def set(self, changes: Mapping[str, Any]) -> Deferred[None]:
        """
        Desire other values for some fields, and update the service until the registry has them.

        :return: fires with ``None`` when the registry has them. Fails with ``BadRequest`` or ``Forbidden`` if it
            refuses them, and with the reason of :meth:`close`.
        """
        self.change(changes)
        if self._state is not _State.ABSENT and not self.isDirty and not self._underWay:
            return succeed(None)
        waiter = self._waiters.wait()
        self.converge()
        return waiter

    def converge(self) -> None:
        """Update the service if the registry may have something else than what is desired."""
        heartBeater = self.heartBeater
        if heartBeater is None or not heartBeater.running or not heartBeater.registersAgain:
            return
        if self._state is _State.REGISTERED and self.isDirty and not self._underWay:
            self._transition(_State.UPDATING)

    def _transition(self, to: _State) -> None:
        self._state = to
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
        if to is _State.UPDATING:
            worker = self._work()
            if self._state is to:
                self._worker = worker
            else:
                # The first steps of the worker have fired a Deferred whose owner closed this.
                worker.cancel()
            worker.addBoth(self._ended, worker)

    def _ended(self, result: object, worker: Deferred[None]) -> None:
        isGone = False
        if isinstance(result, Failure):
            isGone = result.check(NotFound) is not None
            if not isGone and not result.check(CancelledError, ClientClosed):
                self._log.failure("Updates of service {serviceId} ended unexpectedly", result, serviceId=self.serviceId)
        if self._worker is not worker:
            return
        self._transition(_State.ABSENT if isGone else _State.REGISTERED)
        heartBeater = self.heartBeater
        if isGone and heartBeater is not None:
            # It will get a 404 too. Then the desired fields are registered.
            heartBeater.sendNow()

    def _heartBeaterChanged(self, _: str) -> None:
        heartBeater = self.heartBeater
        if heartBeater is not None and heartBeater.running:
            self.converge()
        elif self._state is _State.UPDATING:
            self._transition(_State.REGISTERED)

    @returnsDeferred
    async def _work(self) -> None:
        backoff = Backoff(_SHORTEST_RETRY, LONGEST_DELAY, self._states.random)
        outage = Outage(self._log, self._states.clock, _UPDATE_FAILED, _UPDATED, after=2, serviceId=self.serviceId)
        while self._state is _State.UPDATING and self.isDirty and not self._underWay:
            try:
                await self.push()
            except ServiceRegistryError as error:
                if isinstance(error, (NotFound, ClientClosed)):
                    raise
                outage.failed(reason=str(error))
                await self._states.pause(backoff.next())
        if not self.isDirty:
            outage.succeeded()

    async def push(self) -> None:
        """
        Update the service once.

        A change that the registry refuses is undone, and the Deferreds that wait for it fail. An error is raised only
        if there is nothing to undo.
        """
        turns = self._states.turns
        await turns.take(float("inf"))
        try:
            fields, covered = self.fields, tuple(self._waiters)
            known = {} if self._known is None else comparable(self._known)
            wire = comparable(self.wire())
            changes = {name: wire[name] for name in wire if name not in known or known[name] != wire[name]}
            isCertain = await self._put(changes)
        except APIError as error:
            if not self._undo(error, fields, covered):
                raise
        else:
            if isCertain:
                self.accepted = fields
                self._waiters.fire(None, covered)
        finally:
            turns.give()

    def _undo(self, error: APIError, fields: Mapping[str, Any], covered: Iterable[Deferred[None]]) -> bool:
        """Undo what the registry refuses, now and later; whether there is anything to undo."""
        if not isinstance(error, (BadRequest, Forbidden)) or not self.takeBack(fields):
            return False
        self._waiters.fire(Failure(error), covered)
        return True

    async def _put(self, changes: Mapping[str, Any]) -> bool:
        """
        Send one update.

        :return: whether the registry certainly has it: no other request under way can have overwritten it.
        """
        timeout = self.understood({"heartbeat_timeout": changes.get("heartbeat_timeout")}).get("heartbeat_timeout")
        timeoutsBefore = self._timeouts
        if timeout is not None:
            # From now on the registry may have either timeout.
            self._setTimeouts(*self._timeouts, timeout)
        heartBeater = self.heartBeater
        if heartBeater is None or (heartBeater.registersAgain and heartBeater.provenToken is None):
            self._remember(changes)
        else:
            # This one will not be looked for: see isOurs().
            self._sent.clear()
        isFirst = not self._underWay
        self._underWay += 1
        self._writes = write = self._writes + 1
        isCertain = False
        known: Mapping[str, Any] | None = None
        try:
            await self._states.put(self.serviceId, changes)
            isCertain = isFirst and write == self._writes
            if isCertain and (self._known is not None or set(FIELDS) <= changes.keys()):
                known = {**(self._known or {}), **changes}
            if isCertain and timeout is not None:
                self._setTimeouts(timeout)
        except APIError as error:
            if not isinstance(error, (NotFound, ServerError)) and isFirst and write == self._writes:
                # It had no effect.
                known = self._known
                self._setTimeouts(*timeoutsBefore)
            raise
        finally:
            self._underWay -= 1
            self._known = known
        return isCertain

    def _setTimeouts(self, *timeouts: int) -> None:
        """Let heartbeats go out for the shortest of the timeouts that the registry may have."""
        self._timeouts = timeouts
        heartBeater = self.heartBeater
        if heartBeater is not None and heartBeater.heartbeatTimeout != min(timeouts):
            heartBeater.setTimeout(min(timeouts))
