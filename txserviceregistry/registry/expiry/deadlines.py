"""
When services expire: a clock that tolerates stalls (:class:`StallTolerantClock`), and the deadline of each service
(:class:`Deadlines`). What follows when a deadline has passed is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ...util.logs import Logger

#: The proof of a registration that takes no heartbeats; no token has it.
REFUSED = "refused"
# No entry of the queue has this deadline: it marks a service that the queue no longer holds.
NOWHERE = float("-inf")


class StallTolerantClock:
    """
    The time by which deadlines are measured: monotonic, in seconds, advancing by at most one second between two turns
    of the reactor.

    A registry that was stopped, starved of CPU or suspended received no heartbeats, and must not expire services for
    it. So a turn that comes late is a *stall*: the time stands still for its length, and goes on once the input that
    waited in the sockets has had a turn to be read. Only when turn after turn comes late does the time go on
    regardless, a second at a time.

    :param clock: the reactor; its seconds should be monotonic (:mod:`txserviceregistry.clock`).
    :param onTick: is called at every tick, except the one that finds a stall: the input that waited is read first.
    :ivar stalls: how many stalls there have been.
    :ivar stalledSeconds: their total length.
    """

    #: Seconds between two ticks.
    TICK = 0.25
    #: The most that the time advances from one tick to the next, and how late a tick may come before it is a stall.
    LONGEST_STEP = 1.0

    _log = Logger()

    def __init__(self, clock: IReactorTime, onTick: Callable[[], None]) -> None:
        self._clock = clock
        self._onTick = onTick
        # When the last tick was by the reactor; the time then, and the latest that was told.
        self._ticked = clock.seconds()
        self._time = self._latest = self._ticked
        self.stalls = 0
        self.stalledSeconds = 0.0
        self._lateTicks = 0
        self._stalledFor = 0.0
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Start or continue: the time since the clock was made, or stopped, does not count."""
        self._ticked, self._time = self._clock.seconds(), self._latest
        self._call = self._clock.callLater(self.TICK, self._tick)

    def stop(self) -> None:
        """Stop the ticks; nothing is left on the reactor."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def now(self) -> float:
        """The time in seconds, from an arbitrary start."""
        gap = self._clock.seconds() - self._ticked
        if gap <= self.TICK + self.LONGEST_STEP:
            self._advance(gap)
        return self._latest

    def _advance(self, gap: float) -> None:
        self._latest = max(self._latest, self._time + min(gap, self.LONGEST_STEP))

    def _tick(self) -> None:
        self._call = self._clock.callLater(self.TICK, self._tick)
        seconds = self._clock.seconds()
        gap = seconds - self._ticked
        isLate = gap > self.TICK + self.LONGEST_STEP
        if isLate:
            self._lateTicks += 1
            self._stalledFor += gap - self.TICK
        elif self._lateTicks:
            self._endStall()
        standsStill = isLate and self._lateTicks == 1
        if not standsStill:
            self._advance(gap)
        self._ticked, self._time = seconds, self._latest
        if not standsStill:
            self._onTick()

    def _endStall(self) -> None:
        self._log.warn(
            "Registry stalled for {seconds:.1f} s (stopped, suspended or starved of CPU); "
            "all heartbeat deadlines extended by that time",
            seconds=self._stalledFor,
            stalls=self._lateTicks,
        )
        self.stalls += 1
        self.stalledSeconds += self._stalledFor
        self._lateTicks, self._stalledFor = 0, 0.0


@attrs.define(eq=False, weakref_slot=False)
class ServiceState:
    """
    One incarnation of a service or a lock, from its registration to its end.

    :ivar tenant: of a lock, its scope (:mod:`~txserviceregistry.registry.model`).
    :ivar timeout: in seconds.
    :ivar deadline: in seconds of the :class:`StallTolerantClock`.
    :ivar lastSeen: when its last heartbeat came, in milliseconds since the epoch; ``None`` before the first.
    :ivar proof: the common part of its tokens; empty before its first heartbeat here.
    :ivar asked: when others were last asked whether they have received a heartbeat.
    :ivar aliveUntil: its deadline at another registry, as far as that has told.
    """

    tenant: str
    id: str
    incarnation: str
    timeout: int
    deadline: float
    lastSeen: int | None
    # The deadline under which the queue holds this; other entries of it in the queue are void.
    _queued: float = NOWHERE
    proof: str = ""
    asked: float = NOWHERE
    aliveUntil: float = NOWHERE

    @property
    def name(self) -> tuple[str, str, str]:
        """Tenant, id and incarnation."""
        return self.tenant, self.id, self.incarnation

    def heartbeat(self, now: float, lastSeen: int) -> None:
        """Take a heartbeat that came *now*, which is *lastSeen* by the wall clock: the deadline moves."""
        self.deadline = now + self.timeout
        self.lastSeen = lastSeen

    def __lt__(self, other: ServiceState) -> bool:
        # For the queue, where two services may have the same deadline: any order will do.
        return False
