"""
The rules of the API, as the registry applies them over a store that answers at once.
"""

from __future__ import annotations

import uuid
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.unit.registry.registrycase import NOW, TENANT, RegistryCase
from txserviceregistry.registry.core import Registry
from txserviceregistry.registry.expiry import LiveServices
from txserviceregistry.registry.faults import Fault
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.registry.model import NewService, ServiceChanges
from txserviceregistry.registry.stores.interfaces import StoreUnavailable, ValueRecord
from txserviceregistry.registry.stores.memory import MemoryStore
from txserviceregistry.registry.stores.sqlite.store import SqliteStore
from txserviceregistry.registry.uuids import positionOf
from txserviceregistry.util.deferred import returnsDeferred


def markerAt(seconds: float) -> str:
    """A version-1 UUID of this time that no feed has issued."""
    time = positionOf(seconds)
    return str(uuid.UUID(fields=(time & 0xFFFFFFFF, time >> 32 & 0xFFFF, time >> 48, 0, 0, 5), version=1))


class ServicesTests(RegistryCase):
    """Services, without regard to their deadlines."""

    limits = ResourceLimits(service=3)

    def test_aNewService(self) -> None:
        """A service is there as it was registered, never seen yet, and the feed has its event."""
        self.create("web1", 15, tags=("www", "db"), metadata={"port": "80"})
        service = {
            "id": "web1",
            "heartbeat_timeout": 15,
            "tags": ["www", "db"],
            "metadata": {"port": "80"},
            "last_seen": None,
        }
        self.assertEqual(self.successResultOf(self.registry.get(TENANT, "web1")), service)
        self.assertEqual(self.page(self.registry.list(TENANT, None, 100, None)).values, [service])
        del service["last_seen"]
        (event,) = self.page(self.registry.feed.list(TENANT, None, 100)).values
        self.assertEqual((event["type"], event["payload"]), ("service.join", service))
        self.assertEqual(event["timestamp"], NOW * 1000)

    def test_anIdThatIsInUse(self) -> None:
        """A second registration of an id is refused, and changes nothing."""
        token = self.create()
        fault = self.fault(self.registry.create(TENANT, NewService("web1", 60, ("t",))))
        self.assertEqual(
            (fault.code, fault.type, fault.message),
            (400, "serviceWithThisIdExists", "Service with id web1 already exists."),
        )
        self.beat(token)
        self.assertEqual(self.successResultOf(self.registry.get(TENANT, "web1"))["heartbeat_timeout"], 30)
        self.assertEqual(self.events(), [("service.join", "web1")])

    def test_caseAndTenantMatter(self) -> None:
        """Another case, or another tenant, is another service; tokens count in their own tenant only."""
        token = self.create("web1")
        self.create("WEB1")
        self.create("web1", tenant="99")
        self.assertEqual(self.ids(), ["WEB1", "web1"])
        fault = self.fault(self.registry.heartbeat("99", "web1", token))
        self.assertEqual(fault.details, f'Object "HeartbeatMarker" with key "{token}" does not exist')

    def test_limit(self) -> None:
        """More services than the account may have are refused; that an id is in use is reported first."""
        for id in ("aaa", "bbb", "ccc"):
            self.create(id)
        fault = self.fault(self.registry.create(TENANT, NewService("ddd", 30)))
        self.assertEqual(
            (fault.code, fault.type, fault.message, fault.details),
            (
                400,
                "limitReached",
                "Resource limit has been reached",
                "Limit for resource service has been reached. Maximum allowed objects: 3",
            ),
        )
        self.assertEqual(
            self.fault(self.registry.create(TENANT, NewService("ccc", 30))).type, "serviceWithThisIdExists"
        )
        self.create("ddd", tenant="99")
        self.successResultOf(self.registry.remove(TENANT, "bbb"))
        self.create("ddd")

    def test_expiredServicesFreeTheirPlaces(self) -> None:
        """Neither an id nor a place in the limit is held by a service past its deadline, swept or not."""
        for id in ("aaa", "bbb", "ccc"):
            self.create(id, 10)
        self.pass_(9.25)
        self.stepTo(0.75)
        self.create("aaa")
        self.create("ddd")
        self.assertEqual(self.ids(), ["aaa", "ddd"])
        events = self.events()[3:]
        self.assertEqual(sorted(type for type, _ in events), ["service.join"] * 2 + ["service.timeout"] * 3)
        self.assertEqual([type for type, id in events if id == "aaa"], ["service.timeout", "service.join"])

    def test_pages(self) -> None:
        """A page has so many, begins at the marker, and names the first id of the next."""
        for id in ("bbb", "aaa", "ccc"):
            self.create(id, tags=("t",))
        first = self.page(self.registry.list(TENANT, None, 2, None))
        self.assertEqual([value["id"] for value in first.values], ["aaa", "bbb"])
        self.assertEqual(first.nextMarker, "ccc")
        last = self.page(self.registry.list(TENANT, "ccc", 2, "t"))
        self.assertEqual([value["id"] for value in last.values], ["ccc"])
        self.assertIsNone(last.nextMarker)
        self.assertIsNone(self.page(self.registry.list(TENANT, None, 3, None)).nextMarker)
        self.assertEqual(self.page(self.registry.list(TENANT, None, 3, "other")).values, [])

    def test_pagesLeaveExpiredServicesOut(self) -> None:
        """Those past their deadline neither fill a page nor are named as the next one's first."""
        self.create("aaa", 10)
        self.create("bbb", 30)
        self.create("ccc", 10)
        self.pass_(9.25)
        self.stepTo(0.75)
        page = self.page(self.registry.list(TENANT, None, 1, None))
        self.assertEqual([value["id"] for value in page.values], ["bbb"])
        self.assertIsNone(page.nextMarker)

    def test_update(self) -> None:
        """A given field replaces the old one whole; the others stay."""
        self.create(tags=("a",), metadata={"k": "v", "l": "w"})
        changes = ServiceChanges(metadata={"k": "x"})
        self.assertIsNone(self.successResultOf(self.registry.update(TENANT, "web1", changes)))
        service = self.successResultOf(self.registry.get(TENANT, "web1"))
        self.assertEqual((service["metadata"], service["tags"], service["heartbeat_timeout"]), ({"k": "x"}, ["a"], 30))
        self.successResultOf(self.registry.update(TENANT, "web1", ServiceChanges(tags=())))
        self.assertEqual(self.successResultOf(self.registry.get(TENANT, "web1"))["tags"], [])
        self.assertEqual(self.events(), [("service.join", "web1")])

    def test_updateOfNothing(self) -> None:
        """No change is fine where there is a service, and a 404 where there is none."""
        self.create()
        self.successResultOf(self.registry.update(TENANT, "web1", ServiceChanges()))
        self.assertGone(self.registry.update(TENANT, "web2", ServiceChanges()), "web2")
        self.assertGone(self.registry.update("99", "web1", ServiceChanges(tags=())))

    def test_remove(self) -> None:
        """A service that is removed is gone at once, for all requests, and the feed has an event."""
        token = self.create()
        self.assertIsNone(self.successResultOf(self.registry.remove(TENANT, "web1")))
        self.assertGone(self.registry.get(TENANT, "web1"))
        self.assertGone(self.registry.heartbeat(TENANT, "web1", token))
        self.assertGone(self.registry.update(TENANT, "web1", ServiceChanges(tags=())))
        self.assertGone(self.registry.remove(TENANT, "web1"))
        self.assertEqual(self.ids(), [])
        self.pass_(60)
        self.assertEqual(self.events(), [("service.join", "web1"), ("service.remove", "web1")])

    def test_tokensOfAnEarlierIncarnationAreRefused(self) -> None:
        """A service that was removed and registered again does not accept the token of its earlier incarnation."""
        old = self.create()
        self.successResultOf(self.registry.remove(TENANT, "web1"))
        new = self.create()
        fault = self.fault(self.registry.heartbeat(TENANT, "web1", old))
        self.assertEqual((fault.code, fault.type), (404, "notFoundError"))
        self.assertIn("HeartbeatMarker", fault.details)
        self.beat(new)

    def test_servicesThatNeverWere(self) -> None:
        """An unknown id is a 404, for everything."""
        self.assertGone(self.registry.get(TENANT, "web1"))
        self.assertGone(self.registry.heartbeat(TENANT, "web1", markerAt(NOW)))
        self.assertGone(self.registry.remove(TENANT, "web1"))
        self.assertEqual(self.ids(), [])


