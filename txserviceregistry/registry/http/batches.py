"""Heartbeats in batches: an invalid one, or one that fails, is refused in its own place of the response."""

from __future__ import annotations

from typing import Any

from ..core import Registry
from ..faults import Fault, validationError
from ..roles import LOCKS, SERVICES
from ..scopes import lockScope
from .messages import Response, faultBody, inJSON
from .operations import Call
from .rules import Invalid
from .validation import ID, LOCK, TOKEN


async def takeHeartbeats(registry: Registry, call: Call) -> Response:
    """The response with a token or a fault for each heartbeat."""
    (entries,) = call.fields()
    valid: list[tuple[str, str]] = []
    locks: dict[int, tuple[str, str]] = {}
    others: dict[int, str | Fault] = {}
    isLimited = call.user.role.isLimited
    for index, entry in enumerate(entries):
        try:
            if _isOfLock(entry):
                lock = LOCK.value(entry), TOKEN.value(entry)
                call.authorize(LOCKS, lock[0])
                locks[index] = lock
                continue
            heartbeat = heartbeatOf(entry)
            if isLimited:
                call.authorize(SERVICES, heartbeat[0])
            valid.append(heartbeat)
        except Fault as fault:
            others[index] = fault
    taking = registry.heartbeats(call.tenant, valid)
    if locks:
        ofLocks = await registry.heartbeats(lockScope(call.tenant), locks.values())
        others.update(zip(locks, ofLocks, strict=True))
    outcomes = list(await taking)
    for index in sorted(others):
        outcomes.insert(index, others[index])
    values = ", ".join(
        [
            # Neither the id of a service nor a token contains a character that JSON escapes.
            f'{{"id": "{entry["id"]}", "token": "{outcome}"}}'
            if isinstance(outcome, str) and "id" in entry
            else _otherEntry(entry, outcome, call.record.txnId)
            for entry, outcome in zip(entries, outcomes, strict=True)
        ]
    )
    return Response(200, text=f'{{"values": [{values}]}}'.encode())


def _isOfLock(entry: Any) -> bool:
    return isinstance(entry, dict) and "id" not in entry and "lock" in entry


def heartbeatOf(entry: Any) -> tuple[str, str]:
    """The id of a service and the token."""
    try:
        return ID.rule.check(entry["id"]), TOKEN.rule.check(entry["token"])
    except (KeyError, TypeError, Invalid):
        # The few that are invalid are checked again, with reasons.
        if not isinstance(entry, dict):
            raise validationError("heartbeats", "Not a hash")
        return ID.value(entry), TOKEN.value(entry)


def _otherEntry(entry: Any, outcome: str | Fault, txnId: str) -> str:
    """The result of an entry that is about a lock, or was refused, as JSON."""
    # The id is repeated as it was sent, whether or not a service can have it.
    kind = "lock" if _isOfLock(entry) else "id"
    id = entry.get(kind) if isinstance(entry, dict) else None
    result = {"token": outcome} if isinstance(outcome, str) else {"fault": faultBody(outcome, txnId)}
    return inJSON({kind: id if isinstance(id, str) else None, **result})
