"""
etcd as a JSON API: over servers that play a cluster in trouble, over networks that lose its answers, and over etcd.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS
from twisted.web.iweb import IAgent, IPolicyForHTTPS

from tests.certificates import Holder
from tests.loopback import Call, LoopbackTestCase
from tests.system.etcd.etcds import newPrefix, sharedEtcd, startEtcd
from tests.system.faults.proxy import Proxy
from txserviceregistry.http.jsontransport import JSONTransport
from txserviceregistry.http.pool import ConnectionPool, QueueingAgent
from txserviceregistry.http.tls import tlsPolicy
from txserviceregistry.registry.stores.etcd.gateway import (
    QUEUE,
    Compare,
    Etcd,
    EtcdError,
    Urgency,
    User,
    deletion,
    put,
    reading,
)
from txserviceregistry.registry.stores.etcd.leases import newLease
from txserviceregistry.registry.stores.interfaces import StoreUnavailable
from txserviceregistry.util.concurrency import Turns
from txserviceregistry.util.reloading import Reloaded

CLOCK: IReactorTime = reactor  # type: ignore[assignment]  # which it is
DONE = {"header": {"revision": "7"}, "succeeded": True}


def refusal(code: int, message: str) -> dict[str, Any]:
    """What etcd's gateway answers to what it refuses."""
    return {"error": message, "message": message, "code": code}


class EtcdCase(LoopbackTestCase):
    """Tests with clients of etcds."""

    def etcd(
        self,
        *urls: str,
        credentials: tuple[str, str | Reloaded[str, str]] | None = None,
        policy: IPolicyForHTTPS | None = None,
        timeout: float = 1.0,
        **options: Any,
    ) -> Etcd:
        """A client of some members, which ends with the test."""
        pool = ConnectionPool(reactor, 8)
        self.addCleanup(pool.close)
        agent: IAgent = QueueingAgent(Agent(reactor, policy or BrowserLikePolicyForHTTPS(), pool=pool), 8)
        user = None if credentials is None else User(*credentials)
        if user is not None:
            agent = user.over(agent)
        transport = JSONTransport(agent, CLOCK, urls, timeout=timeout, name="etcd", random=lambda: 0.0)
        return Etcd(transport, CLOCK, user=user, **options)

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

    async def test_whatALeadersDeathCostsIsTriedAgain(self) -> None:
        """Refusals that pass, and connections that end, are not seen by who asks."""
        for trouble in (
            lambda call: call.answer(503, refusal(14, "etcdserver: leader changed")),
            lambda call: call.answer(503, refusal(14, "etcdserver: request timed out")),
            lambda call: call.answer(500, refusal(2, "raft: stopped")),
            lambda call: call.answer(504, refusal(4, "context deadline exceeded")),
            lambda call: call.answer(429, refusal(8, "etcdserver: too many requests")),
            lambda call: call.answer(502, b"a balancer's page"),
            Call.hangUp,
            Call.reset,
        ):
            server = self.answering(trouble, lambda call: call.answer(200, DONE))
            done = await self.etcd(server.url).txn((), [put("/a", b"")])
            self.assertEqual((done.succeeded, done.revision), (True, 7))

    async def test_aMemberThatHangsIsLeftForAnother(self) -> None:
        """Within its share of the time, so that none of the patience is needed."""
        hanging = self.serve(lambda call: None)
        working = self.serve(lambda call: call.answer(200, DONE))
        etcd = self.etcd(hanging.url, working.url, timeout=0.4)
        await etcd.txn((), (), patience=0)
        await etcd.txn((), (), patience=0)
        self.assertEqual((len(hanging.calls), len(working.calls)), (1, 2))

    async def test_patienceEnds(self) -> None:
        """A cluster that is away for too long is unavailable; with no patience after one try."""
        server = self.answering(lambda call: call.answer(503, refusal(14, "etcdserver: no leader")))
        etcd = self.etcd(server.url)
        self.assertIn("no leader", await self.refuses(StoreUnavailable, etcd.txn((), (), patience=0)))
        self.assertEqual(len(server.calls), 1)
        began = CLOCK.seconds()
        await self.refuses(StoreUnavailable, etcd.txn((), (), patience=0.5))
        self.assertTrue(0.3 < CLOCK.seconds() - began < 2.0)
        self.assertGreater(len(server.calls), 3)

    async def test_whatEtcdRefusesIsNotTriedAgain(self) -> None:
        """An error of ours, or one that says how things are, comes back with its code."""
        server = self.answering(lambda call: call.answer(400, refusal(3, "etcdserver: duplicate key given in txn")))
        text = await self.refuses(EtcdError, self.etcd(server.url).txn((), [put("/a", b""), put("/a", b"")]))
        self.assertIn("duplicate key", text)
        self.assertEqual(len(server.calls), 1)

    async def test_theGateIsAskedBeforeEachTry(self) -> None:
        """When nothing may be asked any more, a request that is being tried again ends."""
        asked: list[None] = []

        def gate() -> None:
            asked.append(None)
            if len(asked) > 2:
                raise StoreUnavailable("closed")

        server = self.serve(lambda call: call.answer(503))
        self.assertEqual(await self.refuses(StoreUnavailable, self.etcd(server.url, gate=gate).txn((), ())), "closed")
        self.assertEqual(len(server.calls), 2)

    async def test_contactIsWithAMajority(self) -> None:
        """It is told of transactions, with the time when they were sent; what a leader says alone shows none."""
        contacts: list[float] = []
        etcd = self.etcd(sharedEtcd(), onContact=contacts.append)
        await etcd.timeToLive(1)
        self.assertEqual(contacts, [])
        before = CLOCK.seconds()
        await etcd.get("/nothing")
        self.assertEqual(len(contacts), 1)
        self.assertTrue(before <= contacts[0] <= CLOCK.seconds())


