"""
The components of the description of the API: the schemas, parameters and headers that operations refer to by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from ... import types
from ...util.faults import FAULT_TYPES
from ..identity.identity import TENANT
from ..limits import PATHS, RATE_HEADERS
from . import schemas, validation
from .keystone import CATALOG, CREDENTIALS, REGION
from .rules import TimeUUID
from .schemas import Schema


def reference(kind: str, name: str) -> Schema:
    """
    A reference to a component.

    :param kind: ``schemas``, ``parameters`` or ``headers``.
    """
    return {"$ref": f"#/components/{kind}/{name}"}


def components() -> Schema:
    """All components, by kind and name."""
    return {"parameters": _parameters(), "headers": _headers(), "schemas": _schemas()}


def _parameters() -> Schema:
    found = {
        "tenant": ("The number of the account.", schemas.ofPattern(TENANT)),
        "namespace": (
            "A namespace, which is written as a key is; the slash that it begins with may be left out.",
            {"type": "string"},
        ),
        **{each.name: (each.summary, schemas.ofText(each.rule)) for each in validation.PATH_PARAMETERS},
    }
    return {
        name: {"name": name, "in": "path", "required": True, "description": text, "schema": schema}
        for name, (text, schema) in found.items()
    }


def _headers() -> Schema:
    found: Mapping[str, tuple[str, bool, Schema]] = {
        "X-Response-Id": ("The id of the request, which is the txnId of a fault.", True, {"type": "string"}),
        "X-Service-Registry-Extensions": ("The extensions of the registry.", True, {"type": "string"}),
        "Location": ("The URL of the object that was created or changed.", True, {"type": "string", "format": "uri"}),
        "ETag": ("The tag of the value; absent if there is no value.", False, schemas.ofPattern('"[0-9]+"')),
        "Cache-Control": ("No cache may keep the response.", True, {"const": "no-store"}),
        "WWW-Authenticate": (
            "The URL of the Auth API, and the other schemes.",
            True,
            schemas.ofPattern('Keystone uri="[^"]*".*'),
        ),
        **_rateHeaders(),
        "Retry-After": (
            "Seconds after which to retry: after rateLimitReached, and when too many requests wait for events.",
            False,
            {"type": "integer", "minimum": 1},
        ),
    }
    return {
        name: {"description": text, "required": required, "schema": schema}
        for name, (text, required, schema) in found.items()
    }


def _rateHeaders() -> dict[str, tuple[str, bool, Schema]]:
    """With ``--rate-limit off`` they are absent."""
    texts: dict[str, tuple[str, Schema]] = {
        "X-Ratelimit-Path-Regex": ("The pattern of the paths that the rate limit counts.", {"const": PATHS}),
        "X-Ratelimit-Limit": (
            "The number of GETs allowed in a window.",
            {"type": "integer", "minimum": 0},
        ),
        "X-Ratelimit-Used": ("The number of GETs in the window before this one.", {"type": "integer", "minimum": 0}),
        "X-Ratelimit-Window": ("The length of the window.", schemas.ofPattern(r"[0-9]+(?:\.[0-9]+)? seconds")),
        "Reply-After": ("The end of the window, in seconds since 1970.", {"type": "integer"}),
    }
    assert texts.keys() == set(RATE_HEADERS)
    return {name: (text, False, schema) for name, (text, schema) in texts.items()}


def _schemas() -> dict[str, Schema]:
    fault = schemas.ofType(types.FaultBody)
    fault["properties"]["type"]["enum"] = list(FAULT_TYPES)
    fault["properties"]["code"]["enum"] = sorted(set(FAULT_TYPES.values()))
    event = schemas.ofType(types.Event)
    event["properties"]["id"] = schemas.ofRule(TimeUUID())
    event["properties"]["payload"] = {"type": "object"}
    event["oneOf"] = _payloads()
    service = schemas.ofType(types.Service)
    service["properties"]["id"] = schemas.ofText(validation.SERVICE_ID.rule)
    service["properties"]["state"] = {"type": "string", "enum": ["drain", "out"]}
    state = schemas.ofType(types.ServiceState)
    value = schemas.ofType(types.ConfigurationValue)
    value["properties"]["id"] = schemas.ofText(validation.KEY.rule)
    token = schemas.ofType(types.HeartbeatToken)
    token["properties"]["token"] = schemas.ofRule(TimeUUID())
    return {
        "Access": _access(),
        "AcquiredLock": schemas.ofType(types.AcquiredLock),
        "ConfigurationPage": _pageOf("ConfigurationValue"),
        "ConfigurationValue": value,
        "ConsoleLink": schemas.ofType(types.ConsoleLink),
        "Event": event,
        "EventPage": _pageOf("Event"),
        "EventStream": {"type": "string"},
        "Fault": fault,
        "HeartbeatOutcomes": _outcomes(),
        "HeartbeatToken": token,
        "Limits": schemas.ofType(types.Limits),
        "Lock": schemas.ofType(types.Lock),
        "LockPage": _pageOf("Lock"),
        "PageMetadata": _pageMetadata(),
        "PrometheusTargets": _prometheusTargets(),
        "Service": service,
        "ServicePage": _pageOf("Service"),
        "ServiceState": state,
        "ServiceStatePage": _pageOf("ServiceState"),
    }


def _payloads() -> list[Schema]:
    """By types of events, what is in their payloads."""
    service = schemas.ofType(types.Service)
    for name in ("last_seen", "state_reason"):
        del service["properties"][name]
    service["required"].remove("last_seen")
    names = {"type": "array", "items": {"type": "string"}}
    changed = {**service, "properties": {**service["properties"], "changed": names, "old_tags": names}}
    changed["required"] = [*service["required"], "changed"]
    lock = schemas.ofType(types.Lock)
    ended = {**lock, "properties": {**lock["properties"], "forced": {"type": "boolean"}}}
    ended["required"] = [*lock["required"], "forced"]
    value = {"type": "string"}
    update = objectOf(configuration_value_id=value, old_value={"type": ["string", "null"]}, new_value=value)
    remove = objectOf(configuration_value_id=value, old_value=value)
    remove["not"] = {"required": ["new_value"]}
    states = get_args(types.State)
    state = objectOf(
        **schemas.ofType(types.ServiceState)["properties"], old_state={"type": "string", "enum": [*states]}
    )
    ofTypes = [
        (["service.join", "service.remove", "service.timeout"], service),
        (["service.update"], changed),
        (["service.state"], state),
        (["lock.acquire"], lock),
        (["lock.release", "lock.expire"], ended),
        (["configuration_value.update"], update),
        (["configuration_value.remove"], remove),
    ]
    return [{"properties": {"type": {"enum": names}, "payload": payload}} for names, payload in ofTypes]


def objectOf(**properties: Schema) -> Schema:
    """An object that has all of these properties."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _pageOf(of: str) -> Schema:
    values = {"type": "array", "items": reference("schemas", of), "maxItems": validation.MAXIMUM_LIMIT}
    return objectOf(values=values, metadata=reference("schemas", "PageMetadata"))


