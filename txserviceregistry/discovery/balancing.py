"""Load balancing: the instances of a tag, which of them is tried next, and outlier ejection."""

from __future__ import annotations

import math
import random as randomModule
from bisect import bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from itertools import accumulate, chain
from types import MappingProxyType
from typing import TypeVar

import attrs
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from ..errors import NoServiceAvailable
from ..types import Service
from ..util.deferred import waitFor
from ..util.fields import HOST, Unusable, netloc, readAddress, takesWork, weightOf
from ..util.logs import Logger
from .directory import Directory, Suspects

_T = TypeVar("_T")

_AREAS = ("region", "zone")  # the metadata by which instances can be near, the widest area first
_FIRST_EJECTION, _LONGEST_EJECTION = 1.0, 60.0  # seconds of an instance's first ejection, and of the longest one

#: Identifies an instance: a service that is registered again with another address is another instance.
Key = tuple[str, str, int]


@attrs.frozen(slots=False)
class Instance:
    """
    A service that can be connected to, with its id, metadata and tags.

    :ivar host: a host name, or an IP address without brackets.
    :ivar isEnabled: whether it may be picked. The state ``drain`` or ``out`` prevents that, as do ``status=disabled``
        and ``weight=0`` in its metadata.
    """

    id: str
    host: str
    port: int
    metadata: Mapping[str, str] = attrs.field(factory=dict, eq=False)
    tags: tuple[str, ...] = attrs.field(default=(), eq=False)
    isEnabled: bool = attrs.field(default=True, eq=False, repr=False)

    @cached_property
    def key(self) -> Key:
        """The id and the address."""
        return (self.id, self.host, self.port)

    @cached_property
    def weight(self) -> int:
        """Its share of new work compared with others, 0 to 1000: ``weight`` in its metadata, 100 by default."""
        return weightOf(self.metadata)

    @property
    def tlsName(self) -> str:
        """The name that its TLS certificate has to be for: ``tls.name`` in its metadata, or the host."""
        name = self.metadata.get("tls.name", "").strip()
        return name if HOST.fullmatch(name) else self.host

    @property
    def netloc(self) -> str:
        """The address as in a URL."""
        return netloc(self.host, self.port)

    def __str__(self) -> str:
        return f"{self.id} at {self.netloc}"


def readInstance(service: Service) -> Instance:
    """A service's instance; raises Unusable if it has no valid address."""
    host, port = readAddress(service["metadata"])
    return Instance(service["id"], host, port, service["metadata"], tuple(service["tags"]), takesWork(service))


def instanceOf(service: Service) -> Instance | None:
    """The instance of a service, as the registry returns it; ``None`` if its metadata have no valid address."""
    try:
        return readInstance(service)
    except Unusable:
        return None


class IStrategy(Interface):
    """Picks one of several instances for one balancer."""

    def pick(candidates: Sequence[Instance]) -> Instance:
        """The next one of *candidates*, sorted by id; as long as nothing has changed they are the same object."""

    def began(instance: Instance) -> None:
        """A use of *instance* begins: a connection or a request. Follows each :meth:`pick`."""

    def ended(instance: Instance) -> None:
        """A use of *instance* has ended."""


@implementer(IStrategy)
class RandomChoice:
    """A random one, each with a probability by its weight."""

    _candidates: Sequence[Instance] = ()
    _ends: Sequence[int] = ()

    def __init__(self, random: Callable[[], float] = randomModule.random) -> None:
        self._random = random

    def began(self, instance: Instance) -> None:
        """A use makes no difference here."""

    ended = began

    def pick(self, candidates: Sequence[Instance]) -> Instance:
        if candidates is not self._candidates:
            self._candidates, self._ends = candidates, list(accumulate(one.weight for one in candidates))
        position = bisect_right(self._ends, self._random() * self._ends[-1])
        # Another source of numbers than random.random may give exactly 1.
        return candidates[min(position, len(candidates) - 1)]


