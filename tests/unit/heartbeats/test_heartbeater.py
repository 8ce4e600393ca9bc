"""HeartBeater: when it sends heartbeats, what it does about each failure, and how it ends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.clock import SuspendWatch
from txserviceregistry.errors import (
    BadRequest,
    ConnectionFailed,
    ForeignResponse,
    NotFound,
    RequestTimedOut,
    ServerError,
    ServiceExists,
)
from txserviceregistry.heartbeats.attempts import HeartbeatContext, StallWatch
from txserviceregistry.heartbeats.heartbeater import HeartBeater
from txserviceregistry.util.deferred import PrioritySemaphore

GONE = NotFound(404, "notFoundError", "object does not exist", 'Object "Service" with key "web1" does not exist')
MARKER = NotFound(
    404, "notFoundError", "object does not exist", 'Object "HeartbeatMarker" with key "t1" does not exist'
)


class Services:
    """Stands in for a client's services: answers heartbeats as the test says, and notes when they came."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sent: list[float] = []
        self.timeouts: list[float] = []
        self.tokens: list[str] = []
        self.answer: Any = None
        self.refusal: tuple[str, Any] = ("", None)
        self.cancelled = 0
        self.inFlight = 0
        self.mostInFlight = 0
        self.hanging: list[Deferred[Any]] = []
        # Whether each try that is cancelled makes room for the newest one, which is answered at once then.
        self.isCrowded = False

    def heartbeat(self, id: str, token: str, *, timeout: float | None = None, whenLate: Any = None) -> Deferred[Any]:
        self.sent.append(self.clock.seconds())
        self.timeouts.append(timeout or 0.0)
        self.tokens.append(token)
        answer = self.refusal[1] if token == self.refusal[0] else self.answer
        if answer == "raise":
            raise ZeroDivisionError
        if answer == "hang":
            return self._hang(timeout or 10.0, whenLate)
        if isinstance(answer, Exception):
            return fail(answer)
        return succeed({"token": f"t{len(self.sent)}"})

    def _hang(self, timeout: float, whenLate: Any) -> Deferred[Any]:
        self.inFlight += 1
        self.mostInFlight = max(self.mostInFlight, self.inFlight)

        def cancel(_: Deferred[Any]) -> None:
            self.cancelled += 1
            if self.isCrowded and self.hanging[-1] is not waiting:
                self.hanging[-1].callback({"token": "newest"})

        waiting: Deferred[Any] = Deferred(cancel)
        self.hanging.append(waiting)

        def late() -> None:
            problem = ConnectionFailed("too slow")
            more = whenLate(Failure(problem)) if whenLate is not None else 0.0
            calls.append(self.clock.callLater(more, waiting.errback, problem))

        calls = [self.clock.callLater(timeout, late)]

        def ended(result: Any) -> Any:
            self.inFlight -= 1
            self.hanging.remove(waiting)
            for call in calls:
                if call.active():
                    call.cancel()
            return result

        return waiting.addBoth(ended)


