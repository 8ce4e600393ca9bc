"""
A registry that shares its store with others: it notices their changes, any of them takes any heartbeat, services that
it does not know yet are looked up, and a service expires when all of them agree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import NoReturn

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from ..util.concurrency import PrioritySemaphore
from ..util.deferred import returnsDeferred
from ..util.singleflight import SingleFlight
from .expiry.deadlines import ServiceState
from .expiry.livetable import LiveServices
from .faults import Fault, notFound, systemFailure
from .scopes import kindOf
from .stores.interfaces import NoSuchObject, ServiceSummary
from .stores.locks import readSummary
from .stores.shared import ISharedStore, IStoreListener
from .subscribers import Subscribers
from .tasks import TaskOwner, available
from .tokens import HeartbeatTokens, heartbeatRefused

#: How many services are looked up in the store at once because a heartbeat named an unknown one, and how many may wait
#: for that: clients that make up ids and tokens must not keep the store from its work.
_LOOKS = 4
_WAITING = 400

#: Seconds that a registration waits for a service with its id, or in its place in the account, that may have expired;
#: and from one look to the next.
_PATIENCE = 1.0
_PAUSE = 0.05

#: Seconds that a heartbeat may wait until it is decided whether the service has expired.
ADMISSION = 1.0


def _undecided(failure: object, seconds: float) -> NoReturn:
    raise systemFailure("It could not be decided in time whether the service has expired")


@implementer(IStoreListener)
class Cluster:
    """
    One registry among several over one store.

    :param store: the store.
    :param services: the services, whose heartbeats this registry takes only in part.
    :param subscribers: the requests that wait for events.
    :param clock: the reactor.
    :param tasks: owns the heartbeats that are not acknowledged at once.
    :param acknowledge: called with each service whose heartbeat is acknowledged.
    :param onExpired: called with each service whose expiration this registry has persisted.
    :ivar waiting: how many heartbeats wait for the store.
    """

    def __init__(
        self,
        store: ISharedStore,
        services: LiveServices,
        subscribers: Subscribers,
        clock: IReactorTime,
        tasks: TaskOwner,
        acknowledge: Callable[[ServiceState], None],
        onExpired: Callable[[ServiceState], None],
    ) -> None:
        self.waiting = 0
        self._store = store
        self._live = services
        self._deadlines = services.deadlines
        self._subscribers = subscribers
        self._clock = clock
        self._tasks = tasks
        self._acknowledge = acknowledge
        self._onExpired = onExpired
        self._due: deque[ServiceState] = deque()
        self._looking: SingleFlight[tuple[str, str], None] = SingleFlight()
        self._looks = PrioritySemaphore(_LOOKS)
        services.share(self._due.extend, store.tick)

    async def start(self) -> None:
        """Join the registries that share the store."""
        await self._store.join(self)

    # -- heartbeats

    def take(
        self, tenant: str, heartbeats: Iterable[tuple[str, str]], tokens: HeartbeatTokens
    ) -> Sequence[str | Deferred[str]]:
        """
        Take heartbeats of open services at once, from memory.

        :param heartbeats: service ids and tokens.
        :return: the next token for each; for those that are not acknowledged at once a Deferred, which fires within
            :data:`ADMISSION` seconds, or fails with a :class:`~txserviceregistry.registry.faults.Fault`.
        """
        states, following = self._deadlines.ofTenant(tenant), tokens.following()
        isValid, closed = self._store.isValid, self._store.closed(tenant)
        outcomes: list[str | Deferred[str]] = []
        for id, token in heartbeats:
            if not isValid:
                outcomes.append(fail(systemFailure("This node is not a valid member of the cluster")))
                continue
            state = states.get(id)
            nextToken = None
            if state is not None and state.incarnation not in closed:
                if not state.proof:
                    state.proof = tokens.proof(tenant, id, state.incarnation)
                nextToken = following(state.proof, token)
            if state is None or nextToken is None:
                # Also for an unknown token: another registry may know a later incarnation.
                admitted = self._tasks.start(self._admit(tenant, id, token, tokens))
                outcomes.append(admitted.addTimeout(ADMISSION, self._clock, onTimeoutCancel=_undecided))
            else:
                self._acknowledge(state)
                outcomes.append(nextToken)
        return outcomes

    @returnsDeferred
    async def takeAll(
        self, tenant: str, heartbeats: Iterable[tuple[str, str]], tokens: HeartbeatTokens
    ) -> Sequence[str | Fault]:
        """:meth:`take`, and wait for all outcomes."""
        outcomes: list[str | Fault] = []
        for outcome in self.take(tenant, heartbeats, tokens):
            try:
                outcomes.append(outcome if isinstance(outcome, str) else await outcome)
            except Fault as fault:
                outcomes.append(fault)
        return outcomes

    async def _admit(self, tenant: str, id: str, token: str, tokens: HeartbeatTokens) -> str:
        """Let a heartbeat pass that cannot be acknowledged from memory at once; returns the next token."""
        self.waiting += 1
        try:
            return await self._admitWaiting(tenant, id, token, tokens)
        finally:
            self.waiting -= 1

    async def _admitWaiting(self, tenant: str, id: str, token: str, tokens: HeartbeatTokens) -> str:
        state, nextToken = self._known(tenant, id, token, tokens)
        while True:
            if state is None or nextToken is None:
                await self.look(tenant, id)
                state, nextToken = self._known(tenant, id, token, tokens)
                if state is None:
                    raise notFound(kindOf(tenant), id)
                if nextToken is None:
                    raise heartbeatRefused(state, token)
            if await available(self._store.admit(tenant, state.incarnation)):
                if self._deadlines.registered((tenant, state.incarnation)) is state:
                    self._acknowledge(state)
                    return nextToken
            else:
                # This incarnation has ended. There may be another one.
                self._deadlines.forget(tenant, id, state.incarnation)
            state = None

    def _known(
        self, tenant: str, id: str, token: str, tokens: HeartbeatTokens
    ) -> tuple[ServiceState | None, str | None]:
        state = self._deadlines.active(tenant, id)
        if state is None:
            return None, None
        return state, tokens.following()(state.proof or tokens.proof(tenant, id, state.incarnation), token)

    async def look(self, tenant: str, id: str) -> None:
        """
        Look a service up in the store.

        :raises Fault: 503 if the store is unavailable, or too many are being looked up.
        """
        if len(self._looking) >= _WAITING:
            raise systemFailure("Too many unknown services are being looked up")
        await available(self._looking.do((tenant, id), lambda: self._look(tenant, id)))

    @returnsDeferred
    async def _look(self, tenant: str, id: str) -> None:
        await self._looks.take(inf)
        known = self._deadlines.active(tenant, id)
        try:
            self._live.track(await readSummary(self._store, tenant, id))
        except NoSuchObject:
            if known is not None:
                self._deadlines.forget(tenant, id, known.incarnation)
        finally:
            self._looks.give()

    # -- registrations

    async def untilDecided(self, tenant: str, id: str | None) -> bool:
        """
        Wait for a service that may have expired: until it has, or is known to be alive, or a second has passed.

        :param id: the service; ``None`` for any of the tenant's.
        :return: whether there was such a service, and it is decided.
        """
        end = self._clock.seconds() + _PATIENCE
        hasWaited = False
        while self._mayHaveExpired(tenant, id):
            if self._clock.seconds() >= end:
                return False
            hasWaited = True
            await deferLater(self._clock, _PAUSE)
        return hasWaited

    def _mayHaveExpired(self, tenant: str, id: str | None) -> bool:
        closed = self._store.closed(tenant)
        now = self._deadlines.now()
        if id is None:
            return any(state.incarnation in closed for state in self._deadlines.ofTenant(tenant).values())
        state = self._deadlines.active(tenant, id)
        return state is not None and (state.incarnation in closed or state.deadline <= now)

    # -- IStoreListener

    def appeared(self, service: ServiceSummary) -> None:
        self._live.track(service)

    def renew(self, registration: tuple[str, str]) -> None:
        state = self._deadlines.registered(registration)
        if state is not None:
            self._deadlines.restart(state, state.timeout)

    def vanished(self, tenant: str, id: str, incarnation: str) -> None:
        self._deadlines.forget(tenant, id, incarnation)

    def eventAdded(self, tenant: str, type: str | None) -> None:
        self._subscribers.notify((tenant,), type)

    def synchronized(self, services: Sequence[ServiceSummary]) -> None:
        self._live.synchronize(services)

    def suspend(self) -> None:
        self._live.suspend()
        # New events are not noticed here: subscribers find out, and may go to another registry.
        self._subscribers.notifyAll()

    def renewAll(self) -> None:
        self._due.clear()
        self._live.renewAll()

    def secondsLeft(self, registration: tuple[str, str]) -> float:
        state = self._deadlines.registered(registration)
        return -1.0 if state is None else state.deadline - self._deadlines.now()

    def timeout(self, registration: tuple[str, str]) -> float:
        state = self._deadlines.registered(registration)
        return 0.0 if state is None else state.timeout

    def due(self, count: int) -> Mapping[tuple[str, str], int]:
        now = self._deadlines.now()
        due: dict[tuple[str, str], int] = {}
        while self._due and len(due) < count:
            state = self._due.popleft()
            registration = state.tenant, state.incarnation
            # A heartbeat that came since has put it back into the queue.
            if state.deadline <= now and self._deadlines.registered(registration) is state:
                (due[registration],) = self._live.timestamps([state])
        return due

    def lookAgain(self, registration: tuple[str, str]) -> None:
        state = self._deadlines.registered(registration)
        if state is not None:
            self._deadlines.requeue(state)

    def leaveTo(self, registration: tuple[str, str]) -> None:
        state = self._deadlines.registered(registration)
        if state is not None and state.deadline > self._deadlines.now():
            self._deadlines.requeue(state)

    def expired(self, registration: tuple[str, str]) -> None:
        state = self._deadlines.registered(registration)
        if state is not None:
            self._live.noteExpired(state)
            self._onExpired(state)

    def ended(self, registration: tuple[str, str]) -> None:
        state = self._deadlines.registered(registration)
        if state is not None:
            self._deadlines.forget(state.tenant, state.id, state.incarnation)