class RoundRobin(RandomChoice):
    """One after the other, in the order of their ids; with different weights, each as often as its weight says."""

    # The first one is random: programs that make one request per run, or restart together, spread over all instances.
    _position = -1
    _last: str | None = None
    # Of instances with different weights, how much work each is behind; otherwise none.
    _credits: Mapping[Key, float] = MappingProxyType({})

    def pick(self, candidates: Sequence[Instance]) -> Instance:
        if candidates is not self._candidates:
            self._arrange(candidates)
        if self._credits:
            # As nginx does it: in each round every instance gets as many turns as its weight, evenly distributed.
            credits = self._credits = {one.key: self._credits[one.key] + one.weight for one in candidates}
            picked = max(candidates, key=lambda one: credits[one.key])
            credits[picked.key] -= sum(one.weight for one in candidates)
        else:
            self._position = (self._position + 1) % len(candidates)
            picked = candidates[self._position]
        self._last = picked.id
        return picked

    def _arrange(self, candidates: Sequence[Instance]) -> None:
        self._candidates, known, self._credits = candidates, self._credits, {}
        if len({one.weight for one in candidates}) > 1:
            # Each process begins elsewhere.
            self._credits = {one.key: known.get(one.key, one.weight * self._random()) for one in candidates}
        elif self._last is None:
            self._position = min(int(self._random() * len(candidates)), len(candidates) - 1) - 1
        else:
            # The next one is the one whose id follows the last one's.
            self._position = bisect_right(candidates, self._last, key=lambda one: one.id) - 1


@implementer(IStrategy)
@attrs.define(eq=False)
class LeastConnections:
    """The one that this process uses least at this moment, in proportion to its weight; of several such, any."""

    _random: Callable[[], float] = randomModule.random
    _uses: Counter[Key] = attrs.field(factory=Counter, init=False)

    def pick(self, candidates: Sequence[Instance]) -> Instance:
        return min(candidates, key=lambda one: ((self._uses[one.key] + 1) / max(one.weight, 1), self._random()))

    def began(self, instance: Instance) -> None:
        self._uses[instance.key] += 1

    def ended(self, instance: Instance) -> None:
        self._uses[instance.key] -= 1
        if self._uses[instance.key] <= 0:
            del self._uses[instance.key]


#: The strategies by name.
STRATEGIES: dict[str, Callable[[Callable[[], float]], IStrategy]] = {
    "round-robin": RoundRobin,
    "random": RandomChoice,
    "least-connections": LeastConnections,
}


def strategyNamed(name: str, random: Callable[[], float] = randomModule.random) -> IStrategy:
    """A new strategy; raises ValueError if the name is unknown."""
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r} (known: {', '.join(STRATEGIES)})")
    return STRATEGIES[name](random)


