"""Load balancing: which instance of a tag is tried next, and outlier ejection."""

from __future__ import annotations

import math
import random as randomModule
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..errors import NoServiceAvailable
from ..types import Service
from ..util.fields import Unusable
from ..util.logs import Logger
from .directory import Directory
from .instances import Instance, Key, readInstance
from .strategies import IStrategy, strategyNamed
from .suspects import Suspects

_T = TypeVar("_T")

# The metadata by which instances can be near, the widest area first.
_AREAS = ("region", "zone")
# Seconds of an instance's first ejection, and of the longest one.
_FIRST_EJECTION, _LONGEST_EJECTION = 1.0, 60.0


@attrs.frozen
class _Failures:
    """The number of failures in a row, and the times of the last one and of the ejection's end."""

    count: int = 0
    last: float = -math.inf
    end: float = -math.inf


class Ejections:
    """
    The instances that have failed lately: each is ejected for a second, after its next failure in a row for two, then
    four, up to a minute. A success ends the row.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._failures: dict[Key, _Failures] = {}

    def failed(self, instance: Instance) -> None:
        """*instance* could not be connected to."""
        now = self._clock.seconds()
        before = self._failures.get(instance.key, _Failures())
        count, end = before.count, before.end
        if now >= end:
            # Failures during an ejection have the same cause.
            end = now + min(_FIRST_EJECTION * 2.0 ** min(count, 62), _LONGEST_EJECTION)
            count += 1
        self._failures[instance.key] = _Failures(count, now, end)

    def succeeded(self, instance: Instance) -> None:
        """*instance* could be connected to."""
        self._failures.pop(instance.key, None)

    def ejected(self) -> frozenset[Key]:
        """The instances that are ejected now."""
        now = self._clock.seconds()
        return frozenset(key for key, failures in self._failures.items() if failures.end > now)

    def lastFailure(self, instance: Instance) -> float:
        """When *instance* failed last; minus infinity if it has not."""
        return self._failures.get(instance.key, _Failures()).last

    def keepOnly(self, keys: Collection[Key]) -> None:
        """Forget the failures of all other instances: one that comes back begins anew."""
        self._failures = {key: failures for key, failures in self._failures.items() if key in keys}


class Balancer:
    """
    Picks among the services of one tag that take work, and ejected ones only if there are no others. With *near*,
    instances of the same ``region`` and ``zone`` are preferred, then those of the same region, then all others.

    :param strategy: a strategy's name, or a strategy that only this balancer uses.
    :param suspects: the services of the directory with suspects among them; without it there are no suspects.
    :raises ValueError: if there is no such strategy, or *near* has keys other than ``region`` and ``zone``.
    :ivar ejections: is told which instances could be connected to.
    :ivar unusable: how many services with the tag can't be picked.
    """

    _log = Logger()

    def __init__(
        self,
        directory: Directory,
        tag: str,
        clock: IReactorTime,
        strategy: str | IStrategy = "round-robin",
        near: Mapping[str, str] | None = None,
        random: Callable[[], float] = randomModule.random,
        suspects: Suspects | None = None,
    ) -> None:
        self.tag = tag
        self.directory = directory
        self.clock = clock
        self.strategy = strategyNamed(strategy, random) if isinstance(strategy, str) else strategy
        self._near = {area: near[area] for area in _AREAS if area in near} if near else {}
        if len(self._near) != len(near or ()):
            raise ValueError(f"near takes {' and '.join(_AREAS)} only, not {', '.join(near or ())}")
        self.ejections = Ejections(clock)
        self._suspects = suspects
        # The versions of the services, and the ejected instances, of the last refresh.
        self._versions = (-1, -1)
        self._ejected: frozenset[Key] | None = None
        self._services: Sequence[Service] | None = None
        self._read: dict[str, tuple[Service, Instance | None]] = {}
        self._tiers: list[list[Instance]] = []
        self._first: list[Instance] = []
        self.unusable = 0

    @property
    def isEmpty(self) -> bool:
        """Whether there is no instance to pick."""
        self._refresh()
        return not self._tiers

    def pick(self, tried: Collection[Key] = ()) -> Instance | None:
        """
        The next instance that is not among those *tried*, or ``None``. Call the strategy's ``began`` right after.
        """
        self._refresh()
        if not tried and self._first:
            return self.strategy.pick(self._first)
        left = [[one for one in tier if one.key not in tried] for tier in self._tiers]
        for tier in left:
            healthy = self._healthy(tier)
            if healthy:
                return self.strategy.pick(healthy)
        return min((one for tier in left for one in tier), key=self.ejections.lastFailure, default=None)

    def unavailable(self, reasons: Mapping[str, BaseException] | None = None) -> NoServiceAvailable:
        """The error for a tag without an instance, or without one that could be reached."""
        return NoServiceAvailable(self.tag, self.directory.stale, reasons or {}, self.unusable)

    def _refresh(self) -> None:
        source = self._suspects or self.directory
        versions = (self.directory.version, source.version)
        if versions != self._versions:
            services = source.forTag(self.tag)
            # The same tuple means the same services: the change was one of another tag.
            if services is not self._services or not isinstance(services, tuple):
                self._services = services
                self._readAll(services)
                self._ejected = None
            self._versions = versions
        ejected = self.ejections.ejected()
        if ejected != self._ejected:
            self._ejected = ejected
            self._first = next(filter(None, map(self._healthy, self._tiers)), [])

    def _healthy(self, tier: Sequence[Instance]) -> list[Instance]:
        return [one for one in tier if one.key not in (self._ejected or ())]

    def _readAll(self, services: Sequence[Service]) -> None:
        before, self._read = self._read, {}
        tiers: list[list[Instance]] = [[] for _ in range(len(self._near) + 1)]
        keys = set()
        for service in services:
            id = service["id"]
            known = before.get(id)
            if known is None or known[0] != service:
                known = (service, self._readOne(service, known is None or known[1] is not None))
            self._read[id] = known
            if (instance := known[1]) is not None:
                keys.add(instance.key)
                if instance.isEnabled:
                    tiers[self._distance(instance)].append(instance)
        self._tiers = [tier for tier in tiers if tier]
        self.unusable = len(services) - sum(map(len, tiers))
        self.ejections.keepOnly(keys)

    def _readOne(self, service: Service, isNew: bool) -> Instance | None:
        try:
            return readInstance(service)
        except Unusable as why:
            if isNew:
                self._log.warn(
                    "Service {id} with tag {tag} can't be connected to: {why}",
                    id=service["id"],
                    tag=self.tag,
                    why=str(why),
                )
            return None

    def _distance(self, instance: Instance) -> int:
        # The name of a zone means something within its region only.
        areas = [*self._near]
        differ = (at for at, area in enumerate(areas) if instance.metadata.get(area) != self._near[area])
        return len(areas) - next(differ, len(areas))


class TryNext(Exception):
    """
    Raised by an attempt of :func:`tryEach` when another instance may be tried. This one is ejected if it was not
    reached.
    """

    def __init__(self, error: Exception, wasReached: bool = False) -> None:
        super().__init__(error)
        self.error = error
        self.wasReached = wasReached


def tryEach(balancer: Balancer, attempt: Callable[[Instance], Awaitable[_T]], *, timeout: float) -> Deferred[_T]:
    """
    Try one instance after another, each at most once, until one works.

    :param balancer: picks the instances.
    :param attempt: tries one instance; raises :class:`TryNext` if another one may be tried. It tells the strategy when
        it begins and ends, and the ejections when it has succeeded.
    :param timeout: seconds to wait for the directory's first listing.
    :return: fires with what *attempt* returned. Fails with what it raised, with the last reason if that instance had
        been reached, and with :class:`~txserviceregistry.errors.NoServiceAvailable`. It may be cancelled.
    """
    cancelled = False

    async def run() -> _T:
        if math.isinf(balancer.directory.stale) and balancer.isEmpty:
            try:
                await balancer.directory.whenReady().addTimeout(timeout, balancer.clock)
            except TimeoutError:
                raise balancer.unavailable()
        tried: set[Key] = set()
        reasons: dict[str, BaseException] = {}
        last: TryNext | None = None
        while True:
            instance = balancer.pick(tried)
            if instance is None:
                if last is not None and last.wasReached:
                    raise last.error
                raise balancer.unavailable(reasons)
            tried.add(instance.key)
            try:
                return await attempt(instance)
            except TryNext as next:
                if cancelled:
                    raise CancelledError()
                if not next.wasReached:
                    balancer.ejections.failed(instance)
                last = next
                reasons[str(instance)] = next.error

    def cancel(_: Deferred[_T]) -> None:
        nonlocal cancelled
        cancelled = True
        running.cancel()

    result: Deferred[_T] = Deferred(cancel)
    running = Deferred.fromCoroutine(run())

    def relay(outcome: _T | Failure) -> None:
        # Connections raise errors of their own when they are cancelled.
        if not cancelled:
            result.callback(outcome)

    running.addBoth(relay)
    return result
