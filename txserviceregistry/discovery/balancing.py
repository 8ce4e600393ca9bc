"""
Load balancing: which instance of a tag is tried next.

A :class:`Balancer` combines a directory, locality, outlier ejection and a strategy. :func:`tryEach` tries instances
until one works.
"""

from __future__ import annotations

import math
import random as randomModule
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..errors import NoServiceAvailable
from ..types import Service
from ..util.addresses import Unusable
from ..util.logs import Logger
from .directory import Directory
from .ejection import Ejections
from .instances import Instance, Key, readInstance
from .strategies import IStrategy, strategyNamed
from .suspects import Suspects

_T = TypeVar("_T")

# The metadata by which instances can be near, the widest area first.
_AREAS = ("region", "zone")


class Balancer:
    """
    Picks among the services of one tag.

    Services whose state is ``drain`` or ``out``, those with ``status=disabled`` or ``weight=0``, are never picked, and
    ejected ones only if there are no others. Suspects are picked like other instances. With *near*,
    instances of the same ``region`` and ``zone`` are preferred, then those of the same region, then all others.

    :ivar strategy: is told when a use of an instance begins and ends.
    :ivar ejections: is told which instances could be connected to.
    :ivar unusable: how many services with the tag can't be picked.
    """

    _log = Logger()

    def __init__(
        self,
        directory: Directory,
        tag: str,
        *,
        clock: IReactorTime,
        strategy: str | IStrategy = "round-robin",
        near: Mapping[str, str] | None = None,
        random: Callable[[], float] = randomModule.random,
        suspects: Suspects | None = None,
    ) -> None:
        """
        :param strategy: a strategy's name, or a strategy that only this balancer uses.
        :param suspects: the services of the directory with suspects among them; without it there are no suspects.
        :raises ValueError: if there is no such strategy, or *near* has keys other than ``region`` and ``zone``.
        """
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
        The next instance. Call the strategy's ``began`` right after.

        :param tried: keys of instances that are not to be picked.
        :return: an instance, or ``None`` if there is no other one.
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
        return NoServiceAvailable(self.tag, self.directory.stale, reasons, self.unusable)

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
        near = 0
        for area, name in self._near.items():
            if instance.metadata.get(area) != name:
                break
            near += 1
        return len(self._near) - near


class TryNext(Exception):
    """
    What an attempt of :func:`tryEach` raises when another instance may be tried. This one is ejected if it was not
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
