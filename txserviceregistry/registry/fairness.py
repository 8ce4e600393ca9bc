"""
Fair queueing of the work for unauthenticated clients: the less work has been done for a client, the sooner it is
served.

The algorithm is start-time fair queueing, on several levels. On each level every party (an address, a connection) has a
start tag: the amount of work done for it so far. The party with the lowest tag is served next. The tag of a new party
is the level's virtual time, which is lower than the tags of nearly all parties that have been served before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from heapq import heapify, heappop, heappush
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


def _always(path: _Path) -> bool:
    return True


class FairQueue(Generic[_T]):
    """
    A queue that serves parties in turn, however many items each of them has in it.

    An item's path names its party on each level, the outermost first: ``(address, connection)`` divides the work evenly
    between addresses, and the share of an address evenly between its connections. Items with the same path are served
    in the order of their arrival. All paths have the same length.
    """

    def __init__(self) -> None:
        self._count = 0
        self._reset()

    def _reset(self) -> None:
        # Of the last level.
        self._items: deque[_T] = deque()
        self._now = 0.0
        # The work done for each party that has had more than the virtual time.
        self._ends: dict[Hashable, float] = {}
        self._pruneAt = 64
        # The parties with items, by start tag; and what each of them has in the queue.
        self._heap: list[tuple[float, int, Hashable]] = []
        self._order = count()
        self._waiting: dict[Hashable, FairQueue[_T]] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, path: _Path, item: _T) -> None:
        self._count += 1
        if not path:
            self._items.append(item)
            return
        party = path[0]
        if party not in self._waiting:
            self._waiting[party] = FairQueue()
            self._push(party, max(self._now, self._ends.get(party, 0.0)))
        self._waiting[party].add(path[1:], item)

    def pop(self, mayGo: Callable[[_Path], bool] = _always) -> tuple[_Path, _T] | None:
        """
        Remove the item that is served next.

        :param mayGo: whether items whose paths begin with the given one may be taken now.
        :return: the item with its path; ``None`` if no item may be taken.
        """
        return self._take((), mayGo, last=False)

    def dropLast(self) -> tuple[_Path, _T] | None:
        """Remove the item that would be served last; ``None`` if the queue is empty."""
        return self._take((), _always, last=True)

    def _take(
        self, above: tuple[Hashable, ...], mayGo: Callable[[_Path], bool], *, last: bool
    ) -> tuple[_Path, _T] | None:
        taken: tuple[_Path, _T] | None = None
        if self._items:
            taken = above, self._items.pop() if last else self._items.popleft()
        kept = []
        while self._heap and taken is None:
            entry = self._popLast() if last else self._popFirst()
            path = (*above, entry[2])
            inside = self._waiting[entry[2]]
            if mayGo(path):
                taken = inside._take(path, mayGo, last=last)
            if inside:
                kept.append(entry)
            else:
                del self._waiting[entry[2]]
            if taken is not None and not last:
                self._now = max(self._now, entry[0])
        for entry in kept:
            heappush(self._heap, entry)
        if taken is not None:
            self._count -= 1
            if not self._count:
                # With an empty queue there is no order to keep. This also forgets clients that are gone.
                self._reset()
        return taken

    def charge(self, path: _Path, cost: float) -> None:
        """Account for work done for *path*, whether or not it was for an item of this queue."""
        if not (path and self._count and cost > 0):
            return
        party = path[0]
        self._ends[party] = max(self._now, self._ends.get(party, 0.0)) + cost
        # The virtual time also advances for parties that wait: otherwise a party that has been served would wait as
        # long as new ones arrive. It advances half as fast as each of them is served, so that the party that has had
        # the least keeps its lead until its turn.
        self._now += cost / (2 * (len(self._waiting) + 1))
        if party in self._waiting:
            self._waiting[party].charge(path[1:], cost)
        if len(self._ends) > self._pruneAt:
            self._ends = {name: end for name, end in self._ends.items() if end > self._now}
            if len(self._ends) > REMEMBERED_PARTIES:
                self._ends.clear()
            self._pruneAt = 2 * len(self._ends) + 64

    def _popFirst(self) -> tuple[float, int, Hashable]:
        while True:
            entry = heappop(self._heap)
            # The tag may be out of date: it is corrected here, because doing so at each charge costs more.
            end = self._ends.get(entry[2], 0.0)
            if end <= entry[0]:
                return entry
            self._push(entry[2], end)

    def _popLast(self) -> tuple[float, int, Hashable]:
        entry = max(self._heap)
        self._heap.remove(entry)
        heapify(self._heap)
        return entry

    def _push(self, party: Hashable, tag: float) -> None:
        heappush(self._heap, (tag, next(self._order), party))
