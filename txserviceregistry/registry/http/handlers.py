"""
The handlers of the operations: each goes from a request to the registry's core and back.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

from twisted.internet.defer import CancelledError

from ...types import Service
from ..configuration import etagAt
from ..core import Registry
from ..faults import NO_STORE, Fault
from ..limits import RateLimiter, ResourceLimits
from ..model import NewService, Page
from ..roles import CONFIGURATION, LOCKS, SERVICES
from ..scopes import lockScope
from . import validation
from .call import Call
from .consolehandlers import ConsoleHandlers
from .eventstream import streamEvents
from .locks import LockHandlers
from .messages import Response, faultBody, inJSON
from .preconditions import preconditionOf
from .prometheus import TARGETS_IN_A_TURN, targetGroups
from .requestlog import WAITING
from .statehandlers import StateHandlers


class Handlers(StateHandlers, LockHandlers, ConsoleHandlers):
    """
    The handlers of all operations.

    :param registry: the rules; has been started.
    :param rateLimiter: counts GETs.
    :param limits: how many objects an account may have; the same that the *registry* has.
    """

    def __init__(self, registry: Registry, rateLimiter: RateLimiter, limits: ResourceLimits) -> None:
        self._registry = registry
        self._rateLimiter = rateLimiter
        self._limits = limits

    async def getLimits(self, call: Call) -> Response:
        resource = {"service": self._limits.service, "configuration_value": self._limits.configurationValue}
        return Response(200, {"resource": resource, "rate": self._rateLimiter.usage(call.used)})

    # -- services

    async def listServices(self, call: Call) -> Response:
        query = call.query
        states = query["states"] == "true"
        page = await self._registry.list(call.tenant, query["marker"], query["limit"], query["tag"], states)
        return Response(200, call.page(page))

    async def createService(self, call: Call) -> Response:
        service = NewService(*call.fields())
        call.authorize(SERVICES, service.id)
        token = await self._registry.create(call.tenant, service)
        return Response(201, {"token": token}, {"Location": call.url(f"/services/{service.id}")})

    async def getService(self, call: Call) -> Response:
        id = validation.SERVICE_ID.value(call.argument)
        return Response(200, await self._registry.get(call.tenant, id, call.query["states"] == "true"))

    async def updateService(self, call: Call) -> Response:
        id = validation.SERVICE_ID.value(call.argument)
        changes = validation.serviceChanges(call.body, id)
        call.authorize(SERVICES, id)
        await self._registry.update(call.tenant, id, changes)
        return Response(204, headers={"Location": call.url(f"/services/{id}")})

    async def removeService(self, call: Call) -> Response:
        id = validation.SERVICE_ID.value(call.argument)
        call.authorize(SERVICES, id)
        await self._registry.remove(call.tenant, id)
        return Response(204)

    async def heartbeat(self, call: Call) -> Response:
        (token,) = call.fields()
        id = validation.EXISTING_SERVICE_ID.value(call.argument)
        call.authorize(SERVICES, id)
        return Response(200, {"token": await self._registry.heartbeat(call.tenant, id, token)})

    async def heartbeats(self, call: Call) -> Response:
        (entries,) = call.fields()
        valid: list[tuple[str, str]] = []
        locks: dict[int, tuple[str, str]] = {}
        others: dict[int, str | Fault] = {}
        isLimited = call.user.role.isLimited
        for index, entry in enumerate(entries):
            try:
                heartbeat = validation.heartbeatOfBatch(entry)
                if heartbeat is None:
                    lock = validation.lockHeartbeatOfBatch(entry)
                    call.authorize(LOCKS, lock[0])
                    locks[index] = lock
                    continue
                if isLimited:
                    call.authorize(SERVICES, heartbeat[0])
                valid.append(heartbeat)
            except Fault as fault:
                others[index] = fault
        taking = self._registry.heartbeats(call.tenant, valid)
        if locks:
            ofLocks = await self._registry.heartbeats(lockScope(call.tenant), locks.values())
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

    async def listPrometheusTargets(self, call: Call) -> Response:
        page = await self._registry.list(call.tenant, None, sys.maxsize - 1, call.query["tag"], True)
        services, groups = cast(Sequence[Service], page.values), list[str]()
        for begin in range(0, len(services), TARGETS_IN_A_TURN):
            if begin:
                await self._registry.pause()
            groups += map(inJSON, targetGroups(services[begin : begin + TARGETS_IN_A_TURN]))
        return Response(200, text=f"[{', '.join(groups)}]".encode())

    # -- configuration

    async def listValues(self, call: Call) -> Response:
        return await self._listValues(call, None)

    async def listNamespace(self, call: Call) -> Response:
        # A namespace is written as a key is. "/" is the one that all qualified keys are in.
        return await self._listValues(call, "/" if call.argument == "/" else validation.KEY.value(call.argument))

    async def _listValues(self, call: Call, namespace: str | None) -> Response:
        query = call.query
        tagged = query["etags"] == "true"
        page = await self._registry.configuration.list(
            call.tenant, query["marker"], query["limit"], namespace, tagged=tagged
        )
        return Response(200, call.page(page))

    async def getValue(self, call: Call) -> Response:
        found = await self._registry.configuration.get(call.tenant, validation.KEY.value(call.argument))
        return Response(200, {"id": found.key, "value": found.value}, _tagged(found.position))

    async def setValue(self, call: Call) -> Response:
        key = validation.KEY.value(call.argument)
        _, value = call.fields()
        precondition = preconditionOf(call.record.request)
        call.authorize(CONFIGURATION, key)
        position = await self._registry.configuration.set(call.tenant, key, value, precondition)
        return Response(204, headers={"Location": call.url(f"/configuration/{key}"), **_tagged(position)})

    async def removeValue(self, call: Call) -> Response:
        key = validation.KEY.value(call.argument)
        precondition = preconditionOf(call.record.request)
        call.authorize(CONFIGURATION, key)
        await self._registry.configuration.remove(call.tenant, key, precondition)
        return Response(204)

    # -- events

    async def listEvents(self, call: Call) -> Response:
        limit, marker, seconds = (call.query[name] for name in ("limit", "marker", "wait"))
        types = validation.eventTypes(call.query)
        marker = None if marker is None else marker.lower()
        if seconds is None:
            page = await self._registry.feed.list(call.tenant, marker, limit, types)
            return Response(200, _eventPage(call, page))
        call.record.route = WAITING
        if call.record.isGone:
            raise CancelledError()
        page = await self._registry.feed.wait(call.tenant, marker, limit, seconds, types)
        # The token may have ended meanwhile.
        await call.authenticate()
        return Response(200, _eventPage(call, page))

    async def streamEvents(self, call: Call) -> Response:
        return await streamEvents(self._registry.feed, call.record, call.query, call.authenticate)


def _tagged(position: int) -> dict[str, str]:
    """The headers of a response with the value that has this position."""
    return {"ETag": etagAt(position), **NO_STORE}


def _eventPage(call: Call, page: Page) -> dict[str, Any]:
    body = call.page(page)
    # The original never filled it in here.
    body["metadata"]["marker"] = None
    if call.query["types"] is None:
        body["values"] = [_asInVersion1(event) for event in page.values]
    return body


def _asInVersion1(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """An event without what version 1.0 does not have."""
    payload = event["payload"]
    if "state" not in payload:
        return event
    return {**event, "payload": {name: value for name, value in payload.items() if name != "state"}}


def _otherEntry(entry: Any, outcome: str | Fault, txnId: str) -> str:
    """The result of an entry of a batch that is about a lock, or was refused, as JSON."""
    # The id is repeated as it was sent, whether or not a service can have it.
    kind = "lock" if validation.isOfLock(entry) else "id"
    id = entry.get(kind) if isinstance(entry, dict) else None
    result = {"token": outcome} if isinstance(outcome, str) else {"fault": faultBody(outcome, txnId)}
    return inJSON({kind: id if isinstance(id, str) else None, **result})
