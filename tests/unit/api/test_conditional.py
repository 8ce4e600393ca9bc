"""
Conditional writes of configuration values: tags, refusals, lost responses, and registries that know none.
"""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseNeverReceived

from txserviceregistry.client import Client
from txserviceregistry.errors import (
    BadRequest,
    ConnectionFailed,
    ForeignResponse,
    LimitReached,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    PreconditionFailed,
    RequestTimedOut,
    ServerError,
)
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.testing import FakeRegistry

from ...fakeagent import API_KEY, FakeApi, answer, fault

KEY = "/production/www/workers"


def clientOver(handler: Any) -> Client:
    """A client whose requests the *handler* answers."""
    urls = ["http://a/v1.0", "http://b/v1.0"]
    return Client("joe", API_KEY, baseUrl=urls, authUrl=urls[0], agent=FakeApi(handler), reactor=Clock())


class ConditionalCase(SynchronousTestCase):
    """A client of a FakeRegistry."""

    def setUp(self) -> None:
        self.fake = FakeRegistry(limits=ResourceLimits(configurationValue=1))
        self.client = self.fake.client()
        self.addCleanup(self.client.close)
        self.values = self.client.configuration

    def result(self, deferred: Deferred[Any]) -> Any:
        self.fake.flush()
        return self.successResultOf(deferred)

    def error(self, deferred: Deferred[Any], kind: type[Exception], seconds: float = 0.0) -> Any:
        self.fake.advance(seconds)
        return self.failureResultOf(deferred, kind).value

    def set(self, value: str) -> str:
        self.result(self.values.set(KEY, value))
        etag: str = self.result(self.values.getWithEtag(KEY))["etag"]
        return etag

    @property
    def writes(self) -> list[str]:
        return [request.method for request in self.fake.requests if request.method in ("PUT", "DELETE")]


class ConditionTests(ConditionalCase):
    """Writes whose conditions hold or not."""

    def test_writesOnACondition(self) -> None:
        """A write with the value's tag succeeds, and fires with the new one, for the next write."""
        etag = self.set("1")
        self.assertEqual(self.result(self.values.getWithEtag(KEY)), {"id": KEY, "value": "1", "etag": etag})
        new = self.result(self.values.set(KEY, "2", ifMatch=etag))
        self.assertEqual(self.result(self.values.getWithEtag(KEY)), {"id": KEY, "value": "2", "etag": new})
        self.assertIs(self.result(self.values.remove(KEY, ifMatch=new)), True)
        self.error(self.values.getWithEtag(KEY), NotFound)
        self.assertIs(self.result(self.values.set(KEY, "2")), True)
        self.assertEqual(self.result(self.values.get(KEY)), {"id": KEY, "value": "2"})

    def test_createsOnly(self) -> None:
        """With ifNoneMatch a value is set only if there is none."""
        etag = self.result(self.values.set(KEY, "1", ifNoneMatch="*"))
        error = self.error(self.values.set(KEY, "2", ifNoneMatch="*"), PreconditionFailed)
        self.assertEqual(error.etag, etag)
        self.error(self.values.set("another", "1", ifNoneMatch="*"), LimitReached)

    def test_refused(self) -> None:
        """A write with another tag fails with the current one; nothing has changed."""
        stale, etag = self.set("1"), self.set("2")
        for write in (self.values.set(KEY, "3", ifMatch=stale), self.values.remove(KEY, ifMatch=stale)):
            error = self.error(write, PreconditionFailed)
            self.assertEqual((error.status, error.type, error.etag), (412, "preconditionFailed", etag))
            self.assertIn(f'Object "ConfigurationValue" with key "{KEY}" has the tag {etag}', str(error))
            self.assertIn("Read the value again", str(error))
        error = self.error(self.values.set("another", "1", ifMatch="*"), PreconditionFailed)
        self.assertEqual((error.etag, "does not exist" in str(error)), (None, True))
        self.assertEqual(self.result(self.values.get(KEY))["value"], "2")

    def test_impossibleConditions(self) -> None:
        """A condition that no registry accepts is refused before a request is sent."""
        for match in ("", "1", "'1'", '"1', '"1"\r\nX-Other: 1', '"é"', 5):
            self.assertIn("ifMatch is", str(self.error(self.values.set(KEY, "1", ifMatch=match), BadRequest)))
            self.error(self.values.remove(KEY, ifMatch=match), BadRequest)
        self.assertIn("has to be '*'", str(self.error(self.values.set(KEY, "1", ifNoneMatch='"1"'), BadRequest)))
        self.assertIn(
            "but one has to be", str(self.error(self.values.set(KEY, "1", ifMatch="*", ifNoneMatch="*"), BadRequest))
        )
        self.assertEqual(self.fake.requests, [])

    def test_writersLoseNoUpdate(self) -> None:
        """Of ten clients that increment one value five times each at the same time, every increment counts."""
        self.set("0")
        drawn = random.Random(5)
        done = [0] * 10

        async def write(number: int) -> None:
            values = self.fake.client().configuration
            while done[number] < 5:
                await deferLater(self.fake.clock, drawn.random(), lambda: None)
                old = await values.getWithEtag(KEY)
                await deferLater(self.fake.clock, drawn.random() * 0.05, lambda: None)
                try:
                    await values.set(KEY, str(int(old["value"]) + 1), ifMatch=old["etag"])
                    done[number] += 1
                except PreconditionFailed:
                    pass

        writers = [Deferred.fromCoroutine(write(number)) for number in range(10)]
        while sum(done) < 50:
            self.fake.advance(1)
        for writer in writers:
            self.result(writer)
        self.assertEqual(self.result(self.values.get(KEY))["value"], "50")


