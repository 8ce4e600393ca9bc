"""
etcd as a JSON API, over servers that play a cluster in trouble.
"""

from __future__ import annotations

import gc
import json
import weakref
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS
from twisted.web.iweb import IAgent, IPolicyForHTTPS

from tests.loopback import Call, LoopbackTestCase
from txserviceregistry.errors import RequestTimedOut
from txserviceregistry.http.jsontransport import JSONTransport
from txserviceregistry.http.messages import Request
from txserviceregistry.http.pool import ConnectionPool, QueueingAgent
from txserviceregistry.registry.stores.etcd.gateway import PAUSE, QUEUE, Cluster, Etcd, EtcdError, User
from txserviceregistry.registry.stores.etcd.keyvalues import encode, put, reading
from txserviceregistry.registry.stores.interfaces import StoreUnavailable
from txserviceregistry.util.deferred import PrioritySemaphore
from txserviceregistry.util.files import Reloaded

CLOCK: IReactorTime = reactor  # type: ignore[assignment]  # which it is
DONE = {"header": {"revision": "7"}, "succeeded": True}


def refusal(code: int, message: str) -> dict[str, Any]:
    """The response of etcd's gateway to a request that it refuses."""
    return {"error": message, "message": message, "code": code}


class EtcdCase(LoopbackTestCase):
    """Tests with clients of etcds."""

    def etcd(
        self,
        *urls: str,
        credentials: tuple[str, str | Reloaded[str, str]] | None = None,
        policy: IPolicyForHTTPS | None = None,
        clock: IReactorTime = CLOCK,
        timeouts: IReactorTime = CLOCK,
        **options: Any,
    ) -> Etcd:
        """
        A client of some members, which ends with the test.

        :param clock: that of its tries.
        :param timeouts: that of each request, which has a minute.
        """
        pool = ConnectionPool(reactor, 8)
        self.addCleanup(pool.close)
        agent: IAgent = QueueingAgent(Agent(reactor, policy or BrowserLikePolicyForHTTPS(), pool=pool), 8)
        user = None
        if credentials is not None:
            name, password = credentials
            constant = Reloaded("Password", [], lambda: str(password), str)
            user = User(name, password if isinstance(password, Reloaded) else constant)
        transport = JSONTransport(agent, timeouts, urls, timeout=60.0, name="etcd", random=lambda: 0.0)
        return Etcd(transport, clock, user=user, **options)

    async def refuses(self, kind: type[Exception], work: Any) -> str:
        """The text of what *work* fails with."""
        try:
            await work
        except kind as error:
            return str(error)
        raise AssertionError(f"{kind.__name__} was expected")


