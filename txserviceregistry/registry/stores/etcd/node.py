"""
One node of a cluster: its membership, the time for which it may acknowledge heartbeats from memory, and its part in
the votes by which services expire. Its keys in etcd are behind :class:`INodeKeys`.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import Interface

from ....util.deferred import PrioritySemaphore, Waiters
from ....util.logs import Logger, Outage
from ..interfaces import IStoreListener, NoSuchObject, StoreUnavailable
from .votes import Evidence, Registration, Status, Votes

#: A node's votes list at most this number of registrations, divided by the number of nodes plus one. So its status,
#: with the answers to all other votes, fits into one request to etcd (1.5 MB; a registration has 19 bytes, an answer
#: 15).
LISTED = 60_000
#: Seconds that a node's key outlives the node, unless etcd grants more.
PRESENCE = 5
#: Seconds between two renewals, and at least between two writes of the status.
RENEWAL = 0.5
PUBLICATION = 0.25
#: Seconds before the end of its lease at which a node stops to acknowledge heartbeats.
SAFETY = 2.0
#: Seconds that a heartbeat waits for the vote that closes its service.
VOTE = 0.5
#: Seconds without its own status on the watch after which a node reads everything again.
DEAF = 2.0
#: Seconds between two attempts.
PAUSE = 0.2
#: Expirations under way at once: two or three groups of changes, so that changes of clients do not wait for thousands.
EXPIRING = 100


class INodeKeys(Interface):
    """
    The work in etcd of a node with this *name*, and the key that was *created* by this revision. Every Deferred may
    fail with :class:`StoreUnavailable`: the outcome is unknown then. Those of `bool` fire with whether it was done.
    """

    def join(name: str, seconds: int, status: Status) -> Deferred[tuple[int, float]]:
        """
        Write the node's key with a lease of its own, and ``joins``, in one transaction. Fires with the create revision
        of the key, and the seconds that etcd granted for the lease.
        """

    def load() -> Deferred[None]:
        """Read everything, as it is at one revision, into the node and the registrations, and watch from there on."""

    def renew(name: str) -> Deferred[bool]:
        """Keep the node's lease alive, if it exists."""

    def publish(name: str, created: int, status: Status) -> Deferred[bool]:
        """Write the status, if the node's key is there."""

    def touch(registration: Registration) -> Deferred[bool]:
        """Write the registration's ``seen``, if its record exists."""

    def expire(name: str, created: int, registration: Registration, evidence: Evidence) -> Deferred[bool]:
        """Delete the record and add its event, if all is as noted; :class:`NoSuchObject` if it has ended before."""

    def seen(registration: Registration) -> int:
        """The revision of the registration's last touch that the watch has shown; 0 for none."""

    def leave(name: str) -> Deferred[None]:
        """End the watch, and delete the node's key; *name* is empty if the node is not a member."""


@attrs.define(eq=False)
class _Session:
    """One membership; times are on CLOCK_BOOTTIME."""

    name: str
    created: int
    lifetime: float
    votes: Votes
    renewed: float  # when the last renewal began
    confirmed: float  # and the last one that succeeded
    validUntil: float = 0.0  # when the node stops to acknowledge heartbeats; 0 before everything has been read
    shown: float = 0.0  # when the watch showed the node's own status last
    read: float = -DEAF  # when everything was read last
    trouble: str = ""  # why no renewal has succeeded since
    isReading: bool = False
    isSuspended: bool = False  # whether the registrations know that the node is not valid