class LostResponseTests(ConditionalCase):
    """The outcome of a conditional write without a response."""

    def lost(self, write: Any) -> Any:
        self.fake.loseNext()
        return self.error(write(), OutcomeUnknown)

    def test_theOutcomeIsUnknown(self) -> None:
        """If the response is lost, and the next try is refused, the error says so and has the current tag."""
        etag = self.set("1")
        error = self.lost(lambda: self.values.set(KEY, "2", ifMatch=etag))
        found = self.result(self.values.getWithEtag(KEY))
        self.assertEqual((found["value"], found["etag"]), ("2", error.etag))
        self.assertIn(f"may have succeeded: the value's tag is now {error.etag}", str(error))
        error = self.lost(lambda: self.values.remove(KEY, ifMatch=found["etag"]))
        self.assertEqual((error.etag, "there is no value now" in str(error)), (None, True))
        error = self.lost(lambda: self.values.set(KEY, "3", ifNoneMatch="*"))
        self.assertEqual(error.etag, self.result(self.values.getWithEtag(KEY))["etag"])

    def test_itWasNotMade(self) -> None:
        """If the request is lost, the next try succeeds."""
        etag = self.set("1")
        for fail in (self.fake.dropNext, self.fake.garbageNext, lambda: self.fake.failNext(503)):
            fail()
            etag = self.result(self.values.set(KEY, f"after {fail}"[:100], ifMatch=etag))
        self.assertEqual(self.result(self.values.getWithEtag(KEY))["etag"], etag)

    def test_itIsTriedTwiceAtMost(self) -> None:
        """After a second failure that failure is the error, and a third request is not sent."""
        etag = self.set("1")
        before = len(self.writes)
        for fail, kind in (
            (self.fake.dropNext, ConnectionFailed),
            (lambda count: self.fake.failNext(502, count), ServerError),
        ):
            fail(2)
            self.error(self.values.set(KEY, "2", ifMatch=etag), kind)
        self.assertEqual(len(self.writes), before + 4)

    def test_anUnsentRepetitionLeavesTheOutcomeUnknown(self) -> None:
        """If the first try may have succeeded, a second one without an effect does not prove the contrary."""
        errors = iter([ResponseNeverReceived([]), *[ConnectionRefusedError()] * 2])

        def handler(sent: Any) -> Any:
            if sent.method == "GET":
                return answer(200, {}, X_Service_Registry_Extensions="etag")
            raise next(errors)

        values = clientOver(handler).configuration
        self.assertTrue(self.error(values.set(KEY, "2", ifMatch="*"), ConnectionFailed).wasSent)
        errors = iter([ConnectionRefusedError()] * 2)
        self.assertFalse(self.error(values.set(KEY, "2", ifMatch="*"), ConnectionFailed).wasSent)
        self.set("1")
        for faults, wasSent in ((1, True), (0, False)):
            if faults:
                self.fake.dropNext(faults)
            self.fake.answerNext(429, b"<html>")
            error = self.error(self.values.set(KEY, "2", ifMatch="*"), ForeignResponse)
            self.assertEqual((error.status, error.wasSent), (429, wasSent))

    def test_anotherServerRefuses(self) -> None:
        """A refusal by the second server is final only if the request certainly did not reach the first one."""
        refusal = fault("preconditionFailed", ETag='W/"7"', X_Service_Registry_Extensions="etag")
        for first, kind in (
            (ResponseNeverReceived([]), OutcomeUnknown),
            (ConnectionRefusedError(), PreconditionFailed),
        ):
            outcomes = iter([first, refusal])

            def handler(sent: Any, outcomes: Any = outcomes) -> Any:
                if sent.method == "GET":
                    return answer(200, {}, X_Service_Registry_Extensions="etag")
                outcome = next(outcomes)
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome

            values = clientOver(handler).configuration
            self.assertEqual(self.error(values.set(KEY, "2", ifMatch='"6"'), kind).etag, '"7"')

    def test_aRefusalIsNotRepeated(self) -> None:
        """A response that says no is final."""
        etag = self.set("1")
        before = len(self.writes)
        self.fake.failNext(403)
        self.error(self.values.set(KEY, "2", ifMatch=etag), Exception)
        self.error(self.values.set(KEY, "2", ifMatch='"0"'), PreconditionFailed)
        self.assertEqual(len(self.writes), before + 2)

    def test_thereIsOneDeadline(self) -> None:
        """Both tries together have the time of one request."""
        etag = self.set("1")
        self.fake.hangNext()
        write = self.values.set(KEY, "2", ifMatch=etag)
        self.fake.advance(9.5)
        self.assertNoResult(write)
        self.error(write, RequestTimedOut, 1.0)
        self.assertEqual(self.result(self.values.get(KEY))["value"], "1")


class OtherRegistryTests(SynchronousTestCase):
    """Registries without the extension."""

    def client(self, extensions: str) -> Client:
        def handler(sent: Any) -> Any:
            if sent.method == "GET":
                return answer(200, {"id": KEY, "value": "1"}, X_Service_Registry_Extensions=extensions)
            return answer(204, X_Service_Registry_Extensions="heartbeats")

        self.asked: list[str] = []
        return clientOver(lambda sent: (self.asked.append(sent.method), handler(sent))[1])

    def test_nothingIsWritten(self) -> None:
        """A registry that does not know conditions would ignore them: no write is sent to it."""
        values = self.client("events-wait, heartbeats").configuration
        for write in (values.set(KEY, "2", ifMatch="*"), values.remove(KEY, ifMatch="*"), values.getWithEtag(KEY)):
            error = self.failureResultOf(write, NotSupported).value
            self.assertEqual(error.extension, "etag")
            self.assertIn("does not have the extension 'etag'", str(error))
        self.assertEqual(set(self.asked), {"GET"})

    def test_oneServerIsOlder(self) -> None:
        """A server that ignored the condition is noticed by its response."""
        values = self.client("etag").configuration
        self.failureResultOf(values.set(KEY, "2", ifMatch="*"), NotSupported)
