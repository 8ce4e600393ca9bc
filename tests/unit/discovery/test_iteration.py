"""Iteration: what loops get, and when an item is finished."""

from __future__ import annotations

import gc
from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.garbage import collectOnlyNew
from txserviceregistry.discovery.iteration import ItemQueue, Items
from txserviceregistry.errors import NotRunning


class IterationTests(SynchronousTestCase):
    """One queue and its loop."""

    def setUp(self) -> None:
        self.queue: ItemQueue[int] = ItemQueue()
        self.forgotten: list[str] = []
        self.isRunning = True
        forget = [lambda name=name: self.forgotten.append(name) for name in ("items", "stop")]
        self.items: Items[int] = Items(self.queue, self.check, *forget)

    def check(self) -> None:
        if not self.isRunning:
            raise NotRunning("not started")

    def start(self, work: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        return Deferred.fromCoroutine(work)

    def test_itemsWait(self) -> None:
        """Items that come while the loop is busy wait for it, in order; after the end it gets the rest."""
        self.queue.put(1)
        self.queue.put(2)
        self.assertEqual(self.successResultOf(self.start(anext(self.items))), 1)
        self.assertEqual(self.successResultOf(self.start(anext(self.items))), 2)
        third = self.start(anext(self.items))
        self.assertNoResult(third)
        self.queue.put(3)
        self.assertEqual(self.successResultOf(third), 3)
        self.queue.put(4)
        self.queue.end()
        self.queue.put(5)
        self.assertEqual(self.successResultOf(self.start(anext(self.items))), 4)
        self.failureResultOf(self.start(anext(self.items)), StopAsyncIteration)

    def test_finished(self) -> None:
        """An item is finished when the loop requests the next one."""
        finished = [self.queue.deliver(number) for number in (1, 2)]
        self.start(anext(self.items))
        self.assertNoResult(finished[0])
        self.start(anext(self.items))
        self.successResultOf(finished[0])
        self.assertNoResult(finished[1])
        self.successResultOf(self.start(self.items.aclose()))
        self.successResultOf(finished[1])

    def test_theEnd(self) -> None:
        """At the end what is not finished is cancelled, and does not come any more."""
        finished = [self.queue.deliver(number) for number in (1, 2)]
        self.start(anext(self.items))
        self.queue.end()
        for one in (*finished, self.queue.deliver(3)):
            self.failureResultOf(one, CancelledError)
        self.failureResultOf(self.start(anext(self.items)), StopAsyncIteration)

    def test_closed(self) -> None:
        """A loop that is closed, or dropped, is forgotten, and holds nothing up."""
        collectOnlyNew(self)
        finished = self.queue.deliver(1)
        self.successResultOf(self.start(self.items.aclose()))
        self.successResultOf(finished)
        self.assertEqual(self.forgotten, ["items", "stop"])
        self.failureResultOf(self.start(anext(self.items)), StopAsyncIteration)
        queue: ItemQueue[int] = ItemQueue()
        dropped = Items(queue, self.check, lambda: self.forgotten.append("dropped"))
        finished = queue.deliver(1)
        del dropped
        gc.collect()
        self.successResultOf(finished)
        self.assertEqual(self.forgotten[2:], ["dropped"])

    def test_notRunning(self) -> None:
        """Waiting for a source that does not run is an error; what is there already can be had."""
        self.queue.put(1)
        self.isRunning = False
        self.assertEqual(self.successResultOf(self.start(anext(self.items))), 1)
        self.failureResultOf(self.start(anext(self.items)), NotRunning)
