"""
Locks in the simulated cluster: contenders with clocks of their own, of which at most one relies on a lock at any time.
"""

from __future__ import annotations

from tests.unit.registry.stores.etcd.clusterworld import World, faults
from txserviceregistry.registry.model import lockScope
from txserviceregistry.registry.stores.etcd.votes import Registration

__all__ = ["Contender", "Lock", "runLocks"]


class Lock:
    """
    A lock, whose record is in etcd.

    :ivar handOvers: how often it was acquired.
    :ivar held: the registration of the present holder, if it has not ended.
    """

    def __init__(self, world: World, timeout: float) -> None:
        self.world = world
        self.timeout = timeout
        self.contenders: list[Contender] = []
        self.handOvers = 0
        self._last: Registration | None = None

    @property
    def held(self) -> Registration | None:
        last = self._last
        return last if last is not None and self.world.truths[last].ended is None else None

    def acquire(self, contender: Contender) -> Registration | None:
        """Acquire it, if it is free."""
        if self.held is not None:
            return None
        for other in self.contenders:
            if other is not contender and other.isValid:
                raise self.world.violated(f"at {self.world.now:.2f} two rely on the lock of {self._last}")
        self._last = self.world.register(lockScope("x"), self.timeout)
        self.handOvers += 1
        return self._last


class Contender:
    """
    Acquires a lock, keeps it, releases it or stops without a word, and begins again.

    :param part: the part of the timeout for which it relies on the lock after the sending of an answered request.
    """

    def __init__(self, lock: Lock, ends: float, part: float) -> None:
        self.lock = lock
        self.world = lock.world
        self._ends = ends
        self._part = part
        # Its clock goes slow or fast by up to 1 %.
        self._rate = self.world.random.uniform(0.99, 1.01)
        self._validUntil = 0.0
        self._number = 0
        lock.contenders.append(self)
        self._later(1.0, self._contend)

    @property
    def isValid(self) -> bool:
        """Whether it relies on the lock now."""
        return self.world.now < self._validUntil

    def _later(self, seconds: float, call: object, *arguments: object) -> None:
        delay = seconds * self.world.random.uniform(0.3, 1.0)
        self.world.clock.callLater(delay, call, *arguments)  # type: ignore[arg-type]  # a method of this class

    def _rely(self, sent: float) -> None:
        self._validUntil = max(self._validUntil, sent + self._part * self.lock.timeout / self._rate)

    def _contend(self) -> None:
        if self.world.now > self._ends:
            return
        sent = self.world.now
        registration = self.lock.acquire(self)
        if registration is None:
            self._later(1.0, self._contend)
        else:
            self._rely(sent)
            self._later(0.3 * self.lock.timeout, self._send, registration)

    def _send(self, registration: Registration) -> None:
        world, random, timeout = self.world, self.world.random, self.lock.timeout
        what = random.random()
        if world.now > self._ends or what < 0.1:
            # Killed, or stopped: it relies on the lock until its time is over, and on nothing afterwards.
            self._later(3 * timeout, self._contend)
            return
        if what < 0.2 and self.isValid:
            self._validUntil = 0.0
            world.remove(registration)
            self._later(0.5, self._contend)
            return
        self._number += 1
        number, sent, process = self._number, world.now, random.choice(world.nodes).process

        def answered(statuses: list[int]) -> None:
            if number != self._number:
                return
            self._number += 1
            (status,) = statuses
            if status == 404:
                self._validUntil = 0.0
                self._later(0.5, self._contend)
                return
            if status == 200:
                self._rely(sent)
            pause = 0.2 if status == 503 else timeout * random.choice([0.3, 0.3, 0.3, 1.2])
            self._later(pause, self._send, registration)

        def arrive() -> None:
            result = process.heartbeats([registration])
            result.addCallback(lambda statuses: world.clock.callLater(world.latency(), answered, statuses))

        world.clock.callLater(world.latency(), process.clock.receive, arrive)
        world.clock.callLater(timeout / 4, answered, [503])


def runLocks(seed: int, *, part: float = 0.9, locks: int = 6) -> tuple[World, int]:
    """
    One random run; returns the world, and how often a lock was acquired.

    :raises Violation: if two rely on a lock at the same time, or another promise is broken.
    """
    world = World(seed)
    world.run(2)
    random = world.random
    made = [Lock(world, random.choice([3, 3, 5])) for _ in range(locks)]
    for lock in made:
        for _ in range(3):
            Contender(lock, 120, part)
    troubles = faults(world, 110)

    def trouble() -> None:
        if next(troubles, world) is None:
            world.clock.callLater(random.uniform(0.2, 4), trouble)

    trouble()
    world.run(160)
    for violation in world.violations:
        raise violation
    return world, sum(lock.handOvers for lock in made)
