"""The operations of the API: from a request to the registry's core and back."""

from __future__ import annotations

import re
import sys
from typing import Any

import attrs
from twisted.internet.defer import CancelledError

from ...util.fields import Unusable, isEnabled, netloc, readAddress
from ..core import Registry, etagAt
from ..faults import NO_STORE, Fault, pageNotFound, validationError
from ..feed import Stream
from ..limits import NO_HEADERS, RateLimiter, ResourceLimits
from ..model import NewLock, NewService, lockScope
from ..roles import CONFIGURATION, LOCKS, SERVICES
from ..stores.interfaces import UP, StoreUnavailable
from ..uuids import position
from . import validation as rules
from .messages import Outlet, Response, baseUrl, faultBody, header, inJSON
from .operations import Call, operation
from .requestlog import LOCK_WAITING, STREAM, WAITING

#: So many targets of Prometheus take about two milliseconds, after which other requests come first.
TARGETS_IN_A_TURN = 200

_LABEL = "__meta_service_registry_"
# Of responses with a value, and of requests that write one.
_TAGGED = ("ETag", "Cache-Control")
_CONDITIONS = (rules.IF_MATCH, rules.IF_NONE_MATCH)
_PAGE = (rules.LIMIT, rules.MARKER)
_KEY_PAGE = (rules.LIMIT, rules.KEY_MARKER)
_STREAM_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@attrs.define(eq=False)
class Handlers:
    """The handlers of all operations; *limits* are those that the *registry* has."""

    _registry: Registry
    _rateLimiter: RateLimiter
    _limits: ResourceLimits
    console: Any = None

    @operation("GET /limits", 200, "Limits")
    async def getLimits(self, call: Call) -> Response:
        """Get the account's limits, and how much of the rate limit is used. The limits; this request is not counted."""
        resource = {"service": self._limits.service, "configuration_value": self._limits.configurationValue}
        used = self._rateLimiter.used(call.tenant) - 1
        return Response(200, {"resource": resource, "rate": self._rateLimiter.usage(used)})

    @operation("POST /console-links", 201, "ConsoleLink")
    async def createConsoleLink(self, call: Call) -> Response:
        """Make a link that opens the web console once, without a key. The link, which ends after a minute."""
        if self.console is None:
            raise pageNotFound()
        return Response(201, await self.console.makeLink(call.user, baseUrl(call.record.request)))

    # -- services

    @operation("GET /services", 200, "ServicePage", query=(*_PAGE, rules.TAG, rules.STATES))
    async def listServices(self, call: Call) -> Response:
        """List services by id, all of them or those with a tag. A page of services, sorted by id."""
        query = call.query
        page = await self._registry.list(call.tenant, query["marker"], query["limit"], query["tag"], query["states"])
        return Response(200, call.page(page))

    @operation(
        "POST /services",
        201,
        "HeartbeatToken",
        body=rules.SERVICE_FIELDS,
        faults=("serviceWithThisIdExists", "limitReached"),
        sends=("Location",),
    )
    async def createService(self, call: Call) -> Response:
        """Register a service. The service is registered; its first heartbeat presents this token."""
        service = NewService(*call.fields())
        call.authorize(SERVICES, service.id)
        token = await self._registry.create(call.tenant, service)
        return Response(201, {"token": token}, {"Location": call.url(f"/services/{service.id}")})

    @operation("GET /services/{serviceId}", 200, "Service", query=(rules.STATES,))
    async def getService(self, call: Call) -> Response:
        """Get a service. The service as it is now."""
        id = rules.SERVICE_ID.value(call.argument)
        return Response(200, await self._registry.get(call.tenant, id, call.query["states"]))

    @operation("PUT /services/{serviceId}", 204, body=rules.CHANGE_FIELDS, sends=("Location",))
    async def updateService(self, call: Call) -> Response:
        """Change a service; an absent field stays, and a new timeout counts from now. The service is changed."""
        id = rules.SERVICE_ID.value(call.argument)
        changes = rules.serviceChanges(call.body, id)
        call.authorize(SERVICES, id)
        await self._registry.update(call.tenant, id, changes)
        return Response(204, headers={"Location": call.url(f"/services/{id}")})

    @operation("DELETE /services/{serviceId}", 204)
    async def removeService(self, call: Call) -> Response:
        """Deregister a service. The service is deregistered."""
        id = rules.SERVICE_ID.value(call.argument)
        call.authorize(SERVICES, id)
        await self._registry.remove(call.tenant, id)
        return Response(204)

    @operation("GET /services/{serviceId}/state", 200, "ServiceState")
    async def getState(self, call: Call) -> Response:
        """Get the state of a service (the extension service-state). The state, whether or not it is registered."""
        id = rules.EXISTING_SERVICE_ID.value(call.argument)
        return Response(200, (await self._registry.states.get(call.tenant, id)).toJSON())

    @operation("PUT /services/{serviceId}/state", 204, body=rules.STATE_FIELDS, faults=("limitReached",))
    async def setState(self, call: Call) -> Response:
        """Set the state of a service (the extension service-state); up without a reason clears it. It is set."""
        id = rules.SERVICE_ID.value(call.argument)
        state, reason, seconds = call.fields()
        call.authorize(SERVICES, id)
        await self._registry.states.set(call.tenant, id, state, reason, seconds)
        return Response(204)

    @operation("DELETE /services/{serviceId}/state", 204)
    async def clearState(self, call: Call) -> Response:
        """Clear the state of a service (the extension service-state). The service has no state."""
        id = rules.SERVICE_ID.value(call.argument)
        call.authorize(SERVICES, id)
        await self._registry.states.set(call.tenant, id, UP)
        return Response(204)

    @operation("GET /states", 200, "ServiceStatePage", query=_PAGE)
    async def listStates(self, call: Call) -> Response:
        """List the states that were set for services (the extension service-state). A page of states, by id."""
        marker, limit = call.query["marker"], call.query["limit"]
        return Response(200, call.page(await self._registry.states.list(call.tenant, marker, limit)))

    @operation(
        "POST /services/{serviceId}/heartbeat", 200, "HeartbeatToken", body=rules.HEARTBEAT_FIELDS, needsStore=False
    )
    async def heartbeat(self, call: Call) -> Response:
        """Send a heartbeat, with any token issued since the registration. The token for the next heartbeat."""
        (token,) = call.fields()
        id = rules.EXISTING_SERVICE_ID.value(call.argument)
        call.authorize(SERVICES, id)
        return Response(200, {"token": await self._registry.heartbeat(call.tenant, id, token)})

    @operation(
        "POST /heartbeats", 200, "HeartbeatOutcomes", body=rules.BATCH_FIELDS, maximumBody=256 * 1024, needsStore=False
    )
    async def heartbeats(self, call: Call) -> Response:
        """Send heartbeats of many services or locks (the extension heartbeats). A token or a fault for each."""
        (entries,) = call.fields()
        isLimited = call.user.role.isLimited
        ofServices: dict[int, tuple[str, str]] = {}
        ofLocks: dict[int, tuple[str, str]] = {}
        outcomes: dict[int, str | Fault] = {}
        for index, entry in enumerate(entries):
            try:
                if _isOfLock(entry):
                    lock = rules.LOCK.value(entry), rules.TOKEN.value(entry)
                    call.authorize(LOCKS, lock[0])
                    ofLocks[index] = lock
                else:
                    service = heartbeatOf(entry)
                    if isLimited:
                        call.authorize(SERVICES, service[0])
                    ofServices[index] = service
            except Fault as fault:
                outcomes[index] = fault
        taking = self._registry.heartbeats(call.tenant, ofServices.values())
        if ofLocks:
            found = await self._registry.heartbeats(lockScope(call.tenant), ofLocks.values())
            outcomes.update(zip(ofLocks, found, strict=True))
        outcomes.update(zip(ofServices, await taking, strict=True))
        # Neither the id of a service nor a token contains a character that JSON escapes.
        values = [
            f'{{"id": "{entry["id"]}", "token": "{outcomes[index]}"}}'
            if index in ofServices and isinstance(outcomes[index], str)
            else inJSON(_resultOf(entry, outcomes[index], call.record.txnId))
            for index, entry in enumerate(entries)
        ]
        return Response(200, text=f'{{"values": [{", ".join(values)}]}}'.encode())

    @operation("GET /prometheus", 200, "PrometheusTargets", query=(rules.TAG,))
    async def listPrometheusTargets(self, call: Call) -> Response:
        """List services as targets for Prometheus (the extension prometheus-sd). All targets at one moment."""
        page = await self._registry.list(call.tenant, None, sys.maxsize - 1, call.query["tag"], True)
        groups = []
        for number, service in enumerate(page.values, 1):
            if number % TARGETS_IN_A_TURN == 0:
                await self._registry.pause()
            if group := _targetGroup(service):
                groups.append(inJSON(group))
        return Response(200, text=f"[{', '.join(groups)}]".encode())

    # -- configuration

    @operation("GET /configuration", 200, "ConfigurationValuePage", query=(*_KEY_PAGE, rules.ETAGS))
    async def listValues(self, call: Call) -> Response:
        """List configuration values by key. A page of values, sorted by key."""
        return await self._listValues(call, None)

    @operation("GET /configuration/{namespace}/", 200, "ConfigurationValuePage", query=(*_KEY_PAGE, rules.ETAGS))
    async def listNamespace(self, call: Call) -> Response:
        """List the configuration values below a namespace, and the one with its name. A page of values, by key."""
        # A namespace is written as a key is. "/" is the one that all qualified keys are in.
        return await self._listValues(call, "/" if call.argument == "/" else rules.KEY.value(call.argument))

    async def _listValues(self, call: Call, namespace: str | None) -> Response:
        marker, limit, tagged = (call.query[name] for name in ("marker", "limit", "etags"))
        page = await self._registry.configuration.list(call.tenant, marker, limit, namespace, tagged=tagged)
        return Response(200, call.page(page))

    @operation("GET /configuration/{configurationId}", 200, "ConfigurationValue", sends=_TAGGED)
    async def getValue(self, call: Call) -> Response:
        """Get a configuration value. The value."""
        found = await self._registry.configuration.get(call.tenant, rules.KEY.value(call.argument))
        return Response(200, {"id": found.key, "value": found.value}, _tagged(found.position))

    @operation(
        "PUT /configuration/{configurationId}",
        204,
        body=rules.VALUE_FIELDS,
        faults=("preconditionFailed", "limitReached"),
        headers=_CONDITIONS,
        sends=("Location", *_TAGGED),
    )
    async def setValue(self, call: Call) -> Response:
        """Set a configuration value. The value is set."""
        key = rules.KEY.value(call.argument)
        _, value = call.fields()
        precondition = call.precondition()
        call.authorize(CONFIGURATION, key)
        position = await self._registry.configuration.set(call.tenant, key, value, precondition)
        return Response(204, headers={"Location": call.url(f"/configuration/{key}"), **_tagged(position)})

    @operation("DELETE /configuration/{configurationId}", 204, faults=("preconditionFailed",), headers=_CONDITIONS)
    async def removeValue(self, call: Call) -> Response:
        """Remove a configuration value. The value is removed."""
        key = rules.KEY.value(call.argument)
        precondition = call.precondition()
        call.authorize(CONFIGURATION, key)
        await self._registry.configuration.remove(call.tenant, key, precondition)
        return Response(204)

    # -- events

    @operation(
        "GET /events",
        200,
        "EventPage",
        query=(rules.LIMIT, rules.EVENT_MARKER, rules.EVENT_TYPE, rules.WAIT, rules.EVENT_TYPES_WANTED),
    )
    async def listEvents(self, call: Call) -> Response:
        """List events; with wait (events-wait), wait for one that is newer than the marker. A page, oldest first."""
        limit, marker, seconds = (call.query[name] for name in ("limit", "marker", "wait"))
        types = rules.eventTypes(call.query)
        marker = None if marker is None else marker.lower()
        if seconds is None:
            page = await self._registry.feed.list(call.tenant, marker, limit, types)
        else:
            _wait(call, WAITING)
            page = await self._registry.feed.wait(call.tenant, marker, limit, seconds, types)
            # The token may have ended meanwhile.
            await call.authenticate()
        body = call.page(page)
        # The original never filled it in here.
        body["metadata"]["marker"] = None
        if call.query["types"] is None:
            body["values"] = [
                {**event, "payload": {name: value for name, value in event["payload"].items() if name != "state"}}
                if "state" in event["payload"]
                else event
                for event in page.values
            ]
        return Response(200, body)

    @operation(f"GET {STREAM}", 200, "EventStream", query=(rules.EVENT_MARKER, rules.TAG, rules.EVENT_TYPES_WANTED))
    async def streamEvents(self, call: Call) -> Response:
        """Get events as they happen (the extension event-stream). Server-sent events until the connection ends."""
        record, query, feed = call.record, call.query, self._registry.feed
        request, streams, marker = record.request, feed.streams, query["marker"]
        lastId = header(request, b"Last-Event-ID").strip()
        head = Response(200, headers={**_STREAM_HEADERS, **record.headers}, isStream=True)
        if marker is not None and not lastId:
            await feed.checkMarker(call.tenant, marker.lower())
        if request.method == b"HEAD":
            request.channel.persistent = False
            return head
        outlet = Outlet(request, request.channel.transport)

        def end() -> None:
            streams.close(stream)
            if request.startedWriting:
                outlet.end()

        stream = Stream(
            call.tenant, rules.eventTypes(query), query["tag"], outlet.write, outlet.drained, call.authenticate, end
        )
        streams.open(stream)
        try:
            isComplete = await streams.locate(stream, None if marker is None else position(marker), lastId)
            if record.isGone:
                raise CancelledError()
            if stream.isOver:
                raise StoreUnavailable("all event streams were closed")
            outlet.begin(head, record.txnId)
        except BaseException:
            if not stream.isOver:
                streams.close(stream)
            raise
        record.headers = NO_HEADERS
        request.notifyFinish().addErrback(lambda _: streams.close(stream))
        streams.begin(stream, isComplete)
        return head

    # -- locks

    @operation("POST /locks", 201, "AcquiredLock", body=rules.ACQUIRE_FIELDS, faults=("lockHeld", "limitReached"))
    async def acquireLock(self, call: Call) -> Response:
        """Acquire a lock, or wait for it; the same nonce repeats that (the extension locks). Its token and fence."""
        name, timeout, holder, nonce, wait, metadata = call.fields()
        call.authorize(LOCKS, name)
        if wait:
            _wait(call, LOCK_WAITING)

        async def check() -> None:
            # The token may have ended while the request waited, or the user may no longer acquire locks.
            (await call.authenticate()).role.check(LOCKS, name)

        lock = NewLock(name, timeout, holder, nonce, metadata)
        return Response(201, await self._registry.locks.acquire(call.tenant, lock, wait or 0, check))

    @operation("POST /locks/heartbeat", 200, "HeartbeatToken", body=rules.LOCK_HEARTBEAT_FIELDS, needsStore=False)
    async def heartbeatLock(self, call: Call) -> Response:
        """Send a heartbeat of a lock, with any of its tokens (the extension locks). The token for the next one."""
        name, token = call.fields()
        call.authorize(LOCKS, name)
        return Response(200, {"token": await self._registry.heartbeat(lockScope(call.tenant), name, token)})

    @operation("POST /locks/release", 204, body=rules.RELEASE_FIELDS)
    async def releaseLock(self, call: Call) -> Response:
        """Release a lock by a token, or another's by force (the extension locks). It is free, or will be in time."""
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

    @operation("GET /locks", 200, "LockPage", query=(*_KEY_PAGE, rules.LOCK_NAME))
    async def listLocks(self, call: Call) -> Response:
        """List the locks that are held (the extension locks). A page of locks, sorted by name."""
        marker, limit, name = (call.query[each] for each in ("marker", "limit", "name"))
        return Response(200, call.page(await self._registry.locks.list(call.tenant, marker, limit, name)))


