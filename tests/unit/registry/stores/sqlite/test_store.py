"""
The SQLite store's promises for its file: across restarts, crashes, other processes, and trouble with the disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Any

import attrs
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import LogLevel, capturedLogs, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.unit.garbage import collectOnlyNew
from tests.unit.registry.stores.storesuite import countServices, countValues
from tests.unit.registry.stores.test_stores import HandReactor
from txserviceregistry.registry.model import NewService, Precondition
from txserviceregistry.registry.stores.interfaces import (
    Expiration,
    ServiceRecord,
    StoreRefused,
    StoreUnavailable,
    TokenRecord,
)
from txserviceregistry.registry.stores.sqlite import file as sqlitefile
from txserviceregistry.registry.stores.sqlite import threads
from txserviceregistry.registry.stores.sqlite.file import (
    APPLICATION_ID,
    BUSY_SECONDS,
    MIGRATIONS,
    connect,
    prepare,
)
from txserviceregistry.registry.stores.sqlite.store import SqliteStore
from txserviceregistry.registry.stores.sqlite.tables import Tables
from txserviceregistry.registry.uuids import position, positionOf
from txserviceregistry.util.deferred import returnsDeferred

NOW = 1_700_000_000.0
#: A log that is cut, larger than SQLite lets it grow by itself.
LOG_BYTES = 5_000_000


class SqliteCase(TestCase):
    """
    A test with a store at ``path``.

    :ivar now: the wall clock.
    """

    timeout = 60
    now = NOW

    def setUp(self):
        self.path = self.mktemp()
        self.reactor = HandReactor()

    async def opened(self, path: str | None = None, **options: Any) -> SqliteStore:
        store = SqliteStore(path or self.path, reactor=self.reactor, wallClock=lambda: self.now, **options)
        await store.open()
        self.addCleanup(store.close)
        return store

    async def raises(self, kind: type[Exception], operation: Any) -> str:
        try:
            result = await operation
        except kind as error:
            return str(error)
        self.fail(f"{kind.__name__} was expected, but it returned {result!r}")

    def elsewhere(self) -> sqlite3.Connection:
        """The file as another process has it open."""
        connection = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(connection.close)
        return connection


class SqliteStoreTests(SqliteCase):
    """A store that is opened, and opened again."""

    # -- restarts

    async def test_everythingIsThereAfterARestart(self):
        """A store that is opened again is what it was."""

        async def content(store: SqliteStore) -> list[Any]:
            return [
                await store.secret(),
                await store.account("1"),
                await store.listServices("1", None, 100, None, ()),
                await store.listServices("1", None, 100, "t", ()),
                await store.allServices(),
                await store.listValues("1", None, 100, None),
                await store.listEvents("1", 0, 100, None),
                await store.listUsers(),
                await store.getToken("token"),
            ]

        store = await self.opened()
        await store.account("1")
        made = await store.createService("1", NewService("web", 30, ("t",), {"k": "v"}), 10)
        gone = await store.createService("1", NewService("gone", 30, ("t",)), 10)
        await store.expireServices([Expiration("1", "gone", gone.incarnation, 5)])
        store.recordLastSeen("1", "web", made.incarnation, 1234)
        await store.setValue("1", "key", "value", 10)
        await store.addUser("joe", "hash", None)
        await store.addToken(TokenRecord("token", "joe", "1", NOW + 60))
        self.reactor.advance(5)
        await store.removeToken("none")
        before = await content(store)
        await store.close()
        self.now += 3600
        again = await self.opened()
        self.assertEqual(await content(again), before)
        self.assertEqual(before[2][0].lastSeen, 1234)
        self.assertEqual((await countServices(again), await countValues(again)), (1, 1))

    async def test_closeWritesHeartbeatTimes(self):
        """The times of heartbeats that wait to be written are written by close(), and nothing stays on the reactor."""
        store = await self.opened()
        made = await store.createService("1", NewService("web", 30), 10)
        store.recordLastSeen("1", "web", made.incarnation, 1234)
        await store.close()
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        store = await self.opened()
        self.assertEqual((await store.getService("1", "web")).lastSeen, 1234)

    async def test_nothingIsLeftOfServicesThatEnded(self):
        """Removed or expired, a service leaves its event in the file and no other row."""
        store = await self.opened()
        await store.account("1")
        elsewhere = self.elsewhere()

        def rows() -> dict[str, int]:
            tables = [name for (name,) in elsewhere.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            counts = {name: elsewhere.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}
            return {name: count for name, count in counts.items() if name != "events"}

        # This one stays, so that there is a row wherever one is kept for a tenant.
        await store.createService("1", NewService("stays", 30, ("t",)), 10)
        before = rows()
        removed, expired = [await store.createService("1", NewService(id, 30, ("t", "u")), 10) for id in ("one", "two")]
        for each in (removed, expired):
            store.recordLastSeen("1", each.id, each.incarnation, 1234)
        self.reactor.advance(5)
        await store.removeToken("none")
        self.assertEqual(rows()["last_seen"], before["last_seen"] + 2)
        await store.removeService("1", "one", removed.incarnation)
        await store.expireServices([Expiration("1", "two", expired.incarnation, 5)])
        self.assertEqual(rows(), before)

    async def test_heartbeatTimesAreWrittenAfterFiveSeconds(self):
        """A thousand heartbeats of a service are one write, at the latest five seconds after the first."""
        store = await self.opened()
        made = await store.createService("1", NewService("web", 30), 10)
        for n in range(1000):
            store.recordLastSeen("1", "web", made.incarnation, n)
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)
        self.reactor.advance(4.9)
        await store.removeToken("none")
        self.assertEqual((await store.getService("1", "web")).lastSeen, None)
        self.reactor.advance(0.1)
        await store.removeToken("none")
        self.assertEqual((await store.getService("1", "web")).lastSeen, 999)
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)

    async def test_eventIdsGoOnAfterARestart(self):
        """Ids grow across a restart, when the clock has stepped back and all events have been dropped."""
        store = await self.opened()
        made = await store.createService("1", NewService("web", 30), 10)
        await store.dropEvents(positionOf(NOW + 60))
        await store.close()
        self.now = NOW - 3600
        store = await self.opened()
        again = await store.createService("1", NewService("api", 30), 10)
        self.assertEqual(position(again.incarnation), position(made.incarnation) + 1)

    async def test_dropsManyEvents(self):
        """More events than fit into one part are dropped, and those of every tenant."""
        store = await self.opened()
        await gatherResults([store.setValue(str(n % 3), "key", str(n), 10) for n in range(2100)])
        self.assertEqual(await store.dropEvents(positionOf(NOW) + 2000), 2000)
        self.assertEqual(await store.dropEvents(positionOf(NOW + 60)), 100)

    async def test_closeFinishesWhatIsUnderWay(self):
        """Operations from before close() are done; nothing is left beside the file, and no thread."""
        threads = set(threading.enumerate())
        store = await self.opened()
        writes = [store.setValue("1", f"k{n}", "v", 1000) for n in range(100)]
        reads = [store.listValues("1", None, 1, None) for _ in range(100)]
        first, second = store.close(), store.close()
        await first
        await second
        await gatherResults(writes + reads)
        self.assertEqual(set(threading.enumerate()) - threads, set())
        self.assertFalse(os.path.exists(self.path + "-wal"))
        self.assertEqual(await countValues(await self.opened()), 100)

    async def test_closingWhileItOpens(self):
        """A store that is closed before it has opened does not open, and leaves no thread."""
        threads = set(threading.enumerate())
        store = SqliteStore(self.path, reactor=self.reactor)
        opening = store.open()
        closing = store.close()
        await self.raises(StoreUnavailable, opening)
        await closing
        self.assertEqual(set(threading.enumerate()) - threads, set())

    async def test_keepsNoProcessAlive(self):
        """A process in which nothing closes the store can end."""
        threads = set(threading.enumerate())
        await self.opened()
        new = set(threading.enumerate()) - threads
        self.assertEqual([thread.daemon for thread in new], [True, True])

    def test_nothingIsStartedByMakingIt(self):
        """A store that has not been opened has no file and no thread: a daemon forks between the two."""
        threads = threading.enumerate()
        SqliteStore(self.path, reactor=self.reactor)
        self.assertEqual(threading.enumerate(), threads)
        self.assertFalse(os.path.exists(self.path))

    async def test_fileIsTheOwnersOnly(self):
        """The file, and what SQLite keeps beside it, can be read by no other user, whatever the umask."""
        mask = os.umask(0)
        self.addCleanup(os.umask, mask)
        store = await self.opened()
        await store.setValue("1", "key", "value", 10)
        folder = os.path.dirname(self.path)
        names = [name for name in os.listdir(folder) if name.startswith(os.path.basename(self.path))]
        self.assertEqual(len(names), 3)
        modes = {stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) for name in names}
        self.assertEqual(modes, {0o600})

    # -- other processes

    async def test_twoStoresOnOneFileAreOne(self):
        """Two that open a new file together have one secret, see each other's changes, and one row of event ids."""
        one, two = await gatherResults([Deferred.fromCoroutine(self.opened()) for _ in range(2)])
        self.assertEqual(await one.secret(), await two.secret())
        made = []
        for n in range(4):
            made.append(await (one, two)[n % 2].createService("1", NewService(f"s{n}", 30), 4))
        positions = [position(service.incarnation) for service in made]
        self.assertEqual(positions, [positions[0] + n for n in range(4)])
        self.assertEqual(await one.listServices("1", None, 9, None, ()), made)
        self.assertEqual(await countServices(one), 4)

    # -- groups

    async def test_oneThatFailsLeavesTheOthersWhole(self):
        """An operation that fails half-way undoes what it did, and only that."""
        store = await self.opened()
        good = [store.setValue("1", f"k{n}", "v", 100) for n in range(5)]
        bad = store.setValue("1", "bad", 5, 100)  # type: ignore[arg-type]  # a defect of the caller
        more = [store.setValue("1", f"l{n}", "v", 100) for n in range(5)]
        await self.raises(AttributeError, bad)
        await gatherResults(good + more)
        self.assertEqual(len(await store.listEvents("1", 0, 100, None)), 10)
        self.assertEqual(await countValues(store), 10)

    async def test_togetherIsAsOneAfterTheOther(self):
        """Simultaneous changes, of one kind or several, have the outcomes and events of changes one by one."""

        def operations(store: SqliteStore) -> Iterator[Deferred[Any]]:
            for n in range(150):
                yield store.createService(
                    f"{n % 2 + 1}", NewService(f"s{n}", 30, ("t", f"t{n}", "t", "\0"), {"n": f"{n}"}), 999
                )
            for tenant, id, maximum in (("1", "s0", 999), ("1", "s1", 999), ("2", "s1", 76), ("2", "s2", 76)):
                yield store.createService(tenant, NewService(id, 40), maximum)
            for tenant, id, maximum in (("2", "s3", 76), ("2", "s5", 75), ("2", "new", 76), ("3", "new", 0)):
                yield store.createService(tenant, NewService(id, 50), maximum)
            for n in range(80):
                yield store.setValue("1", f"key{n % 70}", f"value{n % 2}", 60)
            for value in ("a", "a", "b", "\ud800", "a"):
                yield store.setValue("2", "key", value, 1)
                yield store.setValue("2", "key", "new", 1, Precondition(False))
                yield store.setValue("3", "key", value, 1, Precondition(value == "b"))
            yield store.removeValue("2", "key")
            yield store.setValue("2", "other", "", 1)
            yield store.setValue("2", "key", "", 1)
            yield store.createService("1", NewService("last", 30), 999)

        async def outcome(operation: Deferred[Any]) -> Any:
            try:
                result = await operation
            except Exception as error:
                return type(error).__name__
            if isinstance(result, int):
                return "position"
            return attrs.evolve(result, incarnation="") if isinstance(result, ServiceRecord) else result

        async def state(store: SqliteStore, tenant: str) -> Any:
            return (
                [event.payload for event in await store.listEvents(tenant, 0, 999, None)],
                [attrs.evolve(one, incarnation="") for one in await store.listServices(tenant, None, 999, None, ())],
                [one.id for one in await store.listServices(tenant, None, 999, "t", ())],
                [(one.key, one.value) for one in await store.listValues(tenant, None, 999, None)],
            )

        patient, hurried = await self.opened(), await self.opened(self.mktemp())
        waiting = [Deferred.fromCoroutine(outcome(each)) for each in operations(hurried)]
        outcomes = [await outcome(each) for each in operations(patient)]
        self.assertEqual(await gatherResults(waiting), outcomes)
        for kind in ("ObjectExists", "LimitExceeded", "PreconditionFailed", "ServiceRecord", "None", "position"):
            self.assertIn(kind, str(outcomes))
        for tenant in ("1", "2", "3"):
            self.assertEqual(await state(hurried, tenant), await state(patient, tenant))
        for count in (countServices, countValues):
            self.assertEqual(await count(hurried), await count(patient))
        self.assertLess(hurried.statistics.commits.counts[0], patient.statistics.commits.counts[0])

    def everyTurn(self, store: SqliteStore, until: Callable[[int], bool]) -> list[Deferred[Any]]:
        """Write something in one turn of the reactor after the other; what comes of each."""
        writing: list[Deferred[Any]] = []

        def write() -> None:
            writing.append(store.setValue("1", f"key{len(writing)}", "value", 100_000))
            if not until(len(writing)):
                reactor.callLater(0, write)

        write()
        return writing

    async def test_whatComesTurnAfterTurnSharesACommit(self):
        """While each turn of the reactor brings another change, all of them wait for the last, and for one commit."""
        store = await self.opened()
        writing = self.everyTurn(store, lambda count: count == 5)
        await writing[0]
        await gatherResults(writing)
        self.assertEqual((len(writing), store.statistics.commits.total), (5, 5))
        self.assertEqual(sum(store.statistics.commits.counts), 1)

    async def test_noOperationWaitsLongForOthers(self):
        """A change is kept soon, however long each turn of the reactor goes on to bring another."""
        store = await self.opened()
        kept: list[int] = []

        def isKept(count: int) -> bool:
            self.reactor.advance(0.005)
            return bool(kept)

        writing = self.everyTurn(store, isKept)
        await writing[0]
        kept.append(1)
        await deferLater(reactor, 0)
        await gatherResults(writing)

    async def test_writesAValueOnceHoweverOftenItIsSet(self):
        """A key that is set several times at once is written once: in which order rows come, SQLite leaves open."""
        store = await self.opened()
        elsewhere = self.elsewhere()
        elsewhere.execute("CREATE TABLE written (value)")
        for change in ("INSERT", "UPDATE"):
            elsewhere.execute(
                f"CREATE TRIGGER on_{change} AFTER {change} ON configuration_values"
                " BEGIN INSERT INTO written VALUES (CAST(new.value AS TEXT)); END"
            )
        await gatherResults([store.setValue("1", "key", f"{n}", 10) for n in range(20)])
        self.assertEqual(elsewhere.execute("SELECT value FROM written").fetchall(), [("19",)])
        self.assertEqual(len(await store.listEvents("1", 0, 100, None)), 20)

    async def test_aCreateThatFailsLeavesTheOthersWhole(self):
        """A registration that can't be kept at all harms none that comes with it."""
        store = await self.opened()
        good = [store.createService("1", NewService(f"s{n}", 30, ("t",)), 100) for n in range(5)]
        bad = store.createService("1", NewService("\ud800", 30, ("t",)), 100)
        more = [store.createService("1", NewService(f"t{n}", 30, ("t",)), 100) for n in range(5)]
        await self.raises(UnicodeEncodeError, bad)
        made = await gatherResults(good + more)
        self.assertEqual(await store.listServices("1", None, 100, "t", ()), made)
        self.assertEqual(len(await store.listEvents("1", 0, 100, None)), 10)
        self.assertEqual(await countServices(store), 10)

    async def test_aReadThatFailsLeavesTheOthersWhole(self):
        """A read that can't be done fails alone."""
        store = await self.opened()
        await store.setValue("1", "key", "value", 10)
        bad = store.getValue("1", "\ud800")
        good = store.getValue("1", "key")
        await self.raises(UnicodeEncodeError, bad)
        self.assertEqual((await good).value, "value")

    async def test_othersHaveTheirTurnWhileManyExpire(self):
        """An operation that comes while thousands of expirations are written does not wait for the last of them."""
        store = await self.opened()
        made = await gatherResults(
            [store.createService("1", NewService(f"s{n}", 30, ("t",)), 9999) for n in range(3000)]
        )
        order: list[str] = []
        expiring = store.expireServices([Expiration("1", one.id, one.incarnation, 1) for one in made])
        expiring.addCallback(lambda _: order.append("expired"))
        created = store.createService("1", NewService("new", 30), 9999)
        created.addCallback(lambda _: order.append("created"))
        await gatherResults([expiring, created])
        self.assertEqual(order, ["created", "expired"])
        self.assertEqual(await countServices(store), 1)

    # -- trouble

    async def test_countsItsWork(self):
        """Reads, writes, the operations of each commit, and trouble are counted."""
        store = await self.opened()
        await gatherResults([store.setValue("1", f"key{n}", "value", 1000) for n in range(100)])
        await store.getValue("1", "key1")
        statistics = store.statistics
        self.assertEqual((sum(statistics.writes.counts), sum(statistics.reads.counts)), (100, 1))
        self.assertEqual(statistics.commits.total, 100)
        self.assertLess(sum(statistics.commits.counts), 100)
        self.assertTrue(statistics.isReadable and statistics.isWritable)
        self.elsewhere().execute("ALTER TABLE meta RENAME TO meta_away")
        await self.raises(StoreUnavailable, store.setValue("1", "key", "value", 1000))
        self.assertTrue(statistics.isReadable and not statistics.isWritable)

    async def test_aDiskThatHangs(self):
        """A write without a result for ten seconds is trouble, and so is an error that follows; the log has both."""
        hanging, over = threading.Event(), threading.Event()
        isSlow = isBroken = False

        def guard() -> None:
            if isSlow:
                hanging.set()
                over.wait(50)
            if isBroken:
                raise OSError("Input/output error")

        store = await self.opened(guard=guard)
        isSlow = True
        writing = store.setValue("1", "key", "value", 10)
        await deferToThread(hanging.wait)
        with capturedLogs() as events:
            self.reactor.advance(9)
            self.assertTrue(store.statistics.isWritable)
            self.reactor.advance(1)
            self.assertEqual((store.statistics.isReadable, store.statistics.isWritable), (True, False))
            isBroken = True
            over.set()
            await self.raises(StoreUnavailable, writing)
            self.assertFalse(store.statistics.isWritable)
            isBroken = False
            await store.setValue("1", "key", "value", 10)
            self.assertTrue(store.statistics.isWritable)
        self.assertEqual(
            [formatEvent(event) for event in events if str(event["log_namespace"]).startswith("txserviceregistry")],
            [
                "Cannot write the store: no result within 10 s",
                "Cannot write the store: Input/output error",
                "Can write the store again",
            ],
        )

    async def test_aProcessThatWasStopped(self):
        """A write that a stop of the whole process interrupted is not taken for a disk that hangs."""
        hanging, over = threading.Event(), threading.Event()
        isSlow = False

        def guard() -> None:
            if isSlow:
                hanging.set()
                over.wait(50)

        store = await self.opened(guard=guard)
        isSlow = True
        writing = store.setValue("1", "key", "value", 10)
        await deferToThread(hanging.wait)
        self.reactor.advance(3600)
        self.assertTrue(store.statistics.isWritable)
        over.set()
        await writing
        self.reactor.advance(20)
        self.assertTrue(store.statistics.isWritable)

    async def test_troubleIsLoggedWhenItBeginsAndEnds(self):
        """However many operations fail, there is one line when trouble begins and one when it ends, for each thread."""
        lines: list[tuple[Any, str]] = []

        def observe(event: Any) -> None:
            if str(event.get("log_namespace")).startswith("txserviceregistry.registry.stores"):
                lines.append((event["log_level"], event["verb"]))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        store = await self.opened()
        await store.setValue("1", "key", "value", 10)
        elsewhere = self.elsewhere()
        for table in ("meta", "configuration_values", "events"):
            elsewhere.execute(f"ALTER TABLE {table} RENAME TO {table}_away")
        for _ in range(3):
            self.assertIn("no such table", await self.raises(StoreUnavailable, store.setValue("1", "key", "v", 10)))
            self.assertIn("no such table", await self.raises(StoreUnavailable, store.getValue("1", "key")))
        await self.raises(StoreUnavailable, store.dropEvents(positionOf(NOW)))
        expirations = [Expiration("1", str(n), "x", 1) for n in range(500)]
        await self.raises(StoreUnavailable, store.expireServices(expirations))
        for table in ("meta", "configuration_values", "events"):
            elsewhere.execute(f"ALTER TABLE {table}_away RENAME TO {table}")
        for _ in range(3):
            await store.setValue("1", "key", "other", 10)
            self.assertEqual((await store.getValue("1", "key")).value, "other")
        expected = [
            (LogLevel.error, "write"),
            (LogLevel.error, "read"),
            (LogLevel.info, "write"),
            (LogLevel.info, "read"),
        ]
        self.assertEqual(lines, expected)

    async def test_troubleThatComesAndGoesIsNotLoggedEachTime(self):
        """A store that fails and succeeds in turn is logged once, until a minute has passed without a failure."""
        texts: list[str] = []

        def observe(event: Any) -> None:
            if str(event.get("log_namespace")).startswith("txserviceregistry.registry.stores"):
                texts.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        store = await self.opened()
        self.elsewhere().execute("ALTER TABLE configuration_values RENAME TO away")
        for number in range(5):
            await self.raises(StoreUnavailable, store.setValue("1", "key", "v", 10))
            await self.raises(StoreUnavailable, store.getValue("1", "key"))
            await store.account(str(number))
            await store.secret()
            self.reactor.advance(1)
        self.elsewhere().execute("ALTER TABLE away RENAME TO configuration_values")
        for seconds in (50, 10, 10):
            self.reactor.advance(seconds)
            await store.setValue("1", "key", "v", 10)
            await store.getValue("1", "key")
        written = [text for text in texts if "write" in text]
        self.assertEqual(["again" in text for text in written], [False, True, False, True])
        self.assertEqual(len(texts), 8, texts)

    async def test_troubleOfOneOperationIsItsOwn(self):
        """A table that can't be written fails those that need it; the others of the group are kept."""
        store = await self.opened()
        elsewhere = self.elsewhere()
        elsewhere.execute("ALTER TABLE users RENAME TO users_away")
        good = [store.setValue("1", f"k{n}", "v", 10) for n in range(3)]
        bad = store.addUser("joe", "hash", None)
        more = store.setValue("1", "key", "v", 10)
        self.assertIn("no such table", await self.raises(StoreUnavailable, bad))
        await gatherResults([*good, more])
        self.assertEqual(await countValues(store), 4)

    async def test_heartbeatTimesOutlastTrouble(self):
        """Times of heartbeats that could not be written are tried again, unless there are newer ones."""
        store = await self.opened()
        one = await store.createService("1", NewService("one", 30), 10)
        two = await store.createService("1", NewService("two", 30), 10)
        elsewhere = self.elsewhere()
        elsewhere.execute("ALTER TABLE meta RENAME TO meta_away")
        store.recordLastSeen("1", "one", one.incarnation, 1)
        store.recordLastSeen("1", "two", two.incarnation, 1)
        self.reactor.advance(5)
        store.recordLastSeen("1", "two", two.incarnation, 2)
        await self.raises(StoreUnavailable, store.removeToken("none"))
        elsewhere.execute("ALTER TABLE meta_away RENAME TO meta")
        self.reactor.advance(5)
        await store.removeToken("none")
        self.assertEqual((await store.getService("1", "one")).lastSeen, 1)
        self.assertEqual((await store.getService("1", "two")).lastSeen, 2)

    async def test_heartbeatTimesDoNotPileUp(self):
        """While a write takes long, however many heartbeats come, one more waits, which brings the last time."""
        store = await self.opened()
        made = await store.createService("1", NewService("web", 30), 10)
        elsewhere = self.elsewhere()
        elsewhere.execute("BEGIN IMMEDIATE")
        before = store.statistics.commits.total
        for n in range(10):
            store.recordLastSeen("1", "web", made.incarnation, n)
            self.reactor.advance(5)
        elsewhere.execute("COMMIT")
        await store.removeToken("none")
        self.reactor.advance(5)
        await store.removeToken("none")
        self.assertEqual((await store.getService("1", "web")).lastSeen, 9)
        self.assertLessEqual(store.statistics.commits.total - before, 4)

    async def test_aDefectInHeartbeatTimesIsLogged(self):
        """A time that is none is a defect: it is logged, and dropped."""
        store = await self.opened()
        made = await store.createService("1", NewService("web", 30), 10)
        store.recordLastSeen("1", "web", made.incarnation, 2**70)
        self.reactor.advance(5)
        await store.removeToken("none")
        self.assertEqual(len(self.flushLoggedErrors(OverflowError)), 1)
        store.recordLastSeen("1", "web", made.incarnation, 5)
        self.reactor.advance(5)
        await store.removeToken("none")
        self.assertEqual((await store.getService("1", "web")).lastSeen, 5)

    async def test_aProbeThatSucceedsWhileAllChangesFail(self):
        """The store counts as not writable while changes are refused, and for five seconds after the last one."""

        def fail(tables: Tables, *arguments: object) -> None:
            tables._addEvent("1", "configuration_value.update", {})
            raise sqlite3.OperationalError("database or disk is full")

        store = await self.opened()
        refusing = self.patch(Tables, "setValues", fail)
        await self.raises(StoreUnavailable, store.setValue("1", "key", "value", 10))
        self.reactor.advance(4.9)
        await store.removeToken("what has nothing to write shows nothing")
        self.assertIn("refused the last changes", await self.raises(StoreUnavailable, store.probe()))
        self.reactor.advance(0.2)
        await store.probe()
        await self.raises(StoreUnavailable, store.setValue("1", "key", "value", 10))
        await self.raises(StoreUnavailable, store.probe())
        refusing.restore()
        await store.setValue("1", "key", "value", 10)
        await store.probe()

    # -- the size of the log

    async def growLog(self, store: SqliteStore) -> None:
        """Write until the log is too large."""
        self.patch(threads, "LOG_BYTES", LOG_BYTES)
        number = 0
        while os.path.getsize(self.path + "-wal") <= LOG_BYTES:
            number += 1
            await store.setValue("1", f"large{number}", "x" * 1_000_000, 1000)
        self.reactor.advance(0.5)
        await store.probe()

    async def test_theLogIsCutAfterALongRead(self):
        """A log that grew while another program read is cut by a write within seconds after that."""
        store = await self.opened()
        other = self.elsewhere()
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM meta").fetchone()
        await self.growLog(store)
        for _ in range(3):
            self.reactor.advance(5)
            await store.probe()
        self.assertGreater(store.statistics.walBytes, LOG_BYTES)
        self.assertGreater(os.path.getsize(self.path + "-wal"), LOG_BYTES)
        other.execute("COMMIT")
        for _ in range(2):
            self.reactor.advance(5)
            await store.probe()
        self.assertLess(os.path.getsize(self.path + "-wal"), LOG_BYTES)
        self.assertLess(store.statistics.walBytes, LOG_BYTES)
        self.assertEqual(len(await store.listValues("1", None, 100, None)), await countValues(store))

    async def test_afterTheLogWasCutOthersAreWaitedFor(self):
        """A connection waits shortly for readers when it cuts the log, and as long as before for its next lock."""
        prepare(self.path)
        connection = connect(self.path)
        self.addCleanup(connection.close)
        before = connection.execute("PRAGMA busy_timeout").fetchone()
        self.assertEqual(before, (1000 * BUSY_SECONDS,))
        Tables(connection, lambda: NOW).cutLog()
        self.assertEqual(connection.execute("PRAGMA busy_timeout").fetchone(), before)

    async def test_aLargeChangeLeavesASmallLog(self):
        """After a change that alone is larger than the log may stay, the next one cuts it, also without readers."""
        self.patch(threads, "LOG_BYTES", LOG_BYTES)
        store = await self.opened()
        await store.setValue("1", "large", "x" * (LOG_BYTES + 1), 10)
        self.assertGreater(os.path.getsize(self.path + "-wal"), LOG_BYTES)
        self.reactor.advance(0.5)
        await store.removeToken("what is written next cuts it")
        self.assertLess(os.path.getsize(self.path + "-wal"), LOG_BYTES)

    async def test_closingWhileTheLogIsLarge(self):
        """A store can be closed while a reader makes the log large; nothing stays on the reactor."""
        threads = set(threading.enumerate())
        store = await self.opened()
        other = self.elsewhere()
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM meta").fetchone()
        await self.growLog(store)
        await store.close()
        other.execute("COMMIT")
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(set(threading.enumerate()) - threads, set())

    async def test_aFileThatVanishesIsNotMadeAnew(self):
        """A store whose file is taken away does not go on with an empty one."""
        store = await self.opened()
        await store.addUser("joe", "hash", None)
        elsewhere = self.elsewhere()
        elsewhere.execute("ALTER TABLE meta RENAME TO away")
        for ending in ("", "-wal", "-shm"):
            os.rename(self.path + ending, self.path + ".away" + ending)
        await self.raises(StoreUnavailable, store.setValue("1", "key", "value", 10))
        await self.raises(StoreUnavailable, store.setValue("1", "key", "value", 10))
        self.assertFalse(os.path.exists(self.path))

    def moved(self, *endings: str) -> tuple[Callable[[], None], Callable[[], None]]:
        """Functions that move these files of the store away, and put them back."""

        def move(source: str, target: str) -> None:
            for ending in endings:
                os.rename(source + ending, target + ending)

        away = self.path + ".away"
        return lambda: move(self.path, away), lambda: move(away, self.path)

    async def refusesWrites(self, store: SqliteStore, *words: str) -> None:
        for operation in (store.setValue("1", "key", "refused", 10), store.probe()):
            text = await self.raises(StoreUnavailable, operation)
            for word in words:
                self.assertIn(word, text)

    async def test_aFileThatIsMovedAwayIsNoticed(self):
        """Whichever file is moved away, nothing is written until it is back; what was written is read meanwhile."""
        for endings in (("",), ("-wal",), ("-shm",), ("", "-wal", "-shm")):
            store = await self.opened()
            await store.setValue("1", "key", f"before{endings}", 10)
            take, back = self.moved(*endings)
            take()
            self.reactor.advance(1)
            await self.refusesWrites(
                store, f"{self.path}{endings[0]} was removed or moved away", "put the same file back"
            )
            self.assertEqual((await store.getValue("1", "key")).value, f"before{endings}")
            back()
            await store.setValue("1", "key", f"after{endings}", 10)
            await store.probe()
            await store.close()
            store = await self.opened()
            self.assertEqual((await store.getValue("1", "key")).value, f"after{endings}")
            await store.close()

    async def test_aFileThatIsReplacedIsNoticed(self):
        """Another file under the name, even another store with the same content, is neither written nor read."""
        store = await self.opened()
        await store.setValue("1", "key", "before", 10)
        copy = self.mktemp()
        self.elsewhere().execute("VACUUM INTO ?", (copy,))
        take, back = self.moved("", "-wal", "-shm")
        take()
        os.rename(copy, self.path)
        self.reactor.advance(1)
        await self.refusesWrites(store, f"{self.path} was replaced by another file")
        with open(self.path, "rb") as file:
            self.assertNotIn(b"refused", file.read())
        self.assertEqual(sorted(name for name in os.listdir() if name.startswith(self.path + "-")), [])
        back()
        await store.setValue("1", "key", "after", 10)
        self.assertEqual((await store.getValue("1", "key")).value, "after")

    async def test_aFileThatIsOverwrittenIsNoticed(self):
        """
        A file of a registry that is emptied, or gets another content in its place, is not written. The log, which may
        be all that is left, stays when the store is closed.
        """
        for content in (b"", b"x" * 60_000):
            store = await self.exclusive()
            await store.setValue("1", "key", "before", 10)
            with open(self.path, "rb") as file:
                whole = file.read()
            with open(self.path, "wb") as file:
                file.write(content)
            self.reactor.advance(1)
            for _ in range(2):
                text = await self.raises(StoreUnavailable, store.setValue("1", "key", "refused", 10))
                self.assertIn(f"{self.path} was overwritten", text)
                await self.raises(StoreUnavailable, store.probe())
            await store.close()
            with open(self.path, "rb") as file:
                self.assertEqual(file.read(), content)
            await self.raises(StoreRefused, SqliteStore(self.path, reactor=self.reactor).open())
            with open(self.path, "wb") as file:
                file.write(whole)
            store = await self.exclusive()
            self.assertEqual((await store.getValue("1", "key")).value, "before")
            await store.close()

    async def exclusive(self, path: str | None = None) -> SqliteStore:
        """A store as a registry opens it."""
        store = SqliteStore(path or self.path, reactor=self.reactor, exclusive=True)
        await store.open()
        self.addCleanup(store.close)
        return store

    async def test_oneRegistryAtATimeWhateverTheName(self):
        """
        Symbolic and hard links to a registry's file do not let a second one in. Another program may open it,
        and an end of the first lets the second have it.
        """
        names = {"symbolic": os.symlink, "hard": os.link}
        for name, makeLink in names.items():
            first = await self.exclusive()
            makeLink(os.path.abspath(self.path), name)
            text = await self.raises(StoreRefused, SqliteStore(name, reactor=self.reactor, exclusive=True).open())
            self.assertIn("another registry uses the file", text)
            self.assertIn("symbolic or hard link", text)
            other = await self.opened()
            await other.setValue("1", "key", name, 10)
            await other.close()
            await first.close()
            second = await self.exclusive(name)
            await second.close()
            os.unlink(name)

    async def test_aFolderThatIsMovedAwayIsNoticed(self):
        """A folder in the place of the one that the store was opened in is left empty."""
        folder = self.mktemp()
        os.mkdir(folder)
        store = await self.opened(os.path.join(folder, "store"))
        await store.setValue("1", "key", "before", 10)
        os.rename(folder, folder + ".away")
        self.reactor.advance(1)
        await self.refusesWrites(store, "was removed or moved away")
        os.mkdir(folder)
        await self.refusesWrites(store, "was removed or moved away")
        self.assertEqual(os.listdir(folder), [])
        os.rmdir(folder)
        os.rename(folder + ".away", folder)
        await store.setValue("1", "key", "after", 10)
        self.assertEqual((await store.getValue("1", "key")).value, "after")

    async def test_looksAtTheFilesSeveralTimesASecond(self):
        """Less than a second after a file has vanished no write is acknowledged, however many there are."""
        store = await self.opened()
        await store.setValue("1", "key", "before", 10)
        os.unlink(self.path)
        for _ in range(9):
            self.reactor.advance(0.1)
            failed = await DeferredList([store.setValue("1", "key", "late", 10)], consumeErrors=True)
        ((succeeded, _),) = failed
        self.assertFalse(succeeded)

    async def test_closingAStoreWhoseFileVanished(self):
        """A file that is moved away and its log are left as they are: put back together they have everything."""
        for endings in (("",), ("", "-wal", "-shm")):
            store = await self.opened()
            await store.setValue("1", "key", f"before{endings}", 10)
            take, back = self.moved(*endings)
            take()
            await store.close()
            back()
            store = await self.opened()
            self.assertEqual((await store.getValue("1", "key")).value, f"before{endings}")
            await store.close()

    async def test_closingAStoreWhoseLogVanished(self):
        """Changes in a log that is gone are moved into the file when the store is closed."""
        store = await self.opened()
        await store.setValue("1", "key", "before", 10)
        os.unlink(self.path + "-wal")
        await store.close()
        self.assertEqual((await (await self.opened()).getValue("1", "key")).value, "before")

    async def test_aVanishedFileIsLoggedOnce(self):
        """There is one line when a file vanishes and one when it is back, however many writes fail meanwhile."""
        lines: list[Any] = []
        store = await self.opened()
        await store.setValue("1", "key", "before", 10)
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        take, back = self.moved("")
        take()
        self.reactor.advance(1)
        for _ in range(3):
            await self.refusesWrites(store)
            self.assertEqual((await store.getValue("1", "key")).value, "before")
        back()
        await store.probe()
        await store.probe()
        texts = [formatEvent(event) for event in lines if event["log_namespace"].startswith("txserviceregistry")]
        self.assertEqual(len(texts), 2, texts)
        self.assertTrue(texts[0].startswith(f"Cannot write the store: {self.path} was removed"), texts)
        self.assertEqual(texts[1], "Can write the store again")

    async def test_aGuardThatRefuses(self):
        """While the guard raises an exception, writes fail with its text, and reads go on."""
        troubles: list[str] = []

        def guard() -> None:
            if troubles:
                raise ValueError(troubles[0])

        store = SqliteStore(self.path, reactor=self.reactor, guard=guard)
        await store.open()
        self.addCleanup(store.close)
        await store.setValue("1", "key", "before", 10)
        troubles.append("taken by another")
        self.reactor.advance(1)
        await self.refusesWrites(store, "taken by another")
        self.assertEqual((await store.getValue("1", "key")).value, "before")
        troubles.clear()
        await store.setValue("1", "key", "after", 10)

    async def test_saysWhichFileCantBeOpened(self):
        """A path where no file can be is named, with the reason, in one line; no thread stays."""
        threads = set(threading.enumerate())
        os.mkdir(self.path)
        for path, reason in ((self.path, "directory"), (os.path.join(self.path, "no", "such"), "No such file")):
            text = await self.raises(StoreUnavailable, SqliteStore(path, reactor=self.reactor).open())
            self.assertTrue(text.startswith(path + " can't be opened: "), text)
            self.assertIn(reason, text)
            self.assertNotIn("\n", text)
        self.assertEqual(set(threading.enumerate()) - threads, set())


