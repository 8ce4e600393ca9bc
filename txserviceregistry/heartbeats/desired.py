"""The desired state of the services that a client registered, so that updates outlive an expiration."""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary, ref

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..errors import APIError, BadRequest, Forbidden, NotFound, ServerError, ServiceRegistryError
from ..http.jsontransport import ClientClosed
from ..util.deferred import LONGEST_DELAY, Backoff, PrioritySemaphore, Waiters, returnsDeferred
from ..util.fields import HOST_KEYS, PORT_KEYS, checkedMetadata, checkedTags, checkedTimeout
from ..util.logs import Logger, Outage
from .heartbeater import HeartBeater

# The fields of a service that can be updated, by their names in the protocol.
_FIELDS = ("heartbeat_timeout", "tags", "metadata")

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


@attrs.frozen
class DesiredStates:
    """The desired states of one client's services: how updates are sent, how many at once, and how to wait."""

    put: Callable[[str, Mapping[str, Any]], Deferred[Any]]
    turns: PrioritySemaphore
    pause: Callable[[float], Deferred[None]]
    clock: IReactorTime
    random: Callable[[], float] = randomModule.random
    # The states that updates through the client change.
    byId: WeakValueDictionary[str, DesiredState] = attrs.field(factory=WeakValueDictionary, init=False)


