"""
The operations of the API: for each a record, and the handler that goes from a request to the registry's core and back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

import attrs
from twisted.internet.defer import CancelledError
from twisted.web.server import Request

from ..core import Registry, etagAt
from ..faults import NO_STORE, pageNotFound, validationError
from ..limits import RateLimiter, ResourceLimits
from ..model import NewLock, NewService, Page
from ..roles import CONFIGURATION, LOCKS, SERVICES
from ..scopes import lockScope
from ..stores.interfaces import UP, UserRecord
from . import validation as rules
from .batches import takeHeartbeats
from .eventstream import streamEvents
from .messages import Response, baseUrl
from .operations import Call, Operation
from .prometheus import listTargets
from .requestlog import LOCK_WAITING, STREAM, WAITING, RequestRecord

_Handler = TypeVar("_Handler", bound=Callable[..., Awaitable[Response]])

#: All operations.
OPERATIONS: list[Operation] = []

# Of responses with a value, and of requests that write one.
_TAGGED = ("ETag", "Cache-Control")
_CONDITIONS = (rules.IF_MATCH, rules.IF_NONE_MATCH)
_PAGE = (rules.LIMIT, rules.MARKER)
_KEY_PAGE = (rules.LIMIT, rules.KEY_MARKER)

_TENANT = {"tenant": "$request.path.tenant"}
_SERVICE = {**_TENANT, "serviceId": "$request.body#/id"}
_TOKEN = {"token": "$response.body#/token"}
_SERVICE_LINKS = {
    "get": {"operationId": "getService", "parameters": _SERVICE},
    "heartbeat": {"operationId": "heartbeat", "parameters": _SERVICE, "requestBody": _TOKEN},
    "remove": {"operationId": "removeService", "parameters": _SERVICE},
}
_LOCK = {"name": "$request.body#/name", **_TOKEN}
_LOCK_LINKS = {"heartbeat": {"operationId": "heartbeatLock", "parameters": _TENANT, "requestBody": _LOCK}}


class Console(Protocol):
    """The part of :class:`txserviceregistry.registry.console.console.Console` that the HTTP layer uses."""

    def serves(self, request: Request, path: str) -> bool: ...

    def answer(self, record: RequestRecord, path: str) -> Awaitable[Response]: ...

    def makeLink(self, user: UserRecord, root: str) -> Awaitable[Mapping[str, Any]]: ...


def _operation(target: str, summary: str, success: str, **more: Any) -> Callable[[_Handler], _Handler]:
    """
    The handler below answers this operation.

    :param target: method, path, and the response: its code, and its schema if it has a body.
    :param more: arguments of :class:`Operation`.
    """
    method, path, _, code, *schema = target.split(" ")

    def add(handler: _Handler) -> _Handler:
        body = schema[0] if schema else None
        OPERATIONS.append(Operation(handler.__name__, handler, method, path, summary, success, int(code), body, **more))
        return handler

    return add


@attrs.define(eq=False)
class Handlers:
    """The handlers of all operations; *limits* are those that the *registry* has."""

    _registry: Registry
    _rateLimiter: RateLimiter
    _limits: ResourceLimits
    console: Console | None = None

    @_operation(
        "GET /limits -> 200 Limits",
        "Get the account's limits, and how much of the rate limit is used",
        "The limits; the request itself is not counted in them.",
    )
    async def getLimits(self, call: Call) -> Response:
        resource = {"service": self._limits.service, "configuration_value": self._limits.configurationValue}
        used = self._rateLimiter.used(call.tenant) - 1
        return Response(200, {"resource": resource, "rate": self._rateLimiter.usage(used)})

    @_operation(
        "POST /console-links -> 201 ConsoleLink",
        "Make a link that opens the web console once, without a key",
        "The link, which ends after a minute.",
    )
    async def createConsoleLink(self, call: Call) -> Response:
        if self.console is None:
            raise pageNotFound()
        return Response(201, await self.console.makeLink(call.user, baseUrl(call.record.request)))

    # -- services

    @_operation(
        "GET /services -> 200 ServicePage",
        "List services by id, all of them or those with a tag",
        "A page of services, sorted by id.",
        query=(*_PAGE, rules.TAG, rules.STATES),
    )
    async def listServices(self, call: Call) -> Response:
        query = call.query
        page = await self._registry.list(call.tenant, query["marker"], query["limit"], query["tag"], query["states"])
        return Response(200, call.page(page))

    @_operation(
        "POST /services -> 201 HeartbeatToken",
        "Register a service",
        "The service is registered; its first heartbeat presents this token.",
        body=rules.SERVICE_FIELDS,
        faults=("serviceWithThisIdExists", "limitReached"),
        sends=("Location",),
        links=_SERVICE_LINKS,
    )
    async def createService(self, call: Call) -> Response:
        service = NewService(*call.fields())
        call.authorize(SERVICES, service.id)
        token = await self._registry.create(call.tenant, service)
        return Response(201, {"token": token}, {"Location": call.url(f"/services/{service.id}")})

    @_operation(
        "GET /services/{serviceId} -> 200 Service", "Get a service", "The service as it is now.", query=(rules.STATES,)
    )
    async def getService(self, call: Call) -> Response:
        id = rules.SERVICE_ID.value(call.argument)
        return Response(200, await self._registry.get(call.tenant, id, call.query["states"]))

    @_operation(
        "PUT /services/{serviceId} -> 204",
        "Change a service; an absent field stays, and a new timeout counts from now",
        "The service is changed.",
        body=rules.CHANGE_FIELDS,
        sends=("Location",),
    )
    async def updateService(self, call: Call) -> Response:
        id = rules.SERVICE_ID.value(call.argument)
        changes = rules.serviceChanges(call.body, id)
        call.authorize(SERVICES, id)
        await self._registry.update(call.tenant, id, changes)
        return Response(204, headers={"Location": call.url(f"/services/{id}")})

    @_operation("DELETE /services/{serviceId} -> 204", "Deregister a service", "The service is deregistered.")
    async def removeService(self, call: Call) -> Response:
        id = rules.SERVICE_ID.value(call.argument)
        call.authorize(SERVICES, id)
        await self._registry.remove(call.tenant, id)
        return Response(204)

    @_operation(
        "GET /services/{serviceId}/state -> 200 ServiceState",
        "Get the state of a service (the extension service-state)",
        "The state of the service, whether or not it is registered.",
    )
    async def getState(self, call: Call) -> Response:
        id = rules.EXISTING_SERVICE_ID.value(call.argument)
        return Response(200, (await self._registry.states.get(call.tenant, id)).toJSON())

    @_operation(
        "PUT /services/{serviceId}/state -> 204",
        "Set the state of a service (the extension service-state); up without a reason clears it",
        "The state is set.",
        body=rules.STATE_FIELDS,
        faults=("limitReached",),
    )
    async def setState(self, call: Call) -> Response:
        id = rules.SERVICE_ID.value(call.argument)
        state, reason, seconds = call.fields()
        call.authorize(SERVICES, id)
        await self._registry.states.set(call.tenant, id, state, reason, seconds)
        return Response(204)

    @_operation(
        "DELETE /services/{serviceId}/state -> 204",
        "Clear the state of a service (the extension service-state)",
        "The service has no state.",
    )
    async def clearState(self, call: Call) -> Response:
        id = rules.SERVICE_ID.value(call.argument)
        call.authorize(SERVICES, id)
        await self._registry.states.set(call.tenant, id, UP)
        return Response(204)

    @_operation(
        "GET /states -> 200 ServiceStatePage",
        "List the states that were set for services (the extension service-state)",
        "A page of states, sorted by id.",
        query=_PAGE,
    )
    async def listStates(self, call: Call) -> Response:
        page = await self._registry.states.list(call.tenant, call.query["marker"], call.query["limit"])
        return Response(200, call.page(page))

    @_operation(
        "POST /services/{serviceId}/heartbeat -> 200 HeartbeatToken",
        "Send a heartbeat, with any token that was issued since the service was registered",
        "The service has its full timeout again; the next heartbeat presents this token.",
        body=rules.HEARTBEAT_FIELDS,
        needsStore=False,
    )
    async def heartbeat(self, call: Call) -> Response:
        (token,) = call.fields()
        id = rules.EXISTING_SERVICE_ID.value(call.argument)
        call.authorize(SERVICES, id)
        return Response(200, {"token": await self._registry.heartbeat(call.tenant, id, token)})

    @_operation(
        "POST /heartbeats -> 200 HeartbeatOutcomes",
        "Send heartbeats of many services (the extension heartbeats); one that fails does not affect the others",
        "The results, in the order of the request: a token or a fault for each heartbeat.",
        body=rules.BATCH_FIELDS,
        maximumBody=256 * 1024,
        needsStore=False,
    )
    async def heartbeats(self, call: Call) -> Response:
        return await takeHeartbeats(self._registry, call)

    @_operation(
        "GET /prometheus -> 200 PrometheusTargets",
        "List services as targets for Prometheus's http_sd_configs (the extension prometheus-sd)",
        "All targets at one moment; there are no pages.",
        query=(rules.TAG,),
    )
    async def listPrometheusTargets(self, call: Call) -> Response:
        return await listTargets(self._registry, call.tenant, call.query["tag"])

    # -- configuration

    @_operation(
        "GET /configuration -> 200 ConfigurationPage",
        "List configuration values by key",
        "A page of values, sorted by key.",
        query=(*_KEY_PAGE, rules.ETAGS),
    )
    async def listValues(self, call: Call) -> Response:
        return await self._listValues(call, None)

    @_operation(
        "GET /configuration/{namespace}/ -> 200 ConfigurationPage",
        "List the configuration values below a namespace, and the one that has its name",
        "A page of values, sorted by key.",
        query=(*_KEY_PAGE, rules.ETAGS),
    )
    async def listNamespace(self, call: Call) -> Response:
        # A namespace is written as a key is. "/" is the one that all qualified keys are in.
        return await self._listValues(call, "/" if call.argument == "/" else rules.KEY.value(call.argument))

    async def _listValues(self, call: Call, namespace: str | None) -> Response:
        query = call.query
        page = await self._registry.configuration.list(
            call.tenant, query["marker"], query["limit"], namespace, tagged=query["etags"]
        )
        return Response(200, call.page(page))

    @_operation(
        "GET /configuration/{configurationId} -> 200 ConfigurationValue",
        "Get a configuration value",
        "The value.",
        sends=_TAGGED,
    )
    async def getValue(self, call: Call) -> Response:
        found = await self._registry.configuration.get(call.tenant, rules.KEY.value(call.argument))
        return Response(200, {"id": found.key, "value": found.value}, _tagged(found.position))

    @_operation(
        "PUT /configuration/{configurationId} -> 204",
        "Set a configuration value",
        "The value is set.",
        body=rules.VALUE_FIELDS,
        faults=("preconditionFailed", "limitReached"),
        headers=_CONDITIONS,
        sends=("Location", *_TAGGED),
    )
    async def setValue(self, call: Call) -> Response:
        key = rules.KEY.value(call.argument)
        _, value = call.fields()
        precondition = rules.preconditionOf(call.header)
        call.authorize(CONFIGURATION, key)
        position = await self._registry.configuration.set(call.tenant, key, value, precondition)
        return Response(204, headers={"Location": call.url(f"/configuration/{key}"), **_tagged(position)})

    @_operation(
        "DELETE /configuration/{configurationId} -> 204",
        "Remove a configuration value",
        "The value is removed.",
        faults=("preconditionFailed",),
        headers=_CONDITIONS,
    )
    async def removeValue(self, call: Call) -> Response:
        key = rules.KEY.value(call.argument)
        precondition = rules.preconditionOf(call.header)
        call.authorize(CONFIGURATION, key)
        await self._registry.configuration.remove(call.tenant, key, precondition)
        return Response(204)

    # -- events

    @_operation(
        "GET /events -> 200 EventPage",
        "List events, oldest first; with wait (the extension events-wait), wait for one that is newer than the marker",
        "A page of events, oldest first, with the one that the marker names.",
        query=(rules.LIMIT, rules.EVENT_MARKER, rules.EVENT_TYPE, rules.WAIT, rules.EVENT_TYPES_WANTED),
    )
    async def listEvents(self, call: Call) -> Response:
        limit, marker, seconds = (call.query[name] for name in ("limit", "marker", "wait"))
        types = rules.eventTypes(call.query)
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

    @_operation(
        f"GET {STREAM} -> 200 EventStream",
        "Get events as they happen (the extension event-stream)",
        "Server-sent events until the connection ends.",
        query=(rules.EVENT_MARKER, rules.TAG, rules.EVENT_TYPES_WANTED),
        mediaType="text/event-stream",
    )
    async def streamEvents(self, call: Call) -> Response:
        return await streamEvents(self._registry.feed, call)

    # -- locks

    @_operation(
        "POST /locks -> 201 AcquiredLock",
        "Acquire a lock, or wait for it; the same nonce while it is held is a heartbeat (the extension locks)",
        "The lock is acquired; its first heartbeat presents this token.",
        body=rules.ACQUIRE_FIELDS,
        faults=("lockHeld", "limitReached"),
        links=_LOCK_LINKS,
    )
    async def acquireLock(self, call: Call) -> Response:
        name, timeout, holder, nonce, wait, metadata = call.fields()
        call.authorize(LOCKS, name)
        if wait:
            call.record.route = LOCK_WAITING
            if call.record.isGone:
                raise CancelledError()

        async def check() -> None:
            # The token may have ended while the request waited, or the user may no longer acquire locks.
            (await call.authenticate()).role.check(LOCKS, name)

        lock = NewLock(name, timeout, holder, nonce, metadata)
        return Response(201, await self._registry.locks.acquire(call.tenant, lock, wait or 0, check))

    @_operation(
        "POST /locks/heartbeat -> 200 HeartbeatToken",
        "Send a heartbeat of a lock, with any token that was issued since the lock was acquired (the extension locks)",
        "The lock has its full timeout again; the next heartbeat presents this token.",
        body=rules.LOCK_HEARTBEAT_FIELDS,
        needsStore=False,
    )
    async def heartbeatLock(self, call: Call) -> Response:
        name, token = call.fields()
        call.authorize(LOCKS, name)
        return Response(200, {"token": await self._registry.heartbeat(lockScope(call.tenant), name, token)})

    @_operation(
        "POST /locks/release -> 204",
        "Release a lock by a token, or another's by force (the extension locks)",
        "The lock is free; with force and without now, once its holder's timeout has passed.",
        body=rules.RELEASE_FIELDS,
    )
    async def releaseLock(self, call: Call) -> Response:
        name, token, isForced, isNow = call.fields()
        if isNow and not isForced:
            raise validationError("now", "Only with force")
        if isForced and token is not None:
            raise validationError("force", "Only without token")
        if not isForced and token is None:
            raise validationError("token", "Missing required key (token)")
        call.authorize(LOCKS, name)
        await self._registry.locks.release(call.tenant, name, token, bool(isNow))
        return Response(204)

    @_operation(
        "GET /locks -> 200 LockPage",
        "List the locks that are held (the extension locks)",
        "A page of locks, sorted by name.",
        query=(*_KEY_PAGE, rules.LOCK_NAME),
    )
    async def listLocks(self, call: Call) -> Response:
        query = call.query
        page = await self._registry.locks.list(call.tenant, query["marker"], query["limit"], query["name"])
        return Response(200, call.page(page))


def _tagged(position: int) -> dict[str, str]:
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
