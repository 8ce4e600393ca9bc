"""
The desired state of the services that a client registered, so that updates outlive an expiration.
"""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable, Iterable, Mapping
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
from ..util.fields import HOST_KEYS, PORT_KEYS, checkedMetadata, checkedTags, checkedTimeout
from ..util.logs import Logger, Outage
from .heartbeater import HeartBeater

#: The fields of a service that can be updated, by their names in the protocol.
FIELDS = ("heartbeat_timeout", "tags", "metadata")
_DEFAULTS: Mapping[str, Any] = {"tags": [], "metadata": {}}

# So many registrations and updates are remembered, to recognize a service whose registration had no response.
_MOST_SENT = 4
# Seconds to wait after the second try to update a service; then the delays grow.
_SHORTEST_RETRY = 0.1

_UPDATE_FAILED = "Update of service {serviceId} failed: {reason} (retrying)"
_UPDATED = "Service {serviceId} updated after {seconds:.1f} s"


def wantsHost(metadata: Mapping[str, str] | None) -> bool:
    """Whether *metadata* has a port and no address, so that the address is determined automatically."""
    if not metadata:
        return False
    return any(key in metadata for key in PORT_KEYS) and not any(key in metadata for key in HOST_KEYS)


def comparable(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fields with their defaults, each as the registry returns it."""
    given = {name: fields[name] for name in FIELDS if fields.get(name) is not None}
    return {**_DEFAULTS, **{name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}}


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


class DesiredState:
    """
    The fields that one service should have, and what is known of those that it has in the registry.

    An update changes the desired fields at once, and a registration from then on sends them. They stay unless the
    registry refuses them. If the registry may have other fields (after an update without a response, or an update and a
    registration that were under way together), a service that is :meth:`open` is updated until it has the desired ones.

    :param payload: ``tags`` and ``metadata``, both optional.
    :ivar fields: ``heartbeat_timeout``, and ``tags`` and ``metadata`` where they were given. Replaced, never changed.
    :ivar host: the address that was determined automatically. It is sent with a *metadata* that :func:`wantsHost`, and
        never becomes part of it.
    :ivar onChange: called when *fields* has changed.
    """

    _log = Logger()

    def __init__(
        self,
        states: DesiredStates,
        serviceId: str,
        heartbeatTimeout: int,
        payload: Mapping[str, Any] | None = None,
    ) -> None:
        self.serviceId = serviceId
        self.fields: Mapping[str, Any] = {**(payload or {}), "heartbeat_timeout": heartbeatTimeout}
        self.host: str | None = None
        self.onChange: Callable[[], object] | None = None
        self._states = states
        # What the registry accepted last, to fall back on.
        self._accepted: Mapping[str, Any] = self.fields
        # Whether the registry has the service, and the fields that it has (None: not known).
        self._isRegistered = False
        self._known: Mapping[str, Any] | None = None
        # The fields of the last registration, as desired and as sent, and the Deferreds that wait for them.
        self._posted: tuple[Mapping[str, Any], Mapping[str, Any], tuple[Deferred[None], ...]] = self.fields, {}, ()
        # The fields that were sent last.
        self._sent: list[Mapping[str, Any]] = []
        # How many updates are under way; and how many have begun, and registrations have had their effect.
        self._underWay = self._writes = 0
        # Timeouts that the registry may have.
        self._timeouts: tuple[int, ...] = (heartbeatTimeout,)
        self._reference: ReferenceType[HeartBeater] | None = None
        # Updates the service until the registry has the desired fields.
        self._worker: Deferred[None] | None = None
        self._waiters: Waiters[None] = Waiters()

    @property
    def heartbeatTimeout(self) -> int:
        """The desired heartbeat timeout, in seconds."""
        timeout: int = self.fields["heartbeat_timeout"]
        return timeout

    @property
    def isDirty(self) -> bool:
        """Whether the registry may have other fields."""
        return self._known is None or comparable(self._known) != comparable(self._wire())

    @property
    def heartBeater(self) -> HeartBeater | None:
        """Sends the service's heartbeats, from :meth:`open` on."""
        return None if self._reference is None else self._reference()

    # -- the fields

    def _wire(self) -> Mapping[str, Any]:
        """The fields to send: with the host that was determined automatically."""
        metadata = self.fields.get("metadata")
        if self.host is None or not wantsHost(metadata):
            return self.fields
        return {**self.fields, "metadata": {**(metadata or {}), "host": self.host}}

    def setHost(self, host: str) -> None:
        """The address was determined anew."""
        self.host = host
        self._converge()

    def change(self, changes: Mapping[str, Any]) -> None:
        """Desire other values for some fields."""
        if changes:
            self._replace({**self.fields, **changes})

    def _takeBack(self, refused: Mapping[str, Any]) -> bool:
        """Undo the changes that the registry has *refused*; whether that changes anything."""
        fields = dict(self.fields)
        for name, value in refused.items():
            if name in fields and fields[name] is value and value is not self._accepted.get(name):
                del fields[name]
                if name in self._accepted:
                    fields[name] = self._accepted[name]
        if fields == self.fields:
            return False
        self._replace(fields)
        return True

    def _replace(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields
        if self.onChange is not None:
            self.onChange()

    def understood(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of an update's *payload*; none if one is not valid, which the registry will report."""
        changes: dict[str, Any] = {}
        try:
            if "tags" in payload:
                changes["tags"] = checkedTags(payload["tags"] if payload["tags"] is not None else ())
            if "metadata" in payload:
                changes["metadata"] = metadata = checkedMetadata(payload["metadata"])
                # They contain our host if they were read from the registry. It must not stay when the address changes.
                if (
                    self.host is not None
                    and wantsHost(self.fields.get("metadata"))
                    and metadata.get("host") == self.host
                ):
                    del metadata["host"]
            if "heartbeat_timeout" in payload:
                timeout = payload["heartbeat_timeout"]
                changes["heartbeat_timeout"] = checkedTimeout(float(timeout) if isinstance(timeout, str) else timeout)
        except (TypeError, ValueError):
            return {}
        return changes

    # -- registrations

    def begin(self, isFirst: bool) -> Mapping[str, Any]:
        """
        A registration is about to be sent.

        :param isFirst: whether no earlier one may have had its effect.
        :return: the fields to send.
        """
        if isFirst:
            self._sent.clear()
        wire = self._wire()
        self._posted = self.fields, wire, tuple(self._waiters)
        self._remember(comparable(wire))
        return wire

    def registered(self) -> None:
        """The registration had its effect."""
        self._accepted, wire, covered = self._posted
        self._sent = [comparable(wire)]
        self._has(wire)
        self._waiters.fire(None, covered)
        self._converge()

    def refusedRegistration(self, error: APIError) -> bool:
        """The registry refused the registration. Whether an update may be the reason; it is undone then."""
        fields, _, covered = self._posted
        return self._undo(error, fields, covered)

    def resumed(self, found: Mapping[str, Any]) -> None:
        """The service that an earlier process left is continued; the registry has these fields."""
        self._has({name: found[name] for name in FIELDS})

    def _has(self, fields: Mapping[str, Any]) -> None:
        self._writes += 1
        self._isRegistered = True
        # An update that is under way may have had its effect before or after.
        self._known = None if self._underWay else fields
        if not self._underWay:
            self._setTimeouts(fields["heartbeat_timeout"])

    def _remember(self, sent: Mapping[str, Any]) -> None:
        # A deque of its own for each of thousands of services would take ten times as much memory.
        self._sent = [*self._sent[1 - _MOST_SENT :], sent]

    def isOurs(self, found: Mapping[str, Any]) -> bool:
        """
        Whether a service may be our own, created without a response: no heartbeat was ever sent for it, and each field
        is as one of the last registrations and updates sent it.
        """
        return found["last_seen"] is None and all(
            any(name in sent and sent[name] == found[name] for sent in self._sent) for name in FIELDS
        )

    # -- updates

    def open(self, heartBeater: HeartBeater) -> None:
        """Let updates through the client change this state. Only a weak reference to *heartBeater* is kept."""
        self._reference = ref(heartBeater)
        self._timeouts = (self.heartbeatTimeout,)
        self._states.byId[self.serviceId] = self
        heartBeater.onStateChange(lambda _: self._converge())

    def close(self, reason: Failure) -> None:
        """The service is not registered any more; updates that wait fail with *reason*."""
        self._reference = None
        self._known = None
        self._isRegistered = False
        if self._states.byId.get(self.serviceId) is self:
            del self._states.byId[self.serviceId]
        self._converge()
        self._waiters.fire(reason)

    async def update(self, payload: Mapping[str, Any]) -> None:
        """Send one update, and desire its fields unless the registry refuses them."""
        changes = self.understood(payload)
        self.change(changes)
        try:
            await self._put({**payload, **{name: self._wire()[name] for name in changes}})
        except APIError as error:
            if not isinstance(error, (NotFound, ServerError)):
                self._takeBack(changes)
            raise
        else:
            self._accepted = {**self._accepted, **changes}
        finally:
            self._converge()

    def set(self, changes: Mapping[str, Any]) -> Deferred[None]:
        """
        Desire other values for some fields, and update the service until the registry has them.

        :return: fires with ``None`` when the registry has them. Fails with ``BadRequest`` or ``Forbidden`` if it
            refuses them, and with the reason of :meth:`close`.
        """
        self.change(changes)
        if self._isRegistered and not self.isDirty and not self._underWay:
            return succeed(None)
        waiter = self._waiters.wait()
        self._converge()
        return waiter

    def _converge(self) -> None:
        """
        Update the service if the registry may have something else than what is desired, as long as there is a
        HeartBeater that would register it again.
        """
        heartBeater = self.heartBeater
        mayWork = heartBeater is not None and heartBeater.running and heartBeater.registersAgain and self._isRegistered
        worker = self._worker
        if not mayWork and worker is not None:
            self._worker = None
            worker.cancel()
        elif mayWork and worker is None and self.isDirty and not self._underWay:
            # Its first steps may fire a Deferred whose owner closes this, or changes it again.
            self._worker = beginning = succeed(None)
            worker = self._work()
            if self._worker is beginning:
                self._worker = worker
            else:
                worker.cancel()
            worker.addBoth(self._ended, worker)

    def _ended(self, result: object, worker: Deferred[None]) -> None:
        isCurrent = self._worker is worker
        if isCurrent:
            self._worker = None
        if not isinstance(result, Failure) or result.check(CancelledError, ClientClosed):
            return
        if not result.check(NotFound):
            self._log.failure("Updates of service {serviceId} ended unexpectedly", result, serviceId=self.serviceId)
            return
        heartBeater = self.heartBeater
        if isCurrent and heartBeater is not None:
            # It will get a 404 too. Then the desired fields are registered.
            self._isRegistered = False
            heartBeater.sendNow()

    @returnsDeferred
    async def _work(self) -> None:
        backoff = Backoff(_SHORTEST_RETRY, LONGEST_DELAY, self._states.random)
        outage = Outage(self._log, self._states.clock, _UPDATE_FAILED, _UPDATED, after=2, serviceId=self.serviceId)
        while self._isRegistered and self.isDirty and not self._underWay:
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
            changes = {name: value for name, value in comparable(self._wire()).items() if known.get(name) != value}
            isCertain = await self._put(changes)
        except APIError as error:
            if not self._undo(error, fields, covered):
                raise
        else:
            if isCertain:
                self._accepted = fields
                self._waiters.fire(None, covered)
        finally:
            turns.give()

    def _undo(self, error: APIError, fields: Mapping[str, Any], covered: Iterable[Deferred[None]]) -> bool:
        """Undo what the registry refuses, now and later; whether there is anything to undo."""
        if not isinstance(error, (BadRequest, Forbidden)) or not self._takeBack(fields):
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
        self._remember(changes)
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
