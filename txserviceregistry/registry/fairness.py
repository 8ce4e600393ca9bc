"""
Fair queueing of the work for unauthenticated clients: the less work has been done for a client, the sooner it is
served.

The algorithm is start-time fair queueing, on several levels. On each level every party (an address, a connection) has a
start tag: the amount of work done for it so far. The party with the lowest tag is served next. The tag of a new party
is the level's virtual time, which is lower than the tags of nearly all parties that have been served before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from typing import Generic, TypeAlias, TypeVar

import attrs

_T = TypeVar("_T")
_Path: TypeAlias = Sequence[Hashable]

#: For how many parties of one level the amount of work is remembered. With more, all start from the virtual time.
REMEMBERED_PARTIES = 10_000


@attrs.frozen
class Origin:
    """
    The source of a request or a handshake.

    :ivar peer: the client's address (:func:`~txserviceregistry.registry.http.connections.peerOf`).
    :ivar connection: the number of the connection, or what else divides the work for one address.
    :ivar isKnown: whether a client at this address has authenticated recently.
    """

    peer: str = "local sockets"
    connection: int = 0
    isKnown: bool = False


class FairQueue(Generic[_T]):
    """
    A queue that serves parties in turn, however many items each of them has in it.

    An item's path names its party on each level, the outermost first: ``(address, connection)`` divides the work evenly
    between addresses, and the share of an address evenly between its connections. Items with the same path are served
    in the order of their arrival. All paths have the same length.
    """

    def __init__(self) -> None:
        self._count = 0
        # Of the last level.
        self._items: deque[_T] = deque()
        # Of the other levels: what each party has in the queue, the work done for parties, and the parties in the queue
        # by start tag.
        self._parties: dict[Hashable, FairQueue[_T]] = {}
        self._work: dict[Hashable, float] = {}
        self._heap: list[tuple[float, int, Hashable]] = []
        self._order = count()
        self._now = 0.0

    def __len__(self) -> int:
        return self._count

    def add(self, path: _Path, item: _T) -> None:
        self._count += 1
        if not path:
            self._items.append(item)
            return
        party = path[0]
        if party not in self._parties:
            self._parties[party] = FairQueue()
            heappush(self._heap, (max(self._now, self._tag(party)), next(self._order), party))
        self._parties[party].add(path[1:], item)

    def pop(self) -> tuple[_Path, _T]:
        """Remove the item that is served next, which must be there; returns it with its path."""
        self._count -= 1
        if self._items:
            return (), self._items.popleft()
        tag, _, party = self._heap[0]
        # A tag that is out of date is corrected here, because doing so at each charge costs more.
        while tag < self._tag(party):
            heapreplace(self._heap, (self._tag(party), next(self._order), party))
            tag, _, party = self._heap[0]
        self._now = max(self._now, tag)
        path, item = self._parties[party].pop()
        if not self._parties[party]:
            heappop(self._heap)
            del self._parties[party]
        if not self._count:
            # With an empty queue there is no order to keep. This also forgets clients that are gone.
            self._work.clear()
        return (party, *path), item

    def dropLast(self) -> _T:
        """Remove the last item of the party for which most work has been done, or else of the one that came last."""
        self._count -= 1
        if self._items:
            return self._items.pop()
        party = max(reversed(self._parties), key=self._tag)
        item = self._parties[party].dropLast()
        if not self._parties[party]:
            del self._parties[party]
            self._heap = [entry for entry in self._heap if entry[2] != party]
            heapify(self._heap)
        return item

    def charge(self, path: _Path, cost: float) -> None:
        """Account for work done for *path*, whether or not it was for an item of this queue."""
        if not (path and self._count and cost > 0):
            return
        party = path[0]
        self._work[party] = max(self._now, self._tag(party)) + cost
        # The virtual time also advances for parties that wait: otherwise a party that has been served would wait as
        # long as new ones arrive. It advances half as fast as each of them is served, so that the party that has had
        # the least keeps its lead until its turn.
        self._now += cost / (2 * (len(self._parties) + 1))
        if party in self._parties:
            self._parties[party].charge(path[1:], cost)
        if len(self._work) > REMEMBERED_PARTIES:
            self._work = {name: work for name, work in self._work.items() if work > self._now}
            if len(self._work) > REMEMBERED_PARTIES:
                self._work.clear()

    def _tag(self, party: Hashable) -> float:
        return self._work.get(party, 0.0)