class DesiredState:
    """
    The fields that one service should have, and what is known of those that it has in the registry.

    An update changes the desired fields at once, and a registration from then on sends them, unless the registry
    refuses them. If the registry may have other fields (after an update without a response, or requests that were under
    way together), a service that is :meth:`open` is updated until it has the desired ones.
    """

    _log = Logger()
    # Called when the fields have changed.
    onChange: Callable[[], object] = staticmethod(lambda: None)
    # Returns the one that sends the service's heartbeats, from :meth:`open` on.
    heartBeater: Callable[[], HeartBeater | None] = staticmethod(lambda: None)

    def __init__(
        self, states: DesiredStates, serviceId: str, heartbeatTimeout: int, payload: Mapping[str, Any] | None = None
    ) -> None:
        self.serviceId = serviceId
        given = payload or {}
        # As the registry returns them.
        tags, metadata = given.get("tags") or [], given.get("metadata") or {}
        tags = list(tags) if isinstance(tags, tuple) else tags
        # Replaced, never changed.
        self.fields: Mapping[str, Any] = {"heartbeat_timeout": heartbeatTimeout, "tags": tags, "metadata": metadata}
        # Was determined automatically. It is sent with metadata that want it, and never becomes part of them.
        self.host: str | None = None
        self._states = states
        # The fields that the registry accepted last, to fall back on.
        self._accepted: Mapping[str, Any] = self.fields
        self.isRegistered = False
        # All fields that the registry may have together; empty if they are not known.
        self._possible: Sequence[Mapping[str, Any]] = ()
        # The fields of the last registration, as desired and as sent, and the Deferreds that wait for it.
        self._posted: tuple[Mapping[str, Any], Mapping[str, Any], tuple[Deferred[None], ...]] = self.fields, {}, ()
        # The fields that were sent last.
        self._sent: list[Mapping[str, Any]] = []
        # How many updates are under way; and how many have begun, and registrations have had their effect.
        self._underWay = self._writes = 0
        # Updates the service until the registry has the desired fields.
        self._worker: Deferred[None] | None = None
        self._waiters: Waiters[None] = Waiters()

    @property
    def heartbeatTimeout(self) -> int:
        """The desired heartbeat timeout, in seconds."""
        return int(self.fields["heartbeat_timeout"])

    def missing(self) -> dict[str, Any]:
        """The desired fields of which the registry may have other values."""
        return {
            name: value
            for name, value in self._wire().items()
            if not self._possible or any(fields[name] != value for fields in self._possible)
        }

    # -- the fields

    def _wire(self) -> Mapping[str, Any]:
        """The fields to send: with the host that was determined automatically."""
        metadata = self.fields["metadata"]
        if self.host is None or not wantsHost(metadata):
            return self.fields
        return {**self.fields, "metadata": {**metadata, "host": self.host}}

    def setHost(self, host: str) -> None:
        """The address was determined anew."""
        self.host = host
        self._converge()

    def change(self, changes: Mapping[str, Any]) -> None:
        """Desire other values for some fields."""
        if not changes:
            return
        self.fields = {**self.fields, **changes}
        self.onChange()

    def _takeBack(self, refused: Mapping[str, Any]) -> bool:
        """Undo the changes that the registry has *refused*; whether that changes anything."""
        back = {name: self._accepted[name] for name in refused if self.fields.get(name) is refused[name]}
        if {**self.fields, **back} == self.fields:
            return False
        self.change(back)
        return True

    def understood(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of an update's *payload*; none if one is not valid, which the registry will report."""
        changes: dict[str, Any] = {}
        try:
            if "tags" in payload:
                changes["tags"] = checkedTags(payload["tags"] if payload["tags"] is not None else ())
            if "metadata" in payload:
                changes["metadata"] = metadata = checkedMetadata(payload["metadata"])
                isAutomatic = self.host is not None and wantsHost(self.fields["metadata"])
                if isAutomatic and metadata.get("host") == self.host:
                    # It was read from the registry, and must not stay when the address changes.
                    del metadata["host"]
            if "heartbeat_timeout" in payload:
                timeout = payload["heartbeat_timeout"]
                changes["heartbeat_timeout"] = checkedTimeout(float(timeout) if isinstance(timeout, str) else timeout)
        except (TypeError, ValueError):
            return {}
        return changes

    # -- registrations

    def begin(self, isFirst: bool) -> Mapping[str, Any]:
        """The fields of a registration that is about to be sent. *isFirst*: no earlier one may have had its effect."""
        if isFirst:
            self._sent.clear()
        wire = self._wire()
        self._posted = self.fields, wire, tuple(self._waiters)
        self._remember(wire)
        return wire

    def registered(self) -> None:
        """The registration had its effect."""
        self._accepted, wire, covered = self._posted
        self._sent = [wire]
        self.resumed(wire)
        self._waiters.fire(None, covered)
        self._converge()

    def resumed(self, fields: Mapping[str, Any]) -> None:
        """The registry has the service with these fields: it is registered, or one of an earlier process goes on."""
        self._writes += 1
        self.isRegistered = True
        # An update that is under way may have its effect before or after: it is repeated, because it is not certain.
        self._mayHave([{name: fields[name] for name in _FIELDS}, *(self._possible if self._underWay else ())])

    def refusedRegistration(self, error: APIError) -> bool:
        """The registry refused the registration. Whether an update may be the reason; it is undone then."""
        fields, _, covered = self._posted
        return self._undo(error, fields, covered)

    def _remember(self, sent: Mapping[str, Any]) -> None:
        # A deque of its own for each of thousands of services would take ten times as much memory.
        self._sent = [*self._sent[1 - _MOST_SENT :], sent]

    def isOurs(self, found: Mapping[str, Any]) -> bool:
        """Whether it may be our own, created without a response: without a heartbeat, and with fields that we sent."""
        return found["last_seen"] is None and all(
            any(name in sent and sent[name] == found[name] for sent in self._sent) for name in _FIELDS
        )

    # -- updates

    def open(self, heartBeater: HeartBeater) -> None:
        """Let updates through the client change this state. Only a weak reference to *heartBeater* is kept."""
        self.heartBeater = ref(heartBeater)
        self._states.byId[self.serviceId] = self
        heartBeater.onStateChange(self._converge)

    def close(self, reason: Failure) -> None:
        """The service is not registered any more; updates that wait fail with *reason*."""
        self.heartBeater = lambda: None
        self._possible = ()
        self.isRegistered = False
        if self._states.byId.get(self.serviceId) is self:
            del self._states.byId[self.serviceId]
        self._converge()
        self._waiters.fire(reason)

    async def update(self, payload: Mapping[str, Any]) -> None:
        """Send one update, and desire its fields unless the registry refuses them."""
        changes = self.understood(payload)
        self.change(changes)
        try:
            understood = {name: self._wire()[name] for name in changes}
            await self._put({**payload, **understood}, understood)
        except APIError as error:
            if not isinstance(error, (NotFound, ServerError)):
                self._takeBack(changes)
            raise
        else:
            self._accepted = {**self._accepted, **changes}
        finally:
            self._converge()

    def set(self, changes: Mapping[str, Any]) -> Deferred[None]:
        """Desire other values. Fires when the registry has them; fails with its refusal or the reason of the close."""
        waiter = self._waiters.wait()
        self.change(changes)
        self._converge()
        return waiter

    def _converge(self, state: str = "") -> None:
        """Update the service if the registry may have other fields, and a HeartBeater would register it again."""
        heartBeater = self.heartBeater()
        mayWork = heartBeater is not None and heartBeater.running and heartBeater.registersAgain and self.isRegistered
        worker = self._worker
        if not mayWork and worker is not None:
            self._worker = None
            worker.cancel()
        elif mayWork and worker is None and not self._underWay and not self.missing():
            self._waiters.fire(None)
        elif mayWork and worker is None and not self._underWay:
            # Its first steps may fire a Deferred whose owner closes this, or changes it again.
            self._worker = beginning = succeed(None)
            worker = self._work()
            if self._worker is beginning:
                self._worker = worker
            else:
                worker.cancel()
            worker.addBoth(self._ended, worker)

    def _ended(self, result: Failure | None, worker: Deferred[None]) -> None:
        self._worker = None if self._worker is worker else self._worker
        if result is None:
            self._converge()
        elif not result.check(CancelledError, ClientClosed):
            self._log.failure("Updates of service {serviceId} ended unexpectedly", result, serviceId=self.serviceId)

    @returnsDeferred
    async def _work(self) -> None:
        backoff = Backoff(_SHORTEST_RETRY, LONGEST_DELAY, self._states.random)
        outage = Outage(self._log, self._states.clock, _UPDATE_FAILED, _UPDATED, after=2, serviceId=self.serviceId)
        while self.isRegistered and self.missing() and not self._underWay:
            try:
                await self.push()
            except NotFound:
                # Its heartbeat will get a 404 too. Then the desired fields are registered.
                self.isRegistered = False
                if (heartBeater := self.heartBeater()) is not None:
                    heartBeater.sendNow()
            except ServiceRegistryError as error:
                outage.failed(reason=str(error), cause=error)
                await self._states.pause(backoff.next())
        if not self.missing():
            outage.succeeded()

    async def push(self) -> None:
        """Update the service once. A change that the registry refuses is undone; without that, it raises the error."""
        turns = self._states.turns
        await turns.take(float("inf"))
        try:
            fields, covered = self.fields, tuple(self._waiters)
            changes = self.missing()
            isCertain = await self._put(changes, changes)
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

    async def _put(self, payload: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
        """Send one update of these fields; whether no other request under way can have overwritten it."""
        before = self._possible
        after = [{**fields, **changes} for fields in before]
        if not before and len(changes) == len(_FIELDS):
            after = [dict(changes)]
        self._mayHave([*before, *(fields for fields in after if fields not in before)])
        self._remember(changes)
        isFirst = not self._underWay
        self._underWay += 1
        self._writes = write = self._writes + 1
        try:
            await self._states.put(self.serviceId, payload)
        except APIError as error:
            if not isinstance(error, (NotFound, ServerError)) and isFirst and write == self._writes:
                # It had no effect.
                self._mayHave(before)
            raise
        finally:
            self._underWay -= 1
        isCertain = isFirst and write == self._writes
        if isCertain:
            self._mayHave(after)
        return isCertain

    def _mayHave(self, possible: Sequence[Mapping[str, Any]]) -> None:
        """Note what the registry may have. Heartbeats are sent for the shortest of the timeouts."""
        self._possible = possible
        heartBeater = self.heartBeater()
        if heartBeater is not None and possible:
            shortest = min(fields["heartbeat_timeout"] for fields in possible)
            if shortest != heartBeater.heartbeatTimeout:
                heartBeater.setTimeout(shortest)