class RefusedFileTests(TestCase):
    """Files that are not ours, or not in order, are refused and left untouched."""

    def setUp(self):
        self.folder = self.mktemp()
        os.mkdir(self.folder)
        self.path = os.path.join(self.folder, "store")

    def content(self) -> dict[str, bytes]:
        """All that is in the folder, but for the index of the log, which has nothing of its own."""
        found = {}
        for name in os.listdir(self.folder):
            if not name.endswith("-shm"):
                with open(os.path.join(self.folder, name), "rb") as file:
                    found[name] = file.read()
        return found

    async def isRefused(self, *words: str) -> None:
        before = self.content()
        try:
            await SqliteStore(self.path, reactor=reactor).open()
        except StoreRefused as error:
            text = str(error)
        else:
            self.fail("the file was taken")
        self.assertEqual(self.content(), before)
        for word in (self.path, *words):
            self.assertIn(word, text)
        self.assertNotIn("\n", text)

    @returnsDeferred
    async def fill(self) -> None:
        """Make a store of some size."""
        store = SqliteStore(self.path, reactor=reactor)
        await store.open()
        metadata = {"key": "value" * 20}
        await gatherResults(
            [store.createService("1", NewService(f"s{n}", 30, ("t",), metadata), 9999) for n in range(1000)]
        )
        await store.close()

    def change(self, start: int, data: bytes) -> None:
        with open(self.path, "r+b") as file:
            file.seek(start)
            file.write(data)

    async def test_aNetworkFileSystem(self):
        """A file system that SQLite can't share memory on, or NFS, is named; the texts of the errors do not say so."""

        def fail(*arguments: object, **options: object) -> None:
            raise error

        error: Exception = OSError(errno.EBADF, "Bad file descriptor")
        locking = self.patch(fcntl, "flock", fail)
        await self.isNetwork()
        locking.restore()
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorname = "SQLITE_IOERR_SHMMAP"
        self.patch(sqlitefile, "connect", fail)
        await self.isNetwork()

    async def isNetwork(self) -> None:
        """The file is refused because of its file system."""
        refusal = await self.assertFailure(SqliteStore(self.path, reactor=reactor).open(), StoreUnavailable)
        self.assertIn("can't be opened: its file system lacks shared memory or locks; use a local one", str(refusal))

    async def test_noDatabase(self):
        """Some other file is refused."""
        for data in (b"hello\n", b"x" * 10_000, b"SQLite format 3\0", b"\0" * 4096):
            with open(self.path, "wb") as file:
                file.write(data)
            await self.isRefused("is not a SQLite database")

    async def crash(self, **values: str) -> None:
        """Leave the file and a log with these values, as a registry does that is killed."""
        store = SqliteStore(self.path, reactor=reactor)
        await store.open()
        for key, value in values.items():
            await store.setValue("1", key, value, 100)
        left = self.content()
        await store.close()
        for name, data in left.items():
            with open(os.path.join(self.folder, name), "wb") as file:
                file.write(data)

    async def test_aLogWithoutItsFile(self):
        """A log with changes whose file is missing, empty or cut short is refused, and is there still."""
        await self.crash(key="acknowledged")
        with open(self.path, "rb") as file:
            whole = file.read()
        for length, state in ((50, "cut short"), (0, "empty"), (None, "missing")):
            if length is None:
                os.unlink(self.path)
            else:
                os.truncate(self.path, length)
            await self.isRefused(state, f"{self.path}-wal", "acknowledged", "restore", "move the log away")
        # The line's advice helps: the file is put back, ...
        with open(self.path, "wb") as file:
            file.write(whole)
        store = SqliteStore(self.path, reactor=reactor)
        await store.open()
        self.assertEqual((await store.getValue("1", "key")).value, "acknowledged")
        await store.close()

    async def test_aLogThatIsMovedAwayIsGoneWithout(self):
        """Without the log a store whose file is missing is a new one."""
        await self.crash(key="acknowledged")
        os.unlink(self.path)
        os.rename(self.path + "-wal", self.path + ".kept")
        store = SqliteStore(self.path, reactor=reactor)
        await store.open()
        self.assertEqual(await countValues(store), 0)
        await store.close()

    async def test_aLogBehindASymbolicLink(self):
        """SQLite keeps the log beside the file that a link leads to, so it is looked for there."""
        await self.crash(key="acknowledged")
        os.mkdir(os.path.join(self.folder, "links"))
        link = os.path.join(self.folder, "links", "link")
        os.symlink(os.path.abspath(self.path), link)
        os.truncate(self.path, 0)
        before = os.path.getsize(self.path + "-wal")
        try:
            await SqliteStore(link, reactor=reactor).open()
        except StoreRefused as error:
            self.assertIn(f"{self.path}-wal", str(error))
        else:
            self.fail("the file was taken")
        self.assertEqual(os.path.getsize(self.path + "-wal"), before)

    async def test_anotherDatabasesLog(self):
        """A log that another registry's file has left is refused, and neither is changed."""
        await self.crash(key="theirs")
        os.rename(self.path + "-wal", self.path + ".kept")
        os.unlink(self.path)
        await self.crash(key="ours")
        os.rename(self.path + ".kept", self.path + "-wal")
        await self.isRefused(f"{self.path}-wal belongs to another database", "move the log away")

    async def test_noRegularFile(self):
        """A named pipe, from which reading would never end, is refused."""
        os.mkfifo(self.path)
        try:
            await SqliteStore(self.path, reactor=reactor).open()
        except StoreRefused as error:
            self.assertIn("not a regular file", str(error))
        else:
            self.fail("the file was taken")

    async def test_anotherProgramsDatabase(self):
        """A database that some other program has made is refused."""
        connection = sqlite3.connect(self.path)
        connection.execute("CREATE TABLE services (id)")
        connection.close()
        await self.isRefused("another program")

    async def test_fromTheFuture(self):
        """A file whose schema is newer than this release is refused, and the text says what helps."""
        prepare(self.path, (*MIGRATIONS, ("CREATE TABLE more (x)",)))
        await self.isRefused("newer release", f"version {len(MIGRATIONS) + 1}", "upgrade")

    async def test_fromTheFutureInTheLog(self):
        """A newer schema is noticed also where it is in the write-ahead log still."""
        prepare(self.path)
        connection = connect(self.path)
        self.addCleanup(connection.close)
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA user_version = 99")
        await self.isRefused("newer release", "version 99")

    async def test_damaged(self):
        """A file with overwritten pages is refused, wherever they are."""
        await self.fill()
        with open(self.path, "rb") as file:
            whole = file.read()
        for start in (100, 4096 * 2, len(whole) // 8192 * 4096, len(whole) - 4096):
            self.change(0, whole)
            self.change(start, b"\xa5" * 4000)
            await self.isRefused("damaged", "backup")

    async def test_damagedAndLarge(self):
        """In a large file the tables that hold what is now are checked, and the events are not."""
        await self.fill()
        small = os.path.getsize(self.path)
        connection = connect(self.path)
        connection.executemany(
            "INSERT INTO events (tenant, position, timestamp, type, payload) VALUES ('2', ?, 1, 1, zeroblob(?))",
            [(n, 1024 * 1024) for n in range(33)],
        )
        connection.close()
        self.change(small + 4096 * 5, b"\xa5" * 4096 * 100)
        store = SqliteStore(self.path, reactor=reactor)
        await store.open()
        self.assertEqual(len(await store.listServices("1", None, 9999, None, ())), 1000)
        await store.close()
        connection = connect(self.path)
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'services'").fetchone()
        connection.close()
        self.change((page - 1) * 4096, b"\xa5" * 4096)
        await self.isRefused("damaged", "backup")

    async def test_cutShort(self):
        """A file that has lost its end is refused."""
        await self.fill()
        with open(self.path, "r+b") as file:
            file.truncate(os.path.getsize(self.path) // 8192 * 4096)
        await self.isRefused("damaged", "backup")

    async def test_damagedWithALog(self):
        """A damaged file with a log beside it is refused, and the log is not written into it."""
        await self.fill()
        connection = connect(self.path)
        self.addCleanup(connection.close)
        connection.execute("UPDATE tenants SET services = 5")
        self.change(os.path.getsize(self.path) // 8192 * 4096, b"\xa5" * 4000)
        await self.isRefused("damaged", "backup")


class PreparedFileTests(SynchronousTestCase):
    """How a file comes into being, and from one schema to the next."""

    def setUp(self):
        self.path = self.mktemp()

    def ask(self, sql: str) -> Any:
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def test_syncLeavesNothingOpen(self):
        """A file and its folder are made durable, and closed."""
        # Else a file that another test has left open may be closed meanwhile.
        collectOnlyNew(self)
        prepare(self.path)
        before = os.listdir("/proc/self/fd")
        for path in (self.path, os.path.dirname(os.path.abspath(self.path))):
            sqlitefile.sync(path)
        self.assertEqual(os.listdir("/proc/self/fd"), before)

    def test_hasMarkAndVersion(self):
        """A new file says whose it is, which schema it has, and that it keeps a write-ahead log."""
        prepare(self.path)
        self.assertEqual(self.ask("PRAGMA application_id"), [(APPLICATION_ID,)])
        self.assertEqual(self.ask("PRAGMA user_version"), [(len(MIGRATIONS),)])
        self.assertEqual(self.ask("PRAGMA journal_mode"), [("wal",)])

    def test_takesAnEmptyFileForANewOne(self):
        """A file without a byte in it becomes a store; a log that lies beside it is of another file."""
        for name in (self.path, self.path + "-wal"):
            with open(name, "wb"):
                pass
        prepare(self.path)
        self.assertEqual(self.ask("SELECT count(*) FROM services"), [(0,)])
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)

    def test_olderSchemaIsBroughtUpToDate(self):
        """Migrations that a file has not seen are done once, and what was in it stays."""
        prepare(self.path)
        secret = self.ask("SELECT value FROM meta WHERE name = 'secret'")
        newer = (*MIGRATIONS, ("CREATE TABLE more (x)", "INSERT INTO more VALUES (5)"))
        prepare(self.path, newer)
        prepare(self.path, newer)
        self.assertEqual(self.ask("SELECT x FROM more"), [(5,)])
        self.assertEqual(self.ask("PRAGMA user_version"), [(len(newer),)])
        self.assertEqual(self.ask("SELECT value FROM meta WHERE name = 'secret'"), secret)

    def test_failedMigrationLeavesTheFileAsItWas(self):
        """A migration that fails is undone whole, and the older release can go on with the file."""
        prepare(self.path)
        newer = (*MIGRATIONS, ("CREATE TABLE more (x)", "no SQL"))
        self.assertRaises(sqlite3.OperationalError, prepare, self.path, newer)
        self.assertEqual(self.ask("SELECT name FROM sqlite_master WHERE name = 'more'"), [])
        prepare(self.path)

    def test_nothingIsLeftWhenItCantBeMade(self):
        """A file that can't be made whole is not there at all."""
        os.mkdir(self.path)
        path = os.path.join(self.path, "store")
        self.assertRaises(sqlite3.OperationalError, prepare, path, (("no SQL",),))
        self.assertEqual(os.listdir(self.path), [])
