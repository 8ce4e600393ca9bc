"""
The components of the description of the API: the schemas, parameters and headers that operations refer to by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints, is_typeddict

from ... import types
from ...errors import FAULT_TYPES
from ..identity.identity import TENANT
from ..limits import PATHS, RATE_HEADERS
from . import validation
from .authentication import CATALOG, CREDENTIALS, REGION
from .rules import TIME_UUID, Schema, matching

TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_PLAIN: Mapping[Any, Schema] = {
    str: TEXT,
    int: {"type": "integer"},
    float: {"type": "number"},
    type(None): {"type": "null"},
    Any: {},
}

_PARAMETERS: Mapping[str, tuple[str, Schema]] = {
    "tenant": ("The number of the account.", matching(TENANT)),
    "namespace": ("A namespace, which is written as a key is; the slash that it begins with may be left out.", TEXT),
    **{each.name: (each.summary, each.schema()) for each in validation.PATH_PARAMETERS},
}
# The meaning of each header, its values, and whether it is always there.
_HEADERS: Mapping[str, tuple[str, Schema, bool]] = {
    "X-Response-Id": ("The id of the request, which is the txnId of a fault.", TEXT, True),
    "X-Service-Registry-Extensions": ("The extensions of the registry.", TEXT, True),
    "Location": ("The URL of the object that was created or changed.", {**TEXT, "format": "uri"}, True),
    "ETag": ("The tag of the value; absent if there is no value.", matching('"[0-9]+"'), False),
    "Cache-Control": ("No cache may keep the response.", {"const": "no-store"}, True),
    "WWW-Authenticate": ("The URL of the Auth API, and the other schemes.", matching('Keystone uri="[^"]*".*'), True),
    # With --rate-limit off these are absent.
    "X-Ratelimit-Path-Regex": ("The pattern of the paths that the rate limit counts.", {"const": PATHS}, False),
    "X-Ratelimit-Limit": ("The number of GETs allowed in a window.", _COUNT, False),
    "X-Ratelimit-Used": ("The number of GETs in the window before this one.", _COUNT, False),
    "X-Ratelimit-Window": ("The length of the window.", matching(r"[0-9]+(?:\.[0-9]+)? seconds"), False),
    "Reply-After": ("The end of the window, in seconds since 1970.", {"type": "integer"}, False),
    "Retry-After": (
        "Seconds after which to retry: after rateLimitReached, and when too many requests wait for events.",
        {"type": "integer", "minimum": 1},
        False,
    ),
}
assert set(RATE_HEADERS) <= _HEADERS.keys()


def reference(kind: str, name: str) -> Schema:
    """A reference to one of the ``schemas``, ``parameters`` or ``headers``."""
    return {"$ref": f"#/components/{kind}/{name}"}


def components() -> Schema:
    return {
        "parameters": {
            name: {"name": name, "in": "path", "required": True, "description": text, "schema": schema}
            for name, (text, schema) in _PARAMETERS.items()
        },
        "headers": {
            name: {"description": text, "required": required, "schema": schema}
            for name, (text, schema, required) in _HEADERS.items()
        },
        "schemas": _schemas(),
    }


def objectOf(required: Schema, **optional: Schema) -> Schema:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def listOf(items: Schema, **more: int) -> Schema:
    return {"type": "array", "items": items, **more}


def ofType(hint: Any) -> Schema:
    """The values of a type: of a TypedDict or of what one is made of."""
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    if is_typeddict(hint):
        properties = {name: ofType(each) for name, each in get_type_hints(hint).items()}
        required = [name for name in properties if name in hint.__required_keys__]
        return {"type": "object", "properties": properties, "required": required}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is list:
        return listOf(ofType(arguments[0]))
    if origin is dict:
        return {"type": "object", "additionalProperties": ofType(arguments[1])}
    if origin is Literal:
        return {**TEXT, "enum": list(arguments)}
    if origin is UnionType:
        return {"type": [ofType(each)["type"] for each in arguments]}
    raise TypeError(f"no schema for {hint!r}")


def _object(hint: Any, **properties: Schema) -> Schema:
    """A TypedDict, of which some properties are described more closely."""
    schema = ofType(hint)
    schema["properties"].update(properties)
    return schema


def _schemas() -> dict[str, Schema]:
    id, key, token = validation.SERVICE_ID.schema(), validation.KEY.schema(), TIME_UUID.schema
    faultType = {**TEXT, "enum": list(FAULT_TYPES)}
    faultCode = {"type": "integer", "enum": sorted(set(FAULT_TYPES.values()))}
    event = _object(types.Event, id=token, payload={"type": "object"})
    # The client's cache adds "stale" to the metadata of a page, never a registry.
    metadata = ofType(types.PageMetadata)
    del metadata["properties"]["stale"]
    return {
        "Access": _access(),
        "AcquiredLock": ofType(types.AcquiredLock),
        "ConfigurationPage": _pageOf("ConfigurationValue"),
        "ConfigurationValue": _object(types.ConfigurationValue, id=key),
        "ConsoleLink": ofType(types.ConsoleLink),
        "Event": {**event, "oneOf": _payloads()},
        "EventPage": _pageOf("Event"),
        "EventStream": TEXT,
        "Fault": _object(types.FaultBody, type=faultType, code=faultCode),
        "HeartbeatOutcomes": _outcomes(token),
        "HeartbeatToken": _object(types.HeartbeatToken, token=token),
        "Limits": ofType(types.Limits),
        "Lock": ofType(types.Lock),
        "LockPage": _pageOf("Lock"),
        "PageMetadata": metadata,
        "PrometheusTargets": listOf(
            objectOf(
                {
                    "targets": listOf(TEXT, minItems=1, maxItems=1),
                    "labels": {"type": "object", "additionalProperties": TEXT},
                }
            )
        ),
        "Service": _object(types.Service, id=id, state={**TEXT, "enum": ["drain", "out"]}),
        "ServicePage": _pageOf("Service"),
        "ServiceState": ofType(types.ServiceState),
        "ServiceStatePage": _pageOf("ServiceState"),
    }


def _payloads() -> list[Schema]:
    """By types of events, what is in their payloads."""
    service = dict(ofType(types.Service)["properties"])
    optional = {"state": service.pop("state")}
    del service["last_seen"], service["state_reason"]
    lock = ofType(types.Lock)["properties"]
    state = {**ofType(types.ServiceState)["properties"], "old_state": {**TEXT, "enum": [*get_args(types.State)]}}
    value = {"configuration_value_id": TEXT, "old_value": TEXT}
    changed = {"configuration_value_id": TEXT, "old_value": {"type": ["string", "null"]}, "new_value": TEXT}
    found = {
        ("service.join", "service.remove", "service.timeout"): objectOf(service, **optional),
        ("service.update",): objectOf({**service, "changed": listOf(TEXT)}, old_tags=listOf(TEXT), **optional),
        ("service.state",): objectOf(state),
        ("lock.acquire",): objectOf(lock),
        ("lock.release", "lock.expire"): objectOf({**lock, "forced": {"type": "boolean"}}),
        ("configuration_value.update",): objectOf(changed),
        ("configuration_value.remove",): {**objectOf(value), "not": {"required": ["new_value"]}},
    }
    return [{"properties": {"type": {"enum": list(names)}, "payload": each}} for names, each in found.items()]


def _pageOf(name: str) -> Schema:
    values = listOf(reference("schemas", name), maxItems=validation.MAXIMUM_LIMIT)
    return objectOf({"values": values, "metadata": reference("schemas", "PageMetadata")})


def _outcomes(token: Schema) -> Schema:
    sent, fault = {"type": ["string", "null"]}, reference("schemas", "Fault")
    outcomes = [
        each
        for kind in ("id", "lock")
        for each in (objectOf({kind: TEXT, "token": token}), objectOf({kind: sent, "fault": fault}))
    ]
    return objectOf({"values": listOf({"oneOf": outcomes}, minItems=1)})


def credentials() -> Schema:
    """The body of a ``POST /tokens``."""
    text = {**TEXT, "minLength": 1}
    kinds = {kind: objectOf({"username": text, key: text}) for kind, key in CREDENTIALS.items()}
    auth = {"type": "object", "properties": kinds, "anyOf": [{"required": [kind]} for kind in kinds]}
    return objectOf({"auth": auth})


def _access() -> Schema:
    number = matching(TENANT)
    endpoint = {"tenantId": number, "publicURL": {**TEXT, "format": "uri"}}
    regional = {"region": {"const": REGION}, **endpoint}
    entries = [
        objectOf(
            {
                "name": {"const": name},
                "type": {"const": type},
                "endpoints": listOf(objectOf(regional if hasRegion else endpoint), minItems=1, maxItems=1),
            }
        )
        for name, type, hasRegion in CATALOG
    ]
    expires = matching(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.000-06:00")
    token = {"id": TEXT, "expires": expires, "tenant": objectOf({"id": number, "name": number})}
    user = {"id": TEXT, "name": TEXT, "roles": {"type": "array"}}
    catalog = listOf({"oneOf": entries}, minItems=len(entries))
    return objectOf({"access": objectOf({"token": objectOf(token), "user": objectOf(user), "serviceCatalog": catalog})})
