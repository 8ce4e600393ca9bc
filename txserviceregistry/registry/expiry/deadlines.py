"""
Who dies when: the time that services live by (:class:`StallTolerantClock`), and each service's deadline
(:class:`Deadlines`).

Nothing here knows the store. That a deadline has passed is found out here; what follows from it is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heappop, heappush, heapreplace

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ...util.logs import Logger

# No entry of the queue has this deadline: it stands for a life that the queue holds no more.
_NOWHERE = float("-inf")


class StallTolerantClock:
    """
    The time that services live by: monotonic, in seconds, and advancing by at most one second between two turns of the
    reactor.

    A registry that was stopped, starved of CPU or suspended hears nobody, and must blame nobody for it. So a turn that
    comes late is a *stall*: life stands still for its length, and goes on once what waited in the sockets meanwhile
    has had a turn to be read. Only when turn after turn comes late does life go on regardless, a second at a time.

    :param clock: the reactor; its seconds should be monotonic (:mod:`txserviceregistry.clock`).
    :param onTick: is called at every tick, but for the one that finds a stall: the input that waited is read first.
    :ivar stalls: how many stalls there have been.
    :ivar stalledSeconds: how long they were, all together.
    """

    #: Seconds between two ticks.
    TICK = 0.25
    #: The most that life advances from one tick to the next, and how late a tick may come before it is a stall.
    LONGEST_STEP = 1.0

    _log = Logger()

    def __init__(self, clock: IReactorTime, onTick: Callable[[], None]) -> None:
        self._clock = clock
        self._onTick = onTick
        self._ticked = clock.seconds()
        # Life is the clock's time less what was lost: so it takes no rounding errors from adding up steps.
        self._lost = 0.0
        self._latest = self._ticked
        self.stalls = 0
        self.stalledSeconds = 0.0
        self._stalls = 0
        self._stalledFor = 0.0
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Let life begin, or go on: the time since the clock was made, or stopped, does not count."""
        self._ticked = self._clock.seconds()
        self._lost = self._ticked - self._latest
        self._call = self._clock.callLater(self.TICK, self._tick)

    def stop(self) -> None:
        """No more ticks; nothing is left on the reactor."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def now(self) -> float:
        """Seconds of life; they mean something in relation to each other only."""
        gap = self._clock.seconds() - self._ticked
        if gap <= self.TICK + self.LONGEST_STEP:
            self._advance(gap)
        return self._latest

    def _advance(self, gap: float) -> None:
        self._latest = max(self._latest, self._ticked + min(gap, self.LONGEST_STEP) - self._lost)

    def _tick(self) -> None:
        seconds = self._clock.seconds()
        gap = seconds - self._ticked
        stalled = gap > self.TICK + self.LONGEST_STEP
        if stalled:
            self._stalls += 1
            self._stalledFor += gap - self.TICK
        elif self._stalls:
            self._tellOfStall()
        waited = self._stalls == 1 and stalled
        if not waited:
            self._advance(gap)
        self._ticked = seconds
        if self._latest != seconds - self._lost:
            self._lost = seconds - self._latest
        self._call = self._clock.callLater(self.TICK, self._tick)
        if not waited:
            self._onTick()

    def _tellOfStall(self) -> None:
        self._log.warn(
            "The registry stood still for {seconds:.1f} s (stopped, suspended or starved of CPU): "
            "every service gets that time back",
            seconds=self._stalledFor,
            stalls=self._stalls,
        )
        self.stalls += 1
        self.stalledSeconds += self._stalledFor
        self._stalls, self._stalledFor = 0, 0.0


@attrs.define(eq=False, weakref_slot=False)
class ServiceState:
    """
    One life of one service, from its registration to its end.

    :ivar timeout: in seconds.
    :ivar deadline: in seconds of life.
    :ivar lastSeen: when its last heartbeat came, in milliseconds since the epoch; ``None`` before the first.
    :ivar proof: what its tokens have in common; empty before its first heartbeat here.
    """

    tenant: str
    id: str
    incarnation: str
    timeout: int
    deadline: float
    lastSeen: int | None
    # The time under which the queue holds this life; the queue's other entries of it count for nothing.
    _queued: float
    proof: str = ""

    def beat(self, now: float, lastSeen: int) -> None:
        """
        A heartbeat came: there is a full timeout from then on.

        :param now: when it came, in seconds of life.
        :param lastSeen: the same in milliseconds since the epoch.
        """
        self.deadline = now + self.timeout
        self.lastSeen = lastSeen

    def __lt__(self, other: ServiceState) -> bool:
        # Asked by the queue for lives with the same deadline: any order will do.
        return False


_NOBODY: Mapping[str, ServiceState] = {}


class Deadlines:
    """
    Every service's deadline.

    A life is *alive* until its deadline, then *dying* until it is forgotten, which is when the store has buried it. A
    heartbeat only moves a number: the queue finds out when the time comes that the deadline has moved on.

    Where others take heartbeats too, what is known here is less than the truth (*areTrue* is false): then a life
    whose deadline has passed is alive until somebody who has asked calls it dead (:meth:`kill`).

    :param now: seconds of life.
    :param areTrue: whether all heartbeats come by here.
    """

    def __init__(self, now: Callable[[], float], areTrue: bool = True) -> None:
        self._now = now
        self._areTrue = areTrue
        self._alive: dict[str, dict[str, ServiceState]] = {}
        self._dying: dict[str, dict[str, ServiceState]] = {}
        # What was last said of whose services are dying, as long as it is so.
        self._said: dict[str, frozenset[str]] = {}
        self._queue: list[tuple[float, ServiceState]] = []

    def begin(self, tenant: str, id: str, incarnation: str, timeout: int, lastSeen: int | None = None) -> ServiceState:
        """
        A life begins, or becomes known; it has a full *timeout* (seconds) from now on. An earlier life of the same id
        that is thought to be alive is over.
        """
        deadline = self._now() + timeout
        life = ServiceState(tenant, id, incarnation, timeout, deadline, lastSeen, deadline)
        lives = self._alive.setdefault(tenant, {})
        if id in lives:
            lives[id]._queued = _NOWHERE
        lives[id] = life
        heappush(self._queue, (deadline, life))
        return life

    def alive(self, tenant: str, id: str) -> ServiceState | None:
        """The life of the service with this *id*, if its deadline is still to come."""
        lives = self._alive.get(tenant)
        life = lives.get(id) if lives is not None else None
        return life if life is not None and (self._now() < life.deadline or not self._areTrue) else None

    def ofTenant(self, tenant: str) -> Mapping[str, ServiceState]:
        """All of *tenant*'s that are alive, by id, and those whose deadline has passed since it was looked for."""
        return self._alive.get(tenant, _NOBODY)

    def everybody(self) -> list[ServiceState]:
        """All that are alive."""
        return [life for lives in self._alive.values() for life in lives.values()]

    def beat(self, life: ServiceState, lastSeen: int) -> None:
        """A heartbeat: *life*, which has to be alive, has a full timeout from now on."""
        life.beat(self._now(), lastSeen)

    def restart(self, life: ServiceState, timeout: int) -> None:
        """*life*, which has to be alive, has another timeout (seconds), and a full one from now on."""
        life.timeout = timeout
        life.deadline = self._now() + timeout
        if life.deadline < life._queued:
            life._queued = life.deadline
            heappush(self._queue, (life.deadline, life))

    def count(self) -> dict[str, int]:
        """How many are alive, by tenant; those whose deadline has passed just now may be among them."""
        return {tenant: len(lives) for tenant, lives in self._alive.items()}

    @property
    def total(self) -> int:
        """How many are known, alive or dying."""
        return sum(map(len, self._alive.values())) + sum(map(len, self._dying.values()))

    def collect(self, most: int | None = None) -> tuple[list[ServiceState], bool]:
        """
        Find those whose deadline has passed; if deadlines are true, they are dying from now on.

        :param most: look at no more than so many lives; ``None`` for all that are due.
        :return: those that were still alive before; and whether there may be more. None is found twice, unless it has
            been given another deadline (:meth:`beat`, :meth:`postpone`).
        """
        now = self._now()
        dead: list[ServiceState] = []
        queue = self._queue
        looks = 0
        while queue and queue[0][0] <= now:
            if looks == most:
                return dead, True
            looks += 1
            queued, life = queue[0]
            if life._queued != queued:
                heappop(queue)
            elif life.deadline > now:
                life._queued = life.deadline
                heapreplace(queue, (life.deadline, life))
            else:
                heappop(queue)
                life._queued = _NOWHERE
                if self._areTrue:
                    self.kill(life)
                dead.append(life)
        return dead, False

    def kill(self, life: ServiceState) -> None:
        """*life*, which has to be alive, is dying from now on."""
        _take(self._alive, life, life.id)
        self._dying.setdefault(life.tenant, {})[life.incarnation] = life
        self._said.pop(life.tenant, None)

    def postpone(self, life: ServiceState, seconds: float) -> None:
        """*life*, which :meth:`collect` has found, has at least so many seconds from now on."""
        life.deadline = max(life.deadline, self._now() + seconds)
        life._queued = life.deadline
        heappush(self._queue, (life.deadline, life))

    def dying(self, tenant: str) -> frozenset[str]:
        """The incarnations of *tenant*'s services that are dying."""
        if tenant not in self._dying:
            return frozenset()
        if tenant not in self._said:
            self._said[tenant] = frozenset(self._dying[tenant])
        return self._said[tenant]

    def isDying(self, tenant: str, incarnation: str) -> bool:
        """Whether this incarnation is dying."""
        return incarnation in self._dying.get(tenant, ())

    def find(self, tenant: str, id: str, incarnation: str) -> ServiceState | None:
        """This very life, alive or dying; ``None`` if it is not known."""
        life = self._alive.get(tenant, {}).get(id)
        if life is not None and life.incarnation == incarnation:
            return life
        return self._dying.get(tenant, {}).get(incarnation)

    def forget(self, tenant: str, id: str, incarnation: str) -> None:
        """This life is over, in whatever way; that it is not known is no error."""
        life = self.find(tenant, id, incarnation)
        if life is not None:
            _take(self._alive, life, id)
            _take(self._dying, life, incarnation)
            self._said.pop(tenant, None)
            life._queued = _NOWHERE


def _take(lives: dict[str, dict[str, ServiceState]], life: ServiceState, key: str) -> None:
    ofTenant = lives.get(life.tenant, {})
    if ofTenant.get(key) is life:
        del ofTenant[key]
        if not ofTenant:
            del lives[life.tenant]
