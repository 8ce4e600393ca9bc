"""``GET /openapi.json``: the API as an OpenAPI 3.1 document, made from the records of the operations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints, is_typeddict

from ... import types
from ..._version import __version__
from ...errors import FAULT_TYPES
from ..identity import TENANT
from ..limits import PATHS, RATE_HEADERS
from .messages import API, CREDENTIALS, EXTENSIONS
from .operations import MAXIMUM_BODY, ROUTES, TOKENS, Operation
from .validation import KEY, LIMIT, MAXIMUM_LIMIT, PATH_PARAMETERS, SERVICE_ID, TIME_UUID, Schema, matching, schemaOf

#: The path of the document.
PATH = "/openapi.json"

# The faults that every operation can have.
_ALWAYS = (
    *("badRequest", "requestTooLargeError", "internalError", "systemFailureError"),
    *("unauthorizedError", "forbiddenError", "notFoundError"),
)

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_PLAIN: Mapping[Any, Schema] = {
    str: _TEXT,
    int: {"type": "integer"},
    float: {"type": "number"},
    type(None): {"type": "null"},
    Any: {},
}
_PARAMETERS: Mapping[str, tuple[str, Schema]] = {
    "tenant": ("The number of the account.", matching(TENANT)),
    "namespace": ("A namespace, which is written as a key is; the slash that it begins with may be left out.", _TEXT),
    **{each.name: (each.summary, each.rule.schema) for each in PATH_PARAMETERS},
}
# The meaning of each header and its values. With --rate-limit off those about the rate are absent.
_HEADERS: Mapping[str, tuple[str, Schema]] = {
    "X-Response-Id": ("The id of the request, which is the txnId of a fault.", _TEXT),
    "X-Service-Registry-Extensions": ("The extensions of the registry.", _TEXT),
    "Location": ("The URL of the object that was created or changed.", {**_TEXT, "format": "uri"}),
    "ETag": ("The tag of the value; absent if there is no value.", matching('"[0-9]+"')),
    "Cache-Control": ("No cache may keep the response.", {"const": "no-store"}),
    "WWW-Authenticate": ("The URL of the Auth API, and the other schemes.", matching('Keystone uri="[^"]*".*')),
    "X-Ratelimit-Path-Regex": ("The pattern of the paths that the rate limit counts.", {"const": PATHS}),
    "X-Ratelimit-Limit": ("The number of GETs allowed in a window.", _COUNT),
    "X-Ratelimit-Used": ("The number of GETs in the window before this one.", _COUNT),
    "X-Ratelimit-Window": ("The length of the window.", matching(r"[0-9]+(?:\.[0-9]+)? seconds")),
    "Reply-After": ("The end of the window, in seconds since 1970.", _COUNT),
    "Retry-After": ("Seconds after which to retry.", _COUNT),
}
_OPTIONAL = frozenset({*RATE_HEADERS, "ETag", "Retry-After"})


def document(baseUrl: str) -> bytes:
    """The description, ready to be sent; *baseUrl* is under which the client reached the registry."""
    servers = json.dumps({"servers": [{"url": baseUrl}]})
    return f"{servers[:-1]}, {_text()[1:]}".encode()


@lru_cache(maxsize=1)
def _text() -> str:
    return json.dumps(_description(), ensure_ascii=False)


def _description() -> Schema:
    paths: dict[str, Schema] = {TOKENS: {"post": _authentication()}}
    for path, methods in ROUTES.items():
        names = ["tenant", *(part[1:-1] for part in path.split("/") if part.startswith("{"))]
        paths[f"{API}/{{tenant}}{path}"] = {
            "parameters": [_reference("parameters", name) for name in names],
            **{method.lower(): _described(operation) for method, operation in methods.items()},
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Service Registry API",
            "version": "1.0",
            "description": "Services, which are kept registered by heartbeats, configuration values, and events. "
            f"Served by txserviceregistry {__version__}, with the extensions {', '.join(EXTENSIONS)}.",
        },
        "security": [{"token": []}, {"bearer": []}, {"basic": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"},
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
            },
            "parameters": {
                name: {"name": name, "in": "path", "required": True, "description": text, "schema": schema}
                for name, (text, schema) in _PARAMETERS.items()
            },
            "headers": {
                name: {"description": text, "required": name not in _OPTIONAL, "schema": schema}
                for name, (text, schema) in _HEADERS.items()
            },
            "schemas": _schemas(),
        },
    }


# -- operations


def _described(operation: Operation) -> Schema:
    faults = [*_ALWAYS, *operation.faults]
    headers = list(operation.sends)
    if LIMIT in operation.query:
        faults.append("invalidLimit")
    if operation.method == "GET":
        faults.append("rateLimitReached")
        headers += RATE_HEADERS
    schema = None if operation.schema is None else _reference("schemas", operation.schema)
    mediaType = "text/event-stream" if operation.schema == "EventStream" else "application/json"
    described: Schema = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {
            str(operation.code): _response(operation.success, schema, headers, mediaType),
            **_faults(faults, operation.maximumBody),
        },
    }
    parameters = [("query", each) for each in operation.query] + [("header", each) for each in operation.headers]
    if parameters:
        described["parameters"] = [
            {"name": each.name, "in": place, "description": each.summary, "schema": each.rule.schema}
            for place, each in parameters
        ]
    if operation.body is not None:
        described["requestBody"] = _body(schemaOf(operation.body))
    return described


def _authentication() -> Schema:
    """``POST /tokens``, whose faults have a form of their own."""
    responses = {"200": _response("The token, when it expires, and the URLs of the account's API.", _access())}
    responses.update(_faults(["requestTooLargeError", "internalError", "systemFailureError"], MAXIMUM_BODY))
    for code, kind, text in (
        (400, "badRequest", "The body has no valid credentials."),
        (401, "unauthorized", "Wrong user name or API key."),
    ):
        fault = _object({kind: _object({"code": {"const": code}, "message": _TEXT})})
        responses[str(code)] = _response(text, fault)
    word = {**_TEXT, "minLength": 1}
    kinds = {kind: _object({"username": word, key: word}) for kind, key in CREDENTIALS.items()}
    auth = {"type": "object", "properties": kinds, "anyOf": [{"required": [kind]} for kind in kinds]}
    return {
        "operationId": "authenticate",
        "summary": "Get an auth token for a user's name and API key",
        "security": [],
        "requestBody": _body(_object({"auth": auth})),
        "responses": responses,
    }


def _body(schema: Schema) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _response(
    text: str, schema: Schema | None, headers: Sequence[str] = (), mediaType: str = "application/json"
) -> Schema:
    names = ("X-Response-Id", "X-Service-Registry-Extensions", *headers)
    response: Schema = {"description": text, "headers": {name: _reference("headers", name) for name in names}}
    if schema is not None:
        response["content"] = {mediaType: {"schema": schema}}
    return response


def _faults(types: Iterable[str], bodyLimit: int) -> dict[str, Schema]:
    ofCode: dict[int, list[str]] = {}
    for type in types:
        ofCode.setdefault(FAULT_TYPES[type], []).append(type)
    responses = {}
    for code, found in ofCode.items():
        headers = {401: ["WWW-Authenticate"], 412: ["ETag", "Cache-Control"], 503: ["Retry-After"]}.get(code, [])
        if "rateLimitReached" in found:
            headers = ["Retry-After"]
        text = f"The body has {bodyLimit} bytes or more." if code == 413 else " or ".join(found)
        schema = {"allOf": [_reference("schemas", "Fault"), {"properties": {"type": {"enum": found}}}]}
        responses[str(code)] = _response(text, schema, headers)
    return responses


# -- schemas


def _reference(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def _object(required: Schema, **optional: Schema) -> Schema:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def _listOf(items: Schema, **more: int) -> Schema:
    return {"type": "array", "items": items, **more}


def _ofType(hint: Any, **properties: Schema) -> Schema:
    """The values of a type; of a TypedDict, some *properties* are described more closely."""
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    if is_typeddict(hint):
        members = {name: _ofType(each) for name, each in get_type_hints(hint).items()}
        required = [name for name in members if name in hint.__required_keys__]
        return {"type": "object", "properties": {**members, **properties}, "required": required}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is list:
        return _listOf(_ofType(arguments[0]))
    if origin is dict:
        return {"type": "object", "additionalProperties": _ofType(arguments[1])}
    if origin is Literal:
        return {**_TEXT, "enum": list(arguments)}
    if origin is UnionType:
        return {"type": [_ofType(each)["type"] for each in arguments]}
    raise TypeError(f"no schema for {hint!r}")


def _schemas() -> dict[str, Schema]:
    token = TIME_UUID.schema
    # Of lockHeld.
    lock = _object({"name": _TEXT, "holder": _TEXT, "fence": _COUNT, "seconds_left": _ofType(float)})
    faultCode = {"type": "integer", "enum": sorted(set(FAULT_TYPES.values()))}
    event = _ofType(types.Event, id=token, payload={"type": "object"})
    # The client's cache adds "stale" to the metadata of a page, never a registry.
    metadata = _ofType(types.PageMetadata)
    del metadata["properties"]["stale"]
    targets = {"targets": _listOf(_TEXT, minItems=1, maxItems=1), "labels": _ofType(dict[str, str])}
    pages = ("ConfigurationValue", "Event", "Lock", "Service", "ServiceState")
    return {
        "AcquiredLock": _ofType(types.AcquiredLock),
        "ConfigurationValue": _ofType(types.ConfigurationValue, id=KEY.rule.schema),
        "ConsoleLink": _ofType(types.ConsoleLink),
        "Event": {**event, "oneOf": _payloads()},
        "EventStream": _TEXT,
        "Fault": _ofType(types.FaultBody, type={**_TEXT, "enum": list(FAULT_TYPES)}, code=faultCode, lock=lock),
        "HeartbeatOutcomes": _outcomes(token),
        "HeartbeatToken": _ofType(types.HeartbeatToken, token=token),
        "Limits": _ofType(types.Limits),
        "Lock": _ofType(types.Lock),
        "PageMetadata": metadata,
        "PrometheusTargets": _listOf(_object(targets)),
        "Service": _ofType(types.Service, id=SERVICE_ID.rule.schema, state={**_TEXT, "enum": ["drain", "out"]}),
        "ServiceState": _ofType(types.ServiceState),
        **{
            f"{name}Page": _object(
                {
                    "values": _listOf(_reference("schemas", name), maxItems=MAXIMUM_LIMIT),
                    "metadata": _reference("schemas", "PageMetadata"),
                }
            )
            for name in pages
        },
    }


def _payloads() -> list[Schema]:
    service = dict(_ofType(types.Service)["properties"])
    optional = {"state": service.pop("state")}
    del service["last_seen"], service["state_reason"]
    lock = _ofType(types.Lock)["properties"]
    state = {**_ofType(types.ServiceState)["properties"], "old_state": _ofType(types.State)}
    value = {"configuration_value_id": _TEXT, "old_value": _TEXT}
    changed = {**value, "old_value": _ofType(str | None), "new_value": _TEXT}
    found = {
        ("service.join", "service.remove", "service.timeout"): _object(service, **optional),
        ("service.update",): _object({**service, "changed": _listOf(_TEXT)}, old_tags=_listOf(_TEXT), **optional),
        ("service.state",): _object(state),
        ("lock.acquire",): _object(lock),
        ("lock.release", "lock.expire"): _object({**lock, "forced": {"type": "boolean"}}),
        ("configuration_value.update",): _object(changed),
        ("configuration_value.remove",): {**_object(value), "not": {"required": ["new_value"]}},
    }
    return [{"properties": {"type": {"enum": list(names)}, "payload": each}} for names, each in found.items()]


def _outcomes(token: Schema) -> Schema:
    fault = _reference("schemas", "Fault")
    outcomes = [
        each
        for kind in ("id", "lock")
        for each in (_object({kind: _TEXT, "token": token}), _object({kind: _ofType(str | None), "fault": fault}))
    ]
    return _object({"values": _listOf({"oneOf": outcomes}, minItems=1)})


def _access() -> Schema:
    number = matching(TENANT)
    endpoint = _object({"tenantId": number, "publicURL": {**_TEXT, "format": "uri"}}, region=_TEXT)
    entry = _object({"name": _TEXT, "type": _TEXT, "endpoints": _listOf(endpoint)})
    expires = matching(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.000-06:00")
    token = _object({"id": _TEXT, "expires": expires, "tenant": _object({"id": number, "name": number})})
    user = _object({"id": _TEXT, "name": _TEXT, "roles": {"type": "array"}})
    access = {"token": token, "user": user, "serviceCatalog": _listOf(entry)}
    return _object({"access": _object(access)})
