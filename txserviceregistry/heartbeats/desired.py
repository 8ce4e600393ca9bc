"""
The desired state of the services that a client registered, so that updates outlive an expiration.
"""

from __future__ import annotations

import random as randomModule
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from weakref import ReferenceType, WeakValueDictionary, ref

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure

from ..errors import APIError, BadRequest, Forbidden, NotFound, ServerError, ServiceRegistryError
from ..http.jsontransport import ClientClosed
from ..util.backoff import Backoff
from ..util.concurrency import PrioritySemaphore
from ..util.deferred import returnsDeferred
from ..util.fields import HOST_KEYS, PORT_KEYS, checkedMetadata, checkedTags, checkedTimeout
from ..util.logs import Logger

_FIELDS = ("heartbeat_timeout", "tags", "metadata")
_DEFAULTS: Mapping[str, Any] = {"tags": [], "metadata": {}}
# So many registrations and updates are remembered while the outcome of a registration is unknown.
_MOST_SENT = 100
# Seconds between two tries to update a service: the shortest and the longest delay after the first try.
_SHORTEST_RETRY = 0.1
_LONGEST_RETRY = 15.0


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
    :ivar random: gives numbers from 0 to 1.
    """

    put: Callable[[str, Mapping[str, Any]], Deferred[Any]]
    turns: PrioritySemaphore
    pause: Callable[[float], Deferred[None]]
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

    __slots__ = (
        "__weakref__",
        "_flying",
        "_good",
        "_heartBeater",
        "_isListening",
        "_isOpen",
        "_isRegistered",
        "_isTangled",
        "_known",
        "_posted",
        "_registeredAs",
        "_registrations",
        "_sent",
        "_states",
        "_timeouts",
        "_waiters",
        "_worker",
        "fields",
        "host",
        "onChange",
        "serviceId",
    )

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
        # The fields that the registry accepted last, to fall back on; those that it has now (None: not known); those of
        # the last registration: desired, as sent, and who waits for them.
        self._good: Mapping[str, Any] = self.fields
        self._known: Mapping[str, Any] | None = None
        self._posted: tuple[Mapping[str, Any], Mapping[str, Any], tuple[Deferred[None], ...]] = self.fields, {}, ()
        # The fields that were sent last since the first registration whose outcome is unknown.
        self._sent: deque[Mapping[str, Any]] = deque(maxlen=_MOST_SENT)
        # The fields of the last registration that had its effect, as sent.
        self._registeredAs: Mapping[str, Any] = {}
        # How many updates are under way, and whether the last one began beside another, so that either may be the last
        # to have its effect.
        self._flying = 0
        self._isTangled = False
        self._registrations = 0
        self._isRegistered = False
        # Timeouts that the registry may have.
        self._timeouts: tuple[int, ...] = (heartbeatTimeout,)
        self._heartBeater: ReferenceType[_HeartBeater] | None = None
        self._isOpen = self._isListening = False
        self._waiters: tuple[Deferred[None], ...] = ()
        self._worker: Deferred[None] | None = None

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
        self._posted = self.fields, wire, self._waiters
        self._sent.append(_comparable(wire))
        return wire

    def registered(self) -> None:
        """The registration that was sent last had its effect."""
        self._good, wire, covered = self._posted
        self._registeredAs = _comparable(wire)
        self._sent.clear()
        self._has(wire)
        self._fire(covered)
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
        self._fire(covered, Failure(error))
        return True

    def _has(self, fields: Mapping[str, Any]) -> None:
        """The registry has our service, with these *fields*."""
        self._registrations += 1
        self._isRegistered = True
        # An update that is under way may have had its effect before or after.
        self._known = None if self._flying else fields
        if not self._flying:
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

    def open(self, heartBeater: _HeartBeater, *, isKept: bool) -> None:
        """
        Let updates through the client change this state.

        :param heartBeater: sends the service's heartbeats. Only a weak reference is kept.
        :param isKept: whether the service is registered again when the registry loses it.
        """
        self._heartBeater = ref(heartBeater)
        self._isOpen = isKept
        self._isListening = False
        self._timeouts = (self.heartbeatTimeout,)
        self._states.add(self)

    def close(self, reason: Failure) -> None:
        """The service is not registered any more; updates that wait fail with *reason*."""
        self._isOpen = self._isRegistered = False
        self._known = None
        self._states.discard(self)
        self._stopWorker()
        self._fire(self._waiters, reason)

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
        if self._isRegistered and not self.isDirty and not self._flying:
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._forget)
        self._waiters = (*self._waiters, waiter)
        self.converge()
        return waiter

    def converge(self) -> None:
        """Update the service if the registry may have something else than what is desired."""
        if not self._isOpen or self._worker is not None or self._flying or not self._isRegistered or not self.isDirty:
            return
        heartBeater = self._heartBeater and self._heartBeater()
        if not heartBeater or not heartBeater.running:
            return
        if not self._isListening:
            self._isListening = True
            heartBeater.onStateChange(lambda _: self._heartBeaterChanged())
        # No other worker may begin while the first steps of this one fire Deferreds.
        beginning: Deferred[None] = Deferred()
        self._worker = beginning
        worker = self._converge()
        worker.addErrback(lambda failure: failure.trap(CancelledError, ClientClosed))
        worker.addErrback(lambda failure: self._log.failure("Updating a service failed unexpectedly", failure))
        if self._worker is not beginning:
            worker.cancel()
        elif worker.called:
            self._worker = None
        else:
            self._worker = worker
            worker.addBoth(self._workerEnded, worker)

    def _workerEnded(self, _: object, worker: Deferred[None]) -> None:
        if self._worker is worker:
            self._worker = None
            self.converge()

    def _heartBeaterChanged(self) -> None:
        heartBeater = self._heartBeater and self._heartBeater()
        if heartBeater and heartBeater.running:
            self.converge()
        else:
            self._stopWorker()

    def _stopWorker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()

    @returnsDeferred
    async def _converge(self) -> None:
        backoff = Backoff(_SHORTEST_RETRY, _LONGEST_RETRY, self._states.random)
        hasFailed = False
        while self._isRegistered and self.isDirty and not self._flying:
            try:
                await self.push()
            except (CancelledError, ClientClosed):
                raise
            except ServiceRegistryError as error:
                if isinstance(error, NotFound):
                    # The next heartbeat will get a 404 too. Then the desired fields are registered.
                    self._isRegistered = False
                    heartBeater = self._heartBeater and self._heartBeater()
                    if heartBeater:
                        heartBeater.sendNow()
                    return
                if not hasFailed and backoff.failures:
                    hasFailed = True
                    self._log.warn(
                        "Service {serviceId} can't be updated: {reason} (retrying)",
                        serviceId=self.serviceId,
                        reason=str(error),
                    )
                await self._states.pause(backoff.next())
        if hasFailed and not self.isDirty:
            self._log.info("Service {serviceId} is updated", serviceId=self.serviceId)

    async def push(self) -> None:
        """
        Update the service once.

        A change that the registry refuses is undone, and the Deferreds that wait for it fail. An error is raised only
        if there is nothing to undo.
        """
        turns = self._states.turns
        await turns.take(float("inf"))
        try:
            fields, wire, known, covered = self.fields, self.wire(), self._known, self._waiters
            changes = {
                name: value
                for name, value in _comparable(wire).items()
                if known is None or _comparable(known).get(name) != value
            }
            isCertain = await self._put(changes)
        except APIError as error:
            if not (_isFinal(error) and self._takeBack(fields)):
                raise
            self._fire(covered, Failure(error))
        else:
            if isCertain:
                self._good = fields
                self._fire(covered)
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
        registrations = self._registrations
        self._isTangled = self._flying > 0
        self._flying += 1
        isCertain = False
        known: Mapping[str, Any] | None = None
        try:
            await self._states.put(self.serviceId, changes)
            isCertain = not self._isTangled and registrations == self._registrations
            if isCertain and (self._known is not None or set(_FIELDS) <= changes.keys()):
                known = {**(self._known or {}), **changes}
            if isCertain and timeout is not None:
                self._setTimeouts((timeout,))
        except APIError as error:
            if not isinstance(error, (NotFound, ServerError)) and not self._isTangled:
                # It had no effect.
                known = self._known if registrations == self._registrations else None
                if timeout is not None:
                    self._setTimeouts(timeoutsBefore)
            raise
        finally:
            self._flying -= 1
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

    # -- waiting Deferreds

    def _forget(self, waiter: Deferred[None]) -> None:
        self._waiters = tuple(other for other in self._waiters if other is not waiter)

    def _fire(self, waiters: Sequence[Deferred[None]], failure: Failure | None = None) -> None:
        fired = [waiter for waiter in waiters if waiter in self._waiters]
        self._waiters = tuple(waiter for waiter in self._waiters if waiter not in fired)
        for waiter in fired:
            if failure is None:
                waiter.callback(None)
            else:
                waiter.errback(failure)


def _isFinal(error: APIError) -> bool:
    """Whether the registry refuses the request, now and later."""
    return isinstance(error, (BadRequest, Forbidden))


def _plain(value: Any) -> Any:
    """A field as the registry returns it."""
    return list(value) if isinstance(value, tuple) else value


def _comparable(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    given = {name: _plain(fields[name]) for name in _FIELDS if fields.get(name) is not None}
    return {**_DEFAULTS, **given}
