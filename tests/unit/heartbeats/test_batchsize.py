"""The size of heartbeat batches after refusals."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.errors import (
    BadRequest,
    ConnectionFailed,
    Forbidden,
    ForeignResponse,
    LimitReached,
    MalformedResponse,
    NotFound,
    RateLimited,
    RequestTimedOut,
    ServerError,
    Unauthorized,
)
from txserviceregistry.heartbeats.batchsize import BatchSize, isRefusal


class BatchSizeTests(SynchronousTestCase):
    """A batch over a proxy that accepts up to so many heartbeats."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.size = BatchSize(1000, self.clock.seconds)
        self.accepted = 1000

    def send(self, services: int = 1000) -> list[int]:
        """The sizes of the batches that it takes to send a heartbeat for each of so many services."""
        sizes = []
        while services > 0:
            count = min(services, max(1, self.size.most))
            sizes.append(count)
            if count > self.accepted:
                self.size.refused(count)
                if count == 1:
                    self.size.close()
                    break
            else:
                self.size.accepted(count)
                services -= count
        return sizes

    def test_halvesAndRemembers(self) -> None:
        """A refused batch is halved until it is accepted, and no larger one is sent for a while."""
        self.accepted = 126
        self.assertEqual(self.send(), [1000, 500, 250, *[125] * 8])
        self.assertTrue(self.size.isLimited)
        self.clock.advance(BatchSize.HOLD - 1)
        self.assertEqual(self.send(), [125] * 8)

    def test_triesLargerOnesOnceInAWhile(self) -> None:
        """After the hold one larger batch is tried; if it is refused, no other one until the next hold is over."""
        self.accepted = 126
        self.send()
        for _ in range(10):
            self.clock.advance(BatchSize.HOLD)
            self.assertEqual(self.send(), [125, 250, *[125] * 7])
            self.clock.advance(BatchSize.HOLD / 2)
            self.assertEqual(self.send(), [125] * 8)

    def test_goesBackToTheLargest(self) -> None:
        """When a size that was refused before is accepted, the limit ends."""
        self.accepted = 126
        self.send()
        self.accepted = 1000
        self.clock.advance(BatchSize.HOLD)
        self.assertEqual(self.send(2000), [125, 250, 1000, 625])
        self.assertFalse(self.size.isLimited)

    def test_closes(self) -> None:
        """If not even a batch of one heartbeat is accepted, no batch is sent until the hold is over."""
        self.accepted = 0
        self.assertEqual(self.send()[-2:], [3, 1])
        self.assertEqual(self.size.most, 0)
        self.assertFalse(self.size.mayTry)
        self.clock.advance(BatchSize.HOLD)
        self.assertTrue(self.size.mayTry)
        self.accepted = 1000
        self.assertEqual(self.send(), [1, 999])

    def test_whatIsARefusal(self) -> None:
        """A 4xx to the whole batch, of the registry or a proxy; not a refused token or limit, and no outage."""
        for status in (400, 403, 404, 405, 408, 410, 413, 429, 451):
            self.assertTrue(isRefusal(ForeignResponse(status)))
        for fault in (
            BadRequest(400, "badRequest"),
            BadRequest(413, "requestTooLargeError"),
            Forbidden(403, "forbiddenError"),
            NotFound(404, "notFoundError"),
        ):
            self.assertTrue(isRefusal(fault))
        for error in (
            ForeignResponse(401),
            Unauthorized(401, "unauthorizedError"),
            RateLimited(400, "rateLimitReached"),
            LimitReached(400, "limitReached"),
            ServerError(503),
            ConnectionFailed(),
            RequestTimedOut(),
            MalformedResponse(),
        ):
            self.assertFalse(isRefusal(error))
