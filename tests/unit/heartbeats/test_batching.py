"""
Heartbeat batching: which heartbeats are sent in one request, and when.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from weakref import ref

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.garbage import collectOnlyNew
from txserviceregistry.clock import SuspendWatch
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
from txserviceregistry.heartbeats.attempts import StallWatch
from txserviceregistry.heartbeats.batching import HeartbeatBatcher, isRefusal
from txserviceregistry.http.jsontransport import ClientClosed
from txserviceregistry.http.messages import WhenLate
from txserviceregistry.util.deferred import delayBefore


class Service:
    """A service that only counts."""

    what = "service"

    def __init__(self, clock: Clock, name: str, interval: float, timeout: float) -> None:
        self.serviceId = name
        self.nextToken: str | None = f"{name}'s first"
        self.interval = interval
        self.heartbeatTimeout = timeout
        self.clock = clock
        self.deadline = clock.seconds() + timeout
        self.beats: list[float] = []
        self.misses = 0
        self.dismissals = 0
        self.batchSlot: object = None
        self.batchDue = 0.0

    def entry(self, sent: float) -> dict[str, str]:
        return {"id": self.serviceId, "token": self.nextToken or ""}

    def secondsLeft(self) -> float:
        return self.deadline - self.clock.seconds()

    def retryDelay(self, delay: float) -> float:
        return delayBefore(min(delay, self.interval / 2), self.secondsLeft())

    def answered(self, sent: float, token: str) -> None:
        self.beats.append(sent)
        self.nextToken = token
        self.deadline = sent + self.heartbeatTimeout

    def missed(self) -> None:
        self.misses += 1

    def dismissed(self) -> None:
        self.dismissals += 1


class BatcherTests(SynchronousTestCase):
    """A batcher and a registry that responds when the test says so, or at once."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.requests: list[tuple[list[tuple[str, str]], float, Deferred[Sequence[str | None]]]] = []
        self.whenLate: list[WhenLate] = []
        self.isOffered = True
        self.answersAtOnce = True
        self.isBroken = False
        self.batcher = self.makeBatcher()

    def makeBatcher(self) -> HeartbeatBatcher:
        watches = {"stalls": StallWatch(self.clock), "suspends": SuspendWatch(self.clock, lambda: 0.0)}
        return HeartbeatBatcher(self.send, lambda: self.isOffered, self.clock, lambda: 0.0, **watches)

    def send(self, entries: Sequence[Mapping[str, str]], timeout: float, whenLate: WhenLate) -> Deferred[Any]:
        if self.isBroken:
            raise ZeroDivisionError
        beats = [(entry["id"], entry["token"]) for entry in entries]
        answer: Deferred[Sequence[str | None]] = Deferred()
        self.whenLate.append(whenLate)
        self.requests.append((beats, timeout, answer))
        if self.answersAtOnce:
            answer.callback([f"{id}'s next" for id, _ in beats])
        return answer.addCallback(lambda tokens: [{} if token is None else {"token": token} for token in tokens])

    def service(self, name: str, interval: float = 10.0, due: float = 0.0, timeout: float = 15.0) -> Service:
        service = Service(self.clock, name, interval, timeout)
        self.batcher.join(service, due)
        return service

    def passes(self, seconds: float, step: float = 0.05) -> None:
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end - step / 2:
            self.clock.advance(step)

    def ids(self) -> list[list[str]]:
        return [[id for id, _ in beats] for beats, _, _ in self.requests]

    def test_heartbeatsThatAreDueCloseTogetherShareARequest(self) -> None:
        """Two services that fall due within a tenth of their interval share a request, and a third does not."""
        self.service("a", due=5)
        self.service("b", due=5.9)
        self.service("c", due=6.1)
        self.passes(6)
        self.assertEqual(self.ids(), [["a", "b"]])
        self.passes(0.2)
        self.assertEqual(self.ids(), [["a", "b"], ["c"]])

    def test_noneIsLateAndNoneIsEarlierThanATenth(self) -> None:
        """Over a hundred intervals of many services no heartbeat is late, or early by more than a tenth."""
        draw = random.Random(20261124).random
        services = [self.service(f"s{n}", interval=9 + draw(), due=10 * draw()) for n in range(100)]
        self.passes(1000)
        for service in services:
            gaps = [later - earlier for earlier, later in zip(service.beats, service.beats[1:], strict=False)]
            self.assertGreater(len(gaps), 90)
            self.assertLess(max(gaps), service.interval + 0.051)
            self.assertGreater(min(gaps), 0.9 * service.interval - 0.051)
        self.assertLess(len(self.requests), 100 * 20)

    def leave(self, services: Sequence[Service], *_: object) -> None:
        for service in services:
            self.batcher.leave(service)

    def test_aListenerMayEndServices(self) -> None:
        """Services may leave when they are called with a response, or a failure: nothing is sent for them any more."""
        for outcome in ("answered", "missed"):
            services = [self.service(name) for name in ("a", "b")]
            for service in services:
                self.patch(service, outcome, partial(self.leave, services))
            self.answersAtOnce = outcome == "answered"
            self.passes(0.1)
            if not self.answersAtOnce:
                self.requests[-1][2].errback(Failure(ConnectionFailed("gone")))
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.passes(30)
            self.assertEqual(self.ids(), [["a", "b"]])
            self.requests.clear()

    def test_manyThatAreDueAtDifferentTimes(self) -> None:
        """When more are due than fit into one request, those go first that are due first, however close together."""
        self.patch(HeartbeatBatcher, "MOST", 2)
        self.batcher = self.makeBatcher()
        self.answersAtOnce = False
        for name, due in (("c", 5.08), ("d", 5.09), ("b", 5.04), ("e", 5.3), ("a", 5.02)):
            self.service(name, due=due)
        self.passes(5.05, 0.01)
        self.requests[0][2].callback(["x", "x"])
        self.passes(0.05, 0.01)
        self.requests[1][2].callback(["x", "x"])
        self.passes(0.3, 0.01)
        self.assertEqual(self.ids(), [["a", "b"], ["c", "d"], ["e"]])

    def test_eachPresentsItsLastToken(self) -> None:
        """A heartbeat presents the token of the response before it."""
        self.service("a")
        self.passes(11)
        self.assertEqual([beats for beats, _, _ in self.requests], [[("a", "a's first")], [("a", "a's next")]])

    def test_noRequestIsLargerThanTheRegistryAccepts(self) -> None:
        """Heartbeats beyond a thousand go in the next request."""
        for number in range(2500):
            self.service(f"s{number}", due=1)
        self.passes(1.5)
        self.assertEqual([len(ids) for ids in self.ids()], [1000, 1000, 500])

    def test_oneRequestAtATime(self) -> None:
        """A heartbeat that falls due while a request is under way waits for its response, unless it hangs."""
        self.answersAtOnce = False
        self.service("a", due=1)
        self.service("b", due=2.2)
        self.passes(2.1)
        self.assertEqual(self.ids(), [["a"]])
        self.passes(0.2)
        # The first request has been there for longer than a second.
        self.assertEqual(self.ids(), [["a"], ["b"]])

    def test_aRequestHasTheTimeOfItsMostUrgent(self) -> None:
        """A third of what the service with the nearest deadline has left."""
        self.service("a", due=1, timeout=31)
        self.service("b", due=1, timeout=7)
        self.passes(1.1)
        ((_, timeout, _),) = self.requests
        self.assertAlmostEqual(timeout, 2.0, places=1)

    def test_aHeartbeatWithoutAResponseIsRepeatedInTime(self) -> None:
        """At once, then after delays that leave two tries before the nearest deadline; each service is called."""
        self.answersAtOnce = False
        service = self.service("a", due=1, timeout=5)
        self.passes(1.1)
        for _ in range(6):
            self.requests[-1][2].errback(self.unreachable())
            self.passes(0.6)
        self.assertEqual(service.misses, 6)
        self.assertEqual(len(self.requests), 7)
        self.requests[-1][2].callback(["again"])
        self.assertEqual(service.nextToken, "again")

    def test_anOutageIsLoggedOnce(self) -> None:
        """A thousand services without a response for a minute are two lines in the log."""
        log: list[str] = []
        self.answersAtOnce = False
        for number in range(1000):
            self.service(f"s{number}", due=1)
        from twisted.logger import formatEvent, globalLogPublisher

        observer = lambda event: log.append(formatEvent(event))  # noqa: E731  # added and removed as one object
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.passes(1.1)
        end = self.clock.seconds() + 60
        while self.clock.seconds() < end:
            for _, _, answer in self.requests:
                if not answer.called:
                    answer.errback(self.unreachable())
            self.passes(1)
        self.answersAtOnce = True
        self.assertIn("Heartbeats failed for services s0, s1, s2, s3, s4 and 995 more: away (retrying)", log)
        self.passes(20)
        self.assertEqual(len([line for line in log if "and 995 more: away" in line]), 1)
        self.assertEqual(len([line for line in log if "succeed again" in line]), 1)

    def test_aRefusedServiceIsDismissed(self) -> None:
        """A service whose heartbeat was refused is dismissed, and the others go on."""
        self.answersAtOnce = False
        services = [self.service(name, due=1) for name in "abc"]
        self.passes(1.1)
        self.requests[0][2].callback(["x", None, "z"])
        self.answersAtOnce = True
        self.passes(11)
        self.assertEqual([service.dismissals for service in services], [0, 1, 0])
        self.assertEqual(self.ids()[1:], [["a", "c"]])

    def test_aResponseDoesNotConcernServicesThatHaveLeft(self) -> None:
        """Neither an answer nor a failure reaches a service that has left meanwhile; nothing is left on the clock."""
        self.answersAtOnce = False
        stays, leaves = self.service("a", due=1), self.service("b", due=1)
        self.passes(1.1)
        self.batcher.leave(leaves)
        self.requests[0][2].callback(["x", "y"])
        self.assertEqual((len(stays.beats), len(leaves.beats)), (1, 0))
        self.batcher.leave(stays)
        self.batcher.leave(stays)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_theLastOneToLeaveEndsTheRequest(self) -> None:
        """Without services, requests under way are cancelled."""
        self.answersAtOnce = False
        service = self.service("a", due=1)
        self.passes(1.1)
        self.batcher.leave(service)
        self.assertTrue(self.requests[0][2].called)
        self.assertEqual(service.misses, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @staticmethod
    def unreachable() -> ConnectionFailed:
        """Errors that a single heartbeat would meet as well."""
        error = ConnectionFailed("away")
        error.wasSent = False
        return error

    def refuse(self, request: int = -1) -> None:
        self.requests[request][2].errback(Failure(ForeignResponse(413)))

    def sizes(self) -> list[int]:
        return [len(ids) for ids in self.ids()]

    def respond(self, most: int, error: Exception) -> None:
        """Answer the requests under way: those of up to so many heartbeats are accepted, the others fail."""
        for beats, _, answer in list(self.requests):
            if answer.called:
                continue
            if len(beats) <= most:
                answer.callback([f"{id}'s next" for id, _ in beats])
            else:
                answer.errback(Failure(error))

    def through(self, most: int, error: Exception, seconds: float, services: Sequence[Service] = ()) -> None:
        """
        So many seconds of a proxy that lets batches of up to so many heartbeats pass. Single heartbeats of these
        services are accepted.
        """
        self.answersAtOnce = False
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.clock.advance(0.01)
            self.respond(most, error)
            for service in services:
                if service.batchSlot is None and self.batcher.isOffered:
                    self.batcher.join(service, self.clock.seconds() + service.interval)

    def test_aRefusedBatchIsSplit(self) -> None:
        """
        One service sends a single heartbeat. Then batches grow, and sizes between one that passes and one that is
        refused are tried. A size that is refused is not tried again for a while.
        """
        services = [self.service(f"s{number}", due=1, interval=9.9, timeout=15) for number in range(40)]
        self.through(5, ForeignResponse(413), 4, services)
        self.assertEqual(self.sizes(), [40, 1, 1, 4, 4, 16, 13, 4, 4, 8, 8, 4, 4, 6, 6, 4, 4, 5])
        for _ in range(3):
            self.requests.clear()
            self.through(5, ForeignResponse(413), 9.9, services)
            self.assertEqual(max(self.sizes()), 5)
        self.assertEqual({len(service.beats) for service in services[1:]}, {4})
        self.assertEqual(sum(service.dismissals for service in services), 1)

    def test_aLimitOfRequestsDoesNotMakeThemMore(self) -> None:
        """Batches keep their size behind a proxy that rejects requests because they are too many."""
        services = [self.service(f"s{number}", due=1, interval=9.9, timeout=15) for number in range(40)]
        self.through(0, ForeignResponse(429), 5, services)
        self.assertEqual(set(self.sizes()), {40})
        self.assertEqual(sum(service.dismissals for service in services), 0)
        self.through(1000, ForeignResponse(429), 10, services)
        self.assertGreater(min(service.deadline for service in services), self.clock.seconds())

    def test_largerBatchesAreTriedOnceInAWhile(self) -> None:
        """After the hold a few larger batches are tried; when the proxy accepts all sizes again, so are the largest."""
        services = [self.service(f"s{number}", due=1, interval=9.9, timeout=15) for number in range(40)]
        self.through(5, ForeignResponse(413), HeartbeatBatcher.HOLD, services)
        self.requests.clear()
        self.through(5, ForeignResponse(413), HeartbeatBatcher.HOLD, services)
        self.assertEqual([size for size in self.sizes() if size > 5], [20, 12, 8, 6])
        self.through(1000, ForeignResponse(413), 2 * HeartbeatBatcher.HOLD, services)
        self.assertGreater(self.sizes()[-1], 16)

    def test_aSizeIsHeldWhateverElseFails(self) -> None:
        """After an outage batches grow again, but to the size that is known to pass only."""
        services = [self.service(f"s{number}", due=1, interval=9.9, timeout=15) for number in range(40)]
        self.through(5, ForeignResponse(413), 12, services)
        self.through(0, RequestTimedOut("late"), 20)
        self.assertEqual(sum(service.dismissals for service in services), 2)
        self.requests.clear()
        self.through(5, ForeignResponse(413), 40, services)
        self.assertEqual(max(self.sizes()), 5)
        self.assertGreater(min(service.deadline for service in services), self.clock.seconds())

    def test_oneThatIsNotRegisteredAnyMoreIsNotATest(self) -> None:
        """The service that is to send a single heartbeat may be gone, and unable to register: another one does it."""
        services = [self.service(f"s{number}", due=1, interval=9.9, timeout=15) for number in range(40)]
        self.through(5, ForeignResponse(413), 2)
        [gone] = [service for service in services if service.dismissals]
        gone.nextToken = None
        self.through(5, ForeignResponse(413), 10, [service for service in services if service is not gone])
        self.assertEqual(sum(service.dismissals for service in services), 2)
        self.assertTrue(all(service.beats for service in services if not service.dismissals))

    def test_whereNoBatchIsAcceptedAllSendSingleHeartbeats(self) -> None:
        """
        When a batch is refused, one service is dismissed, and the others wait as in an outage. When it comes back, its
        own heartbeat was accepted: if a batch is still refused, all are dismissed. After a while one tries.
        """
        self.answersAtOnce = False
        services = [self.service(name, due=1) for name in "ab"]
        self.passes(1.1)
        self.refuse()
        self.assertEqual(sum(service.dismissals for service in services), 1)
        self.assertTrue(self.batcher.isOffered)
        [alone] = [service for service in services if service.dismissals]
        self.batcher.join(alone, self.clock.seconds() + 5)
        self.passes(0.5, 0.01)
        self.refuse()
        self.assertEqual(sum(service.dismissals for service in services), 3)
        self.assertFalse(self.batcher.isOffered)
        self.passes(HeartbeatBatcher.HOLD, 1)
        self.assertTrue(self.batcher.isOffered)
        self.batcher.join(services[0], self.clock.seconds())
        self.assertFalse(self.batcher.isOffered)
        self.answersAtOnce = True
        self.passes(0.1)
        self.assertTrue(self.batcher.isOffered)

    def test_largeBatchesMayFailInOtherWays(self) -> None:
        """
        When two batches in a row fail, one service sends a single heartbeat. If that is accepted, batches begin again
        with one heartbeat, and grow to the size that is accepted, which is remembered.
        """
        for error in (MalformedResponse("no JSON"), ServerError(502), ConnectionFailed("lost"), RequestTimedOut()):
            self.setUp()
            services = [self.service(f"s{number}", due=1, timeout=15) for number in range(20)]
            self.through(4, error, 4, services)
            self.assertEqual({len(service.beats) for service in services if not service.dismissals}, {1}, error)
            self.assertEqual(sum(service.dismissals for service in services), 1)
            self.requests.clear()
            self.through(4, error, 60, services)
            self.assertLess(sum(size > 4 for size in self.sizes()), 3)
            self.assertGreater(sum(size == 4 for size in self.sizes()), 20)

    def test_noBatchMayPassAtAll(self) -> None:
        """If not even a batch of one is accepted while single heartbeats are, all services send their own."""
        for error in (ForeignResponse(403), ServerError(502), ConnectionFailed("lost"), RequestTimedOut()):
            self.setUp()
            services = [self.service(f"s{number}", due=1, timeout=15) for number in range(20)]
            self.through(0, error, 4, services)
            self.assertFalse(self.batcher.isOffered)
            self.assertTrue(all(service.dismissals for service in services))
            self.assertLess(len(self.requests), 15)

    def test_oneThatEndsMeanwhileIsForgotten(self) -> None:
        """A service that sends single heartbeats to find out the reason may end; nothing is kept of it."""
        collectOnlyNew(self)
        self.answersAtOnce = False
        services = [self.service(f"s{number}", due=1, timeout=100) for number in range(3)]
        self.passes(1.1)
        for _ in range(2):
            self.requests[-1][2].errback(ServerError(502))
            self.passes(0.2)
        [alone] = [service for service in services if service.dismissals]
        self.batcher.leave(alone)
        forgotten = ref(alone)
        for held in (services, self.requests, self.whenLate):
            held.clear()
        del alone
        gc.collect()
        self.assertIsNone(forgotten())

    def test_aBadConnectionIsNotAReasonToSplit(self) -> None:
        """When a batch is accepted after two that had no response, the next ones are not halved."""
        self.answersAtOnce = False
        services = [self.service(f"s{number}", due=1, timeout=100) for number in range(20)]
        for _ in range(5):
            self.passes(1.1)
            for _ in range(2):
                self.requests[-1][2].errback(Failure(ConnectionFailed("lost")))
                self.passes(0.2)
            for service in services:
                if service.batchSlot is None:
                    self.batcher.join(service, self.clock.seconds())
            self.requests[-1][2].callback([f"{id}'s next" for id, _ in self.requests[-1][0]])
            self.passes(10)
        self.assertGreater(len(self.ids()[-1]), 10)

    def test_aFailureMayStopServices(self) -> None:
        """Services that a listener stops after a failure are not dismissed."""
        self.answersAtOnce = False
        first, second = self.service("a", due=1), self.service("b", due=1)
        second.missed = lambda: self.batcher.leave(first)  # type: ignore[method-assign] # the service's own reaction
        self.passes(1.1)
        for _ in range(2):
            self.requests[-1][2].errback(Failure(ServerError(502)))
            self.passes(0.2)
        self.assertEqual((first.dismissals, second.dismissals), (0, 1))

    def test_anOutageOfAGatewayDoesNotSplitBatchesOnAndOn(self) -> None:
        """While single heartbeats are refused too, the other services are tried together, and none is forgotten."""
        self.answersAtOnce = False
        services = [self.service(name, due=1) for name in "abcdefghijklmnop"]
        self.passes(1.1)
        for _ in range(20):
            for _, _, answer in self.requests:
                if not answer.called:
                    answer.errback(Failure(ForeignResponse(404)))
            self.passes(0.05)
        self.assertLess(len(self.requests), 15)
        self.answersAtOnce = True
        self.passes(3)
        for service in services:
            if not service.dismissals:
                self.assertGreater(len(service.beats), 0)
        self.passes(20)
        self.assertGreater(len(self.ids()[-1]), 1)

    def test_withoutTheExtensionAllAreDismissed(self) -> None:
        """When the registry no longer accepts batches, all are dismissed, in time for the next heartbeat."""
        services = [self.service(name) for name in "ab"]
        self.passes(1)
        self.isOffered = False
        self.passes(10)
        self.assertEqual([service.dismissals for service in services], [1, 1])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aClosedClientEndsItQuietly(self) -> None:
        """When the client is closed nothing is tried again."""
        self.answersAtOnce = False
        service = self.service("a", due=1)
        self.passes(1.1)
        self.requests[0][2].errback(ClientClosed("closed"))
        self.passes(60)
        self.assertEqual((len(self.requests), service.misses), (1, 0))

    def test_anUnexpectedErrorIsRetried(self) -> None:
        """An unexpected error is logged, and the heartbeats are sent again."""
        self.answersAtOnce = False
        self.service("a", due=1)
        self.passes(1.1)
        self.requests[0][2].errback(Failure(ZeroDivisionError()))
        self.answersAtOnce = True
        self.passes(1)
        self.assertEqual(len(self.requests), 2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_anErrorBeforeTheRequestIsRetried(self) -> None:
        """So is one that comes before anything is sent."""
        self.isBroken = True
        self.service("a", due=1)
        self.passes(1.1)
        self.isBroken = False
        self.passes(1)
        self.assertEqual(len(self.requests), 1)
        self.assertNotEqual(self.flushLoggedErrors(ZeroDivisionError), [])

    # -- late requests

    def tooLate(self, number: int) -> float:
        """The time of a request is over; for how many seconds it runs on."""
        return self.whenLate[number](Failure(self.unreachable()))

    def test_theAnswerToALateRequestCounts(self) -> None:
        """The next one goes beside it; what was answered first is not changed by what comes later."""
        self.answersAtOnce = False
        services = [self.service(name) for name in "ab"]
        self.passes(0.1)
        self.assertEqual(self.tooLate(0), 0.0)
        self.requests[0][2].errback(ConnectionFailed("too slow"))
        for service in services:
            service.deadline = self.clock.seconds() + 1.2
        self.passes(0.05)
        self.assertAlmostEqual(self.tooLate(1), 3.0 - self.requests[1][1])
        self.passes(0.2)
        self.assertEqual(self.ids(), [["a", "b"]] * 3)
        self.requests[1][2].callback(["late a", "late b"])
        self.assertEqual([service.nextToken for service in services], ["late a", "late b"])
        self.requests[2][2].callback(["newer a", "newer b"])
        self.assertEqual([service.nextToken for service in services], ["late a", "late b"])
        self.answersAtOnce = True
        self.passes(9.0)
        self.assertEqual(len(self.requests), 3)
        self.passes(2.0)
        self.assertEqual(self.requests[3][0], [("a", "late a"), ("b", "late b")])

    def test_aLateResponseDoesNotConcernServicesThatHaveLeft(self) -> None:
        """Nor who was answered, dismissed or registered again meanwhile."""
        self.answersAtOnce = False
        gone, here, new = (self.service(name, timeout=1.2) for name in ("gone", "here", "new"))
        self.passes(0.05)
        self.tooLate(0)
        self.batcher.leave(gone)
        new.nextToken = "of another registration"
        self.requests[0][2].callback(["1", "2", "3"])
        tokens = [service.nextToken for service in (gone, here, new)]
        self.assertEqual(tokens, ["gone's first", "2", "of another registration"])

    def test_whenAllHaveLeftNothingIsUnderWay(self) -> None:
        """Requests that are late end as well."""
        self.answersAtOnce = False
        service = self.service("a", timeout=1.2)
        self.passes(0.05)
        self.tooLate(0)
        self.batcher.leave(service)
        self.assertTrue(self.requests[0][2].called)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    # -- refusals

    def test_whatIsARefusal(self) -> None:
        """A 4xx to the whole batch, of the registry or a proxy; not a refused token or a limit, and no outage."""
        for status in (400, 403, 404, 405, 408, 410, 413, 451):
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
            ForeignResponse(429),
            Unauthorized(401, "unauthorizedError"),
            RateLimited(400, "rateLimitReached"),
            LimitReached(400, "limitReached"),
            ServerError(503),
            ConnectionFailed(),
            RequestTimedOut(),
            MalformedResponse(),
        ):
            self.assertFalse(isRefusal(error))