class HeartBeaterTests(SynchronousTestCase):
    """The promises of a HeartBeater, on a clock of the test's own."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.services = Services(self.clock)
        self.logged: list[str] = []

        def observe(event: Any) -> None:
            if event["log_namespace"].startswith("txserviceregistry"):
                self.logged.append(event["log_level"].name)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def heartBeater(
        self, timeout: int = 30, token: str | None = "t0", random: float = 1.0, **options: Any
    ) -> HeartBeater:
        heartBeater = HeartBeater(
            self.services, "web1", timeout, token, clock=self.clock, random=lambda: random, **options
        )
        self.addCleanup(heartBeater.stop)
        return heartBeater

    def pass_(self, seconds: float) -> None:
        steps = round(seconds / 0.01)
        self.clock.pump([0.01] * steps)

    def test_aMethodCanBeReplaced(self) -> None:
        """An application's tests may put something of their own in the place of a method."""
        calls: list[str] = []
        heartBeater = self.heartBeater()
        self.patch(heartBeater, "start", lambda: calls.append("start"))
        heartBeater.start()
        self.assertEqual((calls, self.services.sent), (["start"], []))

    def test_hasFewAttributes(self) -> None:
        """There can be thousands: up to 30 attributes take less memory than a dictionary for each."""
        heartBeater = self.heartBeater()
        heartBeater.onStateChange(lambda state: None)
        heartBeater.start()
        self.pass_(30)
        self.assertLessEqual(len(vars(heartBeater)), 30)

    def test_aShorterTimeout(self) -> None:
        """From then on the service may expire after the new timeout, without a heartbeat that is answered."""
        heartBeater = self.heartBeater(30)
        heartBeater.start()
        self.pass_(1)
        self.services.answer = "hang"
        heartBeater.setTimeout(3)
        self.pass_(2.9)
        self.assertEqual((heartBeater.state, heartBeater.healthy), ("registered", True))
        self.pass_(2)
        self.assertEqual((heartBeater.state, heartBeater.healthy), ("unreachable", False))

    # -- the interval

    def test_intervalIsAPartOfTheTimeout(self) -> None:
        """Below 15 s it is 0.6 of the timeout, from there on 0.8 of it, as in the old client."""
        self.assertEqual(self.heartBeater(15).heartbeatInterval, 12.0)
        self.assertEqual(self.heartBeater(10).heartbeatInterval, 6.0)
        self.assertEqual(self.heartBeater(120).heartbeatInterval, 96.0)

    def test_sendsAtOnceAndThenOnceAnInterval(self) -> None:
        """The first heartbeat is sent by start(), the next ones follow at the interval that was drawn."""
        self.heartBeater(30, random=1.0).start()
        self.pass_(49)
        self.assertEqual([round(at) for at in self.services.sent], [0, 24, 48])

    def test_drawsItsIntervalOnce(self) -> None:
        """A HeartBeater's own interval is 0.9 to 1.0 of the nominal one, which the attribute keeps saying."""
        heartBeater = self.heartBeater(30, random=0.0)
        heartBeater.start()
        self.pass_(44)
        self.assertEqual([round(at, 1) for at in self.services.sent], [0, 21.6, 43.2])
        self.assertEqual(heartBeater.heartbeatInterval, 24.0)

    def test_presentsTheTokenOfTheLastResponse(self) -> None:
        """Each response has the next token."""
        heartBeater = self.heartBeater()
        heartBeater.start()
        self.pass_(25)
        self.assertEqual(self.services.tokens, ["t0", "t1"])
        self.assertEqual(heartBeater.nextToken, "t2")
        self.assertEqual(heartBeater.lastSeen, self.services.sent[-1])

    def test_fewHeartbeatsAtOnce(self) -> None:
        """However long answers take, only some heartbeats are under way at once, each for some seconds at most."""
        self.services.answer = "hang"
        heartBeater = self.heartBeater(3)
        heartBeater.start()
        self.pass_(60)
        self.assertLessEqual(self.services.mostInFlight, 6)
        self.assertLess(self.clock.seconds() - self.services.sent[-1], 3)
        heartBeater.stop()
        self.assertEqual(self.services.inFlight, 0)

    # -- late tries

    def late(self, tries: int = 2, timeout: int = 3, **options: Any) -> HeartBeater:
        """A service whose heartbeat has been tried so often, each of them late."""
        self.services.answer = "hang"
        heartBeater = self.heartBeater(timeout, **options)
        heartBeater.start()
        while len(self.services.sent) < tries:
            self.clock.advance(0.01)
        self.assertEqual(self.services.inFlight, tries)
        return heartBeater

    def test_theAnswerToALateTryCounts(self) -> None:
        """It counts from the moment when it was sent, and other tries are ended."""
        heartBeater = self.late(3)
        self.services.hanging[0].callback({"token": "t1"})
        self.assertEqual((heartBeater.nextToken, heartBeater.lastSeen, heartBeater.state), ("t1", 0.0, "registered"))
        self.assertEqual(self.services.inFlight, 0)
        self.services.answer = None
        self.pass_(1)
        self.assertEqual(self.services.tokens, ["t0"] * 3 + ["t1"])

    def test_aLateResponseLeavesLessTimeForTheNextHeartbeat(self) -> None:
        """The next one is sent an interval after the answered one was sent: at once, if that time has passed."""
        self.late(3)
        while self.clock.seconds() < 2.5:
            self.clock.advance(0.01)
        self.services.answer = None
        before = len(self.services.sent)
        self.services.hanging[0].callback({"token": "t1"})
        self.clock.advance(0)
        self.assertEqual(self.services.tokens[before:], ["t1"])
        self.pass_(1.7)
        self.assertEqual(len(self.services.sent), before + 1)

    def test_theAnswerToALateTryCountsBetweenTries(self) -> None:
        """Also while the next try waits for its time, or for a turn."""
        heartBeater = self.late(2)
        while self.services.sent[1] + self.services.timeouts[1] >= self.clock.seconds():
            self.clock.advance(0.01)
        self.services.answer = None
        self.services.hanging[0].callback({"token": "t1"})
        self.assertEqual(heartBeater.nextToken, "t1")
        self.pass_(1)
        self.assertEqual(self.services.tokens, ["t0", "t0", "t1"])

    def test_theAnswerToTheNextTryCounts(self) -> None:
        """The late one before it is ended."""
        heartBeater = self.late(2)
        self.services.hanging[1].callback({"token": "t2"})
        self.assertEqual((heartBeater.nextToken, heartBeater.lastSeen), ("t2", self.services.sent[1]))
        self.assertEqual(self.services.inFlight, 0)

    def test_aRefusalOfALateTryCounts(self) -> None:
        """A service that is gone is gone, whichever try is refused."""
        heartBeater = self.late(2)
        gone = heartBeater.whenStopped()
        self.services.hanging[0].errback(NotFound(404, "notFoundError"))
        self.failureResultOf(gone, NotFound)
        self.assertEqual(self.services.inFlight, 0)

    def test_otherFailuresOfALateTryDoNot(self) -> None:
        """The next try goes on undisturbed."""
        heartBeater = self.late(2)
        self.services.hanging[0].errback(ConnectionFailed("reset"))
        self.assertEqual(self.services.inFlight, 1)
        self.services.hanging[0].callback({"token": "t2"})
        self.assertEqual(heartBeater.nextToken, "t2")

    def test_aTryMayBeAnsweredWhenRoomIsMadeForIt(self) -> None:
        """When one more is late than may be, the oldest is cancelled; that may be what the newest has waited for."""
        self.services.answer = "hang"
        heartBeater = self.heartBeater(timeout=3)
        heartBeater.start()
        self.services.isCrowded = True
        while not self.services.cancelled:
            self.pass_(0.1)
        self.assertEqual(heartBeater.nextToken, "newest")
        self.services.isCrowded = False
        self.assertEqual(heartBeater.state, "registered")

    def test_theAnswerToALateTryDoesNotCountAfterThat(self) -> None:
        """The late tries end when the next one is answered; one of them may be answered in this very moment."""
        heartBeater = self.late(3)
        self.services.isCrowded = True
        self.services.hanging[-1].callback({"token": "current"})
        self.assertEqual((heartBeater.nextToken, self.services.inFlight), ("current", 0))

    def test_oneThatIsStoppedIsNotDismissed(self) -> None:
        """A listener may have stopped it just before: it does not begin again."""
        heartBeater = self.heartBeater()
        heartBeater.dismissed()
        self.assertFalse(heartBeater.running)
        self.assertEqual(self.services.sent, [])

    def test_stopEndsLateTries(self) -> None:
        """Nothing is under way after stop()."""
        heartBeater = self.late(3)
        heartBeater.stop()
        self.assertEqual(self.services.inFlight, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    # -- failures

    def test_retriesAtOnce(self) -> None:
        """A failure that is not a 404 is tried again without a wait."""
        self.services.answer = ServerError(503, "systemFailureError")
        self.heartBeater().start()
        self.clock.advance(0)
        self.assertEqual(self.services.sent, [0.0, 0.0])

    def test_aSingleFailureIsNotLogged(self) -> None:
        """If the immediate retry succeeds, nothing is logged."""
        heartBeater = self.heartBeater()
        self.services.answer = ConnectionFailed("reset")
        heartBeater.start()
        self.services.answer = None
        self.clock.advance(0)
        self.assertTrue(heartBeater.healthy)
        self.assertEqual(self.logged, [])

    def test_anOutageIsTwoLinesInTheLog(self) -> None:
        """One line when an outage begins, and one when it ends, however long it is."""
        heartBeater = self.heartBeater()
        heartBeater.start()
        self.services.answer = ConnectionFailed("refused")
        self.pass_(600)
        self.assertEqual(self.logged, ["warn"])
        self.services.answer = None
        self.pass_(30)
        self.assertEqual(self.logged, ["warn", "info"])

    def test_leavesRoomForTwoTriesBeforeTheDeadline(self) -> None:
        """From any moment before the deadline on, at least two more tries begin before it."""
        heartBeater = self.heartBeater(30)
        heartBeater.start()
        self.services.answer = "hang"
        self.pass_(31)
        inTime = [at for at in self.services.sent if 24 <= at < 29.7]
        self.assertGreaterEqual(len(inTime), 4)
        for at, following in zip(inTime, inTime[2:], strict=False):
            self.assertLess(following, 30, f"no two tries after {at}")

    def test_noTryTakesLongerThanAThirdOfWhatIsLeft(self) -> None:
        """Every try before the deadline is given at most a third of the time that is left."""
        self.heartBeater(30).start()
        self.services.answer = "hang"
        self.pass_(29)
        for at, timeout in list(zip(self.services.sent, self.services.timeouts, strict=True))[1:]:
            self.assertLessEqual(timeout, max(0.05, (30 - at) / 3) + 1e-6)

    def test_retriesWithoutEnd(self) -> None:
        """Long after the deadline it still tries, at least once an interval, but does not hammer."""
        self.heartBeater(30).start()
        self.services.answer = ServerError(500)
        self.pass_(1000)
        before = len(self.services.sent)
        self.pass_(240)
        self.assertGreaterEqual(len(self.services.sent) - before, 10)
        self.assertLessEqual(len(self.services.sent) - before, 50)

    def test_healthyUntilTheDeadline(self) -> None:
        """`healthy` turns false when the deadline passes without an answer, and true again with the next one."""
        heartBeater = self.heartBeater(30)
        states: list[str] = []
        heartBeater.onStateChange(states.append)
        heartBeater.start()
        self.services.answer = ConnectionFailed("refused")
        self.pass_(29.9)
        self.assertTrue(heartBeater.healthy)
        self.pass_(0.2)
        self.assertFalse(heartBeater.healthy)
        self.pass_(15)
        self.services.answer = None
        self.pass_(15)
        self.assertTrue(heartBeater.healthy)
        self.assertEqual(states, ["registered", "unreachable", "registered"])

    def test_theDeadlineCountsFromTheSending(self) -> None:
        """An answer that took long does not lengthen the time that is left."""
        heartBeater = self.heartBeater(30)
        self.services.heartbeat = lambda id, token, **options: answer  # type: ignore[method-assign]  # slow answer
        answer: Deferred[Any] = Deferred()
        heartBeater.start()
        self.pass_(5)
        answer.callback({"token": "t1"})
        answer = Deferred()
        self.pass_(24.9)
        self.assertTrue(heartBeater.healthy)
        self.pass_(0.2)
        self.assertFalse(heartBeater.healthy)

    # -- losing the service

    def test_a404EndsABareOne(self) -> None:
        """Without a way to register again it stops, and says why."""
        heartBeater = self.heartBeater()
        self.services.answer = GONE
        heartBeater.start()
        ended = heartBeater.whenStopped()
        self.assertIs(self.failureResultOf(ended, NotFound).value, GONE)
        self.assertFalse(heartBeater.running)
        self.assertFalse(heartBeater.healthy)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a404OfAProxySaysNothingAboutTheService(self) -> None:
        """An error page that is no fault of the API does not make a service lost."""
        heartBeater = self.heartBeater()
        self.services.answer = ForeignResponse(404)
        heartBeater.start()
        self.pass_(10)
        self.services.answer = None
        self.pass_(20)
        self.assertTrue(heartBeater.running)
        self.assertTrue(heartBeater.healthy)

    def test_aTokenThatIsRefusedGivesWayToTheLastProvenOne(self) -> None:
        """
        A token that never worked is given up for the last one that did, at once and without a line in the log; a
        service that is gone, or whose proven token is refused too, is lost.
        """
        invalid = BadRequest(400, "badRequest", "Validation error for key 'token'", "Invalid UUID")
        for refusal, tokens in ((MARKER, ["t0", "t1", "t0"]), (invalid, ["t0", "t1", "t0"]), (GONE, ["t0", "t1"])):
            self.setUp()
            heartBeater = self.heartBeater(10)
            kept: list[tuple[str, str]] = []
            heartBeater = self.heartBeater(10, keep=lambda token, proven, kept=kept: kept.append((token, proven)))
            heartBeater.start()
            self.services.refusal = "t1", refusal
            self.pass_(6.5)
            self.assertEqual(self.services.tokens, tokens)
            self.assertEqual(heartBeater.running, refusal is not GONE)
            if refusal is GONE:
                continue
            self.assertEqual(self.logged, [])
            self.assertEqual(kept, [("t1", "t0"), ("t3", "t0")])
            self.pass_(6)
            self.assertEqual(self.services.tokens[3:], ["t3"])
            self.services.answer = refusal
            self.pass_(6)
            self.assertEqual(self.services.tokens[4:], ["t4", "t3"])
            self.assertFalse(heartBeater.running)

    def test_aTokenOfAnEarlierRegistrationIsNotProven(self) -> None:
        """After a registration only the new token counts."""
        tokens = iter(["new", "newer"])
        heartBeater = self.heartBeater(10, register=lambda: succeed(next(tokens)))
        heartBeater.start()
        self.services.refusal = "t1", GONE
        self.pass_(6.5)
        self.assertEqual(self.services.tokens, ["t0", "t1"])
        self.services.refusal = "new", MARKER
        self.pass_(6)
        self.assertEqual(self.services.tokens, ["t0", "t1", "new"])
        self.pass_(6)
        self.assertEqual(self.services.tokens, ["t0", "t1", "new", "newer"])

    def test_a404RegistersAgain(self) -> None:
        """With a way to register, the service is registered again at once, and heartbeated with its new token."""
        heartBeater = self.heartBeater(register=lambda: succeed("again"))
        heartBeater.start()
        self.services.answer = GONE
        self.pass_(24.5)
        self.assertEqual(heartBeater.nextToken, "again")
        self.services.answer = None
        self.pass_(24)
        self.assertEqual(self.services.tokens[-1], "again")
        self.assertTrue(heartBeater.healthy)

    def test_retriesRegistrationsWithoutEnd(self) -> None:
        """A registration that fails is tried again, as long as it takes."""
        tries: list[float] = []
        result: list[Any] = [ConnectionFailed("refused")]

        def register() -> Deferred[str]:
            tries.append(self.clock.seconds())
            return succeed(result[0]) if isinstance(result[0], str) else fail(result[0])

        heartBeater = self.heartBeater(token=None, register=register)
        heartBeater.start()
        self.pass_(3600)
        self.assertGreater(len(tries), 100)
        result[0] = "at last"
        self.pass_(15)
        self.assertTrue(heartBeater.healthy)
        self.assertEqual(self.logged, ["warn", "info"])

    def test_hurriesWhileTheServiceMayExist(self) -> None:
        """A registration without a response is retried the sooner the less is left of what it may have created."""
        tries: list[float] = []

        def register() -> Deferred[str]:
            tries.append(self.clock.seconds())
            return fail(RequestTimedOut("no response"))

        self.heartBeater(120, token=None, register=register).start()
        self.pass_(120)
        for before, after in pairwise(tries):
            self.assertLessEqual(after - before, max((120 - before) / 4, 4.0) + 0.1)
        self.assertLess(len(tries), 30)

    def test_registrationsAreRetriedWithBackoff(self) -> None:
        """A registration that fails is tried again after delays that grow to 15 s."""
        tries: list[float] = []
        refused = ConnectionFailed("refused")
        refused.wasSent = False

        def register() -> Deferred[str]:
            tries.append(self.clock.seconds())
            return fail(refused)

        self.heartBeater(120, token=None, register=register).start()
        self.pass_(120)
        self.assertLess(max(after - before for before, after in pairwise(tries)), 15.1)
        self.assertGreater(tries[-1] - tries[-2], 5.0)

    def test_waitsWhileTheIdIsTaken(self) -> None:
        """While another service holds the id, the registration is retried every one to two seconds."""
        tries: list[float] = []

        def register() -> Deferred[str]:
            tries.append(self.clock.seconds())
            return fail(ServiceExists(400, "serviceWithThisIdExists"))

        self.heartBeater(token=None, register=register).start()
        self.pass_(60)
        gaps = [b - a for a, b in pairwise(tries)]
        self.assertTrue(all(1 <= gap <= 2.1 for gap in gaps[1:]), gaps)

    def test_aRegistrationThatCanNeverBeEndsIt(self) -> None:
        """When the registry says that the registration is not valid, the request is not repeated."""
        bad = BadRequest(400, "badRequest", "Validation error for key 'id'")
        heartBeater = self.heartBeater(token=None, register=lambda: fail(bad))
        heartBeater.start()
        self.failureResultOf(heartBeater.whenStopped(), BadRequest)

    # -- the check

    def test_aFailingCheckSuspendsHeartbeats(self) -> None:
        """Nothing is sent while the check fails, raises or hangs; when it passes, heartbeats are resumed."""
        results: list[Any] = [False]

        def check() -> Any:
            if isinstance(results[0], Exception):
                raise results[0]
            return results[0]

        heartBeater = self.heartBeater(check=check)
        heartBeater.start()
        self.pass_(10)
        results[0] = ValueError("no")
        self.pass_(10)
        results[0] = Deferred()
        self.pass_(10)
        self.assertEqual(self.services.sent, [])
        results[0] = True
        self.pass_(20)
        self.assertGreater(len(self.services.sent), 0)
        self.assertTrue(heartBeater.healthy)

    def test_aCheckMayStopIt(self) -> None:
        """Nothing is sent after that, whatever the check returns, and nothing is left on the reactor."""
        for result in (True, False, succeed(True), Deferred()):
            beaters: list[HeartBeater] = []

            def check(result: Any = result, beaters: list[HeartBeater] = beaters) -> Any:
                beaters[0].stop()
                return result

            beaters.append(self.heartBeater(check=check))
            beaters[0].start()
            self.assertFalse(beaters[0].running)
            self.assertEqual((self.services.sent, self.clock.getDelayedCalls()), ([], []))

    # -- the end

    def test_stopLeavesNothing(self) -> None:
        """Stopping in the middle of a heartbeat cancels it and leaves no call behind; a second stop does nothing."""
        heartBeater = self.heartBeater()
        self.services.answer = "hang"
        heartBeater.start()
        ended = heartBeater.whenStopped()
        self.assertIsNone(self.successResultOf(heartBeater.stop()))
        self.assertIsNone(self.successResultOf(heartBeater.stop()))
        self.assertIsNone(self.successResultOf(ended))
        self.assertIsNone(self.successResultOf(heartBeater.whenStopped()))
        self.assertEqual((self.services.cancelled, self.services.inFlight), (1, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.pass_(100)
        self.assertEqual(len(self.services.sent), 1)

    def test_stopBetweenTriesLeavesNothing(self) -> None:
        """Stopping while it waits for the next try ends the wait."""
        heartBeater = self.heartBeater()
        self.services.answer = ConnectionFailed("refused")
        heartBeater.start()
        self.pass_(5)
        heartBeater.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aListenerMayStopIt(self) -> None:
        """In each state: nothing is sent after that, and nothing is left on the reactor."""
        for state, answer in (("registering", GONE), ("registered", GONE), ("unreachable", ServerError(500))):
            self.setUp()
            heartBeater = self.heartBeater(3, register=lambda: succeed("again"))
            heartBeater.onStateChange(lambda now, state=state, stop=heartBeater.stop: stop() if now == state else None)
            self.services.answer = answer
            heartBeater.start()
            self.pass_(10)
            self.assertEqual((heartBeater.state, self.clock.getDelayedCalls()), ("stopped", []), state)

    def test_theServiceThatIsNextMayStopIt(self) -> None:
        """A failed registration makes room for another one, whose code may stop this one: nothing is left of it."""
        stalls, suspends = StallWatch(self.clock), SuspendWatch(self.clock, lambda: 0.0)
        context = HeartbeatContext(stalls, suspends, registrations=PrioritySemaphore(1))
        registering: Deferred[str] = Deferred()
        first = self.heartBeater(token=None, register=lambda: registering, context=context)

        def stopTheFirst() -> Deferred[str]:
            first.stop()
            return Deferred()

        second = self.heartBeater(token=None, register=stopTheFirst, context=context)
        first.start()
        second.start()
        registering.errback(ServerError(503))
        second.stop()
        self.assertEqual((first.state, self.clock.getDelayedCalls()), ("stopped", []))

    def test_startsAgain(self) -> None:
        """After a stop in the middle of a heartbeat it can be started again: one loop runs."""
        heartBeater = self.heartBeater()
        self.services.answer = "hang"
        heartBeater.start()
        heartBeater.stop()
        self.services.answer = None
        heartBeater.start()
        heartBeater.start()
        self.pass_(25)
        self.assertEqual(len(self.services.sent), 3)

    def test_theDeadlineStaysWithAnotherStart(self) -> None:
        """It is that of the last heartbeat that was answered, however often it is stopped and started."""
        heartBeater = self.heartBeater(30)
        heartBeater.start()
        heartBeater.stop()
        self.pass_(20)
        self.services.answer = "hang"
        heartBeater.start()
        self.assertEqual(heartBeater.deadline, 30)
        self.pass_(11)
        self.assertFalse(heartBeater.healthy)

    def test_forgetsItsFailures(self) -> None:
        """One that is started again retries as soon, and logs as little, as if it had never failed."""
        heartBeater = self.heartBeater(3)
        self.services.answer = ConnectionFailed("refused")
        heartBeater.start()
        self.pass_(60)
        heartBeater.stop()
        self.services.sent.clear()
        self.logged.clear()
        heartBeater.start()
        self.assertEqual(self.logged, [])
        self.pass_(0.2)
        self.assertEqual((len(self.services.sent), self.logged), (4, ["warn"]))

    def test_aTokenThatCannotBeKept(self) -> None:
        """If what is called with each token fails, that is logged, and the heartbeat is repeated with the old token."""
        errors = [ValueError("no"), ValueError("no")]

        def keep(token: str, proven: str) -> None:
            if errors:
                raise errors.pop()

        heartBeater = self.heartBeater(keep=keep)
        heartBeater.start()
        self.pass_(1)
        self.assertEqual((self.services.tokens, heartBeater.nextToken), (["t0", "t0", "t0"], "t3"))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    def test_anUnexpectedErrorGivesItsTurnBack(self) -> None:
        """An error before a request is sent is logged, and retried; it keeps no other service waiting for its turn."""
        stalls, suspends = StallWatch(self.clock), SuspendWatch(self.clock, lambda: 0.0)
        context = HeartbeatContext(stalls, suspends, turns=PrioritySemaphore(1))
        self.services.answer = "raise"
        heartBeater = self.heartBeater(3, context=context)
        heartBeater.start()
        self.pass_(1)
        self.assertGreater(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.services.answer = None
        self.pass_(1)
        self.assertIsNotNone(heartBeater.lastSeen)

    def test_anAlienCancellationIsAFailureLikeAnother(self) -> None:
        """A CancelledError that is not stop()'s own does not end the heartbeats."""
        heartBeater = self.heartBeater()
        self.services.answer = CancelledError()
        heartBeater.start()
        self.pass_(2)
        self.services.answer = None
        self.pass_(10)
        self.assertTrue(heartBeater.running)
        self.assertTrue(heartBeater.healthy)

    def test_aListenerThatRaisesDoesNoHarm(self) -> None:
        """The error is logged, the other listeners are called, and heartbeats go on."""
        heartBeater = self.heartBeater(token=None, register=lambda: succeed("t"))
        heard: list[str] = []

        def bad(state: str) -> None:
            raise RuntimeError("listener")

        heartBeater.onStateChange(bad)
        heartBeater.onStateChange(heard.append)
        heartBeater.start()
        heartBeater.stop()
        self.assertEqual(heard, ["registering", "registered", "stopped"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 3)

    def test_cancellingAWaiterLeavesTheRest(self) -> None:
        """Cancelling one waiter does not concern the others."""
        heartBeater = self.heartBeater()
        heartBeater.start()
        one, two = heartBeater.whenStopped(), heartBeater.whenStopped()
        one.cancel()
        self.failureResultOf(one, CancelledError)
        heartBeater.stop()
        self.assertIsNone(self.successResultOf(two))

    def test_needsAWayToBegin(self) -> None:
        """Without a token and a way to get one it raises ValueError."""
        self.assertRaises(ValueError, HeartBeater, self.services, "web1", 30, clock=self.clock)

    def test_saysNothingSecretOfItself(self) -> None:
        """Its repr shows the service and how it goes, and no token."""
        self.assertEqual(repr(self.heartBeater(token="secret")), "<HeartBeater of 'web1': stopped>")
