"""
``GET /openapi.json``: the API as OpenAPI 3.1 tells it.

What may come in is told by the tables that check it (:mod:`~txserviceregistry.registry.http.validation`), which paths
there are by the table of routes, what goes out by the types of the API's JSON. Only words are written down here, and
which answers each operation has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache

import attrs

from ... import types
from ..._version import __version__
from ...util.faults import FAULT_TYPES
from ..identity.identity import TENANT
from ..limits import PATHS, RATE_HEADERS
from . import schemas, validation
from .keystone import CATALOG, CREDENTIALS, REGION
from .messages import EXTENSIONS
from .routes import API, AUTH, BODY_LIMITS, MAXIMUM_BODY, ROUTES
from .rules import TimeUUID
from .schemas import Schema

#: Where it is served.
PATH = "/openapi.json"
#: How many base URLs it is kept for: their names come from clients.
KEPT = 16

_BEATS = "heartbeats"


@attrs.frozen
class Operation:
    """
    What is to be told of an operation, beside what the tables say.

    :ivar summary: what it does.
    :ivar success: what its answer is when all is well.
    :ivar schema: of that answer's body; ``None`` if it has none.
    :ivar code: of that answer.
    :ivar headers: the names of headers of that answer, beside those that every answer has.
    :ivar refusals: types of faults that it has, beside those that all operations have.
    :ivar changes: whether its body says what is to change, so that none of its fields has to be there.
    """

    summary: str
    success: str
    schema: Schema | None = None
    code: int = 200
    headers: Sequence[str] = ()
    refusals: Sequence[str] = ()
    changes: bool = False


@attrs.frozen
class Page:
    """
    What is to be told of a page beside the API.

    :ivar summary: what it does.
    :ivar success: what it answers when all is well.
    :ivar schema: of that answer.
    :ivar mediaType: of that answer.
    :ivar others: answers beside 200 of the same media type: by code, a text, and the schema of what they tell.
    :ivar refusals: types of faults that it has, beside those that all pages have.
    """

    summary: str
    success: str
    schema: Schema
    mediaType: str = "application/json"
    others: Mapping[int, tuple[str, Schema]] = attrs.field(factory=dict)
    refusals: Sequence[str] = ()


def _reference(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def _schema(name: str) -> Schema:
    return _reference("schemas", name)


#: The operations below ``/v1.0/{tenant}``, by the names that the table of routes has for them.
OPERATIONS: Mapping[str, Operation] = {
    "getLimits": Operation(
        "Get the account's limits, and how much of the rate limit is used",
        "The limits; the request itself is not counted in them.",
        _schema("Limits"),
    ),
    "listServices": Operation(
        "List services by id, all of them or those with a tag",
        "A page of services, sorted by id.",
        _schema("ServicePage"),
        refusals=["invalidLimit"],
    ),
    "createService": Operation(
        "Register a service",
        "The service is registered; its first heartbeat presents this token.",
        _schema("HeartbeatToken"),
        201,
        ["Location"],
        ["serviceWithThisIdExists", "limitReached"],
    ),
    "getService": Operation(
        "Get a service", "The service as it is now.", _schema("Service"), refusals=["notFoundError"]
    ),
    "updateService": Operation(
        "Change a service; an absent field stays, and a new timeout counts from now",
        "The service is changed.",
        None,
        204,
        ["Location"],
        ["notFoundError"],
        changes=True,
    ),
    "removeService": Operation(
        "Deregister a service", "The service is deregistered.", None, 204, refusals=["notFoundError"]
    ),
    "heartbeat": Operation(
        "Send a heartbeat, with any token that was issued since the service was registered",
        "The service has its full timeout again; the next heartbeat presents this token.",
        _schema("HeartbeatToken"),
        refusals=["notFoundError"],
    ),
    "heartbeats": Operation(
        f"Send heartbeats of many services (the extension {_BEATS}); one that fails does not affect the others",
        "The results, in the order of the request: a token or a fault for each heartbeat.",
        _schema("HeartbeatOutcomes"),
    ),
    "listValues": Operation(
        "List configuration values by key",
        "A page of values, sorted by key.",
        _schema("ConfigurationPage"),
        refusals=["invalidLimit"],
    ),
    "listNamespace": Operation(
        "List the configuration values below a namespace, and the one that has its name",
        "A page of values, sorted by key.",
        _schema("ConfigurationPage"),
        refusals=["invalidLimit"],
    ),
    "getValue": Operation(
        "Get a configuration value", "The value.", _schema("ConfigurationValue"), refusals=["notFoundError"]
    ),
    "setValue": Operation("Set a configuration value", "The value is set.", None, 204, ["Location"], ["limitReached"]),
    "removeValue": Operation(
        "Remove a configuration value", "The value is removed.", None, 204, refusals=["notFoundError"]
    ),
    "listEvents": Operation(
        "List events, oldest first; with wait (the extension events-wait), wait for one that is newer than the marker",
        "A page of events, oldest first, with the one that the marker names.",
        _schema("EventPage"),
        refusals=["invalidLimit"],
    ),
}

_HEALTH: Schema = {
    "type": "object",
    "properties": {
        "store": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "state": {"type": "string"}},
            "required": ["name", "state"],
        },
        "uptime": {"type": "number", "minimum": 0},
        "version": {"type": "string"},
    },
    "required": ["store", "uptime", "version"],
}

#: The pages beside the API, by path.
PAGES: Mapping[str, Page] = {
    "/health": Page(
        "Check whether the registry can serve requests",
        "The registry can serve requests.",
        _HEALTH,
        others={503: ("The registry can't serve all requests: its store can't be used.", _HEALTH)},
    ),
    "/metrics": Page(
        "Get the metrics for Prometheus; by default only clients on the registry's machine may",
        "The metrics in Prometheus's text format.",
        {"type": "string"},
        "text/plain",
        {501: ("The package prometheus_client is not installed.", {"type": "string"})},
        ["forbiddenError", "notFoundError"],
    ),
    PATH: Page("Get this description", "The API as an OpenAPI 3.1 document.", {"type": "object"}),
}

# What can be wrong with every request for the registry, and with every request at all.
_ALWAYS = ("badRequest", "unauthorizedError", "requestTooLargeError", "internalError", "systemFailureError")
_ANYWHERE = ("badRequest", "requestTooLargeError", "internalError")

_PARAMETER_TEXTS = {
    "limit": f"How many values the page has at most; {validation.DEFAULT_LIMIT} if it is not given.",
    "marker": "The id of the first value of the page, or what it would come after.",
    "tag": "Only services with this tag.",
    "type": "Only events of this type.",
    "wait": "How many seconds to wait for an event that is newer than the marker.",
}
_FAULT_TEXTS = {
    400: "The request is not valid, or a limit is reached.",
    401: "The auth token is missing, unknown, expired or another tenant's.",
    403: "This client may not read it.",
    404: "It does not exist.",
    413: "The body is too large.",
    500: "An internal error of the registry.",
    503: "The store can't be reached, or the registry is overloaded.",
}


@lru_cache(maxsize=KEPT)
def document(baseUrl: str) -> bytes:
    """
    The description, ready to be sent.

    :param baseUrl: scheme and authority under which the client reached the registry.
    """
    servers = json.dumps({"servers": [{"url": baseUrl}]})
    return f"{servers[:-1]}, {_text()[1:]}".encode()


@lru_cache(maxsize=1)
def _text() -> str:
    return json.dumps(description(), ensure_ascii=False)


def description() -> Schema:
    """The description as an OpenAPI document, but for its ``servers``."""
    paths: dict[str, Schema] = {path: {"get": _page(told)} for path, told in PAGES.items()}
    paths[AUTH + "/tokens"] = {"post": _authentication()}
    for pattern, methods in ROUTES.items():
        names = ["tenant", *(part[1:-1] for part in pattern.split("/") if part.startswith("{"))]
        paths[f"{API}/{{tenant}}{pattern}"] = {
            "parameters": [_reference("parameters", name) for name in names],
            **{method.lower(): _operation(name, method) for method, name in methods.items()},
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Service Registry API",
            "version": "1.0",
            "description": "Services, which are kept registered by heartbeats, configuration values, and events. "
            f"Served by txserviceregistry {__version__}, with the extensions {', '.join(EXTENSIONS)}.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}},
            "parameters": _pathParameters(),
            "headers": _headers(),
            "schemas": _components(),
        },
    }


# -- operations


def _operation(name: str, method: str) -> Schema:
    told = OPERATIONS[name]
    refusals = [*_ALWAYS, *told.refusals]
    headers = list(told.headers)
    if method == "GET":
        refusals.append("rateLimitReached")
        headers += RATE_HEADERS
    # A path that names nothing is no page.
    described: Schema = {
        "operationId": name,
        "summary": told.summary,
        "responses": {
            str(told.code): _answer(told.success, told.schema, headers),
            **_refusals([*refusals, "notFoundError"], BODY_LIMITS.get(name, MAXIMUM_BODY)),
        },
    }
    query = validation.QUERIES.get(name)
    if query is not None:
        described["parameters"] = [
            {
                "name": parameter,
                "in": "query",
                "description": _PARAMETER_TEXTS[parameter],
                "schema": schemas.ofText(rule),
            }
            for parameter, rule in query.items()
        ]
    fields = validation.BODIES.get(name)
    if fields is not None:
        described["requestBody"] = _body(schemas.ofFields(fields, changes=told.changes))
    if name == "createService":
        described["responses"]["201"]["links"] = _linksOfAService()
    return described


def _authentication() -> Schema:
    described = _outside(
        "Get an auth token for a user's name and API key",
        "The token, when it expires, and the URLs of the account's API.",
        _schema("Access"),
    )
    described["operationId"] = "authenticate"
    described["requestBody"] = _body(_credentials())
    described["responses"]["400"] = _answer("The body holds no credentials.", _identityFault("badRequest", 400))
    described["responses"]["401"] = _answer("User name or API key is wrong.", _identityFault("unauthorized", 401))
    described["responses"].update(_refusals(["systemFailureError"], MAXIMUM_BODY))
    return described


def _page(told: Page) -> Schema:
    described = _outside(told.summary, told.success, told.schema, told.mediaType)
    for code, (text, schema) in told.others.items():
        described["responses"][str(code)] = _answer(text, schema, mediaType=told.mediaType)
    described["responses"].update(_refusals(told.refusals, MAXIMUM_BODY))
    return described


def _outside(summary: str, success: str, schema: Schema, mediaType: str = "application/json") -> Schema:
    """An operation that needs no token."""
    responses = {"200": _answer(success, schema, mediaType=mediaType), **_refusals(_ANYWHERE, MAXIMUM_BODY)}
    return {"summary": summary, "security": [], "responses": responses}


def _linksOfAService() -> Schema:
    id = {"tenant": "$request.path.tenant", "serviceId": "$request.body#/id"}
    token = {"requestBody": {"token": "$response.body#/token"}}
    return {
        "get": {"operationId": "getService", "parameters": id},
        "heartbeat": {"operationId": "heartbeat", "parameters": id, **token},
        "remove": {"operationId": "removeService", "parameters": id},
    }


def _body(schema: Schema) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _answer(
    text: str, schema: Schema | None, headers: Sequence[str] = (), *, mediaType: str = "application/json"
) -> Schema:
    names = ("X-Response-Id", "X-Service-Registry-Extensions", *headers)
    answer: Schema = {"description": text, "headers": {name: _reference("headers", name) for name in names}}
    if schema is not None:
        answer["content"] = {mediaType: {"schema": schema}}
    return answer


def _refusals(refused: Sequence[str], bodyLimit: int) -> dict[str, Schema]:
    """The answers that are faults of the types *refused*."""
    ofCode: dict[int, list[str]] = {}
    for type in dict.fromkeys(refused):
        ofCode.setdefault(FAULT_TYPES[type], []).append(type)
    return {str(code): _refusal(code, found, bodyLimit) for code, found in ofCode.items()}


def _refusal(code: int, refused: Sequence[str], bodyLimit: int) -> Schema:
    narrower = {"properties": {"type": {"enum": list(refused)}, "code": {"const": code}}}
    answer = _answer(_FAULT_TEXTS[code], {"allOf": [_schema("Fault"), narrower]})
    if code == 401:
        answer["headers"]["WWW-Authenticate"] = _reference("headers", "WWW-Authenticate")
    if code == 503 or "rateLimitReached" in refused:
        answer["headers"]["Retry-After"] = _reference("headers", "Retry-After")
    if code == 413:
        answer["description"] = f"The body has {bodyLimit} bytes or more."
    return answer


# -- components


def _pathParameters() -> Schema:
    texts = {
        "tenant": ("The account's number.", schemas.ofPattern(TENANT)),
        "serviceId": ("The service's id.", schemas.ofText(validation.PARAMETERS["serviceId"])),
        "configurationId": (
            "A key. The slashes of a qualified one may come as they are.",
            schemas.ofText(validation.PARAMETERS["configurationId"]),
        ),
        "namespace": (
            "A namespace, which is written as a key is; the slash that it begins with may be left out.",
            {"type": "string"},
        ),
    }
    return {
        name: {"name": name, "in": "path", "required": True, "description": text, "schema": schema}
        for name, (text, schema) in texts.items()
    }


def _headers() -> Schema:
    told: Mapping[str, tuple[str, bool, Schema]] = {
        "X-Response-Id": ("The request's own id, which a fault repeats as txnId.", True, {"type": "string"}),
        "X-Service-Registry-Extensions": ("The extensions that the registry has.", True, {"type": "string"}),
        "Location": ("The URL of the object that was created or changed.", True, {"type": "string", "format": "uri"}),
        "WWW-Authenticate": ("Where auth tokens come from.", True, schemas.ofPattern('Keystone uri="[^"]*"')),
        **_rateHeaders(),
        "Retry-After": (
            "After how many seconds to ask again: with rateLimitReached, and if there is no room to wait for events.",
            False,
            {"type": "integer", "minimum": 1},
        ),
    }
    return {
        name: {"description": text, "required": required, "schema": schema}
        for name, (text, required, schema) in told.items()
    }


def _rateHeaders() -> dict[str, tuple[str, bool, Schema]]:
    """With ``--rate-limit off`` they are absent."""
    texts: dict[str, tuple[str, Schema]] = {
        "X-Ratelimit-Path-Regex": ("The paths that the rate limit counts, as a pattern.", {"const": PATHS}),
        "X-Ratelimit-Limit": ("How many GETs the account may make in a window.", {"type": "integer", "minimum": 0}),
        "X-Ratelimit-Used": ("How many of them it made before this one.", {"type": "integer", "minimum": 0}),
        "X-Ratelimit-Window": ("How long the window is.", schemas.ofPattern(r"[0-9]+(?:\.[0-9]+)? seconds")),
        "Reply-After": ("When the window ends, in seconds since 1970.", {"type": "integer"}),
    }
    assert texts.keys() == set(RATE_HEADERS)
    return {name: (text, False, schema) for name, (text, schema) in texts.items()}


def _components() -> dict[str, Schema]:
    fault = schemas.ofType(types.FaultBody)
    fault["properties"]["type"]["enum"] = list(FAULT_TYPES)
    fault["properties"]["code"]["enum"] = sorted(set(FAULT_TYPES.values()))
    event = schemas.ofType(types.Event)
    event["properties"]["id"] = schemas.ofRule(TimeUUID())
    event["properties"]["payload"] = {"type": "object"}
    event["oneOf"] = _payloads()
    service = schemas.ofType(types.Service)
    service["properties"]["id"] = schemas.ofText(validation.PARAMETERS["serviceId"])
    value = schemas.ofType(types.ConfigurationValue)
    value["properties"]["id"] = schemas.ofText(validation.PARAMETERS["configurationId"])
    token = schemas.ofType(types.HeartbeatToken)
    token["properties"]["token"] = schemas.ofRule(TimeUUID())
    return {
        "Access": _access(),
        "ConfigurationPage": _pageOf("ConfigurationValue"),
        "ConfigurationValue": value,
        "Event": event,
        "EventPage": _pageOf("Event"),
        "Fault": fault,
        "HeartbeatOutcomes": _outcomes(),
        "HeartbeatToken": token,
        "Limits": schemas.ofType(types.Limits),
        "PageMetadata": _pageMetadata(),
        "Service": service,
        "ServicePage": _pageOf("Service"),
    }


def _payloads() -> list[Schema]:
    """By types of events, what is in their payloads."""
    service = schemas.ofType(types.Service)
    del service["properties"]["last_seen"]
    service["required"].remove("last_seen")
    services = [type for type in validation.EVENT_TYPES if type.startswith("service.")]
    value = {"type": "string"}
    update = _object(configuration_value_id=value, old_value={"type": ["string", "null"]}, new_value=value)
    remove = _object(configuration_value_id=value, old_value=value)
    remove["not"] = {"required": ["new_value"]}
    ofTypes = [
        (services, service),
        (["configuration_value.update"], update),
        (["configuration_value.remove"], remove),
    ]
    return [{"properties": {"type": {"enum": names}, "payload": payload}} for names, payload in ofTypes]


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _pageOf(of: str) -> Schema:
    values = {"type": "array", "items": _schema(of), "maxItems": validation.MAXIMUM_LIMIT}
    return _object(values=values, metadata=_schema("PageMetadata"))


def _pageMetadata() -> Schema:
    schema = schemas.ofType(types.PageMetadata)
    # That one is told by the client's cache, never by a registry.
    del schema["properties"]["stale"]
    return schema


def _outcomes() -> Schema:
    id = {"type": ["string", "null"]}
    taken = _object(id={"type": "string"}, token=schemas.ofRule(TimeUUID()))
    failed = _object(id=id, fault=_schema("Fault"))
    return _object(values={"type": "array", "items": {"oneOf": [taken, failed]}, "minItems": 1})


def _credentials() -> Schema:
    text = {"type": "string", "minLength": 1}
    kinds = {kind: _object(username=text, **{key: text}) for kind, key in CREDENTIALS.items()}
    auth = {"type": "object", "properties": kinds, "anyOf": [{"required": [kind]} for kind in kinds]}
    return _object(auth=auth)


def _access() -> Schema:
    text = {"type": "string"}
    number = schemas.ofPattern(TENANT)
    endpoint = _object(tenantId=number, publicURL={"type": "string", "format": "uri"})
    regional = _object(region={"const": REGION}, **endpoint["properties"])
    entries = [
        _object(
            name={"const": name},
            type={"const": type},
            endpoints={"type": "array", "items": regional if hasRegion else endpoint, "minItems": 1, "maxItems": 1},
        )
        for name, type, hasRegion in CATALOG
    ]
    expires = schemas.ofPattern(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.000-06:00")
    return _object(
        access=_object(
            token=_object(id=text, expires=expires, tenant=_object(id=number, name=number)),
            user=_object(id=text, name=text, roles={"type": "array"}),
            serviceCatalog={"type": "array", "items": {"oneOf": entries}, "minItems": len(entries)},
        )
    )


def _identityFault(kind: str, code: int) -> Schema:
    return _object(**{kind: _object(code={"const": code}, message={"type": "string"})})
