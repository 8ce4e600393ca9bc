"""
Balancing: which instance of a tag is tried next, and which are passed over for a while.

A :class:`Balancer` puts together what there is (a directory), what is near, what has failed lately and a strategy.
:func:`tryEach` uses one until something works.
"""

from __future__ import annotations

import math
import random as randomModule
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..errors import NoServiceAvailable
from ..types import Service
from ..util.logs import Logger
from .instances import Instance, Key, Unusable, readInstance
from .strategies import IStrategy, strategyNamed

_T = TypeVar("_T")

#: Seconds that an instance is passed over after its first failure, and at most.
FIRST_BENCH = 1.0
LONGEST_BENCH = 60.0

#: The metadata by which instances can be near, the widest area first.
_AREAS = ("region", "zone")


class View(Protocol):
    """What balancing needs of a :class:`~txserviceregistry.discovery.Directory`; see there."""

    @property
    def version(self) -> int: ...

    @property
    def stale(self) -> float: ...

    def forTag(self, tag: str) -> Sequence[Service]: ...

    def whenReady(self) -> Deferred[None]: ...


class PassiveHealth:
    """
    Who has failed lately. Nobody is asked how they are: it is seen when they are used.

    An instance that failed sits on the bench for a second, after its next failure in a row for two, then four, up to a
    minute. A success ends the row.

    :ivar epoch: grows whenever somebody sits down or gets up.
    """

    def __init__(self, clock: IReactorTime, *, first: float = FIRST_BENCH, longest: float = LONGEST_BENCH) -> None:
        """
        :param clock: tells the time.
        :param first: seconds on the bench after the first failure.
        :param longest: seconds on the bench at most.
        """
        self._clock = clock
        self._first = first
        self._longest = longest
        # By instance: how often in a row, since when and until when.
        self._failures: dict[Key, tuple[int, float, float]] = {}
        self._nextReturn = math.inf
        self.epoch = 0

    def failed(self, instance: Instance) -> None:
        """*instance* could not be connected to."""
        now = self._clock.seconds()
        count, _, until = self._failures.get(instance.key, (0, 0.0, -math.inf))
        if now >= until:
            # Several that fail at the same time have met one and the same trouble.
            count += 1
            until = now + min(self._first * 2.0 ** min(count - 1, 62), self._longest)
        self._failures[instance.key] = (count, now, until)
        self._nextReturn = min(self._nextReturn, until)
        self.epoch += 1

    def succeeded(self, instance: Instance) -> None:
        """*instance* could be connected to."""
        if self._failures and self._failures.pop(instance.key, None) is not None:
            self.epoch += 1

    def look(self) -> int:
        """See who may get up by now; the :attr:`epoch` then."""
        if self._clock.seconds() >= self._nextReturn:
            self.epoch += 1
            now = self._clock.seconds()
            self._nextReturn = min((end for _, _, end in self._failures.values() if end > now), default=math.inf)
        return self.epoch

    def isBenched(self, instance: Instance) -> bool:
        """Whether *instance* is to be passed over."""
        return bool(self._failures) and self._benchedUntil(instance) > self._clock.seconds()

    def benchedSince(self, instance: Instance) -> float:
        """When *instance* failed last, for sorting."""
        return self._failures.get(instance.key, (0, -math.inf, 0.0))[1]

    def forgetAllBut(self, keys: Collection[Key]) -> None:
        """Forget those that are not there any more: who comes back has a clean slate."""
        for key in [key for key in self._failures if key not in keys]:
            del self._failures[key]

    def _benchedUntil(self, instance: Instance) -> float:
        return self._failures.get(instance.key, (0, 0.0, -math.inf))[2]


