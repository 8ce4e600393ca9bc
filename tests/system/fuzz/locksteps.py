"""
Steps of random programs: locks.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.system.fuzz.driver import Driver
from tests.system.fuzz.inputs import (
    BAD_KEYS,
    BAD_LIMITS,
    BAD_METADATA,
    BAD_TIMEOUTS,
    BAD_UUIDS,
    LIMITS,
    MARKERS,
    METADATA,
    TIMEOUTS,
    mostly,
    picks,
    tenants,
)
from tests.system.fuzz.records import Request, timeUUID

NAMES = ["abc", "/abc/def", "/abc/de_f", "web"]
NONCES = [f"8EE6EE28-5b6a-4a3a-a2dd-00000000000{number}" for number in range(3)]
names = st.sampled_from(NAMES)
nonces = st.sampled_from([None, *NONCES])


class LockSteps(Driver):
    """Locks, and their heartbeats."""

    def held(self, tenant: str, pick: int) -> str:
        """The name of a lock that is held, if there is one."""
        held = [*self.model.accounts[tenant].locks]
        return held[pick % len(held)] if held else NAMES[pick % len(NAMES)]

    def lockToken(self, tenant: str, name: str, pick: int) -> str:
        """A heartbeat token: most often one of the lock's."""
        return self.token(tenant, pick, f"lock {name}") or timeUUID(1.0)

    @rule(tenant=tenants, name=names, nonce=nonces, timeout=st.sampled_from(TIMEOUTS), more=st.booleans(), pick=picks)
    def acquire(self, tenant: str, name: str, nonce: str | None, timeout: Any, more: bool, pick: int) -> None:
        """Acquire a lock, or repeat that."""
        body = {"name": name, "timeout": timeout, **({} if nonce is None else {"nonce": nonce})}
        if more:
            body |= {"holder": ["höst 1", "", None][pick % 3], "metadata": METADATA[pick % len(METADATA)]}
        self.ask("POST", "/locks", body, tenant=tenant, role="limited" if pick % 16 == 0 else "")

    @rule(tenant=tenants, pick=picks, nonce=st.sampled_from(NONCES))
    def acquireOneThatIsHeld(self, tenant: str, pick: int, nonce: str) -> None:
        """Acquire a lock that is held, with its own nonce or another."""
        name = self.held(tenant, pick)
        lock = self.model.accounts[tenant].locks.get(name)
        if lock is not None and lock.nonce is not None and pick % 2:
            nonce = lock.nonce
        self.ask("POST", "/locks", {"name": name, "timeout": 30, "nonce": nonce}, tenant=tenant)

    @rule(
        bad=st.one_of(
            st.tuples(st.just("name"), st.sampled_from([*BAD_KEYS, None, 5])),
            st.tuples(st.just("timeout"), st.sampled_from(BAD_TIMEOUTS)),
            st.tuples(st.just("holder"), st.sampled_from(["x" * 256, 5, []])),
            st.tuples(st.just("nonce"), st.sampled_from(["", "x", None, 5])),
            st.tuples(st.just("wait"), st.sampled_from([-1, 61, "x", None, 1.5])),
            st.tuples(st.just("metadata"), st.sampled_from(BAD_METADATA)),
            st.tuples(st.sampled_from(["-name", "-timeout", "more"]), st.none()),
        )
    )
    def acquireBadly(self, bad: tuple[str, Any]) -> None:
        """Acquire a lock with a field that breaks a rule, that is missing, or that is unknown."""
        body = {"name": "/abc/def", "timeout": 5, bad[0]: bad[1]}
        body.pop(bad[0].removeprefix("-") if bad[0].startswith("-") else "", None)
        self.ask("POST", "/locks", body)

    @rule(tenant=tenants, pick=picks, isBatch=st.booleans(), odd=st.sampled_from([None, None, "lock", "token", "both"]))
    def heartbeatOfLock(self, tenant: str, pick: int, isBatch: bool, odd: str | None) -> None:
        """A heartbeat of a lock, alone or with one of a service."""
        name = self.held(tenant, pick // 8)
        token = self.lockToken(tenant, name, pick)
        if not isBatch:
            self.ask("POST", "/locks/heartbeat", {"name": name, "token": token}, tenant=tenant)
            return
        entry = {"lock": name, "token": token}
        if odd == "both":
            entry["id"] = "web"
        elif odd is not None:
            entry[odd] = "x"
        id = self.registered(tenant, pick)
        service = {"id": id, "token": self.token(tenant, pick, id) or timeUUID(1.0)}
        self.ask("POST", "/heartbeats", {"heartbeats": [entry, service, entry][: 1 + pick % 3]}, tenant=tenant)

    @rule(tenant=tenants, pick=picks, how=st.sampled_from(["token", "token", "token", "force", "now"]))
    def releaseLock(self, tenant: str, pick: int, how: str) -> None:
        """Release a lock, or end it by force."""
        name = self.held(tenant, pick // 8)
        body: dict[str, Any] = {"name": name, "force": True, "now": how == "now"}
        if how == "token":
            body = {"name": name, "token": self.lockToken(tenant, name, pick)}
        role = ["", "", "", "", "", "", "", "read"][pick // 64 % 8]
        self.ask("POST", "/locks/release", body, tenant=tenant, role=role)

    @rule(
        what=st.sampled_from(["heartbeat", "release"]),
        more=st.sampled_from(
            [
                {},
                {"token": None},
                *({"token": one} for one in BAD_UUIDS),
                {"force": 1},
                {"force": False},
                {"force": True, "token": timeUUID(1.0)},
                {"now": True, "token": timeUUID(1.0)},
                {"force": True, "now": "x"},
                {"token": timeUUID(1.0), "force": False, "now": False},
            ]
        ),
        name=mostly(NAMES, [*BAD_KEYS, None]),
    )
    def endBadly(self, what: str, more: dict[str, Any], name: Any) -> None:
        """A heartbeat or a release with fields that are missing, break a rule, or contradict each other."""
        self.ask("POST", f"/locks/{what}", {"name": name, **more})

    @rule(
        tenant=tenants,
        limit=mostly(LIMITS, BAD_LIMITS),
        marker=st.sampled_from(MARKERS),
        name=mostly([None, None, *NAMES], ["ab", "/abc/"]),
    )
    def listLocks(self, tenant: str, limit: str | None, marker: str | None, name: str | None) -> None:
        """Look at a page of locks."""
        self.ask("GET", "/locks", tenant=tenant, limit=limit, marker=marker, name=name)

    def changeOfLock(self, what: str, tenant: str, pick: int) -> Request:
        """A change of a lock, most often of one that is held."""
        name = self.held(tenant, 0) if pick % 4 else NAMES[0]
        own = {"name": name, "token": self.lockToken(tenant, name, 2)}
        path, body = {
            "acquire": ("", {"name": name, "timeout": 30, "nonce": NONCES[pick % 3]}),
            "release": ("/release", own),
            "force": ("/release", {"name": name, "force": True, "now": bool(pick % 2)}),
            "lockHeartbeat": ("/heartbeat", own),
        }[what]
        return self.request("POST", f"/locks{path}", body, tenant=tenant)

    @rule(tenant=tenants, pick=picks, early=st.sampled_from([0.0, 0.0, 0.125]), isAgain=st.booleans())
    def passUntilALockExpires(self, tenant: str, pick: int, early: float, isAgain: bool) -> None:
        """Time goes by until the very moment of a deadline, or until just before; then a request follows."""
        locks = [*self.model.accounts[tenant].locks.values()]
        if not locks:
            return
        lock = locks[pick % len(locks)]
        self.letPass(max(0.0, lock.deadline - early - self.model.time))
        if isAgain:
            self.ask("POST", "/locks", {"name": lock.name, "timeout": 30, "nonce": NONCES[0]}, tenant=tenant)
        else:
            body = {"name": lock.name, "token": self.lockToken(tenant, lock.name, 2)}
            self.ask("POST", "/locks/heartbeat", body, tenant=tenant)