class TroubleTests(EtcdCase):
    """A cluster that is in trouble, or away."""

    def answering(self, *answers: Callable[[Call], None]) -> Any:
        """A server that answers in these ways, one after the other, and then always in the last one."""
        left = list(answers)
        return self.serve(lambda call: (left.pop(0) if len(left) > 1 else left[0])(call))

    async def test_whatALeadersFailureCostsIsTriedAgain(self) -> None:
        """Refusals that pass, and connections that end, are not seen by who asks."""
        for trouble in (
            lambda call: call.answer(503, refusal(14, "etcdserver: leader changed")),
            lambda call: call.answer(503, refusal(14, "etcdserver: request timed out")),
            lambda call: call.answer(500, refusal(2, "raft: stopped")),
            lambda call: call.answer(504, refusal(4, "context deadline exceeded")),
            lambda call: call.answer(429, refusal(8, "etcdserver: too many requests")),
            lambda call: call.answer(408, refusal(1, "grpc: the client connection is closing")),
            lambda call: call.answer(502, b"a balancer's page"),
            Call.hangUp,
            Call.reset,
        ):
            server = self.answering(trouble, lambda call: call.answer(200, DONE))
            done = await self.etcd(server.url).txn((), [put("/a", b"")])
            self.assertEqual((done.succeeded, done.revision), (True, 7))

    async def test_anAnswerThatIsNoneIsTriedAgain(self) -> None:
        """JSON that is not etcd's, under any status: a proxy's, or what a broken one has left of it."""
        odd: list[Any] = [[], "text", 5, None, {}, {"header": {}}, {"header": {"revision": "x"}}]
        odd += [{**DONE, "responses": 1}, {**DONE, "responses": [{"response_range": {"kvs": [{}]}}]}]
        page = {"code": "Unavailable", "message": ["no", "text"]}
        for status, answer in [*((200, each) for each in odd), *((502, each) for each in odd), (500, page)]:
            content = json.dumps(answer).encode("ascii")
            server = self.answering(
                lambda call, status=status, content=content: call.answer(status, content),
                lambda call: call.answer(200, DONE),
            )
            done = await self.etcd(server.url).txn((), [put("/a", b"")])
            self.assertEqual((done.revision, len(server.calls)), (7, 2), answer)
            server = self.serve(lambda call, status=status, content=content: call.answer(status, content))
            for asked in (
                self.etcd(server.url).txn((), (), patience=0),
                self.etcd(server.url).keepAlive(1),
            ):
                await self.refuses(StoreUnavailable, asked)

    async def test_aMemberThatHangsIsLeftForAnother(self) -> None:
        """Within its share of the time, so that none of the timeout is needed."""
        hanging = self.serve(lambda call: None)
        working = self.serve(lambda call: call.answer(200, DONE))
        timeouts = Clock()
        etcd = self.etcd(hanging.url, working.url, timeouts=timeouts)
        first = etcd.txn((), (), patience=0)
        await self.until(lambda: hanging.calls)
        timeouts.advance(30.0)
        await first
        await etcd.txn((), (), patience=0)
        self.assertEqual((len(hanging.calls), len(working.calls)), (1, 2))

    async def test_aMemberThatStopsIsLeftForAnother(self) -> None:
        """It may go on listening for a while."""
        stopping = self.serve(lambda call: call.answer(408, refusal(1, "grpc: the client connection is closing")))
        working = self.serve(lambda call: call.answer(200, DONE))
        await self.etcd(stopping.url, working.url).txn((), [put("/a", b"")])
        self.assertEqual((len(stopping.calls), len(working.calls)), (1, 1))
        working = self.serve(lambda call: call.answer(200, {**DONE, "token": "t"}))
        await self.etcd(stopping.url, working.url, credentials=("joe", "secret")).txn((), [put("/a", b"")])
        self.assertEqual((len(stopping.calls), len(working.calls)), (2, 2))

    async def test_aMemberOfAnotherClusterIsLeft(self) -> None:
        """It may have been started on its own by mistake; its URL is in the log, once."""
        answers = [
            {**DONE, "header": {"revision": revision, "cluster_id": id}} for revision, id in (("5", "1"), ("7", "2"))
        ]
        foreign, own = (self.serve(lambda call, answer=each: call.answer(200, answer)) for each in answers)
        with capturedLogs() as logs:
            for _ in range(3):
                etcd = self.etcd(foreign.url, own.url, cluster=Cluster("2"))
                self.assertEqual((await etcd.txn((), [put("/a", b"")])).revision, 7)
            alone = self.etcd(foreign.url, cluster=Cluster("2"))
            said = await self.refuses(StoreUnavailable, alone.txn((), (), patience=0))
        self.assertIn(f"{foreign.url} belongs to another etcd cluster", said)
        self.assertEqual(str(logs).count("belongs to another etcd cluster"), 1)

    async def test_patienceEnds(self) -> None:
        """A cluster that is unreachable for too long is unavailable; without a timeout, after one try."""
        server = self.answering(lambda call: call.answer(503, refusal(14, "etcdserver: no leader")))
        clock = Clock()
        etcd = self.etcd(server.url, clock=clock)
        self.assertIn("no leader", await self.refuses(StoreUnavailable, etcd.txn((), (), patience=0)))
        self.assertEqual(len(server.calls), 1)
        refused = Deferred.fromCoroutine(self.refuses(StoreUnavailable, etcd.txn((), (), patience=5.5 * PAUSE)))
        while not refused.called:
            await self.until(lambda: refused.called or clock.getDelayedCalls())
            clock.advance(PAUSE)
        self.assertIn("no leader", await refused)
        self.assertEqual(len(server.calls), 1 + 6)

    def test_refusalsLeaveNothingForTheCollector(self) -> None:
        """While etcd is away, thousands of requests a second may be refused, and Python's collector runs rarely."""

        def refuse() -> None:
            raise StoreUnavailable("etcd can't be reached")

        gc.disable()
        self.addCleanup(gc.enable)
        refused: list[weakref.ref[Exception]] = []
        asked = self.etcd(self.unusedUrl(), gate=refuse).txn((), [put("/a", b"")])
        asked.addErrback(lambda failure: refused.append(weakref.ref(failure.value)))
        del asked
        self.assertEqual([each() for each in refused], [None])

    async def test_whatEtcdRefusesIsNotTriedAgain(self) -> None:
        """An error of ours, or one that says how things are, comes back with its code."""
        server = self.answering(lambda call: call.answer(400, refusal(3, "etcdserver: duplicate key given in txn")))
        text = await self.refuses(EtcdError, self.etcd(server.url).txn((), [put("/a", b""), put("/a", b"")]))
        self.assertIn("duplicate key", text)
        self.assertEqual(len(server.calls), 1)

    async def test_whatIsGivenUpSaysNothingOfEtcd(self) -> None:
        """A transaction whose caller stops waiting is neither a read nor a write, and etcd is as it was."""
        etcd = self.etcd(self.serve(lambda call: None).url)
        counted = etcd.statistics
        counted.isReadable = counted.isWritable = False
        for works in (etcd.txn((), [reading("/a")]), etcd.txn((), [put("/a", b"")])):
            works.cancel()
            await self.refuses(CancelledError, works)
        self.assertEqual((counted.isReadable, counted.isWritable), (False, False))
        self.assertEqual((sum(counted.reads.counts), sum(counted.writes.counts)), (0, 0))

    async def test_theGateIsAskedBeforeEachTry(self) -> None:
        """When nothing may be asked any more, a request that is being tried again ends."""
        asked: list[None] = []

        def gate() -> None:
            asked.append(None)
            # It is called before and after waiting for a turn.
            if len(asked) > 4:
                raise StoreUnavailable("closed")

        server = self.serve(lambda call: call.answer(503))
        self.assertEqual(await self.refuses(StoreUnavailable, self.etcd(server.url, gate=gate).txn((), ())), "closed")
        self.assertEqual(len(server.calls), 2)


