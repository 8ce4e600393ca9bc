"""
Suspects: what clients use when a registry says that most services of a tag have expired at once.

That rarely means that so many have stopped: more often the services are cut off from the registry, and clients that can
still reach them must not stop using them (Envoy calls this panic mode).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from weakref import WeakMethod, finalize

from twisted.internet.interfaces import IReactorTime

from ..types import Service
from ..util.logs import Listeners, Logger
from ..util.parsing import boundedNumber
from .directory import Change, Directory

#: The part of a tag's instances that has to expire.
THRESHOLD = 0.5
#: How many of them have to expire at least.
FEWEST = 3


def checkedThreshold(threshold: object) -> float:
    """The panic threshold of an argument or an option, 0 to 1; raises ValueError if it is not valid."""
    try:
        return boundedNumber(threshold, 0.0, 1.0)
    except ValueError as error:
        raise ValueError(f"panicThreshold: {error}") from None


class Suspects:
    """
    The services of a directory, and the suspects among those that have expired: when a larger part of a tag's instances
    than the threshold, three at least, expires within one heartbeat timeout, they stay in use. A suspect that is
    registered again is an ordinary service. When enough have returned, the other suspects of the tag are dropped.

    Use it in place of the directory to find services, for any number of tags. The directory's own state (``stale``,
    ``whenReady``) stays there. It ends when there is no reference to it::

        directory = Directory(client)
        suspects = Suspects(directory, reactor, threshold=0.5)  # before the directory starts
        suspects.onChange(changed)
        directory.startService()
        suspects.forTag("web")

    :ivar version: grows with every change.
    """

    _log = Logger()

    def __init__(self, directory: Directory, clock: IReactorTime, threshold: float = THRESHOLD) -> None:
        """
        :param clock: the reactor.
        :param threshold: 0 to 1; 0 for no suspects.
        :raises ValueError: if it is not such a number.
        """
        self.version = 0
        self._directory = directory
        self._clock = clock
        self._threshold = checkedThreshold(threshold)
        self._listeners: Listeners[[Change, Service]] = Listeners(self._log, "services and suspects")
        # By tag and id, those that have expired and not returned, and when, the earliest first.
        self._expired: dict[str, dict[str, tuple[float, Service]]] = {}
        # The tags that have suspects, which are all of their expired services; and these by id.
        self._panicking: set[str] = set()
        self._suspects: dict[str, Service] = {}
        # The results of forTag for these tags, each with the directory's result that it is made of.
        self._given: dict[str, tuple[Sequence[Service], tuple[Service, ...]]] = {}
        if self._threshold:
            method = WeakMethod(self._changed)

            def changed(change: Change, service: Service) -> None:
                listener = method()
                if listener is not None:
                    listener(change, service)

            finalize(self, directory.onChange(changed)).atexit = False

    def services(self) -> list[Service]:
        """All services, and all suspects, by id. Raises as the directory does."""
        return _merged(self._directory.services(), self._suspects.values())

    def forTag(self, tag: str) -> Sequence[Service]:
        """The services with the *tag*, and its suspects, by id. Raises as the directory does."""
        present = self._directory.forTag(tag)
        if tag not in self._panicking:
            return present
        given = self._given.get(tag)
        if given is None or given[0] is not present:
            suspects = (service for _, service in self._expired[tag].values())
            given = self._given[tag] = present, tuple(_merged(present, suspects))
        return given[1]

    def onChange(self, listener: Callable[[Change, Service], None]) -> Callable[[], None]:
        """
        Call *listener* with every change from now on, as :meth:`Directory.onChange` does. A suspect has a ``timeout``
        only when it is dropped, and a ``join`` when it was gone before it became a suspect.
        """
        return self._listeners.add(listener) if self._threshold else self._directory.onChange(listener)

    def _changed(self, change: Change, service: Service) -> None:
        self.version += 1
        id, tags, now = service["id"], {*service["tags"]}, self._clock.seconds()
        before = self._suspects
        affected = {tag for tag, expired in self._expired.items() if expired.pop(id, None) or self._isOld(tag, now)}
        affected |= self._panicking & tags
        if change == "timeout":
            affected |= tags
            for tag in tags:
                self._expired.setdefault(tag, {})[id] = now, service
        for tag in affected:
            self._given.pop(tag, None)
            self._judge(tag, now)
        if affected:
            self._suspects = {id: service for tag in self._panicking for id, (_, service) in self._expired[tag].items()}
        if id not in self._suspects:
            self._listeners.call(change, service)
        after = self._suspects
        for suspect in [after[key] for key in after if key not in before and key != id]:
            self._listeners.call("join", suspect)
        for suspect in [before[key] for key in before if key not in after and key != id]:
            self._listeners.call("timeout", suspect)

    def _isOld(self, tag: str, now: float) -> bool:
        """Whether the service of a tag that has expired first is not to be counted any more."""
        moment, service = next(iter(self._expired[tag].values()), (now, None))
        return tag not in self._panicking and service is not None and now - moment > service["heartbeat_timeout"]

    def _judge(self, tag: str, now: float) -> None:
        """Begin or end to use the expired services of a tag."""
        expired, isPanicking = self._expired[tag], tag in self._panicking
        while self._isOld(tag, now):
            del expired[next(iter(expired))]
        total = len(expired) + len(self._directory.forTag(tag))
        isMuch = len(expired) > self._threshold * total
        if isMuch and not isPanicking and len(expired) >= FEWEST:
            self._panicking.add(tag)
            self._log.warn(
                "{count} of {total} services with tag {tag} expired at once: they stay in use as suspects;"
                " check the network between them and the registry",
                count=len(expired),
                total=total,
                tag=tag,
            )
        elif not isMuch and isPanicking:
            self._panicking.discard(tag)
            self._log.info(
                "Enough services with tag {tag} are registered again; {count} suspects dropped",
                tag=tag,
                count=len(expired),
            )
            expired.clear()
        if not expired:
            del self._expired[tag]


def _merged(present: Iterable[Service], suspects: Iterable[Service]) -> list[Service]:
    byId = {service["id"]: service for services in (suspects, present) for service in services}
    return [byId[id] for id in sorted(byId)]