def heartbeatOf(entry: Any) -> tuple[str, str]:
    try:
        return rules.ID.rule.check(entry["id"]), rules.TOKEN.rule.check(entry["token"])
    except (KeyError, TypeError, rules.Invalid):
        # The few that are invalid are checked again, with reasons.
        if not isinstance(entry, dict):
            raise validationError("heartbeats", "Not a hash")
        return rules.ID.value(entry), rules.TOKEN.value(entry)


def _isOfLock(entry: Any) -> bool:
    return isinstance(entry, dict) and "id" not in entry and "lock" in entry


def _resultOf(entry: Any, outcome: str | Fault, txnId: str) -> dict[str, Any]:
    """The result of an entry of a batch. An id is repeated as it was sent, whether or not a service can have it."""
    kind = "lock" if _isOfLock(entry) else "id"
    id = entry.get(kind) if isinstance(entry, dict) else None
    result = {"token": outcome} if isinstance(outcome, str) else {"fault": faultBody(outcome, txnId)}
    return {kind: id if isinstance(id, str) else None, **result}


def _targetGroup(service: Any) -> dict[str, Any] | None:
    """The target group of a service for Prometheus; none for one without an address, or that takes no traffic."""
    metadata, state = service["metadata"], service.get("state", "up")
    try:
        host, port = readAddress(metadata)
    except Unusable:
        return None
    if state == "out" or not isEnabled(metadata):
        return None
    tags = f",{','.join(service['tags'])}," if service["tags"] else ""
    labels = {f"{_LABEL}id": service["id"], f"{_LABEL}tags": tags, f"{_LABEL}state": state}
    for key in sorted(metadata):
        labels.setdefault(f"{_LABEL}metadata_{re.sub('[^A-Za-z0-9_]', '_', key)}", metadata[key])
    return {"targets": [netloc(host, port)], "labels": labels}


def _wait(call: Call, route: str) -> None:
    """The request is one that waits, which is ended when its client is gone."""
    call.record.route = route
    if call.record.isGone:
        raise CancelledError()


def _tagged(position: int) -> dict[str, str]:
    return {"ETag": etagAt(position), **NO_STORE}