class TurnsTests(SynchronousTestCase):
    """More is asked at once than there are connections."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[tuple[str, Deferred[Any]]] = []
        self.isOpen = True
        transport: Any = SimpleNamespace(request=self.request)
        self.etcd = Etcd(transport, self.clock, gate=self.gate, turns=PrioritySemaphore(2))

    def request(self, method: str, path: str, **more: Any) -> Deferred[Any]:
        answered: Deferred[Any] = Deferred()
        self.asked.append((path.removeprefix("/v3/"), answered))
        return answered

    def gate(self) -> None:
        if not self.isOpen:
            raise StoreUnavailable("closed")

    def answer(self) -> str:
        """Answer what was asked first; what is asked then, if anything is."""
        path, answered = self.asked.pop(0)
        answer: Any = {"header": {"revision": "1"}, "responses": [{"response_range": {}}]}
        if path == "lease/keepalive":
            answer = {"result": {"ID": "5", "TTL": "30"}}
        answered.callback(SimpleNamespace(status=200, json=answer, url=""))
        return self.asked[-1][0] if self.asked else ""

    def test_thePressingOnesFirst(self) -> None:
        """An urgent request, such as for a heartbeat, overtakes everything; the rest keeps its order."""
        works = [self.etcd.get("/a"), self.etcd.get("/b"), self.etcd.revoke(1), self.etcd.grant(30)]
        works += [self.etcd.get("/c"), self.etcd.txn((), (), isUrgent=True)]
        self.assertEqual([path for path, _ in self.asked], ["kv/txn", "kv/txn"])
        order = [self.answer() for _ in range(4)]
        self.assertEqual(order, ["kv/txn", "lease/revoke", "lease/grant", "kv/txn"])
        while self.asked:
            self.answer()
        for work in works:
            self.successResultOf(work)

    def test_waitingDoesNotCountAsATry(self) -> None:
        """A request that waits has not been sent: it is, with its whole timeout, when its turn has come."""
        busy = [self.etcd.get("/a"), self.etcd.get("/b")]
        late = self.etcd.get("/c")
        self.clock.advance(QUEUE - 1)
        self.assertEqual(len(self.asked), 2)
        self.answer()
        self.clock.advance(2)
        self.answer()
        self.answer()
        for work in (*busy, late):
            self.successResultOf(work)

    def test_someWaitInVain(self) -> None:
        """A request that has waited for too long, or is ended, is refused, and its turn goes to another."""
        busy = [self.etcd.get("/a"), self.etcd.get("/b")]
        waiting = [self.etcd.get("/c"), self.etcd.get("/d")]
        self.clock.advance(1)
        last = self.etcd.grant(30)
        waiting[1].cancel()
        self.failureResultOf(waiting[1], CancelledError)
        self.clock.advance(QUEUE - 1)
        self.failureResultOf(waiting[0], StoreUnavailable)
        self.assertEqual(self.answer(), "lease/grant")
        self.assertEqual(len(self.asked), 2)
        self.isOpen = False
        closed = self.etcd.get("/e")
        self.failureResultOf(closed, StoreUnavailable)
        while self.asked:
            self.answer()
        for work in (*busy, last):
            self.successResultOf(work)

    def test_aReadInVainIsNotRepeatedInParts(self) -> None:
        """A read of many keys that has waited for too long makes no further requests."""
        busy = [self.etcd.get("/a"), self.etcd.get("/b")]
        waiting = self.etcd.all("/")
        self.clock.advance(QUEUE)
        self.failureResultOf(waiting, StoreUnavailable)
        while self.asked:
            self.answer()
        for work in busy:
            self.successResultOf(work)

    def test_theGateIsAskedAgainThen(self) -> None:
        """Nothing is asked of an etcd that went away meanwhile, and the turns are all given back."""
        busy = [self.etcd.get("/a"), self.etcd.get("/b")]
        waiting = self.etcd.get("/c")
        self.isOpen = False
        self.answer()
        self.failureResultOf(waiting, StoreUnavailable)
        self.isOpen = True
        self.assertEqual(len(self.asked), 1)
        more = self.etcd.get("/d")
        self.assertEqual(len(self.asked), 2)
        while self.asked:
            self.answer()
        for work in (*busy, more):
            self.successResultOf(work)


class SlowReadsTests(SynchronousTestCase):
    """A network, or an etcd, that is too slow for a thousand large keys in the time of one response."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.most = 50
        transport: Any = SimpleNamespace(request=self.request)
        self.etcd = Etcd(transport, self.clock)
        self.asked: list[int] = []

    def request(self, method: str, path: str, *, body: Any, **more: Any) -> Deferred[Any]:
        (clause,) = body["success"]
        begin, limit = b64decode(clause["request_range"]["key"]).decode(), int(clause["request_range"]["limit"])
        self.asked.append(limit)
        if limit > self.most:
            answered: Deferred[Any] = Deferred()
            return answered.addTimeout(1, self.clock, lambda *_: Failure(RequestTimedOut("it came too late")))
        keys = [f"/{number:04}" for number in range(2000)]
        found = [{"key": encode(key)} for key in keys if key >= begin][:limit]
        answer = {"header": {"revision": "1"}, "responses": [{"response_range": {"kvs": found}}]}
        return succeed(SimpleNamespace(status=200, json=answer, url=""))

    def test_fewerKeysAtATime(self) -> None:
        """All keys are read: so a node joins, however large the services, and keeps none from expiring."""
        reading = self.etcd.all("/")
        self.clock.pump([PAUSE] * 150)
        self.assertEqual([each.key for each in self.successResultOf(reading)], [f"/{each:04}" for each in range(2000)])

    def test_noLongerThanOneReadIfEtcdIsAway(self) -> None:
        """A member that responds to nothing is not asked for fewer and fewer keys."""
        self.most = 0
        reading = self.etcd.all("/")
        self.clock.pump([PAUSE] * 150)
        self.failureResultOf(reading, StoreUnavailable)
        self.assertEqual(set(self.asked), {1000, 1})
        self.assertEqual(self.asked.count(1), 1)


