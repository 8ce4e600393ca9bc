"""
Random programs: what is done to a registry and to its model alike, step by step.

Ids, keys and tags come from small pools, so that programs meet what they have done before; and most steps aim at
something (a token of an earlier registration, the very moment of a deadline) that pure chance would hardly find.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.system.fuzz.expectations import difference
from tests.system.fuzz.inputs import (
    BAD_KEYS,
    BAD_LIMITS,
    BAD_MATCHES,
    BAD_UUIDS,
    BAD_VALUES,
    BEGINNING,
    BODIES,
    CHANGES,
    KEYS,
    LIMITS,
    MARKERS,
    MATCHES,
    MEDIA,
    MOMENTS,
    NAMESPACES,
    ODD_REQUESTS,
    STATES,
    TENANTS,
    VALUES,
    ids,
    keys,
    mostly,
    picks,
    tenants,
)
from tests.system.fuzz.locksteps import LockSteps
from tests.system.fuzz.model import LOOK, SWEEP, TYPES
from tests.system.fuzz.records import Request, timeUUID
from tests.system.fuzz.steps import ServiceSteps


class Programs(ServiceSteps, LockSteps):
    """The steps."""

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
            # An event of a new feed while the clock is behind can be reached by the id of an event only.
            if not self.model.accounts[tenant].events:
                self.ask("PUT", "/configuration/first", {"value": "x"}, tenant=tenant)
                self.ask("DELETE", "/configuration/first", tenant=tenant)
            self.learn(tenant)
            if not self.model.accounts[tenant].events[0].id:
                return
        assert self.nodes is not None
        self.nodes.ahead += seconds
        self.model.stepWallClock(seconds)
        if self.model.isUntold:
            self.letPass(LOOK + SWEEP)

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
        values = sorted(self.model.accounts[tenant].values.items(), key=lambda item: item[0])
        if values:
            key, value = values[pick % len(values)]
            self.ask("GET", f"/configuration/{key}", tenant=tenant)
            if pick % 3 == 0:
                self.ask("PUT", f"/configuration/{key}", {"value": value.text}, tenant=tenant)
            elif pick % 3 == 1:
                self.ask("DELETE", f"/configuration/{key}", tenant=tenant)

    @rule(tenant=tenants, key=mostly(KEYS, BAD_KEYS))
    def getValue(self, tenant: str, key: str) -> None:
        """Look at a configuration value."""
        self.ask("GET", f"/configuration/{key}", tenant=tenant)

    @rule(
        tenant=tenants,
        pick=picks,
        match=mostly(MATCHES, BAD_MATCHES),
        kind=st.sampled_from(["match", "match", "match", "none", "badNone", "both"]),
        key=keys,
        value=mostly(VALUES, BAD_VALUES),
    )
    def writeIf(self, tenant: str, pick: int, match: str, kind: str, key: str, value: Any) -> None:
        """Set a value, or take one away, if it has a certain tag, or if there is none: most often one that is there."""
        condition = self.condition(tenant, key, pick // 2)
        there = sorted(self.model.accounts[tenant].values)
        if there and pick % 4:
            key = there[pick // 4 % len(there)]
            condition = self.condition(tenant, key, pick // 16)
        conditions = {
            "match": (("If-Match", match.format(condition, condition)),),
            "none": (("If-None-Match", "*"),),
            "badNone": (("If-None-Match", condition),),
            "both": (("If-Match", "*"), ("If-None-Match", "*")),
        }[kind]
        what = ("PUT", f"/configuration/{key}", {"value": value}) if pick % 3 else ("DELETE", f"/configuration/{key}")
        self.ask(*what, tenant=tenant, conditions=conditions)

    def condition(self, tenant: str, key: str, pick: int) -> str:
        """A tag: most often the key's own, also one that it has had, and another key's."""
        account = self.model.accounts[tenant]
        own = account.values.get(key)
        if own is not None and own.change.tag is not None and pick % 4:
            return own.change.tag
        tags = [event.tag for event in account.events if event.tag]
        return tags[pick // 4 % len(tags)] if tags else '"1"'

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
        etags=mostly([None, "true", "false"], ["", "1", "True"]),
    )
    def listValues(
        self, tenant: str, namespace: str, slash: bool, limit: str | None, marker: str | None, etags: str | None
    ) -> None:
        """Look at a page of configuration values."""
        path = "/configuration/" + namespace if namespace or slash else "/configuration"
        self.ask("GET", path, tenant=tenant, limit=limit, marker=marker, etags=etags)

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

    @rule(
        tenant=tenants,
        pick=picks,
        limit=mostly(LIMITS, BAD_LIMITS),
        only=st.sampled_from(
            [
                *[{}] * 3,
                *[{"types": "all"}] * 3,
                *[{"types": "service.join,service.update"}] * 2,
                {"types": "configuration_value.update"},
                {"types": ""},
                *[{"type": type} for type in TYPES],
            ]
        ),
    )
    def events(self, tenant: str, pick: int, limit: str | None, only: dict[str, str]) -> None:
        """Look at a page of the feed."""
        self.learn(tenant)
        self.ask("GET", "/events", tenant=tenant, marker=self.eventMarker(tenant, pick), limit=limit, **only)

    @rule(
        query=st.sampled_from(
            [
                *({"marker": one} for one in BAD_UUIDS),
                {"type": "service.update"},
                {"type": "", "types": "service.join,service.sixth"},
                {"types": "all,service.join"},
                {"types": "all", "type": "service.join"},
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
        only=st.sampled_from(
            [*[{}] * 2, {"type": "configuration_value.update"}, {"type": "service.timeout"}, {"types": "all"}]
        ),
        wait=st.sampled_from([1, 2, 4, 60]),
        then=st.sampled_from(["nothing", "set", "setOther", "restart"]),
    )
    def follow(self, tenant: str, pick: int, only: dict[str, str], wait: int, then: str) -> None:
        """Wait for something new in the feed, and see what comes."""
        assert self.nodes is not None
        self.settleExpirations()
        self.learn(tenant)
        marker = self.eventMarker(tenant, pick)
        request = self.request("GET", "/events", tenant=tenant, marker=marker, wait=str(wait), **only)
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
        # A microsecond more: the steps to the events in between add up to a little less than the time.
        self.wait(asked, request, 0.0 if asked.reply else float(wait) - 0.5 + 1e-6)
        assert asked.reply is not None, f"{request} is not answered after {wait} seconds"
        self.learn(tenant)
        # It was answered, and in the same moment more services expired.
        expected = [self.model.peek(request, without=late) for late in range(self.model.untold(tenant) + 1)]
        fitting = (each for each in expected if difference(each.body, asked.reply.json) is None)
        self.check(request, asked.reply, next(fitting, expected[0]))
        if then == "restart":
            # Services may expire meanwhile.
            self.restart(0.0)
        self.clear()

    @precondition(lambda self: self.model.mostGets > 100)
    @rule(
        tenant=tenants,
        pick=picks,
        types=st.sampled_from([None, "all", "all", "service.join,service.state", ""]),
        isAfter=st.booleans(),
    )
    def stream(self, tenant: str, pick: int, types: str | None, isAfter: bool) -> None:
        """Read the feed from some event on, or after it, as a stream, while something changes: it is as a page is."""
        assert self.nodes is not None
        self.settleExpirations()
        self.learn(tenant)
        ids = [event.id for event in self.model.accounts[tenant].events if event.id]
        if not ids:
            return
        id, node = ids[pick % len(ids)], self.node()
        place: dict[str, Any] = {"conditions": (("Last-Event-ID", id),)} if isAfter else {"marker": id}
        self.model.used[tenant, node] += 1
        asked = self.nodes.send(
            self.request("GET", "/events/stream", tenant=tenant, types=types, **place), node, own=True
        )
        self.ask("PUT", "/configuration/streamed", {"value": f"{len(ids)}"}, tenant=tenant)
        self.learn(tenant)
        # Streams always have the states of services.
        query = {"types": types or ",".join(TYPES), "limit": "1000"}
        page = self.ask("GET", "/events", tenant=tenant, marker=id, **query).json["values"]
        expected = [event for event in page if not (isAfter and event["id"] == id)]
        self.nodes.turns.until(lambda: len(asked.events()) >= len(expected))
        assert asked.events() == expected, f"a stream has {asked.events()}, a page {expected}"
        asked.close()

    def wait(self, asked: Any, request: Request, seconds: float) -> None:
        """Let time pass until a waiting request is answered, and see that it is as soon as it should be."""
        assert self.nodes is not None
        self.model.advance(self.nodes.pass_(seconds, asked))
        self.learn(request.tenant)
        if self.model.news(request):
            assert asked.reply is not None, f"{request} is not answered, and there is something new"

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
            case "state":
                return self.request("PUT", f"/services/{id}/state", STATES[pick % 5], tenant=tenant)
            case "set":
                return self.request("PUT", f"/configuration/{key}", {"value": VALUES[pick % 4]}, tenant=tenant)
            case "acquire" | "release" | "force" | "lockHeartbeat":
                return self.changeOfLock(what, tenant, pick)
            case "setIf":
                condition = ("If-Match", self.condition(tenant, key, 1))
                body = {"value": VALUES[pick % 4]}
                return self.request("PUT", f"/configuration/{key}", body, tenant=tenant, conditions=(condition,))
        return self.request("DELETE", f"/configuration/{key}", tenant=tenant)

    # -- bad requests

    @rule(tenant=tenants)
    def limits(self, tenant: str) -> None:
        """Look at the account's limits."""
        self.ask("GET", "/limits", tenant=tenant)

    @rule(odd=st.sampled_from(ODD_REQUESTS))
    def goAstray(self, odd: tuple[str, str]) -> None:
        """Ask for what is not a resource, with a slash too many, or with a method that it does not take."""
        if odd == ("GET", "/events/"):
            self.learn("1")
        self.ask(*odd)

    @rule(
        what=st.sampled_from(
            [("GET", "/services"), ("DELETE", "/services/web"), ("PUT", "/configuration/abc"), ("GET", "/nothing")]
        ),
        user=st.sampled_from([None, "unknown", "2"]),
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