class Balancer:
    """
    Picks among the services of a tag that take work, the nearest first, and ejected ones if there are no others. One
    that can't be connected to is ejected for a second, after the next failure for two, then four, up to a minute.
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
        self._source = suspects or directory
        # Of instances that failed last, the number of failures in a row, and the end of the ejection.
        self._failures: dict[Key, tuple[int, float]] = {}
        # The services and the ejected instances that the rest is made of.
        self._services: Sequence[Service] | None = None
        self._ejected: frozenset[Key] | None = None
        self._read: dict[str, tuple[Service, Instance | None]] = {}  # by id, each service and its instance
        # The instances that may be picked, the nearest first; and the healthy ones that are nearest.
        self._tiers: list[list[Instance]] = []
        self._first: list[Instance] = []
        self.unusable = 0

    @property
    def isEmpty(self) -> bool:
        self._refresh()
        return not self._tiers

    def pick(self, tried: Collection[Key] = ()) -> Instance | None:
        """The next instance that is not among those *tried*, or ``None``."""
        self._refresh()
        if not tried and self._first:
            return self.strategy.pick(self._first)
        left = [[one for one in tier if one.key not in tried] for tier in self._tiers]
        for healthy in filter(None, map(self._healthy, left)):
            return self.strategy.pick(healthy)
        return min(chain(*left), key=lambda one: self._failures.get(one.key, (0, 0.0))[1], default=None)

    def failed(self, instance: Instance) -> None:
        """*instance* could not be connected to."""
        now, (count, end) = self.clock.seconds(), self._failures.get(instance.key, (0, 0.0))
        # Failures during an ejection have the same cause.
        if now >= end:
            seconds = min(_FIRST_EJECTION * 2.0 ** min(count, 62), _LONGEST_EJECTION)
            self._failures[instance.key] = (count + 1, now + seconds)

    def succeeded(self, instance: Instance) -> None:
        """*instance* could be connected to."""
        self._failures.pop(instance.key, None)

    def unavailable(self, reasons: Mapping[str, BaseException] | None = None) -> NoServiceAvailable:
        """The error for a tag without an instance, or without one that could be reached."""
        return NoServiceAvailable(self.tag, self.directory.stale, reasons or {}, self.unusable)

    def _refresh(self) -> None:
        services, now = self._source.forTag(self.tag), self.clock.seconds()
        ejected = frozenset(key for key, (_, end) in self._failures.items() if end > now)
        if services is not self._services:
            self._services = services
            self._readAll(services)
        elif ejected == self._ejected:
            return
        self._ejected = ejected
        self._first = next(filter(None, map(self._healthy, self._tiers)), [])

    def _healthy(self, tier: Sequence[Instance]) -> list[Instance]:
        return [one for one in tier if one.key not in (self._ejected or ())]

    def _readAll(self, services: Sequence[Service]) -> None:
        before, self._read = self._read, {}
        tiers: list[list[Instance]] = [[] for _ in range(len(self._near) + 1)]
        for service in services:
            id = service["id"]
            known, instance = before.get(id, (None, None))
            if known != service:
                try:
                    instance = readInstance(service)
                except Unusable as why:
                    if known is None or instance is not None:
                        text = "Service {id} with tag {tag} can't be connected to: {why}"
                        self._log.warn(text, id=id, tag=self.tag, why=str(why))
                    instance = None
            self._read[id] = service, instance
            if instance is not None and instance.isEnabled:
                # The name of a zone means something within its region only.
                near = [instance.metadata.get(area) == own for area, own in self._near.items()]
                tiers[len(near) - [*near, False].index(False)].append(instance)
        self._tiers = [tier for tier in tiers if tier]
        self.unusable = len(services) - sum(map(len, tiers))
        keys = {instance.key for _, instance in self._read.values() if instance is not None}
        self._failures = {key: failures for key, failures in self._failures.items() if key in keys}


@attrs.define(eq=False, slots=False)
class TryNext(Exception):
    """Another instance may be tried; the present one is ejected if it was not reached."""

    error: Exception
    wasReached: bool = False


def tryEach(
    balancer: Balancer, attempt: Callable[[Instance, Callable[[], None]], Awaitable[_T]], timeout: float
) -> Deferred[_T]:
    """
    Let *attempt* try one instance after another, each at most once, as long as it raises :class:`TryNext`; fires or
    fails with its outcome, or with NoServiceAvailable. When it succeeds, it has its second argument called at the end
    of the use of the instance. The *timeout* is for the directory's first listing.
    """

    isCancelled = False

    async def run() -> _T:
        if math.isinf(balancer.directory.stale) and balancer.isEmpty:
            try:
                await balancer.directory.whenReady().addTimeout(timeout, balancer.clock)
            except TimeoutError:
                raise balancer.unavailable()
        tried: set[Key] = set()
        reasons: dict[str, BaseException] = {}
        last: TryNext | None = None
        while (instance := balancer.pick(tried)) is not None:
            tried.add(instance.key)
            balancer.strategy.began(instance)
            ended = partial(balancer.strategy.ended, instance)
            try:
                outcome = await attempt(instance, ended)
                balancer.succeeded(instance)
                return outcome
            except BaseException as error:
                ended()
                if isCancelled or not isinstance(error, TryNext):
                    raise
                if not error.wasReached:
                    balancer.failed(instance)
                last = error
                reasons[str(instance)] = error.error
        raise last.error if last is not None and last.wasReached else balancer.unavailable(reasons)

    def cancel(failure: Failure) -> Failure:
        nonlocal isCancelled
        isCancelled = True
        running.cancel()
        return failure

    running = Deferred.fromCoroutine(run())
    # Cancelled at once: connections raise errors of their own when they are cancelled, and may take their time.
    result = waitFor(running).addErrback(cancel)
    running.addErrback(lambda _: None)
    return result
