"""
Watches of etcd, against servers that say what etcd can't be made to say when a test wants it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from random import Random
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.client import BrowserLikePolicyForHTTPS

from tests.loopback import PATIENCE, Call, LoopbackTestCase, Server
from txserviceregistry.http.pool import ConnectionPool, PooledAgent
from txserviceregistry.registry.stores.etcd.gateway import Cluster, _Lines, watch
from txserviceregistry.registry.stores.etcd.keyvalues import KeyValue, encode

HEAD = b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


def message(*events: dict[str, Any], **more: Any) -> bytes:
    """A line of a watch's answer."""
    return json.dumps({"result": {"header": {}, "events": list(events), **more}}).encode("ascii") + b"\n"


def event(key: str, value: str = "", revision: int = 1) -> dict[str, Any]:
    """A change as etcd sends it."""
    return {"kv": {"key": encode(key), "value": encode(value), "mod_revision": str(revision)}}


def chunk(data: bytes) -> bytes:
    """A part of a body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


class WatchCase(LoopbackTestCase):
    """Tests with watches over real connections."""

    def setUp(self) -> None:
        self.changes: list[tuple[KeyValue, bool]] = []
        self.why: list[str] = []
        self.cluster = Cluster()

    def watch(self, url: str, revision: int = 1, prefix: str = "/", isStopped: bool = False) -> Deferred[None]:
        """Begin a watch, which ends with the test, or at its first change."""

        def changed(now: KeyValue, isDeleted: bool) -> None:
            self.changes.append((now, isDeleted))
            if isStopped:
                watching.cancel()

        def ended(failure: Failure) -> None:
            self.why.append(failure.getErrorMessage())

        agent = PooledAgent(reactor, BrowserLikePolicyForHTTPS(), PATIENCE, ConnectionPool(reactor, 0, streams=True))
        watching = watch(agent, None, url, prefix, revision, changed, self.cluster)
        self.addCleanup(watching.cancel)
        return watching.addErrback(ended)

    def stop(self, watching: Deferred[None]) -> None:
        """Stop a watch, which does not end by itself any more."""
        watching.cancel()
        self.why.clear()


class WatchTests(WatchCase):
    """A watch of a server that plays etcd."""

    def serving(self, *parts: bytes) -> Server:
        """A server that answers a watch with these parts of a body, and leaves it open."""

        def handle(call: Call) -> None:
            call.raw(HEAD)
            for part in parts:
                call.raw(chunk(part))

        return self.serve(handle)

    async def test_asksForWhatIsWanted(self) -> None:
        """All keys below the prefix, from a revision on."""
        server = self.serving()
        self.watch(server.url, 7, "/a/")
        await self.until(lambda: server.calls)
        self.assertEqual(server.calls[0].path, "/v3/watch")
        self.assertEqual(
            json.loads(server.calls[0].body),
            {
                "create_request": {
                    "key": encode("/a/"),
                    "range_end": encode("/a0"),
                    "start_revision": "7",
                }
            },
        )

    async def test_tellsChangesInTheirOrder(self) -> None:
        """Keys that are set and deleted."""
        gone = {**event("/a", revision=3), "type": "DELETE"}
        server = self.serving(message(created=True), message(event("/a", "x", 2)), message(gone, event("/b", "y", 3)))
        self.watch(server.url)
        await self.until(lambda: len(self.changes) == 3)
        self.assertEqual([now.key for now, _ in self.changes], ["/a", "/a", "/b"])
        self.assertEqual([isDeleted for _, isDeleted in self.changes], [False, True, False])
        self.assertEqual(self.why, [])

    async def test_linesMayBeCutAnywhere(self) -> None:
        """However the network cuts it, and however long a line is, each change is notified once and completely."""
        lines = message(event("/long", "x" * 1_500_000)) + b"".join(message(event(f"/{n}", "é\n")) for n in range(50))
        random = Random(6)
        for size in (1, 3, 100_000):
            self.changes.clear()
            tail, parts = lines[-2000:] if size < 100 else lines, []
            if size < 100:
                # The long line goes in large parts, or this would take long.
                parts = [lines[at : at + 65_536] for at in range(0, len(lines) - 2000, 65_536)]
                parts[-1] = lines[(len(parts) - 1) * 65_536 : -2000]
            at = 0
            while at < len(tail):
                length = random.randint(1, size)
                parts.append(tail[at : at + length])
                at += length
            self.watch(self.serving(*parts).url)
            await self.until(lambda: len(self.changes) == 51)
            self.assertEqual(len(self.changes[0][0].value), 1_500_000)
            self.assertEqual({now.value for now, _ in self.changes[1:]}, {"é\n".encode()})

    def test_longLinesTakeTimeOnce(self) -> None:
        """A line has all changes since an outage, and comes in small parts."""
        lines: list[bytes] = []
        receiver = _Lines(lines.append)
        began = time.process_time()
        for _ in range(4096):
            receiver.dataReceived(b"x" * 1024)
        receiver.dataReceived(b"\n")
        self.assertEqual([len(line) for line in lines], [2**22])
        self.assertLess(time.process_time() - began, 2)

    async def test_canceledIsTheEnd(self) -> None:
        """A watch that etcd has canceled is over, with its reason, though the answer stays open."""
        server = self.serving(message(canceled=True, cancel_reason="required revision has been compacted"))
        self.watch(server.url)
        await self.until(lambda: self.why)
        self.assertEqual(self.why, ["required revision has been compacted"])
        await self.until(lambda: not server.open)

    async def test_anotherClusterIsTheEnd(self) -> None:
        """A member of another cluster shows none of its changes."""
        self.cluster.id = "17"
        self.watch(self.serving(message(event("/a"), header={"cluster_id": "18"})).url)
        await self.until(lambda: self.why)
        self.assertIn("belongs to another etcd cluster", self.why[0])
        self.assertEqual(self.changes, [])

    async def test_aLostConnectionIsTheEnd(self) -> None:
        """However the connection ends, in the middle of a line too, nothing of half a line is notified."""
        ends: Iterable[Any] = (Call.hangUp, Call.reset, lambda call: call.raw(b"0\r\n\r\n"))
        for number, end in enumerate(ends, 1):
            server = self.serving(message(event("/a")), message(event("/b"))[:-9])
            self.watch(server.url)
            await self.until(lambda expected=number: len(self.changes) == expected)  # type: ignore[misc]  # a loop's
            end(server.calls[0])
            await self.until(lambda expected=number: len(self.why) == expected)  # type: ignore[misc]  # as above
        self.assertEqual({now.key for now, _ in self.changes}, {"/a"})

    async def test_whatIsNotAWatchIsTheEnd(self) -> None:
        """Another status, another thing than a response to a watch, and no server: each is the end, with a reason."""
        wrong: list[Any] = [
            self.serve(lambda call: call.answer(503, {"error": "no leader"})),
            self.serving(b"no JSON\n"),
            self.serving(b'{"error": {"grpc_code": 14}}\n'),
            self.serving(b"[]\n"),
        ]
        for number, url in enumerate([*(each.url for each in wrong), self.unusedUrl()], 1):
            self.watch(url)
            await self.until(lambda expected=number: len(self.why) == expected)  # type: ignore[misc]  # a loop's
        self.assertIn("503", self.why[0])
        await self.until(lambda: not any(each.open for each in wrong))

    async def test_stopLeavesNothing(self) -> None:
        """At any moment: while it connects, before the answer, and after it."""
        silent, talking = self.serve(lambda call: None), self.serving(message(event("/a")))
        watches = [self.watch(self.unusedUrl()), self.watch(silent.url), self.watch(talking.url)]
        self.stop(watches[0])
        await self.until(lambda: silent.calls and self.changes)
        for watching in watches[1:]:
            self.stop(watching)
            self.stop(watching)
        await self.until(lambda: not silent.open and not talking.open)
        self.assertEqual(self.why, [])

    async def test_stoppingAtAChangeEndsNotifications(self) -> None:
        """A watch that is stopped during a notification does not notify of what has come with it."""
        server = self.serving(message(event("/a"), event("/b")))
        self.watch(server.url, isStopped=True)
        await self.until(lambda: self.changes and not server.open)
        self.assertEqual(len(self.changes), 1)