class KeepAliveTests(EtcdCase):
    """Leases that are kept alive."""

    def keeping(self, answer: Any) -> Etcd:
        """An etcd that answers keep-alives with that."""
        return self.etcd(self.serve(lambda call: call.answer(200, json.dumps(answer).encode())).url)

    async def test_whetherItExists(self) -> None:
        """A lease without any time left does not exist."""
        self.assertTrue(await self.keeping({"result": {"ID": "1", "TTL": "5"}}).keepAlive(1))
        self.assertFalse(await self.keeping({"result": {"ID": "1"}}).keepAlive(1))

    async def test_anErrorIsTrouble(self) -> None:
        """An error under a 200, or something else, does not mean that the lease has ended."""
        for answer in ({"error": {"grpc_code": 14, "message": "no leader"}}, {}, []):
            await self.refuses(StoreUnavailable, self.keeping(answer).keepAlive(1))


class UserTests(EtcdCase):
    """An etcd that asks who is there."""

    async def test_aPasswordThatChanges(self) -> None:
        """
        One from a file is read again when the file has changed: before the next authentication, and after one that was
        refused. While the file has the old one, or none, the old one is tried.
        """
        path = Path(self.mktemp())
        path.write_text("old")
        state = {"password": "old", "token": "t0"}
        tried: list[str] = []

        def handle(call: Call) -> None:
            if call.path.endswith("/authenticate"):
                tried.append(json.loads(call.body)["password"])
                if tried[-1] != state["password"]:
                    call.answer(400, refusal(3, "etcdserver: authentication failed, invalid user ID or password"))
                    if state["password"] == "late":
                        path.write_text("late")
                else:
                    call.answer(200, {"token": state["token"]})
            elif call.headers.get("authorization") == state["token"]:
                call.answer(200, DONE)
            else:
                call.answer(401, refusal(16, "invalid auth token"))

        def changeTo(password: str) -> None:
            tried.clear()
            state.update(password=password, token=f"of {password}")

        def read() -> str:
            if not path.read_text():
                raise ValueError("has no password")
            return path.read_text()

        file = Reloaded("Password file", [str(path)], read, lambda password: password)
        etcd = self.etcd(self.serve(handle).url, credentials=("joe", file))
        await etcd.txn((), ())
        self.assertEqual(tried, ["old"])
        changeTo("new")
        path.write_text("new")
        await etcd.txn((), ())
        self.assertEqual(tried, ["new"])
        changeTo("newer")
        for content in ("new", ""):
            path.write_text(content)
            said = await self.refuses(StoreUnavailable, etcd.txn((), ()))
            self.assertIn("check the user name and the password", said)
        self.assertEqual(tried, ["new", "new"])
        path.write_text("newer")
        await etcd.txn((), ())
        # The file changes while the old password is refused.
        changeTo("late")
        await etcd.txn((), ())
        self.assertEqual(tried, ["newer", "late"])

    async def test_anEndedTokenIsReplacedOnce(self) -> None:
        """However many requests meet its end together; so is one from before a change of etcd's users."""
        for ended in (refusal(16, "invalid auth token"), refusal(3, "etcdserver: revision of auth store is old")):
            names: list[str] = []
            held: list[Call] = []

            def handle(call: Call, names: list[str] = names, held: list[Call] = held, ended: Any = ended) -> None:
                if call.path.endswith("/authenticate"):
                    names.append(json.loads(call.body)["name"])
                    call.answer(200, {"token": f"token{len(names)}"})
                elif call.headers["authorization"] == "token1":
                    held.append(call)
                    if len(held) == 5:
                        for each in held:
                            each.answer(401, ended)
                else:
                    call.answer(200, DONE)

            etcd = self.etcd(self.serve(handle).url, credentials=("joe", "secret"))
            await gatherResults([etcd.txn((), ()) for _ in range(5)])
            self.assertEqual(names, ["joe", "joe"])

    async def test_aTokenThatIsRefusedAgainIsTrouble(self) -> None:
        """A member that refuses each token it has given out is not asked without a limit."""

        def handle(call: Call) -> None:
            if call.path.endswith("/authenticate"):
                call.answer(200, {"token": "t"})
            else:
                call.answer(401, refusal(16, "invalid auth token"))

        server = self.serve(handle)
        await self.refuses(EtcdError, self.etcd(server.url, credentials=("joe", "secret")).txn((), ()))
        self.assertEqual(len(server.calls), 4)

    def test_passwordsAreInNoText(self) -> None:
        """The representation of a user, or of a user's request, shows neither password nor token."""
        user = User("joe", "secret", "t0ken")
        self.assertEqual(repr(user), "User(name='joe')")
        self.assertNotIn("t0ken", repr(Request("POST", "/", CLOCK, lambda stage: "", 1.0, header=user.header)))
