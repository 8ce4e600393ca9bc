"""
The operations of the API below ``/v1.0/{tenant}``: one record for each.

Everything that depends on which operations there are comes from these records: routing
(:mod:`~txserviceregistry.registry.http.routes`), the checks of queries and bodies, the limits of requests, and
``/openapi.json``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import attrs

from . import locks
from . import validation as rules
from .call import Call
from .handlers import Handlers
from .messages import Response
from .requestlog import STREAM
from .rules import Field, Parameter

#: A body of so many bytes is too large, unless an operation has another limit.
MAXIMUM_BODY = 5_000

#: Answers a request; a method of :class:`~txserviceregistry.registry.http.handlers.Handlers`.
Handler: TypeAlias = Callable[[Handlers, Call], Awaitable[Response]]


@attrs.frozen
class Success:
    """
    The response to a request that succeeds.

    :ivar text: what it means.
    :ivar schema: the name of its body's schema (:mod:`~txserviceregistry.registry.http.components`); ``None`` if it has
        no body.
    :ivar mediaType: of its body.
    :ivar headers: the names of its headers, beside those that every response has.
    :ivar links: the operations that it leads to, as links of OpenAPI.
    """

    text: str
    schema: str | None = None
    code: int = 200
    headers: tuple[str, ...] = ()
    links: Mapping[str, Any] = attrs.field(factory=dict)
    mediaType: str = "application/json"


@attrs.frozen
class Limits:
    """
    What a request may take.

    :ivar body: a body of so many bytes is too large.
    :ivar needsStore: whether it may wait for the store. An operation that is answered from memory does not make the
        account: a tenant that has a service has one.
    """

    body: int = MAXIMUM_BODY
    needsStore: bool = True


@attrs.frozen
class Operation:
    """
    One method of one path.

    :ivar path: below the tenant, with at most one placeholder.
    :ivar handler: answers requests.
    :ivar success: the response when all is well.
    :ivar summary: what it does.
    :ivar query: the parameters of its query, in the order in which they are checked.
    :ivar body: the fields of its body, in the order in which they are checked; ``None`` if it takes no body.
    :ivar faults: the types of its faults, beside those that all operations have.
    :ivar headers: the headers of the request that its handler looks at.
    :ivar isAudited: whether its requests are in the audit log: it changes something, and is not a heartbeat.
    """

    name: str
    method: str
    path: str
    handler: Handler
    success: Success
    summary: str
    query: tuple[Parameter, ...] = ()
    body: tuple[Field, ...] | None = None
    faults: tuple[str, ...] = ()
    limits: Limits = Limits()
    headers: tuple[Parameter, ...] = ()
    isAudited: bool = attrs.field(init=False)

    @isAudited.default
    def _audited(self) -> bool:
        return self.method != "GET" and not self.path.endswith(("/heartbeat", "/heartbeats"))


# Of responses with a value, and of requests that write one.
_TAGGED = ("ETag", "Cache-Control")
_CONDITIONS = (rules.IF_MATCH, rules.IF_NONE_MATCH)
_SERVICE = {"tenant": "$request.path.tenant", "serviceId": "$request.body#/id"}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "getLimits",
        "GET",
        "/limits",
        Handlers.getLimits,
        Success("The limits; the request itself is not counted in them.", "Limits"),
        "Get the account's limits, and how much of the rate limit is used",
    ),
    Operation(
        "createConsoleLink",
        "POST",
        "/console-links",
        Handlers.createConsoleLink,
        Success("The link, which ends after a minute.", "ConsoleLink", 201),
        "Make a link that opens the web console once, without a key",
    ),
    Operation(
        "listServices",
        "GET",
        "/services",
        Handlers.listServices,
        Success("A page of services, sorted by id.", "ServicePage"),
        "List services by id, all of them or those with a tag",
        query=(rules.LIMIT, rules.MARKER, rules.TAG, rules.STATES),
        faults=("invalidLimit",),
    ),
    Operation(
        "createService",
        "POST",
        "/services",
        Handlers.createService,
        Success(
            "The service is registered; its first heartbeat presents this token.",
            "HeartbeatToken",
            201,
            ("Location",),
            {
                "get": {"operationId": "getService", "parameters": _SERVICE},
                "heartbeat": {
                    "operationId": "heartbeat",
                    "parameters": _SERVICE,
                    "requestBody": {"token": "$response.body#/token"},
                },
                "remove": {"operationId": "removeService", "parameters": _SERVICE},
            },
        ),
        "Register a service",
        body=rules.SERVICE_FIELDS,
        faults=("serviceWithThisIdExists", "limitReached"),
    ),
    Operation(
        "getService",
        "GET",
        "/services/{serviceId}",
        Handlers.getService,
        Success("The service as it is now.", "Service"),
        "Get a service",
        query=(rules.STATES,),
    ),
    Operation(
        "updateService",
        "PUT",
        "/services/{serviceId}",
        Handlers.updateService,
        Success("The service is changed.", None, 204, ("Location",)),
        "Change a service; an absent field stays, and a new timeout counts from now",
        body=rules.CHANGE_FIELDS,
    ),
    Operation(
        "removeService",
        "DELETE",
        "/services/{serviceId}",
        Handlers.removeService,
        Success("The service is deregistered.", None, 204),
        "Deregister a service",
    ),
    Operation(
        "getState",
        "GET",
        "/services/{serviceId}/state",
        Handlers.getState,
        Success("The state of the service, whether or not it is registered.", "ServiceState"),
        "Get the state of a service (the extension service-state)",
    ),
    Operation(
        "setState",
        "PUT",
        "/services/{serviceId}/state",
        Handlers.setState,
        Success("The state is set.", None, 204),
        "Set the state of a service (the extension service-state); up without a reason clears it",
        body=rules.STATE_FIELDS,
        faults=("limitReached",),
    ),
    Operation(
        "clearState",
        "DELETE",
        "/services/{serviceId}/state",
        Handlers.clearState,
        Success("The service has no state.", None, 204),
        "Clear the state of a service (the extension service-state)",
    ),
    Operation(
        "listStates",
        "GET",
        "/states",
        Handlers.listStates,
        Success("A page of states, sorted by id.", "ServiceStatePage"),
        "List the states that were set for services (the extension service-state)",
        query=(rules.LIMIT, rules.MARKER),
        faults=("invalidLimit",),
    ),
    Operation(
        "heartbeat",
        "POST",
        "/services/{serviceId}/heartbeat",
        Handlers.heartbeat,
        Success("The service has its full timeout again; the next heartbeat presents this token.", "HeartbeatToken"),
        "Send a heartbeat, with any token that was issued since the service was registered",
        body=rules.HEARTBEAT_FIELDS,
        limits=Limits(needsStore=False),
    ),
    Operation(
        "heartbeats",
        "POST",
        "/heartbeats",
        Handlers.heartbeats,
        Success(
            "The results, in the order of the request: a token or a fault for each heartbeat.", "HeartbeatOutcomes"
        ),
        "Send heartbeats of many services (the extension heartbeats); one that fails does not affect the others",
        body=rules.BATCH_FIELDS,
        limits=Limits(body=256 * 1024, needsStore=False),
    ),
    Operation(
        "listPrometheusTargets",
        "GET",
        "/prometheus",
        Handlers.listPrometheusTargets,
        Success("All targets at one moment; there are no pages.", "PrometheusTargets"),
        "List services as targets for Prometheus's http_sd_configs (the extension prometheus-sd)",
        query=(rules.TAG,),
    ),
    Operation(
        "listValues",
        "GET",
        "/configuration",
        Handlers.listValues,
        Success("A page of values, sorted by key.", "ConfigurationPage"),
        "List configuration values by key",
        query=(rules.LIMIT, rules.KEY_MARKER, rules.ETAGS),
        faults=("invalidLimit",),
    ),
    Operation(
        "listNamespace",
        "GET",
        "/configuration/{namespace}/",
        Handlers.listNamespace,
        Success("A page of values, sorted by key.", "ConfigurationPage"),
        "List the configuration values below a namespace, and the one that has its name",
        query=(rules.LIMIT, rules.KEY_MARKER, rules.ETAGS),
        faults=("invalidLimit",),
    ),
    Operation(
        "getValue",
        "GET",
        "/configuration/{configurationId}",
        Handlers.getValue,
        Success("The value.", "ConfigurationValue", headers=_TAGGED),
        "Get a configuration value",
    ),
    Operation(
        "setValue",
        "PUT",
        "/configuration/{configurationId}",
        Handlers.setValue,
        Success("The value is set.", None, 204, ("Location", *_TAGGED)),
        "Set a configuration value",
        body=rules.VALUE_FIELDS,
        faults=("preconditionFailed", "limitReached"),
        headers=_CONDITIONS,
    ),
    Operation(
        "removeValue",
        "DELETE",
        "/configuration/{configurationId}",
        Handlers.removeValue,
        Success("The value is removed.", None, 204),
        "Remove a configuration value",
        faults=("preconditionFailed",),
        headers=_CONDITIONS,
    ),
    Operation(
        "listEvents",
        "GET",
        "/events",
        Handlers.listEvents,
        Success("A page of events, oldest first, with the one that the marker names.", "EventPage"),
        "List events, oldest first; with wait (the extension events-wait), wait for one that is newer than the marker",
        query=(rules.LIMIT, rules.EVENT_MARKER, rules.EVENT_TYPE, rules.WAIT, rules.EVENT_TYPES_WANTED),
        faults=("invalidLimit",),
    ),
    Operation(
        "streamEvents",
        "GET",
        STREAM,
        Handlers.streamEvents,
        Success("Server-sent events until the connection ends.", "EventStream", mediaType="text/event-stream"),
        "Get events as they happen (the extension event-stream)",
        query=(rules.EVENT_MARKER, rules.TAG, rules.EVENT_TYPES_WANTED),
    ),
    Operation(
        "acquireLock",
        "POST",
        "/locks",
        Handlers.acquireLock,
        Success(
            "The lock is acquired; its first heartbeat presents this token.",
            "AcquiredLock",
            201,
            links={
                "heartbeat": {
                    "operationId": "heartbeatLock",
                    "parameters": {"tenant": "$request.path.tenant"},
                    "requestBody": {"name": "$request.body#/name", "token": "$response.body#/token"},
                },
            },
        ),
        "Acquire a lock, or wait for it; the same nonce while it is held is a heartbeat (the extension locks)",
        body=locks.ACQUIRE_FIELDS,
        faults=("lockHeld", "limitReached"),
    ),
    Operation(
        "heartbeatLock",
        "POST",
        "/locks/heartbeat",
        Handlers.heartbeatLock,
        Success("The lock has its full timeout again; the next heartbeat presents this token.", "HeartbeatToken"),
        "Send a heartbeat of a lock, with any token that was issued since the lock was acquired (the extension locks)",
        body=locks.HEARTBEAT_FIELDS,
        limits=Limits(needsStore=False),
    ),
    Operation(
        "releaseLock",
        "POST",
        "/locks/release",
        Handlers.releaseLock,
        Success("The lock is free; with force and without now, once its holder's timeout has passed.", None, 204),
        "Release a lock by a token, or another's by force (the extension locks)",
        body=locks.RELEASE_FIELDS,
    ),
    Operation(
        "listLocks",
        "GET",
        "/locks",
        Handlers.listLocks,
        Success("A page of locks, sorted by name.", "LockPage"),
        "List the locks that are held (the extension locks)",
        query=(rules.LIMIT, rules.KEY_MARKER, locks.NAME),
        faults=("invalidLimit",),
    ),
)

#: The operations by path and method.
ROUTES: Mapping[str, Mapping[str, Operation]] = MappingProxyType(
    {
        path: {operation.method: operation for operation in OPERATIONS if operation.path == path}
        for path in dict.fromkeys(operation.path for operation in OPERATIONS)
    }
)