class DeadlinesTests(RegistryCase):
    """When services expire, and what is seen of them then."""

    def assertExpired(self, token: str, id: str = "web1") -> None:
        """The service is not visible any more."""
        self.assertGone(self.registry.get(TENANT, id), id)
        self.assertNotIn(id, self.ids())
        self.assertGone(self.registry.heartbeat(TENANT, id, token), id)
        self.assertGone(self.registry.update(TENANT, id, ServiceChanges(heartbeatTimeout=60)), id)
        self.assertGone(self.registry.update(TENANT, id, ServiceChanges()), id)
        self.assertGone(self.registry.remove(TENANT, id), id)

    def test_expiresWithoutHeartbeats(self) -> None:
        """A service without heartbeats expires at its deadline, once, and the event says when that was."""
        token = self.create(timeout=30, tags=("t",))
        self.pass_(29.9)
        self.assertEqual(self.ids(), ["web1"])
        self.pass_(2)
        self.assertExpired(token)
        self.assertEqual(self.stored(), [])
        self.pass_(60)
        join, timeout = self.page(self.registry.feed.list(TENANT, None, 100)).values
        self.assertEqual((timeout["type"], timeout["payload"]), ("service.timeout", join["payload"]))
        self.assertEqual(timeout["timestamp"], (NOW + 30) * 1000)

    def test_isHiddenBeforeItIsSwept(self) -> None:
        """At its deadline a service is gone for all readers, before it is collected."""
        token = self.create(timeout=30)
        self.pass_(29.5)
        self.stepTo(0.49)
        self.assertEqual(self.ids(), ["web1"])
        self.stepTo(0.01)
        self.assertEqual(self.stored(), ["web1"])
        self.assertExpired(token)

    def test_staysWithHeartbeats(self) -> None:
        """A service with regular heartbeats, each with the last token, stays registered."""
        token = self.create(timeout=3)
        for _ in range(100):
            self.pass_(2.75)
            token = self.beat(token)
        self.assertEqual(self.ids(), ["web1"])
        self.assertEqual(self.events(), [("service.join", "web1")])

    def test_heartbeatsAskNoStore(self) -> None:
        """A heartbeat is answered from memory: the store may be away, and is only handed the time."""
        token = self.create()
        self.memory.unavailable = True
        for _ in range(5):
            self.pass_(20)
            calls = self.store.calls.copy()
            token = self.beat(token)
            self.assertEqual(self.store.calls - calls, {"recordLastSeen": 1})

    def test_anyTokenOfThisIncarnationIsAccepted(self) -> None:
        """A heartbeat whose answer was lost can be sent again, in any case of letters."""
        first = self.create()
        self.beat(first)
        self.pass_(20)
        self.beat(first.upper())
        self.pass_(20)
        self.assertEqual(self.ids(), ["web1"])

    def test_aWrongTokenIsNotAHeartbeat(self) -> None:
        """A token of another service is refused, and does not extend the deadline."""
        self.create("web1", 10)
        other = self.create("web2", 60)
        self.pass_(5)
        fault = self.fault(self.registry.heartbeat(TENANT, "web1", other))
        self.assertEqual(fault.details, f'Object "HeartbeatMarker" with key "{other}" does not exist')
        self.pass_(6)
        self.assertEqual(self.ids(), ["web2"])

    def test_manyHeartbeats(self) -> None:
        """Of many heartbeats each is as if it had come alone, also where one comes twice, and asks no store."""
        first, second = self.create("web1"), self.create("web2")
        self.create("web3")
        self.memory.unavailable = True
        self.pass_(20)
        calls = self.store.calls.copy()
        beats = [("web2", second), ("web0", first), ("web3", first), ("web1", first), ("web2", second.upper())]
        outcomes = self.successResultOf(self.registry.heartbeats(TENANT, beats))
        self.assertEqual(self.store.calls - calls, {"recordLastSeen": 3})
        self.memory.unavailable = False
        self.assertEqual(
            [outcome.details for outcome in outcomes if isinstance(outcome, Fault)],
            [
                'Object "Service" with key "web0" does not exist',
                f'Object "HeartbeatMarker" with key "{first}" does not exist',
            ],
        )
        self.pass_(20)
        self.assertEqual(self.ids(), ["web1", "web2"])
        self.beat(outcomes[0], "web2")
        self.beat(outcomes[3], "web1")
        self.beat(outcomes[4], "web2")
        self.assertEqual(self.successResultOf(self.registry.heartbeats(TENANT, [])), [])

    def test_aNewTimeoutCountsFromTheUpdate(self) -> None:
        """An update of the timeout, the same one even, restarts the deadline; any other update leaves it."""
        self.create("same", 10)
        self.create("longer", 10)
        self.create("shorter", 60)
        self.create("other", 10)
        self.pass_(5)
        for id, changes in (
            ("same", ServiceChanges(heartbeatTimeout=10)),
            ("longer", ServiceChanges(heartbeatTimeout=60)),
            ("shorter", ServiceChanges(heartbeatTimeout=3)),
            ("other", ServiceChanges(tags=("t",), metadata={})),
        ):
            self.successResultOf(self.registry.update(TENANT, id, changes))
        self.pass_(3)
        self.assertEqual(self.ids(), ["longer", "other", "same"])
        self.pass_(2)
        self.assertEqual(self.ids(), ["longer", "same"])
        self.pass_(5)
        self.assertEqual(self.ids(), ["longer"])
        self.pass_(50)
        self.assertEqual(self.ids(), [])

    def test_heartbeatsAfterAnUpdateHaveTheNewTimeout(self) -> None:
        """From an update on, each heartbeat gives the new timeout."""
        token = self.create(timeout=10)
        self.successResultOf(self.registry.update(TENANT, "web1", ServiceChanges(heartbeatTimeout=60)))
        self.pass_(50)
        self.beat(token)
        self.pass_(59)
        self.assertEqual(self.ids(), ["web1"])

    def test_lastSeen(self) -> None:
        """It is the time of the last heartbeat, in milliseconds, rounded up; also in listings, and after a restart."""
        token = self.create()
        for offset, expected in ((0.0, 0), (0.0001, 1), (0.001, 1), (1.1, 1100), (1.1001, 1101)):
            self.wallOffset = NOW + offset
            token = self.beat(token)
            service = self.successResultOf(self.registry.get(TENANT, "web1"))
            self.assertEqual(service["last_seen"], NOW * 1000 + expected)
            self.assertEqual(self.page(self.registry.list(TENANT, None, 1, None)).values, [service])
        self.successResultOf(self.registry.stop())
        self.registry = self.started()
        self.assertEqual(self.successResultOf(self.registry.get(TENANT, "web1")), service)

    def test_memoryKnowsBetterThanTheStore(self) -> None:
        """The time of a heartbeat that the store has not written yet is shown all the same."""
        token = self.create()
        with mock.patch.object(self.memory, "recordLastSeen"):
            self.beat(token)
        self.assertEqual(self.successResultOf(self.registry.get(TENANT, "web1"))["last_seen"], NOW * 1000)

    def test_wallClockStepsChangeNothing(self) -> None:
        """The wall clock may step by hours: no deadline changes, and tokens stay valid."""
        token = self.create()
        for step in (-3600, 7200, -86_400, 40_000_000):
            self.wallOffset += step
            self.pass_(29)
            token = self.beat(token)
        self.pass_(30)
        self.assertEqual(self.ids(), [])

    def test_aStallExpiresNoServices(self) -> None:
        """A registry that stalled for half a minute takes the heartbeats that waited; no service expires."""
        token = self.create(timeout=10)
        other = self.create("web2", timeout=10)
        self.pass_(9.5)
        self.clock.advance(31)
        self.assertEqual(self.ids(), ["web1", "web2"])
        token = self.beat(token)
        self.pass_(0.75)
        self.assertExpired(other, "web2")
        self.assertEqual(self.ids(), ["web1"])
        self.pass_(9)
        self.beat(token)

    def test_readsAreFairAfterAStall(self) -> None:
        """A heartbeat that is read before the registry has noticed its stall is taken."""
        token = self.create(timeout=10)
        self.pass_(9.5)
        self.clock.rightNow += 31
        self.beat(token)

    def test_restart(self) -> None:
        """After a restart each service has a full timeout, with the tokens that it has; then it expires as usual."""
        token = self.create(timeout=30)
        self.create("web2", timeout=30)
        self.pass_(29)
        self.successResultOf(self.registry.stop())
        self.pass_(1000)
        self.registry = self.started()
        self.pass_(29)
        self.assertEqual(self.ids(), ["web1", "web2"])
        self.beat(token)
        self.pass_(2)
        self.assertEqual(self.ids(), ["web1"])
        self.assertEqual(
            self.events(), [("service.join", "web1"), ("service.join", "web2"), ("service.timeout", "web2")]
        )

    def test_stopLeavesNothing(self) -> None:
        """A registry that has stopped has no calls on the reactor; stopping twice causes no error."""
        self.create(timeout=3)
        self.pass_(2)
        self.successResultOf(self.registry.stop())
        self.successResultOf(self.registry.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.pass_(10)
        self.assertEqual(self.stored(), ["web1"])

    def test_singleExpirationsAreLogged(self) -> None:
        """One line for a service that timed out."""
        self.create(timeout=3)
        with capturedLogs() as logs:
            self.pass_(4)
        self.assertEqual([formatEvent(event) for event in logs], ["Services expired: 1234/web1"])

    def test_expirationsThatFollowEachOtherShareLines(self) -> None:
        """Services that expire one by one are logged in one line a second, and those that are left at the end."""
        with capturedLogs() as logs:
            for number in range(12):
                self.create(f"web{number}", timeout=3)
                self.pass_(0.25)
            self.pass_(2.5)
            self.successResultOf(self.registry.stop())
        lines = [formatEvent(event) for event in logs]
        self.assertEqual(
            [line for line in lines if "expired" in line],
            [
                "Services expired: 1234/web0",
                "Services expired: 1234/web1, 1234/web2, 1234/web3",
                "Services expired: 1234/web4, 1234/web5, 1234/web6, 1234/web7",
                "Services expired: 1234/web8, 1234/web9, 1234/web10",
            ],
        )

    def test_registrationsAndDeregistrationsAreLogged(self) -> None:
        """Each with its tenant and id, once it has succeeded; what is refused is not there."""
        with capturedLogs() as logs:
            self.create()
            self.fault(self.registry.create(TENANT, NewService("web1", 30)))
            self.fault(self.registry.remove(TENANT, "web2"))
            self.pass_(2)
            self.create("web2", tenant="other\n\x1b[2J")
            self.successResultOf(self.registry.remove(TENANT, "web1"))
            self.pass_(2)
        self.assertEqual(
            [formatEvent(event) for event in logs],
            [
                "Services registered: 1234/web1",
                r"Services registered: other\n\x1b[2J/web2",
                "Services deregistered: 1234/web1",
            ],
        )

    def test_manyRegistrationsAreFewLines(self) -> None:
        """However many there are: a line a second at most, which counts those that it does not name."""
        with capturedLogs() as logs:
            for number in range(600):
                self.create(f"web{number}")
                if number % 100 == 99:
                    self.pass_(0.25)
            for number in range(600):
                self.successResultOf(self.registry.remove(TENANT, f"web{number}"))
            self.pass_(0.25)
            self.successResultOf(self.registry.stop())
        lines = [formatEvent(event) for event in logs]
        for what in ("registered", "deregistered"):
            counts = [event["count"] for event in logs if event["what"] == f"Services {what}"]
            self.assertEqual(sum(counts), 600)
            self.assertLess(len(counts), 5)
        self.assertEqual(lines[0], "Services registered: 1234/web0")
        self.assertRegex(lines[1], r"^Services registered: (1234/web\d, ){4}1234/web5 and \d+ more$")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertRegex(lines[-1], "^Services deregistered: .* more$")


class ManyExpirationsTests(RegistryCase):
    """Many services that expire in the same second."""

    limits = ResourceLimits(service=2_000)

    def setUp(self) -> None:
        self.patch(LiveServices, "GROUP", 50)
        self.patch(LiveServices, "SWEEP", 100)
        super().setUp()
        for number in range(300):
            self.create(f"s{number:04}", 10)
        self.pass_(9.5)

    def turns(self) -> list[list[int]]:
        """Let the half second pass in which all expire; the sizes of the groups that each turn handed to the store."""
        sizes: list[int] = []
        groups: list[list[int]] = []
        expire = self.memory.expireServices

        def counted(expirations: list[object]) -> Deferred[None]:
            sizes.append(len(expirations))
            return expire(expirations)  # type: ignore[arg-type]  # they are expirations

        with mock.patch.object(self.memory, "expireServices", counted):
            self.clock.rightNow += 0.5
            while self.clock.calls and self.clock.calls[0].getTime() <= self.clock.seconds():
                due = [call for call in self.clock.calls if call.getTime() <= self.clock.seconds()]
                for call in due:
                    self.clock.calls.remove(call)
                    call.called = True
                    call.func(*call.args, **call.kw)
                self.clock.calls.sort(key=lambda call: call.getTime())
                groups.append(list(sizes))
                sizes.clear()
        return groups

    def test_areSpreadOverTurns(self) -> None:
        """No turn of the reactor persists more than one group, and otherwise all are persisted at once."""
        groups = self.turns()
        self.assertEqual([sum(sizes) for sizes in groups if sizes], [50] * 6)
        self.assertEqual(self.stored(), [])
        self.pass_(1)
        self.assertEqual(len([type for type, _ in self.allEvents() if type == "service.timeout"]), 300)

    def allEvents(self) -> list[tuple[str, str]]:
        """The types and ids of all events."""
        values = self.page(self.registry.feed.list(TENANT, None, 100_000)).values
        return [(event["type"], event["payload"]["id"]) for event in values]

    def test_areHiddenAtOnce(self) -> None:
        """A reader sees none of them, though none has been persisted."""
        self.stepTo(0.5)
        self.assertEqual(self.page(self.registry.list(TENANT, None, 1000, None)).values, [])
        self.assertEqual(len(self.stored()), 300)

    def test_areOneLineInTheLog(self) -> None:
        """However many there are, the log names some and counts the rest, once, and warns of so many, once."""
        with capturedLogs() as logs:
            self.pass_(1)
        event, warning = logs
        self.assertRegex(formatEvent(event), r"^Services expired: (1234/s\d{4}, ){4}1234/s\d{4} and 295 more$")
        self.assertRegex(formatEvent(warning), r"^300 of 300 services expired within 1 s; ")

    def test_doNotHoldUpACreateForLong(self) -> None:
        """A create among them waits until the places are free, and is answered while time stands still."""
        self.stepTo(0.5)
        created = self.registry.create(TENANT, NewService("s0007", 30))
        self.clock.advance(0)
        self.successResultOf(created)
        self.assertEqual(self.ids(), ["s0007"])


class ConfigurationTests(RegistryCase):
    """Configuration values."""

    limits = ResourceLimits(configurationValue=2)

    def test_values(self) -> None:
        """A value that was set is there until it is removed; the feed has an event for every change."""
        first = self.successResultOf(self.registry.configuration.set(TENANT, "/a-b/key", "one"))
        self.assertEqual(self.successResultOf(self.registry.configuration.set(TENANT, "/a-b/key", "one")), first)
        second = self.successResultOf(self.registry.configuration.set(TENANT, "/a-b/key", "two"))
        self.assertGreater(second, first)
        value = ValueRecord("/a-b/key", "two", second)
        self.assertEqual(self.successResultOf(self.registry.configuration.get(TENANT, "/a-b/key")), value)
        self.assertIsNone(self.successResultOf(self.registry.configuration.remove(TENANT, "/a-b/key")))
        events = self.page(self.registry.feed.list(TENANT, None, 100)).values
        self.assertEqual(
            [(event["type"], event["payload"]) for event in events],
            [
                (
                    "configuration_value.update",
                    {"configuration_value_id": "/a-b/key", "old_value": None, "new_value": "one"},
                ),
                (
                    "configuration_value.update",
                    {"configuration_value_id": "/a-b/key", "old_value": "one", "new_value": "two"},
                ),
                ("configuration_value.remove", {"configuration_value_id": "/a-b/key", "old_value": "two"}),
            ],
        )

    def test_valuesThatAreNotThere(self) -> None:
        """Neither to be read nor removed; keys of other tenants neither."""
        self.successResultOf(self.registry.configuration.set("99", "key", "value"))
        for deferred in (
            self.registry.configuration.get(TENANT, "key"),
            self.registry.configuration.remove(TENANT, "key"),
        ):
            fault = self.fault(deferred)
            self.assertEqual(
                (fault.code, fault.details), (404, 'Object "ConfigurationValue" with key "key" does not exist')
            )

    def test_limit(self) -> None:
        """A new key beyond the limit is refused, a new value of an old key is not."""
        for key in ("aaa", "bbb", "aaa"):
            self.successResultOf(self.registry.configuration.set(TENANT, key, "v"))
        fault = self.fault(self.registry.configuration.set(TENANT, "ccc", "v"))
        self.assertEqual(
            (fault.type, fault.details),
            (
                "limitReached",
                "Limit for resource configuration_value has been reached. Maximum allowed objects: 2",
            ),
        )
        self.successResultOf(self.registry.configuration.set(TENANT, "bbb", "w"))

    def test_pages(self) -> None:
        """Pages of values, by key, of all or of a namespace."""
        for key in ("/n-s/k-1", "simple"):
            self.successResultOf(self.registry.configuration.set(TENANT, key, "v"))
        page = self.page(self.registry.configuration.list(TENANT, None, 1, None))
        self.assertEqual((page.values, page.nextMarker), ([{"id": "/n-s/k-1", "value": "v"}], "simple"))
        page = self.page(self.registry.configuration.list(TENANT, "simple", 1, None))
        self.assertEqual((page.values, page.nextMarker), ([{"id": "simple", "value": "v"}], None))
        for namespace in ("/", "/n-s"):
            page = self.page(self.registry.configuration.list(TENANT, None, 5, namespace))
            self.assertEqual([value["id"] for value in page.values], ["/n-s/k-1"])


class EventsTests(RegistryCase):
    """The events feed."""

    def assertRefused(self, marker: str, reason: str) -> None:
        """The feed can't be asked from this marker on."""
        fault = self.fault(self.registry.feed.list(TENANT, marker, 100))
        self.assertEqual((fault.code, fault.type, fault.message, fault.details), (400, "badRequest", reason, reason))

    def types(self, marker: str | None) -> list[str]:
        """The types of the events from *marker* on."""
        return [event["type"] for event in self.page(self.registry.feed.list(TENANT, marker, 1000)).values]

    def test_theLastHour(self) -> None:
        """Without a marker the feed is that of the last hour."""
        self.create(timeout=120)
        self.pass_(1)
        self.assertEqual(self.types(None), ["service.join"])
        self.pass_(3598)
        self.assertEqual(self.types(None), ["service.join", "service.timeout"])
        self.pass_(2)
        self.assertEqual(self.types(None), ["service.timeout"])

    def test_pages(self) -> None:
        """A page begins with the event that its marker names, in either case, and names that of the next."""
        for number in range(5):
            self.successResultOf(self.registry.configuration.set(TENANT, "key", str(number)))
        every = self.page(self.registry.feed.list(TENANT, None, 5))
        self.assertIsNone(every.nextMarker)
        self.assertEqual([event["payload"]["new_value"] for event in every.values], list("01234"))
        self.successResultOf(self.registry.account(TENANT))
        first = self.page(self.registry.feed.list(TENANT, None, 2))
        assert first.nextMarker is not None
        self.assertEqual(first.nextMarker, every.values[2]["id"])
        second = self.page(self.registry.feed.list(TENANT, first.nextMarker.upper(), 3))
        self.assertEqual(second.values, every.values[2:])

    def test_type(self) -> None:
        """Only events of a type; the filter works before paging."""
        for id in ("aaa", "bbb", "ccc"):
            self.create(id)
            self.successResultOf(self.registry.remove(TENANT, id))
        page = self.page(self.registry.feed.list(TENANT, None, 2, frozenset({"service.remove"})))
        self.assertEqual([event["payload"]["id"] for event in page.values], ["aaa", "bbb"])
        assert page.nextMarker is not None
        self.pass_(1)
        page = self.page(self.registry.feed.list(TENANT, page.nextMarker, 2, frozenset({"service.remove"})))
        self.assertEqual([event["payload"]["id"] for event in page.values], ["ccc"])

    def test_anyTimeIsAPosition(self) -> None:
        """A version-1 UUID that names no event is where the feed begins, from the account's beginning to now."""
        self.successResultOf(self.registry.account(TENANT))
        self.pass_(10)
        self.create()
        self.pass_(10)
        self.assertEqual(self.types(markerAt(NOW)), ["service.join"])
        self.assertEqual(self.types(markerAt(NOW + 10)), ["service.join"])
        self.assertEqual(self.types(markerAt(NOW + 10.001)), [])
        self.assertEqual(self.types(markerAt(NOW + 19.999)), [])

    def test_theFuture(self) -> None:
        """A marker of a time to come is refused, one second or no second ahead."""
        for ahead in (0.0, 0.001, 1.0, 1e6, 1e11):
            self.assertRefused(markerAt(NOW + ahead), "from parameter must be smaller than the current time")

    def test_beforeTheAccount(self) -> None:
        """A marker from before the account's first request is refused."""
        self.successResultOf(self.registry.account(TENANT))
        self.pass_(100)
        for behind in (0.001, 1.0, 1e9, 1e12):
            self.assertRefused(
                markerAt(NOW - behind), "from parameter must be greater than or equal to the account creation date"
            )
        self.assertEqual(self.types(markerAt(NOW)), [])

    def test_ownEventsAreNeverRefused(self) -> None:
        """The id of an event of this feed is a marker though the wall clock has stepped back; others' ids are not."""
        self.create()
        (event,) = self.page(self.registry.feed.list(TENANT, None, 5)).values
        self.wallOffset -= 7200
        self.assertEqual(self.types(event["id"]), ["service.join"])
        self.assertEqual(self.types(event["id"].upper()), ["service.join"])
        fault = self.fault(self.registry.feed.list("99", event["id"], 5))
        self.assertEqual(fault.details, "from parameter must be smaller than the current time")

    def test_eventsOfAnotherHourAreInOrder(self) -> None:
        """With any steps of the wall clock, the ids grow in the order of the feed."""
        for step in (0, -7200, 0, 10):
            self.wallOffset += step
            self.successResultOf(self.registry.configuration.set(TENANT, "key", str(self.clock.seconds() + step)))
            self.pass_(1)
        events = self.page(self.registry.feed.list(TENANT, None, 100)).values
        times = [uuid.UUID(event["id"]).time for event in events]
        self.assertEqual(times, sorted(set(times)))
        self.assertEqual(len(times), 4)

    def test_areKeptForThirtyDays(self) -> None:
        """Events older than 30 days are dropped, within the hour; younger ones are kept."""
        self.successResultOf(self.registry.account(TENANT))
        marker = markerAt(NOW)
        self.create(timeout=120)
        self.pass_(130)
        self.assertEqual(self.types(marker), ["service.join", "service.timeout"])
        self.wallOffset += 30 * 86_400 - 3660
        self.pass_(3500)
        self.assertEqual(self.types(marker), ["service.join", "service.timeout"])
        self.pass_(3700)
        self.assertEqual(self.types(marker), [])

    def test_areKeptAsLongAsTheOperatorSays(self) -> None:
        """With another retention they are dropped when that has passed, and the log says so."""
        self.successResultOf(self.registry.account(TENANT))
        self.create(timeout=120)
        self.successResultOf(self.registry.stop())
        self.registry = Registry(self.memory, clock=self.clock, wallClock=self.wallClock, eventRetention=2 * 3600.0)
        self.successResultOf(self.registry.start())
        self.addCleanup(self.registry.stop)
        self.pass_(3660)
        self.assertEqual(self.types(markerAt(NOW)), ["service.join", "service.timeout"])
        with capturedLogs() as logs:
            self.pass_(7200)
        self.assertEqual(self.types(markerAt(NOW)), [])
        self.assertIn("Dropped 1 events older than 2 hours", [formatEvent(event) for event in logs])

    def test_areDroppedSoonAfterAStart(self) -> None:
        """A registry that is never up for an hour drops old events too."""
        self.create()
        self.successResultOf(self.registry.stop())
        self.wallOffset += 31 * 86_400
        self.registry = self.started()
        with capturedLogs() as logs:
            self.pass_(61)
        self.assertIn("Dropped 1 events older than 720 hours", [formatEvent(event) for event in logs])

    def test_droppingGoesOnAfterTrouble(self) -> None:
        """When dropping old events fails once, they are dropped later."""
        self.create(timeout=120)
        self.wallOffset += 31 * 86_400
        self.memory.unavailable = True
        self.pass_(61)
        self.memory.unavailable = False
        self.store.breakDown("dropEvents", ValueError("a defect"))
        self.pass_(3600)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.store.repair("dropEvents")
        self.pass_(3600)
        self.assertTrue(self.successResultOf(self.memory.dropEvents(positionOf(NOW + 10))) == 0)


class AccountsTests(RegistryCase):
    """Accounts."""

    def test_isReadOnce(self) -> None:
        """The account comes into being with the first request, and is in memory from then on."""
        account = self.successResultOf(self.registry.account(TENANT))
        self.assertEqual(account, NOW * 1000)
        self.pass_(100)
        self.memory.unavailable = True
        self.assertEqual(self.successResultOf(self.registry.account(TENANT)), account)
        self.assertEqual(self.store.calls["account"], 1)

    def test_firstRequestsShareTheRead(self) -> None:
        """Those that come together cause one read."""
        held = self.store.hold("account")
        asked = [self.registry.account(TENANT) for _ in range(500)]
        other = self.registry.account("99")
        for call in held:
            call.release()
        self.assertEqual(len({self.successResultOf(each) for each in asked}), 1)
        self.assertEqual(self.successResultOf(other), NOW * 1000)
        self.assertEqual(self.store.calls["account"], 2)

    def test_firstRequestsShareTheFailure(self) -> None:
        """So they do if the store can't be reached: none waits for the failures of those before it."""
        held = self.store.hold("account")
        asked = [self.registry.account(TENANT) for _ in range(3)]
        [call] = held
        call.refuse()
        for each in asked:
            self.assertUnavailable(each)

    def test_unavailable(self) -> None:
        """While the store is away an unknown account is a 503, and is found when it is back."""
        self.memory.unavailable = True
        self.assertUnavailable(self.registry.account(TENANT))
        self.memory.unavailable = False
        self.successResultOf(self.registry.account(TENANT))


class UnavailableTests(RegistryCase):
    """Requests that need the store while it can't be reached."""

    def test_everythingIsA503(self) -> None:
        """Each request is answered with the 503 fault, changes nothing, and works when the store is back."""
        token = self.create("web1", 120)
        self.memory.unavailable = True
        for deferred in (
            self.registry.create(TENANT, NewService("web2", 30)),
            self.registry.get(TENANT, "web1"),
            self.registry.list(TENANT, None, 100, None),
            self.registry.update(TENANT, "web1", ServiceChanges(heartbeatTimeout=3)),
            self.registry.remove(TENANT, "web1"),
            self.registry.configuration.set(TENANT, "key", "v"),
            self.registry.configuration.get(TENANT, "key"),
            self.registry.configuration.list(TENANT, None, 100, None),
            self.registry.configuration.remove(TENANT, "key"),
            self.registry.feed.list(TENANT, None, 100),
        ):
            self.assertUnavailable(deferred)
        self.memory.unavailable = False
        self.pass_(10)
        self.beat(token)
        self.assertEqual(self.ids(), ["web1"])
        self.assertEqual(self.events(), [("service.join", "web1")])

    def test_startFailsPlainly(self) -> None:
        """A registry that can't read its store does not start, and says why."""
        self.memory.unavailable = True
        registry = Registry(self.memory, clock=Clock(), wallClock=self.wallClock)
        self.failureResultOf(registry.start(), StoreUnavailable)
        self.successResultOf(registry.stop())


class OverSqliteTests(TestCase):
    """The same rules over the store that lasts, on the real reactor, with a clock of the test's own."""

    @returnsDeferred
    async def setUp(self) -> None:
        self.clock = Clock()
        self.store = SqliteStore(self.mktemp(), reactor=reactor, wallClock=self.wallClock)  # type: ignore[arg-type]  # the global reactor has no type
        await self.store.open()
        self.addCleanup(self.store.close)
        self.registry = Registry(self.store, clock=self.clock, wallClock=self.wallClock)
        await self.registry.start()
        self.addCleanup(lambda: self.registry.stop())

    def wallClock(self) -> float:
        """Seconds since the epoch."""
        return NOW + self.clock.seconds()

    @returnsDeferred
    async def test_exactlyOneOfManyCreatesSucceeds(self) -> None:
        """Of a hundred simultaneous registrations of an id one gets a token, and the others are refused."""
        outcomes: list[object] = []
        creates = [self.registry.create(TENANT, NewService("web1", 30)) for _ in range(100)]
        for create in creates:
            try:
                outcomes.append(await create)
            except Fault as fault:
                outcomes.append(fault.type)
        self.assertEqual(outcomes.count("serviceWithThisIdExists"), 99)
        (token,) = (outcome for outcome in outcomes if outcome != "serviceWithThisIdExists")
        await self.registry.heartbeat(TENANT, "web1", str(token))

    @returnsDeferred
    async def test_registrationAndExpiration(self) -> None:
        """Services are registered, listed, restarted with their registry, and expire, each with its event."""
        tokens = [await self.registry.create(TENANT, NewService(f"web{number}", 10)) for number in range(3)]
        await self.registry.remove(TENANT, "web0")
        await self.registry.stop()
        self.registry = Registry(self.store, clock=self.clock, wallClock=self.wallClock)
        await self.registry.start()
        self.clock.pump([0.25] * 36)
        await self.registry.heartbeats(TENANT, [("web1", tokens[1])])
        self.clock.pump([0.25] * 6)
        page = await self.registry.list(TENANT, None, 100, None)
        self.assertEqual([value["id"] for value in page.values], ["web1"])
        self.assertEqual(page.values[0]["last_seen"], (NOW + 9) * 1000)
        await self.registry.create(TENANT, NewService("web2", 10))
        page = await self.registry.feed.list(TENANT, None, 100)
        self.assertEqual(
            [(event["type"], event["payload"]["id"]) for event in page.values][3:],
            [("service.remove", "web0"), ("service.timeout", "web2"), ("service.join", "web2")],
        )
        self.assertEqual(page.values[4]["timestamp"], (NOW + 10) * 1000)


class SecretsTests(SynchronousTestCase):
    """Keys are derived from what the store has made."""

    def test_tokensOfOneRegistryAreOfNoUseInAnother(self) -> None:
        """Two registries with a service each of the same name refuse each other's tokens."""
        registries = []
        for _ in range(2):
            store = MemoryStore(wallClock=lambda: NOW)
            self.successResultOf(store.open())
            registry = Registry(store, clock=Clock(), wallClock=lambda: NOW)
            self.successResultOf(registry.start())
            self.addCleanup(registry.stop)
            registries.append((registry, self.successResultOf(registry.create(TENANT, NewService("web1", 30)))))
        fault = self.failureResultOf(registries[0][0].heartbeat(TENANT, "web1", registries[1][1]), Fault).value
        self.assertEqual(fault.code, 404)