class TurnsTests(SynchronousTestCase):
    """More is asked at once than there are connections."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[tuple[str, Deferred[Any]]] = []
        self.isOpen = True
        transport: Any = SimpleNamespace(request=self.request)
        self.etcd = Etcd(transport, self.clock, gate=self.gate, turns=Turns(2))

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
            answer = [{"result": {"ID": "5", "TTL": "30"}}]
        answered.callback(SimpleNamespace(status=200, json=answer))
        return self.asked[-1][0] if self.asked else ""

    def test_thePressingOnesFirst(self) -> None:
        """Heartbeats overtake everything, what others wait for the rest, and what need not be done waits for all."""
        works = [self.etcd.get("/a"), self.etcd.get("/b"), self.etcd.revoke(1), self.etcd.grant(2, 30)]
        works += [self.etcd.get("/c"), self.etcd.timeToLive(3), self.etcd.txn((), (), urgency=Urgency.pressing)]
        works += [self.etcd.grant(4, 30, urgency=Urgency.vital), self.etcd.keepAlive([5])]
        self.assertEqual([path for path, _ in self.asked], ["kv/txn", "kv/txn"])
        order = [self.answer() for _ in range(7)]
        vital, rest = order[:2], order[2:]
        self.assertEqual(vital, ["lease/grant", "lease/keepalive"])
        self.assertEqual(rest, ["lease/timetolive", "kv/txn", "lease/grant", "kv/txn", "lease/revoke"])
        while self.asked:
            self.answer()
        for work in works:
            self.successResultOf(work)

    def test_waitingIsNobodysFault(self) -> None:
        """What waits has not been asked: it is, with its whole patience, when its turn has come."""
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
        """What has waited for too long is refused, and its turn goes to another; so it is with what is ended."""
        busy = [self.etcd.get("/a"), self.etcd.get("/b")]
        waiting = [self.etcd.get("/c"), self.etcd.get("/d")]
        self.clock.advance(1)
        last = self.etcd.grant(1, 30)
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


class LostAnswerTests(EtcdCase):
    """A network that loses every second answer, after etcd has done what it was asked."""

    def lossy(self) -> Etcd:
        proxy = Proxy(reactor, int(sharedEtcd().rpartition(":")[2]))
        proxy.start()
        self.addCleanup(proxy.stop)
        proxy.lose(2)
        return self.etcd(proxy.url.removesuffix("/v1.0"))

    async def test_aTransactionIsDoneOnceAndReadBack(self) -> None:
        """With a guard, the second time fails, and shows what the first one did."""
        etcd, key = self.lossy(), f"{newPrefix()}a"
        seen = set()
        modified = 0
        for number in range(6):
            value = str(number).encode()
            done = await etcd.txn([Compare(key, modified)], [put(key, value), reading(key)], [reading(key)])
            seen.add(done.succeeded)
            (kept,) = next(found for found in done.found if found)
            self.assertEqual(kept.value, value)
            modified = kept.modified
        self.assertEqual(seen, {True, False})

    async def test_leasesAndCompactions(self) -> None:
        """What is there already, or is gone already, is the first try's work."""
        etcd = self.lossy()
        for _ in range(4):
            lease = newLease()
            await etcd.grant(lease, 60)
            self.assertEqual(await etcd.keepAlive([lease]), [True])
            left, granted = await etcd.timeToLive(lease)
            self.assertEqual(granted, 60)
            self.assertTrue(58 <= left <= 60)
            await etcd.revoke(lease)
            self.assertEqual(await etcd.keepAlive([lease]), [False])
            self.assertLess((await etcd.timeToLive(lease))[0], 0)
            _, revision = await etcd.range("/nothing")
            await etcd.compact(revision)


