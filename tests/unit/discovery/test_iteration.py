"""Iteration: what loops get, and when an item is finished."""

from __future__ import annotations

import gc
import sys
from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.garbage import collectOnlyNew
from txserviceregistry.discovery.subscriber import Items
from txserviceregistry.errors import NotRunning
from txserviceregistry.util.logs import Listeners, Logger


class _Source:
    """A subscriber that is running, or not."""

    def __init__(self) -> None:
        self.running = True
        self.parent = None
        self._clock: Any = Clock()
        self.listeners: Listeners[[int]] = Listeners(Logger(), "items")
        self._stopListeners: Listeners[[]] = Listeners(Logger(), "a stop")

    def put(self, number: int) -> Deferred[None]:
        """Fires when the loop has finished with the item."""
        [listener] = self.listeners
        finished: Any = listener(number)
        return finished

    def end(self) -> None:
        self._stopListeners.call()


class IterationTests(SynchronousTestCase):
    """One queue and its loop."""

    def setUp(self) -> None:
        self.source: Any = _Source()
        self.items: Items[int] = Items(self.source, self.source.listeners.add)

    def start(self, work: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        return Deferred.fromCoroutine(work)

    def test_itemsWait(self) -> None:
        """Items that come while the loop is busy wait for it, in order."""
        self.source.put(1)
        self.source.put(2)
        self.assertEqual(self.successResultOf(self.start(anext(self.items))), 1)
        self.assertEqual(self.successResultOf(self.start(anext(self.items))), 2)
        third = self.start(anext(self.items))
        self.assertNoResult(third)
        self.source.put(3)
        self.assertEqual(self.successResultOf(third), 3)

    def test_finished(self) -> None:
        """An item is finished when the loop requests the next one."""
        finished = [self.source.put(number) for number in (1, 2)]
        self.start(anext(self.items))
        self.assertNoResult(finished[0])
        self.start(anext(self.items))
        self.successResultOf(finished[0])
        self.assertNoResult(finished[1])
        self.successResultOf(self.start(self.items.aclose()))
        self.successResultOf(finished[1])

    def test_theEnd(self) -> None:
        """At the end what is not finished is cancelled, and does not come any more."""
        finished = [self.source.put(number) for number in (1, 2)]
        self.start(anext(self.items))
        self.source.end()
        for one in (*finished, self.source.put(3)):
            self.failureResultOf(one, CancelledError)
        self.failureResultOf(self.start(anext(self.items)), StopAsyncIteration)

    def test_closed(self) -> None:
        """A loop that is closed, or dropped, is forgotten, and holds nothing up."""
        collectOnlyNew(self)
        finished = self.source.put(1)
        self.successResultOf(self.start(self.items.aclose()))
        self.successResultOf(finished)
        self.assertEqual((len(self.source.listeners), len(self.source._stopListeners)), (0, 0))
        self.failureResultOf(self.start(anext(self.items)), StopAsyncIteration)
        self.items = Items(self.source, self.source.listeners.add)
        finished = self.source.put(1)
        del self.items
        gc.collect()
        self.successResultOf(finished)
        self.assertEqual((len(self.source.listeners), len(self.source._stopListeners)), (0, 0))

    def test_droppedInAThread(self) -> None:
        """The garbage collector runs in any thread: a dropped loop is forgotten in the reactor's."""
        calls: list[Any] = []
        self.source._clock.callFromThread = calls.append
        finished = self.source.put(1)
        del self.items
        gc.collect()
        self.assertNoResult(finished)
        [call] = calls
        call()
        self.successResultOf(finished)
        self.assertEqual((len(self.source.listeners), len(self.source._stopListeners)), (0, 0))

    def test_droppedBeforeAStop(self) -> None:
        """The work of a dropped loop is finished, and not cancelled, also if a stop comes before the reactor's turn."""
        self.source._clock.callFromThread = lambda call: None
        finished = self.source.put(1)
        del self.items
        gc.collect()
        self.source.end()
        self.successResultOf(finished)

    def test_droppedAfterAll(self) -> None:
        """A loop that is dropped when asyncio's event loop is closed leaves no error."""
        # An object that another test has left may have an error, too: a file on a full device.
        collectOnlyNew(self)

        def closed(call: Any) -> None:
            raise RuntimeError("Event loop is closed")

        self.source._clock.callFromThread = closed
        unraisable: list[Any] = []
        self.patch(sys, "unraisablehook", lambda args: unraisable.append(args.exc_value))
        del self.items
        gc.collect()
        self.assertEqual(unraisable, [])

    def test_notRunning(self) -> None:
        """Waiting for a source that does not run is an error; what is there already can be had."""
        self.source.put(1)
        self.source.running = False
        self.assertEqual(self.successResultOf(self.start(anext(self.items))), 1)
        self.failureResultOf(self.start(anext(self.items)), NotRunning)
