"""Iteration: items for ``async for`` loops. Items that arrive while a loop is busy wait for it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred

_T = TypeVar("_T")


class ItemQueue(Generic[_T]):
    """
    The items that wait for one loop.

    A source refers to this and not to the iterator, so that an iterator that the application drops is collected.
    """

    def __init__(self) -> None:
        self._items: deque[tuple[_T, Deferred[None] | None]] = deque()
        # Of the item that the loop has now.
        self._finished: Deferred[None] | None = None
        self._arrival: Deferred[None] | None = None
        self._isEnded = False

    def put(self, item: _T, finished: Deferred[None] | None = None) -> None:
        """
        One more item.

        :param finished: is fired when the loop requests the next item or is closed, and cancelled if the source ends
            before that. If it was cancelled, the loop does not get the item any more.
        """
        if not self._isEnded:
            self._items.append((item, finished))
            _fire(self._arrival)
        elif finished is not None:
            finished.cancel()

    def deliver(self, item: _T) -> Deferred[None]:
        """One more item; fires when the loop has finished with it. See :meth:`put`."""
        finished: Deferred[None] = Deferred()
        self.put(item, finished)
        return finished

    def end(self) -> None:
        """The source has ended: no more items come."""
        self._isEnded = True
        for finished in self._unfinished():
            finished.cancel()
        _fire(self._arrival)

    def close(self) -> None:
        """The loop wants no more items."""
        for finished in self._unfinished():
            _fire(finished)
        self._items.clear()
        self.end()

    async def next(self, check: Callable[[], None]) -> _T:
        """The next item; the one before is finished. *check* raises an error if this would wait for nothing."""
        _fire(self._finished)
        while True:
            while self._items:
                item, self._finished = self._items.popleft()
                if self._finished is None or not self._finished.called:
                    return item
            if self._isEnded:
                raise StopAsyncIteration
            check()
            self._arrival = Deferred()
            await self._arrival

    def _unfinished(self) -> list[Deferred[None]]:
        waiting = [self._finished, *(finished for _, finished in self._items)]
        return [finished for finished in waiting if finished is not None]


class Items(AsyncIterator[_T]):
    """The iterator over a queue; *forget* are functions that make the source forget the queue."""

    def __init__(self, queue: ItemQueue[_T], check: Callable[[], None], *forget: Callable[[], None]) -> None:
        self._queue = queue
        self._check = check
        self._forget = forget

    async def __anext__(self) -> _T:
        return await self._queue.next(self._check)

    async def aclose(self) -> None:
        """Want no more items."""
        self._close()

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        for forget in self._forget:
            forget()
        self._queue.close()


def _fire(waiter: Deferred[None] | None) -> None:
    if waiter is not None and not waiter.called:
        waiter.callback(None)
