"""The coroutines that the registry owns."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.stores.interfaces import StoreUnavailable
from txserviceregistry.registry.tasks import TaskOwner


class TaskOwnerTests(SynchronousTestCase):
    """Tasks whose callers have stopped waiting."""

    def failing(self, error: Exception) -> None:
        """Let a task fail when its caller has stopped waiting."""
        working: Deferred[None] = Deferred()

        async def work() -> None:
            await working

        waiting = TaskOwner().start(work())
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        working.errback(error)

    def test_outages(self) -> None:
        """An outage of the store is not logged again: the store itself has logged it."""
        self.failing(StoreUnavailable("away"))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_errors(self) -> None:
        """Any other error is logged."""
        self.failing(ValueError("of the program"))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
