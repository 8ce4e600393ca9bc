"""The validation of responses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.api.shapes import (
    readAccess,
    readConfigurationPage,
    readConfigurationValue,
    readEventPage,
    readHeartbeats,
    readLimits,
    readService,
    readServicePage,
    readToken,
)

from ...fakeagent import WEB1, access
from .test_groups import GONE, SET, A, B, page

JOIN = {
    "id": "59a8f3a2-e0ac-11f0-8000-000000000000",
    "timestamp": 1767225600000,
    "type": "service.join",
    "payload": {name: value for name, value in WEB1.items() if name != "last_seen"},
}
ACQUIRED = {
    "id": "59a8f3a4-e0ac-11f0-8000-000000000000",
    "timestamp": 1767225600000,
    "type": "lock.acquire",
    "payload": {
        "name": "/a/lock",
        "holder": "joe",
        "fence": 7,
        "timeout": 15,
        "acquired_at": 1767225600000,
        "metadata": {"a": "b"},
    },
}
NEW = {**SET, "id": "59a8f3a3-e0ac-11f0-8000-000000000000", "type": "service.moved", "payload": [None]}
LIMITS = {"resource": {"service": 200}, "rate": {"/.*": {"limit": 1, "used": 0, "window": "24.0 hours"}}}

GOOD: list[tuple[Callable[[Any], Any], Any]] = [
    (readService, WEB1),
    (readServicePage, page(WEB1, {**WEB1, "id": "web2", "last_seen": 1767225600000}, next="web3")),
    (readConfigurationValue, A),
    (readConfigurationPage, page(A, B)),
    (readEventPage, page(GONE, SET, JOIN, ACQUIRED)),
    (readToken, {"token": "59a8f3a0-e0ac-11f0-8000-000000000000"}),
    (lambda value: readHeartbeats(value, [{"id": "web1"}]), {"values": [{"token": "t"}]}),
    (readLimits, LIMITS),
]

# Values that are invalid in all of them.
JUNK: list[Any] = [True, -1.0, float("nan"), float("inf"), [[["JUNK"]]], {"x": ["JUNK"]}, "\ud800JUNK"]
MISSING = object()


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each place in a JSON value, and what is there."""
    yield at, value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in pairs:
        yield from places(inner, (*at, name))


def changed(value: Any, at: tuple[Any, ...], junk: Any) -> Any:
    """A copy with something else at one place, or nothing if that is ``MISSING``."""
    if not at:
        return junk
    copied = copy.deepcopy(value)
    holder = copied
    for name in at[:-1]:
        holder = holder[name]
    if junk is MISSING:
        del holder[at[-1]]
    else:
        holder[at[-1]] = junk
    return copied


class ShapeTests(SynchronousTestCase):
    """Each kind of response."""

    def test_whatIsRight(self) -> None:
        """A valid response is returned, with its unknown members."""
        for read, value in (*GOOD[:6], (readEventPage, page(NEW))):
            more = {**value, "new": [{}]}
            self.assertIs(read(more), more)
        gone = {"type": "notFoundError", "code": 404, "message": "object does not exist"}
        faults = {"values": [{"id": "a", "token": "t"}, {"id": "b", "fault": gone}]}
        self.assertEqual(readHeartbeats(faults, [{"id": "a"}, {"id": "b"}]), [{"token": "t"}, gone])
        # As it is for the heartbeats of another client.
        for others in (["b", "a"], ["a", "c"], ["a"], ["a", "b", "c"]):
            self.assertRaises(ValueError, readHeartbeats, faults, [{"id": id} for id in others])
        locks = {"values": [{"lock": "/a/lock", "token": "t"}]}
        self.assertEqual(readHeartbeats(locks, [{"lock": "/a/lock"}]), [{"token": "t"}])
        self.assertRaises(ValueError, readHeartbeats, locks, [{"lock": "/another"}])
        self.assertEqual(readAccess(access("a b")), ("a b", "7", None, []))

    def test_whatIsWrong(self) -> None:
        """A value of a wrong type or out of range is refused at every place, and the error does not show it."""
        for read, value in GOOD:
            for at, now in places(value):
                for junk in JUNK:
                    if type(junk) is type(now) or (now is None and isinstance(junk, str)):
                        continue
                    with self.assertRaises(ValueError, msg=f"{at}: {junk!r}") as caught:
                        read(changed(value, at, junk))
                    self.assertLess(len(str(caught.exception)), 200)
                    self.assertNotIn("JUNK", str(caught.exception))

    def test_numbersAreBounded(self) -> None:
        """A number that arithmetic or a date can't represent is refused."""
        for read, value in GOOD:
            for at, now in places(value):
                if isinstance(now, int):
                    for junk in (-1, 10**400, True, 1.5):
                        self.assertRaises(ValueError, read, changed(value, at, junk))

    def test_integersWithAFraction(self) -> None:
        """An integer that is written ``30.0``, as some languages do, becomes an ``int``."""
        service = readService({**WEB1, "heartbeat_timeout": 30.0, "last_seen": 1767225600000.0})
        self.assertEqual((service["heartbeat_timeout"], service["last_seen"]), (30, 1767225600000))
        self.assertIs(type(service["heartbeat_timeout"]), int)

    def test_whatIsMissing(self) -> None:
        """A missing member is refused, and named."""
        for read, value, at in (
            (readService, WEB1, ("metadata",)),
            (readService, WEB1, ("last_seen",)),
            (readConfigurationValue, A, ("value",)),
            (readEventPage, page(SET), ("values", 0, "timestamp")),
            (readEventPage, page(SET), ("values", 0, "payload")),
            (readServicePage, page(WEB1), ("metadata", "next_marker")),
            (readAccess, access(), ("access", "token", "id")),
        ):
            error = self.assertRaises(ValueError, read, changed(value, at, MISSING))
            self.assertIn(at[-1], str(error))

    def test_pages(self) -> None:
        """A page with an id twice, or an empty page with a next one, is refused."""
        self.assertRaises(ValueError, readServicePage, page(WEB1, WEB1))
        self.assertRaises(ValueError, readServicePage, page(next="web1"))
        self.assertRaises(ValueError, readEventPage, page({**SET, "id": "0" * 8 + "-0000-4000-8000-" + "0" * 12}))

    def test_authResponses(self) -> None:
        """A token that is not valid in a header, or a tenant that is not valid in a path, is refused."""
        for junk in [*JUNK, "", "a\nb"]:
            self.assertRaises(ValueError, readAccess, access(junk))
            if junk != "":
                self.assertRaises(ValueError, readAccess, access(tenant={"id": junk}))
        catalog = {"serviceCatalog": [7, {"name": "cloudServers", "endpoints": [None, {"tenantId": 8}]}]}
        body = {"access": {"token": {"id": "a"}, **catalog}}
        self.assertEqual(readAccess(body)[1], "8")