def _pageMetadata() -> Schema:
    schema = schemas.ofType(types.PageMetadata)
    # The client's cache adds it, never a registry.
    del schema["properties"]["stale"]
    return schema


def _outcomes() -> Schema:
    id = {"type": ["string", "null"]}
    token, fault = schemas.ofRule(TimeUUID()), reference("schemas", "Fault")
    outcomes = [objectOf(id={"type": "string"}, token=token), objectOf(id=id, fault=fault)]
    outcomes += [objectOf(lock={"type": "string"}, token=token), objectOf(lock=id, fault=fault)]
    return objectOf(values={"type": "array", "items": {"oneOf": outcomes}, "minItems": 1})


def _prometheusTargets() -> Schema:
    text: Schema = {"type": "string"}
    targets = {"type": "array", "items": text, "minItems": 1, "maxItems": 1}
    return {
        "type": "array",
        "items": objectOf(targets=targets, labels={"type": "object", "additionalProperties": text}),
    }


def credentials() -> Schema:
    """The body of a ``POST /tokens``."""
    text = {"type": "string", "minLength": 1}
    kinds = {kind: objectOf(username=text, **{key: text}) for kind, key in CREDENTIALS.items()}
    auth = {"type": "object", "properties": kinds, "anyOf": [{"required": [kind]} for kind in kinds]}
    return objectOf(auth=auth)


def _access() -> Schema:
    text = {"type": "string"}
    number = schemas.ofPattern(TENANT)
    endpoint = objectOf(tenantId=number, publicURL={"type": "string", "format": "uri"})
    regional = objectOf(region={"const": REGION}, **endpoint["properties"])
    entries = [
        objectOf(
            name={"const": name},
            type={"const": type},
            endpoints={"type": "array", "items": regional if hasRegion else endpoint, "minItems": 1, "maxItems": 1},
        )
        for name, type, hasRegion in CATALOG
    ]
    expires = schemas.ofPattern(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.000-06:00")
    return objectOf(
        access=objectOf(
            token=objectOf(id=text, expires=expires, tenant=objectOf(id=number, name=number)),
            user=objectOf(id=text, name=text, roles={"type": "array"}),
            serviceCatalog={"type": "array", "items": {"oneOf": entries}, "minItems": len(entries)},
        )
    )


def identityFault(kind: str, code: int) -> Schema:
    """A fault of the Auth API."""
    return objectOf(**{kind: objectOf(code={"const": code}, message={"type": "string"})})