@attrs.define(eq=False, repr=False, slots=False)
class Node:
    _log = Logger()
    _keys: INodeKeys
    _clock: IReactorTime
    _seconds: Callable[[], float]  # the time on CLOCK_BOOTTIME, which counts on while the machine sleeps
    _registrations: IStoreListener = attrs.field(init=False)
    joins: int = attrs.field(default=0, init=False)  # the revision of the last join of any node
    _session: _Session | None = attrs.field(default=None, init=False)
    _touching: Counter[Registration] = attrs.field(factory=Counter, init=False)
    _opening: dict[Registration, Waiters[None]] = attrs.field(factory=dict, init=False)
    _background: set[Deferred[Any]] = attrs.field(factory=set, init=False)
    _expiring: PrioritySemaphore = attrs.field(factory=lambda: PrioritySemaphore(EXPIRING), init=False)

    def __attrs_post_init__(self) -> None:
        began = "Not a valid member of the cluster; heartbeats are refused (retrying): {reason}"
        self._outage = Outage(self._log, self._clock, began, "Valid member of the cluster again after {seconds:.1f} s")
        began = "Can't read everything from etcd; this node delays expirations (retrying): {reason}"
        self._reading = Outage(self._log, self._clock, began, "Everything read after {seconds:.1f} s", after=5)

    # -- membership

    def start(self, registrations: IStoreListener) -> Deferred[None]:
        """
        Join the cluster, and stay a member, under a new name after each loss. Fires when it has joined for the first
        time and has read everything; fails with `CancelledError` if it is stopped before that.
        """
        self._registrations = registrations
        return self._owned(self._retried(self._join))

    async def stop(self) -> None:
        """Leave the cluster; nothing is left on the reactor."""
        name, self._session = self.name, None
        for work in list(self._background):
            work.cancel()
        self._opened(*self._opening)
        # A lease that can't be ended runs out.
        with suppress(StoreUnavailable):
            await self._keys.leave(name)

    async def _retried(self, steps: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await steps()
            except CancelledError:
                raise
            except StoreUnavailable as error:
                (self._reading if self.isValid else self._outage).failed(reason=str(error))
            except Exception:
                # No data in etcd may end this: a node that does not vote keeps all services from expiring.
                (self._reading if self.isValid else self._outage).failed(Failure(), reason="unexpected error")
            await deferLater(self._clock, PAUSE)

    async def _join(self) -> None:
        name, sent = secrets.token_hex(8), self._seconds()
        created, lifetime = await self._keys.join(name, PRESENCE, Status(0))
        calls = self._secondsLeft, self._registrations.leaveTo, self._opened
        votes = Votes(name, *calls, lambda *vote: self._inBackground(self._expire(session, *vote)))
        # The watch delivers to it from now on, but it acknowledges nothing before everything has been read.
        self._session = session = _Session(name, created, lifetime, votes, renewed=sent, confirmed=sent)
        self._inBackground(self._write(session))
        await self._read(session)
        if self._session is not session:
            raise StoreUnavailable("this node's key was gone before everything was read")
        session.validUntil = session.confirmed + lifetime - SAFETY
        self._outage.succeeded()

    async def _read(self, session: _Session) -> None:
        """Read everything, until that succeeds or the membership ends, and give every service a full timeout."""

        async def load() -> None:
            if self._session is session:
                await self._keys.load()

        session.isReading = True
        session.votes.giveUp()
        if (early := session.read + DEAF - self._seconds()) > 0:
            # A watch that ends again and again must not keep etcd and the node busy.
            await deferLater(self._clock, early)
        await self._retried(load)
        if self._session is session:
            session.isReading = False
            session.shown = session.read = self._seconds()
            self._registrations.renewAll()
            self._reading.succeeded()

    async def _write(self, session: _Session) -> None:
        """Renew the lease, and publish the status, until the membership ends."""
        while True:
            await deferLater(self._clock, PUBLICATION)
            if self._session is not session:
                return
            now = self._seconds()
            isRenewal = now - session.renewed >= RENEWAL
            try:
                if isRenewal:
                    session.renewed = now
                    if not await self._keys.renew(session.name):
                        return self._lose(session, "the lease of this node's key has ended")
                if (isRenewal or session.votes.isChanged) and not await self._keys.publish(
                    session.name, session.created, session.votes.status()
                ):
                    return self._lose(session, "this node's key is gone")
            except StoreUnavailable as error:
                session.trouble = f" ({error})"
                continue
            if not isRenewal or self._session is not session:
                continue
            session.confirmed, session.trouble = now, ""
            if session.validUntil:
                if self._seconds() > session.validUntil:
                    # Heartbeats were refused meanwhile.
                    session.isSuspended = False
                    session.votes.giveUp()
                    self._registrations.renewAll()
                    self._outage.succeeded()
                session.validUntil = max(session.validUntil, now + session.lifetime - SAFETY)

    def _lose(self, session: _Session, reason: str) -> None:
        if self._session is session:
            self._session = None
            self._registrations.suspend()
            self._outage.failed(reason=reason)
            self._opened(*self._opening)
            if session.validUntil:
                self._inBackground(self._retried(self._join))

    @property
    def name(self) -> str:
        """Empty while the node is not a member."""
        return "" if self._session is None else self._session.name

    @property
    def votes(self) -> Votes | None:
        return None if self._session is None else self._session.votes

    @property
    def members(self) -> Sequence[str]:
        """The own name first; none while the node is not a member."""
        return [] if self._session is None else [self._session.name, *sorted(self._session.votes.members)]

    @property
    def isValid(self) -> bool:
        return (session := self._session) is not None and self._seconds() < session.validUntil

    # -- what the watch shows

    def statusChanged(self, name: str, status: Status | None) -> None:
        """The *status* is ``None`` if it cannot be read."""
        if (session := self._session) is None:
            return
        if name == session.name:
            session.shown = self._seconds()
        elif status is None:
            session.votes.members.setdefault(name, -1)
        else:
            session.votes.observe(name, status)

    def nodeGone(self, name: str) -> None:
        """A node's key was deleted, maybe with its lease."""
        if (session := self._session) is None:
            return
        if name == session.name:
            self._lose(session, "this node's key is gone")
        else:
            session.votes.leave(name)
            self._registrations.renewAll()

    def membersAre(self, names: set[str]) -> None:
        """These nodes are members, and no others: called while everything is read."""
        if (session := self._session) is not None:
            for name in set(session.votes.members) - names:
                session.votes.leave(name)

    def watchEnded(self) -> None:
        if (session := self._session) is not None and not session.isReading:
            self._inBackground(self._read(session))

    # -- votes

    def tick(self) -> None:
        """Take part in the votes. Called a few times a second, except at a tick that finds a stall."""
        session, now = self._session, self._seconds()
        if session is None or not session.validUntil:
            return
        if now > session.validUntil and not session.isSuspended:
            session.isSuspended = True
            self._registrations.suspend()
            self._outage.failed(reason=f"etcd did not confirm this node's lease in time{session.trouble}")
        if now - session.shown > DEAF:
            self.watchEnded()
        if session.isReading or not self.isValid:
            return
        votes = session.votes
        votes.answer()
        due: Mapping[Registration, int] = self._registrations.due(LISTED // (len(votes.members) + 2) - votes.listed)
        new = {}
        for registration, timestamp in due.items():
            if registration in self._touching or votes.isInVote(registration):
                self._registrations.lookAgain(registration)
            else:
                new[registration] = Evidence(self._keys.seen(registration), self.joins, timestamp)
        if new:
            votes.open(new)

    def _secondsLeft(self, registration: Registration) -> float:
        isTouched = registration in self._touching
        return float((self._registrations.timeout if isTouched else self._registrations.secondsLeft)(registration))

    async def _expire(self, session: _Session, number: int, registration: Registration, evidence: Evidence) -> None:
        hasExpired = False
        await self._expiring.take(number)
        try:
            if self._session is session:
                hasExpired = await self._keys.expire(session.name, session.created, registration, evidence)
        except NoSuchObject:
            self._registrations.ended(registration)
        except CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, StoreUnavailable):
                self._log.failure("Expiration of a service failed; its outcome is being determined")
            if not await self._settle(session, registration):
                # By this transaction, or by what another node did.
                self._registrations.ended(registration)
        finally:
            self._expiring.give()
        # In this order: what the end of the vote opens must not be acknowledged any more.
        if hasExpired:
            self._registrations.expired(registration)
        else:
            self._registrations.lookAgain(registration)
        session.votes.decided(number, registration)

    async def _settle(self, session: _Session, registration: Registration) -> bool:
        """Make sure that a transaction with an unknown outcome can't succeed any more; whether the record exists."""
        while self._session is session:
            try:
                return await self._keys.touch(registration)
            except StoreUnavailable:
                await deferLater(self._clock, PAUSE)
        # Without its key, none of this node's transactions can succeed any more.
        return True

    # -- heartbeats

    def closed(self, tenant: str) -> Mapping[str, Any]:
        return {} if self._session is None else self._session.votes.closed(tenant)

    async def admit(self, registration: Registration) -> bool:
        """
        Let a heartbeat of a closed registration pass; returns whether that exists. Fails with
        :class:`StoreUnavailable` if that is unknown, or this node may not acknowledge heartbeats.
        """
        if self._validSession().votes.closing(registration):
            waiters = self._opening.setdefault(registration, Waiters())
            with suppress(TimeoutError):
                await waiters.wait().addTimeout(VOTE, self._clock)
        while True:
            session = self._validSession()
            votes = session.votes.closing(registration)
            if not votes:
                # The watch shows the end of a registration before that of its vote.
                return bool(self._registrations.timeout(registration))
            self._touching[registration] += 1
            try:
                exists = await self._keys.touch(registration)
            finally:
                self._touching[registration] -= 1
                if not self._touching[registration]:
                    del self._touching[registration]
            if not exists:
                return False
            if self._session is session:
                session.votes.touched(registration, votes)

    def _validSession(self) -> _Session:
        session = self._session
        if session is None or not self.isValid:
            raise StoreUnavailable("this node is not a valid member of the cluster now")
        return session

    def _opened(self, *registrations: Registration) -> None:
        for each in registrations:
            if each in self._opening:
                self._opening.pop(each).fire(None)

    def _owned(self, work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        """Start some work, which ends with :meth:`stop`."""
        running = Deferred.fromCoroutine(work)
        self._background.add(running)

        def done(result: Any) -> Any:
            self._background.discard(running)
            return result

        return running.addBoth(done)

    def _inBackground(self, work: Coroutine[Deferred[Any], Any, None]) -> None:
        def failed(failure: Failure) -> None:
            if not failure.check(StoreUnavailable, CancelledError):
                self._log.failure("A node's work in the cluster failed", failure)

        self._owned(work).addErrback(failed)