class KeepAliveTests(EtcdCase):
    """Several leases in one request, which is nothing that etcd promises."""

    async def test_manyAtOnce(self) -> None:
        """As many as a request takes, some of them gone: each is told apart."""
        etcd = self.etcd(sharedEtcd())
        leases = [newLease() for _ in range(14)]
        await gatherResults([etcd.grant(lease, 60) for lease in leases[::2]])
        self.assertEqual(await etcd.keepAlive(leases), [True, False] * 7)

    def keeping(self, answer: Callable[[Sequence[int]], list[Any]]) -> tuple[Any, Etcd]:
        """A server that answers keep-alives with lines."""

        def handle(call: Call) -> None:
            asked = [int(json.loads(line)["ID"]) for line in call.body.splitlines()]
            call.answer(200, b"\n".join(json.dumps(each).encode() for each in answer(asked)))

        server = self.serve(handle)
        return server, self.etcd(server.url, timeout=0.3)

    async def test_missingAnswersAreAskedForAlone(self) -> None:
        """Answers that vanish under a 200, come in another order, or are an error's, cost a request more."""
        alive = {"TTL": "5"}
        server, etcd = self.keeping(
            lambda asked: (
                [{"error": {"grpc_code": 14}}, {"result": {"ID": "3"}}, {"result": {"ID": "1", **alive}}]
                if len(asked) > 1
                else [{"result": {"ID": str(asked[0]), **alive}}]
            )
        )
        self.assertEqual(await etcd.keepAlive([1, 2, 3, 4]), [True, True, False, True])
        self.assertEqual(len(server.calls), 3)

    async def test_noAnswerAtAllIsTrouble(self) -> None:
        """What etcd says nothing about is not called gone."""
        for lines in ([], [{"error": {"grpc_code": 14, "message": "no leader"}}]):
            _, etcd = self.keeping(lambda asked, lines=lines: lines)  # type: ignore[misc]  # a loop's
            await self.refuses(StoreUnavailable, etcd.keepAlive([1]))


