"""
Locks, once more: what the model of the API keeps of them, and has to answer.
"""

from __future__ import annotations

import math
from typing import Any

import attrs

from tests.system.fuzz.expectations import Expected, Form
from tests.system.fuzz.records import Account, Event, Request
from tests.system.fuzz.rules import (
    Refused,
    anyUuidReason,
    full,
    gone,
    integer,
    invalid,
    keyReason,
    mayChange,
    metadataReason,
    page,
    pageOf,
    parameter,
    string,
    uuidReason,
    wholeNumber,
)


@attrs.define
class Lock:
    """
    :ivar id: owner of its tokens.
    :ivar first: the token of the acquisition, as soon as it is known.
    :ivar acquired: when, in milliseconds since 1970.
    """

    name: str
    timeout: int
    holder: str
    nonce: str | None
    metadata: dict[str, str]
    fence: int
    acquired: int
    deadline: float
    isForced: bool = False
    first: str | None = None
    tokens: set[str] = attrs.field(factory=set)

    @property
    def id(self) -> str:
        return f"lock {self.name}"

    @property
    def shown(self) -> dict[str, Any]:
        """As lists and its first event show it."""
        shown = {name: getattr(self, name) for name in ("name", "holder", "fence", "timeout", "metadata")}
        return {**shown, "acquired_at": self.acquired}

    @property
    def ended(self) -> dict[str, Any]:
        """As its last event shows it."""
        return {**self.shown, "forced": self.isForced}


class LockModel:
    """A part of the model: see there."""

    time: float
    wall: float
    late: float
    mostServices: int
    _newToken: Any
    _tell: Any

    def _expireLocks(self, account: Account, sweep: float) -> None:
        for lock in sorted(account.locks.values(), key=lambda lock: lock.deadline):
            if lock.deadline <= self.time:
                del account.locks[lock.name]
                stamp = lock.deadline + self.wall - self.time
                latest = (lock.deadline + self.late + sweep, math.inf)
                account.events.append(
                    Event("lock.expire", lock.ended, stamp, (lock.deadline, 0), latest, late=self.late)
                )

    def _locks(self, request: Request, account: Account, body: Any, rest: str, node: int) -> Expected:
        if request.method == "GET":
            limit, marker = pageOf(request)
            name = request.parameter("name")
            if name is not None:
                parameter("name", keyReason(name))
            locks = [lock.shown for key, lock in sorted(account.locks.items()) if name in (None, key)]
            return page(request, limit, marker, locks)
        self._check(body, "name", keyReason)
        if not rest:
            return self._acquired(request, account, body)
        isForced = False
        if rest == "heartbeat" or "token" in body:
            self._check(body, "token", uuidReason)
        if rest == "release":
            for flag in ("force", "now"):
                self._check(body, flag, lambda value: None if type(value) is bool else "Not a boolean", isOptional=True)
            isForced = bool(body.get("force"))
            if body.get("now") and not isForced:
                raise invalid("now", "Only with force")
            if isForced and "token" in body:
                raise invalid("force", "Only without token")
            if not isForced and "token" not in body:
                raise invalid("token", "Missing required key (token)")
        mayChange(request, "locks", body["name"])
        if rest == "heartbeat":
            return Expected(200, {"token": self._lockHeartbeat(account, body["name"], body["token"])})
        lock = account.locks.get(body["name"])
        if lock is None:
            raise gone("Lock", body["name"])
        if isForced and not body.get("now"):
            lock.isForced = True
            return Expected(204)
        if not isForced and body["token"].lower() not in lock.tokens:
            raise gone("HeartbeatMarker", body["token"])
        del account.locks[lock.name]
        lock.isForced = isForced
        self._tell(account, "lock.release", lock.ended)
        return Expected(204)

    def _check(self, body: Any, key: str, reason: Any, *, isOptional: bool = False) -> None:
        why = reason(body[key]) if key in body else None if isOptional else f"Missing required key ({key})"
        if why:
            raise invalid(key, why)

    def _lockHeartbeat(self, account: Account, name: str, token: str) -> Form:
        lock = account.locks.get(name)
        if lock is None or lock.isForced:
            raise gone("Lock", name)
        if token.lower() not in lock.tokens:
            raise gone("HeartbeatMarker", token)
        lock.deadline = self.time + lock.timeout
        renewed: Form = self._newToken(account, lock, token)
        return renewed

    def _oneOfLock(self, request: Request, account: Account, entry: dict[str, Any]) -> dict[str, Any]:
        name = entry["lock"]
        try:
            self._check(entry, "lock", keyReason)
            self._check(entry, "token", uuidReason)
            mayChange(request, "locks", name)
            return {"lock": name, "token": self._lockHeartbeat(account, name, entry["token"])}
        except Refused as refused:
            return {"lock": name if isinstance(name, str) else None, "fault": refused.expected.body}

    def _acquired(self, request: Request, account: Account, body: Any) -> Expected:
        self._check(body, "timeout", lambda value: integer(value, 3, 120))
        if body.get("holder") is not None:
            self._check(body, "holder", lambda value: string(value, 0, 255))
        self._check(body, "nonce", anyUuidReason, isOptional=True)
        self._check(body, "wait", lambda value: integer(value, 0, 60), isOptional=True)
        if body.get("metadata") is not None:
            self._check(body, "metadata", metadataReason)
        name, nonce = body["name"], body.get("nonce")
        nonce = nonce and nonce.lower()
        mayChange(request, "locks", name)
        lock = account.locks.get(name)
        if lock is None:
            if len(account.locks) >= self.mostServices:
                raise full("lock", self.mostServices)
            now = int(self.wall * 1000)
            account.lastFence = max(account.lastFence + 1, now)
            timeout = wholeNumber(body["timeout"])
            assert timeout is not None
            deadline = self.time + timeout
            metadata = body.get("metadata") or {}
            fence = account.lastFence
            lock = Lock(name, timeout, body.get("holder") or "", nonce, metadata, fence, now, deadline)
            account.locks[name] = lock
            event = self._tell(account, "lock.acquire", lock.shown)
            for earlier in account.events:
                if earlier.type == "lock.expire" and earlier.payload["name"] == name:
                    # The end of one acquisition comes before the beginning of the next.
                    earlier.latest = min(earlier.latest, event.latest)
        elif nonce is None or lock.nonce != nonce or lock.isForced:
            holder = f" by {lock.holder}" if lock.holder else ""
            refused = Refused(409, "lockHeld", "Lock is held", f"Lock {name} is held{holder}")
            left = {"name": name, "holder": lock.holder, "fence": lock.fence, "seconds_left": self._left(lock)}
            refused.expected.body["lock"] = left
            raise refused
        else:
            lock.deadline = self.time + lock.timeout
        return Expected(201, {"token": self._firstToken(account, lock), "fence": lock.fence})

    def _left(self, lock: Lock) -> Form:
        left = lock.deadline - self.time

        def check(actual: Any) -> str | None:
            isRight = 0 <= actual <= lock.timeout if self.late else actual == left
            return None if isRight else f"should be {left}"

        return Form(check)

    def _firstToken(self, account: Account, lock: Lock) -> Form:
        learn = self._newToken(account, lock).check

        def check(token: Any) -> str | None:
            if lock.first is None:
                lock.first = token
                wrong: str | None = learn(token)
                return wrong
            return None if token == lock.first else f"is not {lock.first}"

        return Form(check)


def isOfLock(entry: Any) -> bool:
    return isinstance(entry, dict) and "lock" in entry and "id" not in entry
