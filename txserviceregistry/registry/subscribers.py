"""
Followers: who waits for something new in a feed, and how they come to hear of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable
from itertools import takewhile
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..util.singleflight import SingleFlight
from .faults import tooManyFollowers

_T = TypeVar("_T")


class _Stillness:
    """What was seen of a feed on which there is nothing new since, and what is being looked at."""

    #: How much is kept.
    MOST = 8

    def __init__(self) -> None:
        self.seen: dict[Hashable, Any] = {}
        #: What looks at it again.
        self.looks: dict[Hashable, Callable[[], Deferred[Any]]] = {}
        self.looking: SingleFlight[Hashable, Any] = SingleFlight()

    def keep(self, what: Hashable, seen: Any, look: Callable[[], Deferred[Any]]) -> None:
        if len(self.seen) >= self.MOST:
            oldest = next(iter(self.seen))
            del self.seen[oldest], self.looks[oldest]
        self.seen[what] = seen
        self.looks[what] = look


@attrs.define(eq=False)
class Subscription:
    """
    The place of somebody who waits.

    :ivar tenant: whose feed is followed.
    :ivar seconds: how long may be waited, the first look included.
    :ivar latest: when it has to be left, in seconds of the clock.
    :ivar news: what is waited for now.
    """

    tenant: str
    seconds: float
    latest: float
    news: Deferred[bool] | None = None


class Subscribers:
    """
    Those who wait, by tenant. Nobody looks for news here: whoever makes some tells, once.

    :param clock: the reactor; what is told is heard in its next turns.
    :param most: how many places there are for those who wait.
    :param mostOfTenant: how many of one tenant get a place.
    """

    #: How many hear the news in one turn of the reactor, which is some tens of milliseconds then. Between two turns
    #: heartbeats come in, and the next requests of those who have heard, which take longer than all the answers.
    TURN = 500
    #: Seconds after which one for whom there was no place may ask again.
    RETRY_AFTER = 5

    def __init__(self, clock: IReactorTime, most: int = 5_000, mostOfTenant: int = 2_500) -> None:
        self._clock = clock
        self._most = most
        self._mostOfTenant = mostOfTenant
        self._places: Counter[str] = Counter()
        self._taken = 0
        # Who has a place, those first who have to leave it first: by how long they may have it, because among those
        # who have asked for the same it is nearly always the order in which they take it.
        self._taking: defaultdict[float, dict[Subscription, None]] = defaultdict(dict)
        self._endings: dict[float, IDelayedCall] = {}
        # By tenant who waits, and what they have looked at.
        self._waiting: dict[str, dict[Deferred[bool], Hashable]] = {}
        self._still: dict[str, _Stillness] = {}
        # Who hears of news that there are, and who will when these have been looked at.
        self._told: deque[Deferred[bool]] = deque()
        self._abouts: set[tuple[Deferred[bool], ...]] = set()
        self._telling: IDelayedCall | None = None
        self._ended = False

    @property
    def count(self) -> int:
        """How many places are taken."""
        return self._taken

    def takePlace(self, tenant: str, seconds: float, latest: float) -> Subscription:
        """
        Take a place for somebody who may have to wait long; :meth:`leavePlace` gives it back.

        :param seconds: how long may be waited.
        :param latest: until when that is, in seconds of the clock. Then what the place waits for fires with ``False``.
        :raises Fault: 503, if there is none.
        """
        if self._taken >= self._most or self._places[tenant] >= self._mostOfTenant:
            raise tooManyFollowers(self.RETRY_AFTER)
        self._places[tenant] += 1
        self._taken += 1
        place = Subscription(tenant, seconds, latest)
        taking = self._taking[seconds]
        # Whoever looked for long takes it after some who came later.
        later = list(takewhile(lambda other: other.latest > latest, reversed(taking)))
        taking[place] = None
        for other in reversed(later):
            del taking[other]
            taking[other] = None
        if later or seconds not in self._endings:
            self._endInTime(seconds)
        return place

    def leavePlace(self, place: Subscription) -> None:
        """Somebody who had a place waits no longer."""
        taking = self._taking[place.seconds]
        taking.pop(place, None)
        if not taking and place.seconds in self._endings:
            self._endings.pop(place.seconds).cancel()
        self._taken -= 1
        self._places[place.tenant] -= 1
        if not self._places[place.tenant]:
            del self._places[place.tenant]
            self._forgetWhatWasSeen(place.tenant)

    def _endInTime(self, seconds: float) -> None:
        taking = self._taking[seconds]
        if not taking or self._ended:
            return
        first = next(iter(taking)).latest
        ending = self._endings.get(seconds)
        if ending is None:
            left = max(0, first - self._clock.seconds())
            self._endings[seconds] = self._clock.callLater(left, self._endSome, seconds)
        elif first < ending.getTime():
            ending.reset(max(0, first - self._clock.seconds()))

    def _endSome(self, seconds: float) -> None:
        del self._endings[seconds]
        now = self._clock.seconds()
        taking = self._taking[seconds]
        for place in list(takewhile(lambda place: place.latest <= now, taking)):
            # It may have been left by what the one before has brought about.
            if taking.pop(place, place) is None and place.news is not None and not place.news.called:
                place.news.callback(False)
        self._endInTime(seconds)

    def wait(self, tenant: str, what: Hashable) -> Deferred[bool]:
        """
        Begin to wait. Whoever does so before looking at the feed misses nothing.

        :param what: which part of the *tenant*'s feed they look at; see :meth:`look`.
        :return: fires with ``True`` when there may be something new in the *tenant*'s feed, and with ``False`` when
            nobody may wait any more. Whoever waits no longer has to :meth:`forget` it.
        """
        news: Deferred[bool] = Deferred()
        if self._ended:
            news.callback(False)
        else:
            self._waiting.setdefault(tenant, {})[news] = what
        return news

    def forget(self, tenant: str, news: Deferred[bool]) -> None:
        """This one waits no longer; it never fires."""
        waiting = self._waiting.get(tenant)
        if waiting is not None:
            waiting.pop(news, None)
            if not waiting:
                del self._waiting[tenant]
        self._forgetWhatWasSeen(tenant)

    def _forgetWhatWasSeen(self, tenant: str) -> None:
        if tenant not in self._waiting and tenant not in self._places:
            self._still.pop(tenant, None)

    def seen(self, tenant: str, what: Hashable) -> Any:
        """What was seen at the last :meth:`look`, if it was kept and there are no news since; ``None`` if not."""
        still = self._still.get(tenant)
        return None if still is None else still.seen.get(what)

    def look(
        self, tenant: str, what: Hashable, read: Callable[[], Deferred[_T]], isSmall: Callable[[_T], bool]
    ) -> Deferred[_T]:
        """
        Look at a feed together with others: what one of them has read after the last news, or is reading, is good for
        all until there are more. So it takes one look to answer a thousand who hear the same, and none to let them wait
        again.

        :param what: which part of the *tenant*'s feed.
        :param read: reads it.
        :param isSmall: whether what was read may be kept.
        """
        seen: _T | None = self.seen(tenant, what)
        if seen is not None:
            return succeed(seen)
        still = self._still.setdefault(tenant, _Stillness())

        def keep(seen: _T) -> _T:
            if isSmall(seen):
                still.keep(what, seen, lambda: self.look(tenant, what, read, isSmall))
            return seen

        return still.looking.do(what, lambda: read().addCallback(keep))

    def tell(self, tenants: Iterable[str]) -> None:
        """There is something new in these tenants' feeds."""
        for tenant in tenants:
            still, waiting = self._still.pop(tenant, None), self._waiting.pop(tenant, {})
            if still is not None and len(waiting) > 1:
                # What has been read once before they hear is there for all of them, and none has to wait once more, for
                # the look of another.
                news, whats = tuple(waiting), set(waiting.values())
                self._abouts.add(news)
                looks = [look() for what, look in still.looks.items() if what in whats]
                DeferredList(looks, consumeErrors=True).addCallback(self._haveLooked, news)
            else:
                self._told.extend(waiting)
        self._goOnTelling()

    def _haveLooked(self, _: object, news: tuple[Deferred[bool], ...]) -> None:
        if news in self._abouts:
            self._abouts.remove(news)
            self._told.extend(news)
            self._goOnTelling()

    def _goOnTelling(self) -> None:
        if self._told and self._telling is None:
            self._telling = self._clock.callLater(0, self._tellSome)

    def tellAll(self) -> None:
        """Everybody has to look at the feed again."""
        self._still.clear()
        self.tell(list(self._waiting))

    def end(self) -> None:
        """Nobody waits any more, and nobody will."""
        self._ended = True
        telling, self._telling = self._telling, None
        if telling is not None:
            telling.cancel()
        while self._endings:
            self._endings.popitem()[1].cancel()
        everybody = [news for waiting in self._waiting.values() for news in waiting]
        self._waiting.clear()
        self._still.clear()
        while self._abouts:
            self._told.extend(self._abouts.pop())
        self._hear(len(self._told))
        for news in everybody:
            if not news.called:
                news.callback(False)

    def _tellSome(self) -> None:
        self._telling = None
        self._hear(self.TURN)
        self._goOnTelling()

    def _hear(self, most: int) -> None:
        for _ in range(min(most, len(self._told))):
            news = self._told.popleft()
            # Whoever has stopped waiting meanwhile has been cancelled.
            if not news.called:
                news.callback(True)
