"""
Random programs: what is done to a registry and to its model alike, step by step.

Ids, keys and tags come from small pools, so that programs meet what they have done before; and most steps aim at
something (a token of an earlier registration, the very moment of a deadline) that pure chance would hardly find.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.system.fuzz.expectations import difference
from tests.system.fuzz.model import SWEEP, TYPES, Model, Request, timeUUID
from tests.system.fuzz.nodes import Backing, Memory, Nodes
from tests.unit.registry.wire import Reply

TENANTS = ("1", "2")
#: When programs begin: a moment that is no whole number of milliseconds, and that a float can hold exactly.
BEGINNING = 1_767_225_600 + 2.0**-12

IDS = ["web", "web1", "Web", "we-b", "api.1"]
BAD_IDS = ["we", "x" * 66, "we b", "wéb", "web\n", "web~"]
TAGS = ["a", "A", "b", "a-b", ".", "ü b"]
KEYS = [
    "abc",
    "abc.d",
    "/abc",
    "/abc/def",
    "/abc/def/ghi",
    "/abc-1/def",
    "/abcd/def",
    "/abc/de_f",
    "abc/def",
    "/zzz/a.b",
]
BAD_KEYS = ["/", "//", "ab", "/a/b", "a b c", "/abc//def", "abc/def//ghi", "x" * 501, "/abc\n", "/" + "é" * 3]
NAMESPACES = [
    "",
    "/",
    "//",
    "abc/",
    "/abc/",
    "/abc/def/",
    "abc/def/",
    "/abcd/",
    "/nobody/",
    "///",
    "//abc/",
    "/a/",
    "abc.d/",
]
LIMITS = [None, None, "1", "1", "2", "2", "3", "1000"]
BAD_LIMITS = ["0", "1001", "-1", "x", "", "1.0"]
MARKERS = [
    None,
    None,
    None,
    None,
    None,
    None,
    "",
    "a",
    "we",
    "web",
    "web0",
    "Z",
    "/abc",
    "/abc/",
    "abc",
    "~",
    "x" * 256,
    "é",
]
TIMEOUTS = [3, 4, 30, 30, 120, "5", 6.0, " 07", "3e1"]
BAD_TIMEOUTS = [2, 121, "x", "3.5", 3.5, None, True, [], "-3", "121", "1e400"]
TAG_LISTS = [[], ["a"], ["a"], ["b"], ["A"], ["a", "b"], ["a", "a"], [".", "ü b"], None]
BAD_TAG_LISTS = [["a"] * 11, "a", [1], [""], ["x" * 56], {}, [None]]
METADATA = [{}, {"k": "v"}, {"k": "w", "é": "☃"}, None]
BAD_METADATA = [{"": "v"}, {"k": ""}, {"k": 1}, [], "x", {str(n): "v" for n in range(21)}, {"k" * 256: "v"}]
VALUES = ["1", "1", "2", " ", "é☃", "x" * 1024]
BAD_VALUES = ["", "x" * 1025, 1, None, []]
BAD_UUIDS = [
    "",
    "x",
    "00000000-0000-4000-8000-000000000000",
    "00000000-0000-1000-0000-000000000000",
    "00000000000010008000000000000000",
]
MOMENTS = [-86400.0, -7200.0, -3600.0, -10.0, -1.0, -0.125, 0.0, 0.125, 1.0, 3600.0]
ODD_REQUESTS = [
    ("POST", "/services/web"),
    ("PUT", "/services"),
    ("DELETE", "/services"),
    ("GET", "/services/"),
    ("GET", "/services/web/"),
    ("GET", "/services//"),
    ("GET", "/services/web/heartbeat"),
    ("PUT", "/services/web/heartbeat"),
    ("POST", "/services/web/heartbeat/"),
    ("POST", "/services/web/heartbeat/x"),
    ("POST", "/configuration"),
    ("POST", "/configuration/abc"),
    ("PUT", "/configuration"),
    ("DELETE", "/configuration/"),
    ("POST", "/events"),
    ("GET", "/events/"),
    ("PUT", "/limits"),
    ("GET", "/limits/"),
    ("GET", "/heartbeats"),
    ("GET", "/"),
    ("GET", ""),
    ("GET", "/tell"),
    ("PATCH", "/services/web"),
]
BODIES = [b"{", b"[]", b"1", b"\xff", b'"x"', b"null", b"{}", b"", b' {"heartbeat_timeout": 5} ', b"{}{}"]
#: What two may ask for at once.
CHANGES = ["create", "create", "remove", "update", "heartbeat", "set", "set", "unset"]
MEDIA = [None, "application/json", "Application/JSON; charset=UTF-8", "text/plain", "foo/bar; a=b"]

picks = st.integers(0, 2**12)
tenants = st.sampled_from(["1", "1", "1", "2"])
ids = st.sampled_from(IDS)
keys = st.sampled_from(KEYS)


def mostly(good: list[Any], bad: list[Any]) -> st.SearchStrategy[Any]:
    """One of the *good* ones, and now and then of the *bad* ones."""
    return st.integers(0, 9).flatmap(lambda n: st.sampled_from(bad if n == 9 else good))


class Programs(RuleBasedStateMachine):
    """
    The steps.

    :cvar make: what the registry keeps its data in.
    :cvar counts: how often each outcome was met.
    :cvar programs: how many programs have begun.
    :cvar onProgram: is told their number each time.
    """

    make: ClassVar[type[Backing]] = Memory
    counts: ClassVar[Counter[str]] = Counter()
    programs: ClassVar[int] = 0
    onProgram: ClassVar[Callable[[int], None]] = staticmethod(lambda number: None)

    def __init__(self) -> None:
        super().__init__()
        self.nodes: Nodes | None = None

    @initialize(
        limits=st.sampled_from([(200, 1000), (200, 1000), (2, 3), (3, 2)]),
        gets=st.sampled_from([500_000, 500_000, 500_000, 500_000, 12]),
    )
    def begin(self, limits: tuple[int, int], gets: int) -> None:
        """A registry with small limits or large, and two accounts of different age."""
        type(self).programs += 1
        self.onProgram(self.programs)
        self.nodes = Nodes(self.make, TENANTS, limits, gets, BEGINNING)
        self.model = Model(limits, gets, BEGINNING, self.make.late)
        self.txnIds: set[str] = set()
        for tenant in TENANTS:
            self.ask("GET", "/limits", tenant=tenant)
            self.letPass(1.0)

    # -- services

    @rule(
        tenant=tenants,
        id=ids,
        timeout=st.sampled_from(TIMEOUTS),
        tags=st.sampled_from(TAG_LISTS),
        metadata=st.sampled_from(METADATA),
    )
    def create(self, tenant: str, id: str, timeout: Any, tags: Any, metadata: Any) -> None:
        """Register a service."""
        self.ask(
            "POST",
            "/services",
            {"id": id, "heartbeat_timeout": timeout, "tags": tags, "metadata": metadata},
            tenant=tenant,
        )

    @rule(tenant=tenants, id=ids, timeout=st.sampled_from([3, 5, 30]))
    def createPlainly(self, tenant: str, id: str, timeout: int) -> None:
        """Register a service without what may be left out."""
        self.ask("POST", "/services", {"id": id, "heartbeat_timeout": timeout}, tenant=tenant)

    @rule(
        isNew=st.booleans(),
        id=ids,
        bad=st.one_of(
            st.tuples(st.just("id"), st.sampled_from([*BAD_IDS, None, 5])),
            st.tuples(st.just("heartbeat_timeout"), st.sampled_from(BAD_TIMEOUTS)),
            st.tuples(st.just("tags"), st.sampled_from(BAD_TAG_LISTS)),
            st.tuples(st.just("metadata"), st.sampled_from(BAD_METADATA)),
            st.tuples(st.sampled_from(["-id", "-heartbeat_timeout", "more"]), st.none()),
        ),
    )
    def describeBadly(self, isNew: bool, id: str, bad: tuple[str, Any]) -> None:
        """Register or change a service with a field that breaks a rule, that is missing, or that is unknown."""
        body = {"id": id, "heartbeat_timeout": 5, bad[0]: bad[1]}
        body.pop(bad[0].removeprefix("-") if bad[0].startswith("-") else "", None)
        self.ask(*(("POST", "/services") if isNew else ("PUT", f"/services/{id}")), body)

    @rule(tenant=tenants, count=st.integers(2, 5), timeout=st.sampled_from([3, 30, 120]))
    def createMany(self, tenant: str, count: int, timeout: int) -> None:
        """Register some services, and set as many values."""
        for id, tags, key in list(zip(IDS, TAG_LISTS, KEYS[2:], strict=False))[:count]:
            self.ask("POST", "/services", {"id": id, "heartbeat_timeout": timeout, "tags": tags}, tenant=tenant)
            self.ask("PUT", f"/configuration/{key}", {"value": id}, tenant=tenant)

    @rule(tenant=tenants, pick=picks)
    def registerAgain(self, tenant: str, pick: int) -> None:
        """A service ends and is registered again; a heartbeat with its first token is late."""
        id = self.registered(tenant, pick)
        token = self.token(tenant, 3, id)
        self.ask("DELETE", f"/services/{id}", tenant=tenant)
        self.ask("POST", "/services", {"id": id, "heartbeat_timeout": 30}, tenant=tenant)
        if token is not None:
            self.ask("POST", f"/services/{id}/heartbeat", {"token": token}, tenant=tenant)

    @rule(tenant=tenants, pick=picks)
    def getOneThatIsThere(self, tenant: str, pick: int) -> None:
        """Look at a service that is there."""
        self.get(tenant, self.registered(tenant, pick))

    @rule(tenant=tenants, id=mostly(IDS, BAD_IDS))
    def get(self, tenant: str, id: str) -> None:
        """Look at a service."""
        self.ask("GET", f"/services/{id}", tenant=tenant)

    @rule(tenant=tenants, id=mostly(IDS, BAD_IDS))
    def remove(self, tenant: str, id: str) -> None:
        """Take a service away."""
        self.ask("DELETE", f"/services/{id}", tenant=tenant)

    @rule(
        tenant=tenants,
        id=mostly(IDS, BAD_IDS),
        pick=picks,
        named=st.sampled_from([None, None, None, None, "own", "own", "web", 1]),
        fields=st.fixed_dictionaries(
            {},
            optional={
                "heartbeat_timeout": st.sampled_from(TIMEOUTS),
                "tags": st.sampled_from(TAG_LISTS),
                "metadata": st.sampled_from(METADATA),
            },
        ),
    )
    def update(self, tenant: str, id: str, pick: int, named: Any, fields: dict[str, Any]) -> None:
        """Change some of a service, or nothing."""
        if pick % 4:
            id = self.registered(tenant, pick // 4)
        body = fields if named is None else {**fields, "id": id if named == "own" else named}
        self.ask("PUT", f"/services/{id}", body, tenant=tenant)

    @rule(
        tenant=tenants,
        limit=mostly(LIMITS, BAD_LIMITS),
        marker=st.sampled_from(MARKERS),
        tag=mostly([None, *TAGS[:5]], ["", "ü b", "x" * 66, "zz"]),
    )
    def list(self, tenant: str, limit: str | None, marker: str | None, tag: str | None) -> None:
        """Look at a page of services."""
        self.ask("GET", "/services", tenant=tenant, limit=limit, marker=marker, tag=tag)

    @rule(
        tenant=tenants,
        path=st.sampled_from(["/services", "/configuration", "/configuration//", "/configuration/abc/", "/events"]),
        limit=st.sampled_from(["1", "1", "2"]),
        isFull=st.booleans(),
    )
    def turnPages(self, tenant: str, path: str, limit: str, isFull: bool) -> None:
        """Look at a whole collection, page by page; as a rule there are some pages to turn."""
        if isFull:
            self.createMany(tenant, 4, 30)
        if path == "/events":
            self.learn(tenant)
        marker = None
        while True:
            page = self.ask("GET", path, tenant=tenant, limit=limit, marker=marker)
            marker = page.json["metadata"]["next_marker"] if page.code == 200 else None
            if marker is None:
                break

    # -- heartbeats

    def token(self, tenant: str, pick: int, id: str) -> str | None:
        """A token of some service, most often the last one of this one."""
        tokens = self.model.accounts[tenant].tokens
        own = [token for token, owner in tokens if owner == id]
        if own and pick % 8:
            return own[-1] if pick % 8 > 1 else own[pick // 8 % len(own)]
        return tokens[pick % len(tokens)][0] if tokens else None

    def registered(self, tenant: str, pick: int) -> str:
        """The id of a registered service, if there is one."""
        ids = [*self.model.accounts[tenant].services]
        return ids[pick % len(ids)] if ids else IDS[pick % len(IDS)]

    @rule(tenant=tenants, pick=picks)
    def heartbeat(self, tenant: str, pick: int) -> None:
        """A heartbeat of a registered service, with its last token as a rule."""
        self.heartbeatAs(tenant, self.registered(tenant, pick // 8), pick, False)

    @rule(tenant=tenants, id=ids, pick=picks, isUpper=st.booleans())
    def heartbeatAs(self, tenant: str, id: str, pick: int, isUpper: bool) -> None:
        """A heartbeat, with a token of this registration, an earlier one, or another service."""
        token = self.token(tenant, pick, id) or timeUUID(self.model.wall)
        self.ask("POST", f"/services/{id}/heartbeat", {"token": token.upper() if isUpper else token}, tenant=tenant)

    @rule(
        id=mostly(IDS, BAD_IDS),
        body=st.sampled_from([{}, {"token": None}, {"token": 5}, *({"token": one} for one in BAD_UUIDS)]),
    )
    def heartbeatBadly(self, id: str, body: dict[str, Any]) -> None:
        """A heartbeat without a token that could be one."""
        self.ask("POST", f"/services/{id}/heartbeat", body)

    @rule(
        tenant=tenants,
        heartbeats=st.lists(st.tuples(ids, picks), max_size=4),
        odd=st.sampled_from([None, None, 5, {}, {"id": "x", "token": "y"}]),
    )
    def heartbeatTogether(self, tenant: str, heartbeats: list[tuple[str, int]], odd: Any) -> None:
        """Many heartbeats in one request."""
        entries: list[Any] = [
            {"id": id, "token": self.token(tenant, pick, id) or timeUUID(1.0)} for id, pick in heartbeats
        ]
        self.ask("POST", "/heartbeats", {"heartbeats": entries if odd is None else [odd, *entries]}, tenant=tenant)

    # -- time

    @rule(eighths=st.sampled_from([1, 1, 2, 3, 8, 12, 16, 24, 40, 240]))
    def passSome(self, eighths: int) -> None:
        """Time goes by."""
        self.letPass(eighths / 8)

    @rule(
        tenant=tenants,
        pick=picks,
        early=st.sampled_from([0.0, 0.0, 0.125, 0.125, 0.25]),
        then=st.sampled_from(["get", "list", "heartbeat", "update", "remove", "create", "createAnother", "nothing"]),
    )
    def passUntilADeadline(self, tenant: str, pick: int, early: float, then: str) -> None:
        """Time goes by until the very moment of a deadline, or until just before; then a request follows."""
        services = [*self.model.accounts[tenant].services.values()]
        if not services:
            return
        service = services[pick % len(services)]
        self.letPass(max(0.0, service.deadline - early - self.model.time))
        match then:
            case "get":
                self.ask("GET", f"/services/{service.id}", tenant=tenant)
            case "list":
                self.ask("GET", "/services", tenant=tenant)
            case "heartbeat":
                self.heartbeatAs(tenant, service.id, 2, False)
            case "update":
                self.ask("PUT", f"/services/{service.id}", {"heartbeat_timeout": 4}, tenant=tenant)
            case "remove":
                self.ask("DELETE", f"/services/{service.id}", tenant=tenant)
            case "create":
                self.createPlainly(tenant, service.id, 3)
            case "createAnother":
                self.createPlainly(tenant, "another", 3)

    @rule(seconds=st.sampled_from([-3600.0, -3600.0, -10.0, 10.0, 3600.0, 3600.0]))
    def setTheWallClock(self, seconds: float) -> None:
        """The wall clock steps."""
        if abs(self.model.wall - self.model.time - BEGINNING + seconds) > 3 * 3600:
            return
        self.settleExpirations()
        for tenant in TENANTS:
            # What is put into a new feed while the clock is behind can be reached by the id of an event only.
            if not self.model.accounts[tenant].events:
                self.ask("PUT", "/configuration/first", {"value": "x"}, tenant=tenant)
                self.ask("DELETE", "/configuration/first", tenant=tenant)
            self.learn(tenant)
            if not self.model.accounts[tenant].events[0].id:
                return
        assert self.nodes is not None
        self.nodes.ahead += seconds
        self.model.stepWallClock(seconds)

    @rule(down=st.sampled_from([0.0, 1.0, 40.0]))
    def restart(self, down: float) -> None:
        """The registry is stopped, and started again."""
        self.settleExpirations()
        assert self.nodes is not None
        self.nodes.restart(down)
        self.model.time += down
        self.model.restart()

    @rule(tenant=tenants)
    def authenticate(self, tenant: str) -> None:
        """The user authenticates again; nothing else changes."""
        assert self.nodes is not None
        self.nodes.authenticate(tenant, self.node())

    # -- configuration

    @rule(tenant=tenants, key=mostly(KEYS, BAD_KEYS), value=mostly(VALUES, BAD_VALUES))
    def set(self, tenant: str, key: str, value: Any) -> None:
        """Set a configuration value."""
        self.ask("PUT", f"/configuration/{key}", {"value": value}, tenant=tenant)

    @rule(
        key=keys, body=st.sampled_from([{}, *({"id": id, "value": "1"} for id in ("other_key", "x", None, 5, "/a/"))])
    )
    def setOddly(self, key: str, body: dict[str, Any]) -> None:
        """Set a configuration value without a value, or with an id in the body."""
        self.ask("PUT", f"/configuration/{key}", body)

    @rule(tenant=tenants, pick=picks)
    def getAValueThatIsThere(self, tenant: str, pick: int) -> None:
        """Look at a value that is there, then set it once more to the same, or take it away."""
        values = sorted(self.model.accounts[tenant].values.items())
        if values:
            key, value = values[pick % len(values)]
            self.ask("GET", f"/configuration/{key}", tenant=tenant)
            if pick % 3 == 0:
                self.ask("PUT", f"/configuration/{key}", {"value": value}, tenant=tenant)
            elif pick % 3 == 1:
                self.ask("DELETE", f"/configuration/{key}", tenant=tenant)

    @rule(tenant=tenants, key=mostly(KEYS, BAD_KEYS))
    def getValue(self, tenant: str, key: str) -> None:
        """Look at a configuration value."""
        self.ask("GET", f"/configuration/{key}", tenant=tenant)

    @rule(tenant=tenants, key=mostly(KEYS, BAD_KEYS))
    def unset(self, tenant: str, key: str) -> None:
        """Take a configuration value away."""
        self.ask("DELETE", f"/configuration/{key}", tenant=tenant)

    @rule(
        tenant=tenants,
        namespace=st.sampled_from(NAMESPACES),
        slash=st.booleans(),
        limit=mostly(LIMITS, BAD_LIMITS),
        marker=st.sampled_from(MARKERS),
    )
    def listValues(self, tenant: str, namespace: str, slash: bool, limit: str | None, marker: str | None) -> None:
        """Look at a page of configuration values."""
        path = "/configuration/" + namespace if namespace or slash else "/configuration"
        self.ask("GET", path, tenant=tenant, limit=limit, marker=marker)

    # -- events

    def eventMarker(self, tenant: str, pick: int) -> str | None:
        """An id that was issued as a rule; also one of the other account, a moment, none."""
        kind, pick = pick % 8, pick // 8
        own = [event.id for event in self.model.accounts[tenant].events if event.id]
        if kind == 0 or (kind > 3 and not own):
            return None
        if kind == 1:
            others = [event.id for event in self.model.accounts["2" if tenant == "1" else "1"].events if event.id]
            return others[pick % len(others)] if others else None
        if kind == 2:
            return timeUUID(self.model.wall + MOMENTS[pick % len(MOMENTS)])
        if kind == 3:
            return timeUUID(self.model.accounts[tenant].created + MOMENTS[pick % len(MOMENTS)])
        id = own[pick % len(own)] if kind < 7 else own[-1]
        return id.upper() if pick % 5 == 0 else id

    @rule(tenant=tenants, pick=picks, limit=mostly(LIMITS, BAD_LIMITS), type=st.sampled_from([None, None, *TYPES]))
    def events(self, tenant: str, pick: int, limit: str | None, type: str | None) -> None:
        """Look at a page of the feed."""
        self.learn(tenant)
        self.ask("GET", "/events", tenant=tenant, marker=self.eventMarker(tenant, pick), limit=limit, type=type)

    @rule(
        query=st.sampled_from(
            [
                *({"marker": one} for one in BAD_UUIDS),
                {"type": "service.update"},
                {"type": ""},
                *({"wait": one} for one in ("0", "61", "x", "")),
            ]
        )
    )
    def eventsBadly(self, query: dict[str, str]) -> None:
        """Ask for a page of the feed as one can't."""
        self.learn("1")
        self.ask("GET", "/events", **query)

    @precondition(lambda self: self.model.mostGets > 100)
    @rule(
        tenant=tenants,
        pick=picks,
        type=st.sampled_from([None, None, "configuration_value.update", "service.timeout"]),
        wait=st.sampled_from([1, 2, 4, 60]),
        then=st.sampled_from(["nothing", "set", "setOther", "restart"]),
    )
    def follow(self, tenant: str, pick: int, type: str | None, wait: int, then: str) -> None:
        """Wait for something new in the feed, and see what comes."""
        assert self.nodes is not None
        self.settleExpirations()
        self.learn(tenant)
        marker = self.eventMarker(tenant, pick)
        request = self.request("GET", "/events", tenant=tenant, marker=marker, type=type, wait=str(wait))
        if self.model.news(request) or self.model.peek(request).status != 200:
            return
        self.model.answer(request)
        asked = self.nodes.send(request, own=True)
        self.settle()
        assert asked.reply is None, f"{request} is answered at once, and there is nothing new: {asked.reply}"
        self.wait(asked, request, 0.5)
        if asked.reply is not None:
            # A service expired: what comes now is not part of the response.
            then = "nothing"
        if then == "set" or then == "setOther":
            key = f"/abc/new{len(self.model.accounts[tenant].events)}"
            self.ask("PUT", f"/configuration/{key}", {"value": "x"}, tenant=tenant if then == "set" else "1")
            self.settle()
        elif then == "restart" and asked.reply is None:
            self.settleExpirations()
            self.nodes.nodes[0].registry.feed.endWaiting()
            self.nodes.turns.until(lambda: asked.reply is not None)
            self.restart(0.0)
        self.wait(asked, request, 0.0 if asked.reply else float(wait) - 0.5)
        assert asked.reply is not None, f"{request} is not answered after {wait} seconds"
        self.learn(tenant)
        # It was answered, and in the same moment more services expired.
        expected = [self.model.peek(request, without=late) for late in range(self.model.untold(tenant) + 1)]
        fitting = (each for each in expected if difference(each.body, asked.reply.json) is None)
        self.check(request, asked.reply, next(fitting, expected[0]))
        self.clear()

    def wait(self, asked: Any, request: Request, seconds: float) -> None:
        """Let time pass until a waiting request is answered, and see that it is as soon as it should be."""
        assert self.nodes is not None
        self.model.advance(self.nodes.pass_(seconds, asked))
        self.learn(request.tenant)
        if self.model.news(request):
            assert asked.reply is not None, f"{request} is not answered, and there is something new"

    def settle(self) -> None:
        """Let everybody hear of what has been done."""
        assert self.nodes is not None
        self.nodes.settle()

    # -- two at once

    @precondition(lambda self: len(self.nodes.nodes) > 1 and self.model.mostGets > 100)
    @rule(
        tenant=tenants,
        what=st.tuples(st.sampled_from(CHANGES), st.sampled_from(CHANGES)),
        id=ids,
        another=st.sampled_from([None, None, "another"]),
        key=keys,
        pick=picks,
    )
    def atOnce(self, tenant: str, what: tuple[str, str], id: str, another: str | None, key: str, pick: int) -> None:
        """Two nodes are asked for a change each at the same moment, most often of one thing: one of them is first."""
        assert self.nodes is not None
        if pick % 2:
            id = self.registered(tenant, pick // 2)
        requests = [
            self.change(what[0], tenant, id, key, pick),
            self.change(what[1], tenant, another or id, key, pick + 1),
        ]
        # Either node can be the one that is asked first.
        first = pick // 4 % 2
        sent = {node: self.nodes.send(requests[node], node, own=True) for node in (first, 1 - first)}
        self.nodes.turns.until(lambda: all(asked.reply is not None for asked in sent.values()))
        replies = [sent[node].reply for node in (0, 1)]
        assert replies[0] is not None and replies[1] is not None
        possible, found = [], []
        for order in ((0, 1), (1, 0)):
            model = deepcopy(self.model)
            expected = {node: model.answer(requests[node], node) for node in order}
            wrong = [self.wrong(replies[node], expected[node]) for node in order]
            if wrong == [None, None]:
                possible.append(model)
            found.append(wrong)
        assert possible, f"{requests} at once: neither order explains {replies}: {found}"
        for request, reply in zip(requests, replies, strict=True):
            self.count(request, reply)
        self.model = possible[0]
        if len(possible) > 1:
            # The answers are the same in either order; the feed tells which one it was.
            feed = self.feed(tenant)
            shown = self.nodes.ask(feed).json["values"]
            for model in possible:
                model.answer(feed)
            found = [model.learn(tenant, shown) for model in possible]
            assert None in found, f"{requests} at once: neither order explains {shown}: {found}"
            self.model = possible[found.index(None)]

    def change(self, what: str, tenant: str, id: str, key: str, pick: int) -> Request:
        """A change of a service or a value."""
        match what:
            case "create":
                return self.request("POST", "/services", {"id": id, "heartbeat_timeout": 30}, tenant=tenant)
            case "remove":
                return self.request("DELETE", f"/services/{id}", tenant=tenant)
            case "update":
                body = {"tags": ["a"]} if pick % 3 else {"heartbeat_timeout": 20}
                return self.request("PUT", f"/services/{id}", body, tenant=tenant)
            case "heartbeat":
                token = self.token(tenant, 2, id) or timeUUID(self.model.wall)
                return self.request("POST", f"/services/{id}/heartbeat", {"token": token}, tenant=tenant)
            case "set":
                return self.request("PUT", f"/configuration/{key}", {"value": VALUES[pick % 4]}, tenant=tenant)
        return self.request("DELETE", f"/configuration/{key}", tenant=tenant)

    # -- what is no good request

    @rule(tenant=tenants)
    def limits(self, tenant: str) -> None:
        """Look at the account's limits."""
        self.ask("GET", "/limits", tenant=tenant)

    @rule(odd=st.sampled_from(ODD_REQUESTS))
    def goAstray(self, odd: tuple[str, str]) -> None:
        """Ask for what is no resource, with a slash too many, or with a method that it does not take."""
        if odd == ("GET", "/events/"):
            self.learn("1")
        self.ask(*odd)

    @rule(
        what=st.sampled_from(
            [("GET", "/services"), ("DELETE", "/services/web"), ("PUT", "/configuration/abc"), ("GET", "/nothing")]
        ),
        user=st.sampled_from([None, "nobody", "2"]),
    )
    def trespass(self, what: tuple[str, str], user: str | None) -> None:
        """Ask without the right token."""
        self.ask(*what, user=user)

    @rule(
        body=st.sampled_from(BODIES),
        media=st.sampled_from(MEDIA),
        what=st.sampled_from([("PUT", "/services/web"), ("POST", "/services")]),
    )
    def sayOddly(self, body: bytes, media: str | None, what: tuple[str, str]) -> None:
        """Send bodies that are no JSON, or of another type."""
        self.ask(*what, body, contentType=media)

    @rule(id=ids, size=st.sampled_from([4999, 5000, 6000]))
    def sayMuch(self, id: str, size: int) -> None:
        """Send a body that is just small enough, or too large."""
        body = b'{"tags": ["a"], "x": "%s"}'
        self.ask("PUT", f"/services/{id}", body.replace(b"%s", b"x" * (size - len(body) + 2)))

    # -- how steps are taken

    def node(self) -> int:
        """The number of the node that has its turn: dealt by what has been asked before, as good as at random."""
        assert self.nodes is not None
        return (len(self.txnIds) * 2654435761 >> 7) % len(self.nodes.nodes)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        tenant: str = "1",
        user: str | None = "",
        contentType: str | None = None,
        **query: str | None,
    ) -> Request:
        """A request; the user is the tenant's own if none is given."""
        pairs = tuple((name, value) for name, value in query.items() if value is not None)
        return Request(method, path, body, pairs, tenant, tenant if user == "" else user, contentType)

    def ask(self, *arguments: Any, **more: Any) -> Reply:
        """Ask registry and model alike."""
        assert self.nodes is not None
        request = self.request(*arguments, **more)
        node = self.node()
        reply = self.nodes.ask(request, node)
        self.check(request, reply, self.model.answer(request, node))
        return reply

    def check(self, request: Request, reply: Reply, expected: Any) -> None:
        """See that an answer is as expected."""
        found = self.wrong(reply, expected)
        self.count(request, reply)
        assert found is None, f"{request}: {found}\n{reply}"

    def wrong(self, reply: Reply, expected: Any) -> str | None:
        """Where an answer is not as expected, in words."""
        found = difference(expected.status, reply.code, "status")
        found = found or difference(expected.body, reply.json if reply.raw else None)
        for name, value in expected.headers.items():
            found = found or difference(value, reply.header(name), name)
        return found

    def count(self, request: Request, reply: Reply) -> None:
        """Count an answer, and see to its transaction id."""
        actual = reply.json if reply.raw else None
        self.counts[_outcome(request, reply.code, actual)] += 1
        txnId = reply.header("X-Response-Id")
        assert txnId is not None and txnId not in self.txnIds, reply
        self.txnIds.add(txnId)
        if reply.code >= 400:
            assert actual["txnId"] == txnId, reply

    def letPass(self, seconds: float) -> None:
        """Time goes by for registry and model alike."""
        assert self.nodes is not None
        self.nodes.pass_(seconds)
        self.model.advance(seconds)
        self.clear()

    def clear(self) -> None:
        """Where it takes some time until all nodes know that a service has expired, let it go by."""
        assert self.nodes is not None
        while self.model.late and self.model.isUntold:
            self.nodes.pass_(SWEEP)
            self.model.advance(SWEEP)

    def settleExpirations(self) -> None:
        """Let the feed have all expirations: after a registry that stops before, the services may be there again."""
        if self.model.isUntold:
            self.letPass(SWEEP)

    def learn(self, tenant: str) -> None:
        """Look at the whole feed, unless all is known of it."""
        account = self.model.accounts[tenant]
        if all(event.id for event in account.events):
            return
        assert self.nodes is not None
        node = self.node()
        request = self.feed(tenant)
        reply = self.nodes.ask(request, node)
        expected = self.model.answer(request, node)
        if expected.status != 200:
            self.check(request, reply, expected)
            return
        assert reply.code == 200, f"{request}: {reply}"
        wrong = self.model.learn(tenant, reply.json["values"])
        assert wrong is None, f"the feed of {tenant} has {wrong}\n{reply.json['values']}"

    def feed(self, tenant: str) -> Request:
        """A request for the whole feed."""
        account = self.model.accounts[tenant]
        first = account.events[0].id if account.events else None
        if first is None and self.model.wall > account.created:
            first = timeUUID(account.created)
        return self.request("GET", "/events", tenant=tenant, marker=first, limit="1000")

    def teardown(self) -> None:
        """At the end everything is as the model has it."""
        if self.nodes is None:
            return
        try:
            if sys.exc_info()[0] is None:
                self.settleExpirations()
                self.restart(0.0)
                for tenant in TENANTS:
                    for path in ("/services", "/configuration", "/limits"):
                        self.ask("GET", path, tenant=tenant)
                    self.learn(tenant)
        finally:
            self.nodes.close()


def _outcome(request: Request, code: int, actual: Any) -> str:
    """What kind of answer this is: without the names and numbers in it."""
    collection = request.path.split("/")[1] if request.path.count("/") else ""
    words = ""
    if code >= 400:
        words = " ".join(dict.fromkeys(str(actual[name]) for name in ("type", "message", "details")))
        words = re.sub(
            r"'[^']{12,}'", "'…'", re.sub(r'key "[^"]*"|Service with id \S*|Key .*:|for key \'k+\':', "…", words)
        )[:150]
    elif request.method == "GET" and actual and "values" in actual:
        words = f"{'more' if actual['metadata']['next_href'] else 'last' if actual['values'] else 'empty'} page"
    what = "heartbeat" if request.path.endswith("/heartbeat") else collection
    return f"{code} {request.method} {what} {words}".rstrip()