class Balancer:
    """
    Picks among the services of one tag.

    Those with ``status=disabled`` are passed over, and so are those that failed lately as long as there are others.
    With *near*, instances of the same ``region`` and ``zone`` are preferred: then those of the same region are taken,
    then all others.
    """

    _log = Logger()

    def __init__(
        self,
        directory: View,
        tag: str,
        *,
        clock: IReactorTime,
        strategy: str | IStrategy = "round-robin",
        near: Mapping[str, str] | None = None,
        health: PassiveHealth | None = None,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        """
        :param directory: knows the services.
        :param tag: which services.
        :param clock: tells the time to passive health.
        :param strategy: a strategy's name, or one of its own.
        :param near: our own ``region`` and ``zone``; others' metadata with the same words mean that they are near.
        :param health: remembers failures; one of its own by default.
        :param random: gives numbers from 0 to 1 to a strategy that is given by name.
        :raises ValueError: if there is no such strategy, or *near* has other keys.
        """
        self.tag = tag
        self.directory = directory
        self.clock = clock
        self._strategy = strategyNamed(strategy, random) if isinstance(strategy, str) else strategy
        self._near = {area: near[area] for area in _AREAS if area in near} if near else {}
        if len(self._near) != len(near or ()):
            raise ValueError(f"near takes {' and '.join(_AREAS)} only, not {', '.join(near or ())}")
        self._health = PassiveHealth(clock) if health is None else health
        self._version: int | None = None
        self._services: Sequence[Service] | None = None
        self._epoch = -1
        self._read: dict[str, tuple[Service, Instance | None]] = {}
        self._tiers: list[list[Instance]] = []
        self._first: list[Instance] = []
        #: How many services with the tag there are that can't be picked.
        self.unusable = 0

    @property
    def isEmpty(self) -> bool:
        """Whether there is nothing to pick from."""
        self._refresh()
        return not self._tiers

    def pick(self, tried: Collection[Key] = ()) -> Instance | None:
        """
        The next instance. Call :meth:`began` right after.

        :param tried: keys of those that are out of the question.
        :return: an instance, or ``None`` if there is no other one.
        """
        if self.directory.version != self._version or self._health.look() != self._epoch:
            self._refresh()
        if not tried and self._first:
            return self._strategy.pick(self._first)
        return self._pickElsewhere(tried)

    def began(self, instance: Instance) -> None:
        """*instance* is being used."""
        self._strategy.began(instance)

    def ended(self, instance: Instance) -> None:
        """A use of *instance* is over."""
        self._strategy.ended(instance)

    def failed(self, instance: Instance) -> None:
        """*instance* could not be connected to."""
        self._health.failed(instance)

    def succeeded(self, instance: Instance) -> None:
        """*instance* could be connected to."""
        self._health.succeeded(instance)

    def nobody(self, reasons: Mapping[str, BaseException] | None = None) -> NoServiceAvailable:
        """The error that says that there is no instance, or none that could be reached."""
        return NoServiceAvailable(self.tag, self.directory.stale, reasons, self.unusable)

    def _pickElsewhere(self, tried: Collection[Key]) -> Instance | None:
        left = [[one for one in tier if one.key not in tried] for tier in self._tiers]
        for tier in left:
            fit = [one for one in tier if not self._health.isBenched(one)]
            if fit:
                return self._strategy.pick(fit)
        return min((one for tier in left for one in tier), key=self._health.benchedSince, default=None)

    def _refresh(self) -> None:
        version = self.directory.version
        if version != self._version:
            self._version = version
            services = self.directory.forTag(self.tag)
            # Nothing can have changed in a tuple that is the same: the change was one of another tag.
            if services is not self._services or not isinstance(services, tuple):
                self._services = services
                self._readAll(services)
        self._epoch = self._health.look()
        self._first = []
        for tier in self._tiers:
            self._first = [one for one in tier if not self._health.isBenched(one)]
            if self._first:
                break

    def _readAll(self, services: Sequence[Service]) -> None:
        before, self._read = self._read, {}
        tiers: list[list[Instance]] = [[] for _ in range(len(self._near) + 1)]
        keys = set()
        for service in services:
            id = service["id"]
            known = before.get(id)
            if known is None or (known[0] is not service and known[0] != service):
                known = (service, self._readOne(service, known is None or known[1] is not None))
            self._read[id] = known
            instance = known[1]
            if instance is not None:
                keys.add(instance.key)
                if instance.isEnabled:
                    tiers[self._distance(instance)].append(instance)
        self._tiers = [tier for tier in tiers if tier]
        self.unusable = len(services) - sum(map(len, tiers))
        self._health.forgetAllBut(keys)

    def _readOne(self, service: Service, isNews: bool) -> Instance | None:
        try:
            return readInstance(service)
        except Unusable as why:
            if isNews:
                self._log.warn(
                    "Service {id} has the tag {tag}, but can't be connected to: {why}",
                    id=service["id"],
                    tag=self.tag,
                    why=str(why),
                )
            return None

    def _distance(self, instance: Instance) -> int:
        # A zone's name means something within its region only: what is in another region is far, wherever there.
        near = 0
        for area, name in self._near.items():
            if instance.metadata.get(area) != name:
                break
            near += 1
        return len(self._near) - near


class TryNext(Exception):
    """
    What an attempt of :func:`tryEach` raises when another instance may be tried.

    :ivar error: why this one would not do.
    :ivar wasReached: whether there was somebody; if not, it is passed over for a while.
    """

    def __init__(self, error: Exception, wasReached: bool = False) -> None:
        super().__init__(error)
        self.error = error
        self.wasReached = wasReached


def tryEach(balancer: Balancer, attempt: Callable[[Instance], Awaitable[_T]], *, timeout: float) -> Deferred[_T]:
    """
    Try one instance after the other, each at most once, until one will do.

    :param balancer: picks.
    :param attempt: does it with one instance; raises :class:`TryNext` if another one may be tried. It tells the
        balancer what began, ended and succeeded.
    :param timeout: seconds to wait for the directory, if nothing has ever been listed.
    :return: fires with what *attempt* returned. Fails with what it raised, with the last reason if that one had been
        reached, and with :class:`~txserviceregistry.errors.NoServiceAvailable`. Can be cancelled at any time.
    """
    # Our own cancel can't be told by the exception that comes of it: connections have theirs.
    cancelled = False

    async def run() -> _T:
        if math.isinf(balancer.directory.stale) and balancer.isEmpty:
            try:
                await balancer.directory.whenReady().addTimeout(timeout, balancer.clock)
            except TimeoutError:
                raise balancer.nobody()
        tried: set[Key] = set()
        reasons: dict[str, BaseException] = {}
        last: TryNext | None = None
        while True:
            instance = balancer.pick(tried)
            if instance is None:
                if last is not None and last.wasReached:
                    raise last.error
                raise balancer.nobody(reasons)
            tried.add(instance.key)
            try:
                return await attempt(instance)
            except TryNext as next:
                if cancelled:
                    raise CancelledError()
                if not next.wasReached:
                    balancer.failed(instance)
                last = next
                reasons[str(instance)] = next.error

    def cancel(_: Deferred[_T]) -> None:
        nonlocal cancelled
        cancelled = True
        running.cancel()

    result: Deferred[_T] = Deferred(cancel)
    running = Deferred.fromCoroutine(run())

    def relay(outcome: _T | Failure) -> None:
        if result.called:
            # Cancelled, and what was cancelled has taken its time to end.
            return
        if isinstance(outcome, Failure):
            result.errback(CancelledError() if cancelled else outcome)
        else:
            result.callback(outcome)

    running.addBoth(relay)
    return result
