"""
The desired state of the services that a client registered, so that updates outlive an expiration.
"""

from __future__ import annotations

import random as randomModule
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Protocol
from weakref import ReferenceType, WeakValueDictionary, ref

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..errors import APIError, BadRequest, Forbidden, NotFound, ServerError, ServiceRegistryError
from ..http.jsontransport import ClientClosed
from ..util.backoff import Backoff
from ..util.concurrency import PrioritySemaphore
from ..util.deferred import returnsDeferred
from ..util.fields import HOST_KEYS, PORT_KEYS, checkedMetadata, checkedTags, checkedTimeout
from ..util.logs import Logger
from ..util.outage import Outage
from ..util.tries import LONGEST_DELAY
from ..util.waiters import Waiters

_FIELDS = ("heartbeat_timeout", "tags", "metadata")
_DEFAULTS: Mapping[str, Any] = {"tags": [], "metadata": {}}
# So many registrations and updates are remembered while the outcome of a registration is unknown.
_MOST_SENT = 100
# Seconds to wait after the second try to update a service; then the delays grow.
_SHORTEST_RETRY = 0.1

_UPDATE_FAILED = "Update of service {serviceId} failed: {reason} (retrying)"
_UPDATED = "Service {serviceId} updated after {seconds:.1f} s"


def wantsHost(metadata: Mapping[str, str] | None) -> bool:
    """Whether *metadata* has a port and no address, so that the address is determined automatically."""
    if not metadata:
        return False
    return any(key in metadata for key in PORT_KEYS) and not any(key in metadata for key in HOST_KEYS)


class _HeartBeater(Protocol):
    """The HeartBeater of a service, as :class:`DesiredState` needs it."""

    heartbeatTimeout: int

    @property
    def running(self) -> bool: ...

    @property
    def registersAgain(self) -> bool: ...

    def setTimeout(self, heartbeatTimeout: int) -> None: ...

    def sendNow(self) -> None: ...

    def onStateChange(self, listener: Callable[[str], None]) -> None: ...


@attrs.frozen
class DesiredStates:
    """
    The desired states of one client's services, and how they are sent.

    :ivar put: sends an update of a service: its id and the fields.
    :ivar turns: bounds the requests under way for them.
    :ivar pause: waits so many seconds, but no longer than the client is open.
    :ivar clock: tells how long updates have failed.
    :ivar random: gives numbers from 0 to 1.
    """

    put: Callable[[str, Mapping[str, Any]], Deferred[Any]]
    turns: PrioritySemaphore
    pause: Callable[[float], Deferred[None]]
    clock: IReactorTime
    random: Callable[[], float] = randomModule.random
    _byId: WeakValueDictionary[str, DesiredState] = attrs.field(factory=WeakValueDictionary, init=False)

    def find(self, serviceId: str) -> DesiredState | None:
        """The desired state of the service, if this client registered it."""
        return self._byId.get(serviceId)

    def add(self, state: DesiredState) -> None:
        """Let updates of the service change this state."""
        self._byId[state.serviceId] = state

    def discard(self, state: DesiredState) -> None:
        """Stop that."""
        if self._byId.get(state.serviceId) is state:
            del self._byId[state.serviceId]