class UserTests(EtcdCase):
    """An etcd that asks who is there."""

    async def test_overEtcd(self) -> None:
        """With name and password all works, also when the token has ended, in the middle of many requests."""
        url, end = await deferToThread(startEtcd, "--auth-token-ttl=1")
        self.addCleanup(end)
        password = secrets.token_hex(8)
        open_ = JSONTransport(QueueingAgent(Agent(reactor), 1), CLOCK, [url])
        for path, body in (
            ("user/add", {"name": "root", "password": password}),
            ("role/add", {"name": "root"}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("enable", {}),
        ):
            self.assertEqual((await open_.request("POST", f"/v3/auth/{path}", body=body)).status, 200)
        etcd = self.etcd(url, credentials=("root", password))
        await gatherResults([etcd.txn((), [put(f"/{n}", b"")]) for n in range(20)])
        # A change of etcd's users makes all tokens old.
        answer = await open_.request("POST", "/v3/auth/authenticate", body={"name": "root", "password": password})
        root = User("root", password, answer.json["token"]).over(QueueingAgent(Agent(reactor), 1))
        added = await JSONTransport(root, CLOCK, [url]).request("POST", "/v3/auth/role/add", body={"name": "new"})
        self.assertEqual(added.status, 200)
        found, _ = await etcd.range("/", "0")
        self.assertEqual(len(found), 20)
        wrong = await self.refuses(StoreUnavailable, self.etcd(url, credentials=("root", "wrong-pass")).get("/1"))
        self.assertIn("check the name and the password", wrong)
        self.assertNotIn("wrong-pass", wrong)
        await self.refuses(EtcdError, self.etcd(url).get("/1"))
        # A new password ends all tokens too.
        path = Path(self.mktemp())
        path.write_text(password)
        file = Reloaded("Password file", [str(path)], path.read_text, lambda text: text)
        etcd = self.etcd(url, credentials=("root", file))
        await etcd.get("/1")
        changed = {"name": "root", "password": "new-" + password}
        await JSONTransport(root, CLOCK, [url]).request("POST", "/v3/auth/user/changepw", body=changed)
        path.write_text("new-" + password)
        self.assertEqual(len((await etcd.range("/", "0"))[0]), 20)

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
            self.assertIn("check the name and the password", said)
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
        """A member that refuses each token it has given out is not asked for ever."""

        def handle(call: Call) -> None:
            if call.path.endswith("/authenticate"):
                call.answer(200, {"token": "t"})
            else:
                call.answer(401, refusal(16, "invalid auth token"))

        server = self.serve(handle)
        await self.refuses(EtcdError, self.etcd(server.url, credentials=("joe", "secret")).txn((), ()))
        self.assertEqual(len(server.calls), 4)

    def test_passwordsAreInNoText(self) -> None:
        """What shows a user shows neither password nor token."""
        self.assertEqual(repr(User("joe", "secret", "t0ken")), "User(name='joe')")


class TLSTests(EtcdCase):
    """An etcd that speaks TLS, and wants to see a certificate."""

    async def test_withACertificate(self) -> None:
        """A client that has one is let in, and reads and writes; one without is told what is wrong."""
        folder = Path(self.mktemp())
        folder.mkdir()
        authority = Holder("authority")
        files: dict[str, str] = {"ca": str(folder / "ca.pem")}
        (folder / "ca.pem").write_bytes(authority.certificate)
        for owner in ("server", "client"):
            holder = Holder(owner, issuer=authority, ca=False)
            for kind, content in (("cert", holder.certificate), ("key", holder.key)):
                files[f"{owner}-{kind}"] = str(folder / f"{owner}-{kind}.pem")
                (folder / f"{owner}-{kind}.pem").write_bytes(content)
        url, end = await deferToThread(
            startEtcd,
            f"--cert-file={files['server-cert']}",
            f"--key-file={files['server-key']}",
            f"--trusted-ca-file={files['ca']}",
            "--client-cert-auth",
            files=(files["ca"], files["client-cert"], files["client-key"]),
        )
        self.addCleanup(end)
        policy = tlsPolicy(caFile=files["ca"], certFile=files["client-cert"], keyFile=files["client-key"])
        etcd = self.etcd(url, policy=policy)
        await etcd.txn((), [put("/a", b"1")])
        found = await etcd.get("/a")
        self.assertEqual(found and found.value, b"1")
        stranger = self.etcd(url, policy=tlsPolicy(caFile=files["ca"]))
        await self.refuses(StoreUnavailable, stranger.txn((), [deletion("/a")], patience=0))

    async def test_renewed(self) -> None:
        """Certificates that are all renewed, by another authority, are used by the next connection."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        old, new = Holder("old"), Holder("new")
        names = ("server-cert", "server-key", "client-cert", "client-key", "ca", "both")
        files = {name: folder / f"{name}.pem" for name in names}
        files["both"].write_bytes(old.certificate + new.certificate)

        def renew(authority: Holder) -> None:
            files["ca"].write_bytes(authority.certificate)
            for owner in ("server", "client"):
                holder = Holder(owner, issuer=authority, ca=False)
                files[f"{owner}-cert"].write_bytes(holder.certificate)
                files[f"{owner}-key"].write_bytes(holder.key)

        renew(old)
        url, end = await deferToThread(
            startEtcd,
            f"--cert-file={files['server-cert']}",
            f"--key-file={files['server-key']}",
            f"--trusted-ca-file={files['both']}",
            "--client-cert-auth",
            files=(str(files["ca"]), str(files["client-cert"]), str(files["client-key"])),
        )
        self.addCleanup(end)
        policy = tlsPolicy(
            caFile=str(files["ca"]), certFile=str(files["client-cert"]), keyFile=str(files["client-key"])
        )
        await self.etcd(url, policy=policy).txn((), [put("/a", b"1")])
        renew(new)
        found = await self.etcd(url, policy=policy).get("/a")
        self.assertEqual(found and found.value, b"1")
