"""The order of work for unauthenticated clients: many requests of one client do not hold up those of others."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import attrs

_T = TypeVar("_T")

#: Of how many parties of one level it is remembered that they have been served.
REMEMBERED_PARTIES = 10_000


@attrs.frozen
class Origin:
    """
    The source of a request or a handshake.

    :ivar peer: the client's address (:func:`~txserviceregistry.registry.http.connections.peerOf`).
    :ivar connection: what divides the work for one address.
    :ivar isKnown: whether a client at this address has authenticated recently.
    """

    peer: str = "local sockets"
    connection: int = 0
    isKnown: bool = False


class FairQueue(Generic[_T]):
    """
    A queue that serves parties in turn, however many items each of them has in it.

    An item's path names its party on each level, the outermost first: ``(address, connection)`` divides the turns
    evenly between addresses, and those of an address evenly between its connections. Items with the same path are
    served in the order of their arrival. All paths have the same length.

    A party that was not served before need not wait for a round of all others: every other turn is for such parties.
    """

    def __init__(self) -> None:
        self._count = 0
        # Of the last level.
        self._items: deque[_T] = deque()
        # Of the others: what the parties have in the queue that were served before, and the other ones, by their turns.
        self._old: dict[Hashable, FairQueue[_T]] = {}
        self._new: dict[Hashable, FairQueue[_T]] = {}
        self._served: set[Hashable] = set()
        self._isOldsTurn = False

    def __len__(self) -> int:
        return self._count

    def add(self, path: Sequence[Hashable], item: _T) -> None:
        self._count += 1
        if not path:
            self._items.append(item)
            return
        party = path[0]
        isNew = party in self._new or (party not in self._old and party not in self._served)
        (self._new if isNew else self._old).setdefault(party, FairQueue()).add(path[1:], item)

    def pop(self) -> _T:
        """Remove the item that is served next, which must be there."""
        self._count -= 1
        if self._items:
            return self._items.popleft()
        parties = self._old if not self._new or (self._old and self._isOldsTurn) else self._new
        # Not one that becomes old by this turn.
        self._isOldsTurn = parties is self._new and bool(self._old)
        party = next(iter(parties))
        queue = parties.pop(party)
        item = queue.pop()
        self._served.add(party)
        if queue:
            self._old[party] = queue
        if not self._count or len(self._served) > REMEMBERED_PARTIES:
            # With an empty queue there is no order to keep.
            self._served.clear()
        return item

    def dropLast(self) -> _T:
        """Remove the last item of the party that has most, if possible one that was served before."""
        self._count -= 1
        if self._items:
            return self._items.pop()
        parties = self._old or self._new
        party = max(reversed(parties), key=lambda party: len(parties[party]))
        item = parties[party].dropLast()
        if not parties[party]:
            del parties[party]
        return item