class _State(Enum):
    """
    What is done about the fields in the registry.

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


class DesiredState:
    """
    The fields that one service should have, and what is known of those that it has in the registry.

    An update changes the desired fields at once, and a registration from then on sends them. They stay unless the
    registry refuses them. If the registry may have other fields (after an update without a response, or an update and a
    registration that were under way together), a service that is :meth:`open` is updated until it has the desired ones.

    :ivar serviceId: the service.
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
        """
        :param payload: ``tags`` and ``metadata``, both optional.
        """
        self.serviceId = serviceId
        self.fields: Mapping[str, Any] = {**(payload or {}), "heartbeat_timeout": heartbeatTimeout}
        self.host: str | None = None
        self.onChange: Callable[[], object] | None = None
        self._states = states
        self._state = _State.ABSENT
        self._worker: Deferred[None] | None = None
        # The fields that the registry accepted last, to fall back on; those that it has now (None: not known); those of
        # the last registration: desired, as sent, and the Deferreds that wait for them.
        self._good: Mapping[str, Any] = self.fields
        self._known: Mapping[str, Any] | None = None
        self._posted: tuple[Mapping[str, Any], Mapping[str, Any], tuple[Deferred[None], ...]] = self.fields, {}, ()
        # The fields that were sent last since the first registration whose outcome is unknown.
        self._sent: deque[Mapping[str, Any]] = deque(maxlen=_MOST_SENT)
        # The fields of the last registration that had its effect, as sent.
        self._registeredAs: Mapping[str, Any] = {}
        # How many updates are under way; and how many have begun, and registrations have had their effect.
        self._underWay = 0
        self._writes = 0
        # Timeouts that the registry may have.
        self._timeouts: tuple[int, ...] = (heartbeatTimeout,)
        self._heartBeater: ReferenceType[_HeartBeater] | None = None
        self._waiters: Waiters[None] = Waiters()

    # -- desired fields

    @property
    def heartbeatTimeout(self) -> int:
        """The desired heartbeat timeout, in seconds."""
        timeout: int = self.fields["heartbeat_timeout"]
        return timeout

    def wire(self) -> Mapping[str, Any]:
        """The fields to send: with the host that was determined automatically."""
        metadata = self.fields.get("metadata")
        if self.host is None or not wantsHost(metadata):
            return self.fields
        return {**self.fields, "metadata": {**(metadata or {}), "host": self.host}}

    @property
    def isDirty(self) -> bool:
        """Whether the registry may have other fields."""
        return self._known is None or _comparable(self._known) != _comparable(self.wire())

    def change(self, changes: Mapping[str, Any]) -> None:
        """Desire other values for some fields."""
        if not changes:
            return
        self.fields = {**self.fields, **changes}
        if self.onChange is not None:
            self.onChange()

    def setHost(self, host: str) -> None:
        """The address was determined anew."""
        self.host = host
        self.converge()

    def _takeBack(self, refused: Mapping[str, Any]) -> bool:
        """
        Undo the changes that the registry has *refused*: desire again what it accepted last.

        :return: whether that changes anything.
        """
        fields: dict[str, Any] = dict(self.fields)
        for name, value in refused.items():
            if name in fields and fields[name] is value and value is not self._good.get(name):
                del fields[name]
                if name in self._good:
                    fields[name] = self._good[name]
        if fields == self.fields:
            return False
        self.fields = fields
        if self.onChange is not None:
            self.onChange()
        return True

    # -- its registrations

    def begin(self, isFirst: bool) -> Mapping[str, Any]:
        """
        A registration is about to be sent.

        :param isFirst: whether no earlier one may have had its effect.
        :return: the fields to send.
        """
        if isFirst:
            self._sent.clear()
            self._registeredAs = {}
        wire = self.wire()
        self._posted = self.fields, wire, tuple(self._waiters)
        self._sent.append(_comparable(wire))
        return wire

    def registered(self) -> None:
        """The registration that was sent last had its effect."""
        self._good, wire, covered = self._posted
        self._registeredAs = _comparable(wire)
        self._sent.clear()
        self._has(wire)
        self._waiters.fire(None, covered)
        self.converge()

    def registeredEarlier(self) -> None:
        """A registration before the last one had its effect: the fields in the registry are not known."""
        self._sent.clear()
        self._has(self._posted[1])
        self._known = None
        self.converge()

    def refusedRegistration(self, error: APIError) -> bool:
        """
        The registry refused the registration that was sent last.

        :return: whether an update may be the reason; it is undone then.
        """
        fields, _, covered = self._posted
        if not (_isFinal(error) and self._takeBack(fields)):
            return False
        self._waiters.fire(Failure(error), covered)
        return True

    def _has(self, fields: Mapping[str, Any]) -> None:
        """The registry has our service, with these *fields*."""
        self._writes += 1
        if self._state is _State.ABSENT:
            self._state = _State.REGISTERED
        # An update that is under way may have had its effect before or after.
        self._known = None if self._underWay else fields
        if not self._underWay:
            self._setTimeouts((fields["heartbeat_timeout"],))

    def resumed(self, found: Mapping[str, Any]) -> None:
        """The service that an earlier process left is continued; the registry has these fields."""
        self._has({name: found[name] for name in _FIELDS})

    def isOurs(self, found: Mapping[str, Any]) -> bool:
        """
        Whether a service may be our own, created without a response: no heartbeat was ever sent for it, and each field
        is as a registration or an update sent it.
        """
        return found["last_seen"] is None and all(
            any(name in sent and _plain(sent[name]) == found[name] for sent in (*self._sent, self._registeredAs))
            for name in _FIELDS
        )

    # -- updates

    def open(self, heartBeater: _HeartBeater) -> None:
        """
        Let updates through the client change this state.

        :param heartBeater: sends the service's heartbeats. Only a weak reference is kept.
        """
        self._heartBeater = ref(heartBeater)
        self._timeouts = (self.heartbeatTimeout,)
        self._states.add(self)
        heartBeater.onStateChange(self._heartBeaterChanged)

    def close(self, reason: Failure) -> None:
        """The service is not registered any more; updates that wait fail with *reason*."""
        self._heartBeater = None
        self._known = None
        self._states.discard(self)
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
                self._takeBack(changes)
            raise
        else:
            self._good = {**self._good, **changes}
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
        heartBeater = self._heartBeater and self._heartBeater()
        if not heartBeater or not heartBeater.running or not heartBeater.registersAgain:
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
        failure = result if isinstance(result, Failure) else None
        isGone = failure is not None and failure.check(NotFound) is not None
        if failure is not None and not isGone and not failure.check(CancelledError, ClientClosed):
            self._log.failure("Updates of service {serviceId} ended unexpectedly", failure, serviceId=self.serviceId)
        if self._worker is not worker:
            return
        self._transition(_State.ABSENT if isGone else _State.REGISTERED)
        heartBeater = self._heartBeater and self._heartBeater()
        if isGone and heartBeater:
            # It will get a 404 too. Then the desired fields are registered.
            heartBeater.sendNow()

    def _heartBeaterChanged(self, _: str) -> None:
        heartBeater = self._heartBeater and self._heartBeater()
        if heartBeater and heartBeater.running:
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
            fields, wire, known, covered = self.fields, self.wire(), self._known, tuple(self._waiters)
            changes = {
                name: value
                for name, value in _comparable(wire).items()
                if known is None or _comparable(known).get(name) != value
            }
            isCertain = await self._put(changes)
        except APIError as error:
            if not (_isFinal(error) and self._takeBack(fields)):
                raise
            self._waiters.fire(Failure(error), covered)
        else:
            if isCertain:
                self._good = fields
                self._waiters.fire(None, covered)
        finally:
            turns.give()

    async def _put(self, changes: Mapping[str, Any]) -> bool:
        """
        Send one update.

        :return: whether the registry certainly has it: no other request under way can have overwritten it.
        """
        timeout = self.understood({"heartbeat_timeout": changes.get("heartbeat_timeout")}).get("heartbeat_timeout")
        timeoutsBefore = self._timeouts
        if timeout is not None:
            # From now on the registry may have either timeout.
            self._setTimeouts((*self._timeouts, timeout))
        if self._sent:
            self._sent.append(changes)
        isFirst = not self._underWay
        self._underWay += 1
        self._writes = write = self._writes + 1
        isCertain = False
        known: Mapping[str, Any] | None = None
        try:
            await self._states.put(self.serviceId, changes)
            isCertain = isFirst and write == self._writes
            if isCertain and (self._known is not None or set(_FIELDS) <= changes.keys()):
                known = {**(self._known or {}), **changes}
            if isCertain and timeout is not None:
                self._setTimeouts((timeout,))
        except APIError as error:
            if not isinstance(error, (NotFound, ServerError)) and isFirst and write == self._writes:
                # It had no effect.
                known = self._known
                if timeout is not None:
                    self._setTimeouts(timeoutsBefore)
            raise
        finally:
            self._underWay -= 1
            self._known = known
        return isCertain

    def _setTimeouts(self, timeouts: tuple[int, ...]) -> None:
        """Let heartbeats go out for the shortest of the timeouts that the registry may have."""
        self._timeouts = timeouts
        heartBeater = self._heartBeater and self._heartBeater()
        if heartBeater and heartBeater.heartbeatTimeout != min(timeouts):
            heartBeater.setTimeout(min(timeouts))

    def understood(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of an update's *payload*; none if one is not valid, which the registry will report."""
        changes: dict[str, Any] = {}
        try:
            if "tags" in payload:
                changes["tags"] = checkedTags(payload["tags"] if payload["tags"] is not None else ())
            if "metadata" in payload:
                changes["metadata"] = self._withoutOwnHost(checkedMetadata(payload["metadata"]))
            if "heartbeat_timeout" in payload:
                timeout = payload["heartbeat_timeout"]
                changes["heartbeat_timeout"] = checkedTimeout(float(timeout) if isinstance(timeout, str) else timeout)
        except (TypeError, ValueError):
            return {}
        return changes

    def _withoutOwnHost(self, metadata: dict[str, str]) -> dict[str, str]:
        """
        Metadata without the host that was determined automatically, which they contain if they were read from the
        registry. It must not stay when the address changes.
        """
        if self.host is None or metadata.get("host") != self.host or not wantsHost(self.fields.get("metadata")):
            return metadata
        return {key: value for key, value in metadata.items() if key != "host"}


def _isFinal(error: APIError) -> bool:
    """Whether the registry refuses the request, now and later."""
    return isinstance(error, (BadRequest, Forbidden))


def _plain(value: Any) -> Any:
    """A field as the registry returns it."""
    return list(value) if isinstance(value, tuple) else value


def _comparable(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    given = {name: _plain(fields[name]) for name in _FIELDS if fields.get(name) is not None}
    return {**_DEFAULTS, **given}
