"""
Steps of random programs: services and heartbeats.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.system.fuzz.driver import Driver
from tests.system.fuzz.inputs import (
    BAD_IDS,
    BAD_LIMITS,
    BAD_METADATA,
    BAD_STATES,
    BAD_TAG_LISTS,
    BAD_TIMEOUTS,
    BAD_UUIDS,
    IDS,
    KEYS,
    LIMITS,
    MARKERS,
    METADATA,
    STATES,
    TAG_LISTS,
    TAGS,
    TIMEOUTS,
    ids,
    keys,
    mostly,
    picks,
    tenants,
)
from tests.system.fuzz.records import timeUUID


class ServiceSteps(Driver):
    """Services, their heartbeats, and pages of all collections."""

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

    # -- states

    @rule(tenant=tenants, id=mostly(IDS, BAD_IDS), pick=picks, body=mostly(STATES, BAD_STATES))
    def setState(self, tenant: str, id: str, pick: int, body: dict[str, Any]) -> None:
        """Set the state of a service, most often of one that is there."""
        self.ask("PUT", f"/services/{self.registered(tenant, pick) if pick % 3 else id}/state", body, tenant=tenant)

    @rule(tenant=tenants, id=mostly(IDS, BAD_IDS), isCleared=st.booleans())
    def getState(self, tenant: str, id: str, isCleared: bool) -> None:
        """Look at the state of a service, and clear it."""
        self.ask("GET", f"/services/{id}/state", tenant=tenant)
        if isCleared:
            self.ask("DELETE", f"/services/{id}/state", tenant=tenant)

    @rule(tenant=tenants, pick=picks, states=mostly(["true", "true", "false"], ["", "1"]))
    def getWithStates(self, tenant: str, pick: int, states: str) -> None:
        """Look at services with their states, and at all states."""
        self.ask("GET", "/services", tenant=tenant, states=states)
        self.ask("GET", f"/services/{self.registered(tenant, pick)}", tenant=tenant, states=states)
        self.ask("GET", "/states", tenant=tenant)

    @rule(tenant=tenants, limit=mostly(LIMITS, BAD_LIMITS), marker=st.sampled_from(MARKERS))
    def listStates(self, tenant: str, limit: str | None, marker: str | None) -> None:
        """Look at a page of states."""
        self.ask("GET", "/states", tenant=tenant, limit=limit, marker=marker)

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

    @rule(tenant=tenants, tag=mostly([None, *TAGS[:5]], ["", "ü b"]), isNew=st.booleans())
    def targets(self, tenant: str, tag: str | None, isNew: bool) -> None:
        """Look at the targets for Prometheus; as a rule there are some."""
        if isNew:
            service = {"id": "target", "heartbeat_timeout": 30, "tags": TAGS[:2], "metadata": METADATA[-2]}
            self.ask("POST", "/services", service, tenant=tenant)
        self.ask("GET", "/prometheus", tenant=tenant, tag=tag)

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

    # -- roles

    @rule(tenant=tenants, role=st.sampled_from(["limited", "limited", "read"]), id=ids, key=keys, pick=picks)
    def asAnother(self, tenant: str, role: str, id: str, key: str, pick: int) -> None:
        """A user that may change some objects, or none, does something, most often with what is there."""
        values = sorted(self.model.accounts[tenant].values)
        if pick % 3 and values:
            key = values[pick // 27 % len(values)]
        if pick % 3:
            id = self.registered(tenant, pick // 27)
        token = self.token(tenant, pick // 27, id) or timeUUID(1.0)
        batch = [{"id": each, "token": self.token(tenant, 2, each) or timeUUID(1.0)} for each in IDS]
        what: tuple[Any, ...] = [
            ("POST", "/services", {"id": id, "heartbeat_timeout": 30}),
            ("PUT", f"/services/{id}", {"tags": ["a"]}),
            ("DELETE", f"/services/{id}"),
            ("POST", f"/services/{id}/heartbeat", {"token": token}),
            ("POST", "/heartbeats", {"heartbeats": batch}),
            ("PUT", f"/configuration/{key}", {"value": "another's"}),
            ("DELETE", f"/configuration/{key}"),
            ("GET", f"/services/{id}"),
            ("GET", "/configuration/"),
        ][pick // 3 % 9]
        self.ask(*what, tenant=tenant, role=role)
