"""The pages beside the API, which need no token: health, metrics, and ``/openapi.json``, the description of the API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from types import UnionType
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints, is_typeddict

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from ... import types
from ..._version import __version__, installCommand
from ...errors import FAULT_TYPES
from ...util.deferred import SingleFlight, returnsDeferred
from ...util.logs import Logger
from ..faults import NO_STORE, Fault, forbidden
from ..identity import TENANT
from ..limits import PATHS, RATE_HEADERS
from ..stores.interfaces import ISharedStore, IStore, StoreUnavailable
from .connections import ipOf
from .messages import API, CREDENTIALS, EXTENSIONS, Response, inJSON
from .operations import MAXIMUM_BODY, ROUTES, TOKENS, Operation
from .validation import KEY, LIMIT, MAXIMUM_LIMIT, PATH_PARAMETERS, SERVICE_ID, TIME_UUID, Schema, matching, schemaOf

#: By path, the handlers of pages.
Pages: TypeAlias = Mapping[str, Callable[[Request], Awaitable[Response]]]

#: The clients that may read the metrics: all, those on this machine, none.
ANYWHERE = "anywhere"
LOOPBACK = "loopback"
OFF = "off"

#: The states of a store: it works; it can't be written or read; it does not answer.
OK = "ok"
UNAVAILABLE = "unavailable"
SILENT = "not answering"

#: How long the result of a probe is used, and how long the page waits for one, in seconds.
BELIEF = 1.0
PATIENCE = 2.0

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


class Health:
    """Whether the store can be read and written. A probe counts for a second, to spare the disk."""

    _log = Logger()

    def __init__(self, store: IStore, clock: IReactorTime) -> None:
        self._store = store
        self._clock = clock
        self._started = clock.seconds()
        self._probing: SingleFlight[str, None] = SingleFlight()
        # The state of the store, and until when it is believed.
        self._found = "", clock.seconds()

    @returnsDeferred
    async def report(self) -> dict[str, Any]:
        """Fires with the health of the registry now, or less than a second ago, as JSON; within two seconds."""
        if self._clock.seconds() >= self._found[1]:
            try:
                # All requests wait for the same probe, also for one that hangs.
                await self._probing.do("", self._probe).addTimeout(PATIENCE, self._clock)
            except TimeoutError:
                self._find(SILENT)
        return {
            "store": {"name": self._store.name, "state": self._found[0]},
            "uptime": round(self._clock.seconds() - self._started, 3),
            "version": __version__,
        }

    @returnsDeferred
    async def _probe(self) -> None:
        try:
            await self._store.probe()
            if ISharedStore.providedBy(self._store) and not self._store.isValid:
                raise StoreUnavailable("this node is not a valid member of the cluster")
        except Exception as error:
            self._find(UNAVAILABLE)
            if not isinstance(error, StoreUnavailable):
                self._log.failure("Internal error while probing the store")
        else:
            self._find(OK)

    def _find(self, state: str) -> None:
        self._found = state, self._clock.seconds() + BELIEF


def statusPages(health: Health, makeMetrics: Callable[[], Callable[[], Response]], audience: str = LOOPBACK) -> Pages:
    """The pages of a registry. The *audience* may have the metrics, which are made when they are first asked for."""
    metrics = lru_cache(maxsize=1)(makeMetrics)

    async def getHealth(request: Request) -> Response:
        report = await health.report()
        return Response(200 if report["store"]["state"] == OK else 503, report, NO_STORE)

    async def getLife(request: Request) -> Response:
        return Response(200, {"state": "alive"}, NO_STORE)

    async def getDescription(request: Request) -> Response:
        return Response(200, text=document())

    async def getMetrics(request: Request) -> Response:
        address = request.getClientAddress()
        host = ipOf(address)
        isLocal = isinstance(address, UNIXAddress) if host is None else host.is_loopback
        if audience != ANYWHERE and not isLocal:
            raise forbidden("Metrics are available only on the registry's machine (see its option --metrics)")
        try:
            page = metrics()
        except ImportError:
            details = f"Run {installCommand('metrics')} where the registry runs"
            raise Fault("notImplementedError", "prometheus_client is not installed", details)
        return page()

    pages = {"/health": getHealth, "/health/ready": getHealth, "/health/live": getLife, "/openapi.json": getDescription}
    return pages if audience == OFF else {**pages, "/metrics": getMetrics}


# -- the description: an OpenAPI 3.1 document, made from the records of the operations


@lru_cache(maxsize=1)
def document() -> bytes:
    """The description, ready to be sent."""
    paths: Schema = {TOKENS: {"post": _authentication()}}
    for path, methods in ROUTES.items():
        names = ["tenant", *(part[1:-1] for part in path.split("/") if part.startswith("{"))]
        paths[f"{API}/{{tenant}}{path}"] = {
            "parameters": [_reference("parameters", name) for name in names],
            **{method.lower(): _described(operation) for method, operation in methods.items()},
        }
    description = {
        "openapi": "3.1.0",
        "info": {
            "title": "Service Registry API",
            "version": "1.0",
            "description": "Services, which are kept registered by heartbeats, configuration values, and events. "
            f"Served by txserviceregistry {__version__}, with the extensions {', '.join(EXTENSIONS)}.",
        },
        "servers": [{"url": "/"}],
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
    return inJSON(description).encode()


def _described(operation: Operation) -> Schema:
    faults = ["badRequest", "requestTooLargeError", "internalError", "systemFailureError", "unauthorizedError"]
    faults += ["forbiddenError", "notFoundError", *operation.faults]
    if LIMIT in operation.query:
        faults.append("invalidLimit")
    isRead = operation.method == "GET"
    headers = [*operation.sends, *RATE_HEADERS] if isRead else operation.sends
    content = operation.schema and _content(
        _reference("schemas", operation.schema),
        "text/event-stream" if operation.schema == "EventStream" else "application/json",
    )
    described: Schema = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [
            {"name": each.name, "in": place, "description": each.summary, "schema": each.rule.schema}
            for place, parameters in (("query", operation.query), ("header", operation.headers))
            for each in parameters
        ],
        "responses": {
            str(operation.code): _response(operation.success, content, headers),
            **_faults([*faults, "rateLimitReached"] if isRead else faults, operation.maximumBody),
        },
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _content(schemaOf(operation.body))}
    return described


def _authentication() -> Schema:
    """``POST /tokens``, whose faults have a form of their own."""
    number, word = matching(TENANT), {**_TEXT, "minLength": 1}
    kinds = {kind: _object({"username": word, key: word}) for kind, key in CREDENTIALS.items()}
    auth = {"type": "object", "properties": kinds, "anyOf": [{"required": [kind]} for kind in kinds]}
    endpoint = _object({"tenantId": number, "publicURL": {**_TEXT, "format": "uri"}}, region=_TEXT)
    entry = _object({"name": _TEXT, "type": _TEXT, "endpoints": _listOf(endpoint)})
    expires = matching(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.000-06:00")
    token = _object({"id": _TEXT, "expires": expires, "tenant": _object({"id": number, "name": number})})
    user = _object({"id": _TEXT, "name": _TEXT, "roles": {"type": "array"}})
    access = _object({"token": token, "user": user, "serviceCatalog": _listOf(entry)})
    refusals = {
        str(code): _response(text, _content(_object({kind: _object({"code": {"const": code}, "message": _TEXT})})))
        for code, kind, text in (
            (400, "badRequest", "The body has no valid credentials."),
            (401, "unauthorized", "Wrong user name or API key."),
        )
    }
    text = "The token, when it expires, and the URLs of the account's API."
    return {
        "operationId": "authenticate",
        "summary": "Get an auth token for a user's name and API key",
        "security": [],
        "requestBody": {"required": True, "content": _content(_object({"auth": auth}))},
        "responses": {
            "200": _response(text, _content(_object({"access": access}))),
            **_faults(["requestTooLargeError", "internalError", "systemFailureError"], MAXIMUM_BODY),
            **refusals,
        },
    }


def _content(schema: Schema, mediaType: str = "application/json") -> Schema:
    return {mediaType: {"schema": schema}}


def _response(text: str, content: Schema | str | None, headers: Iterable[str] = ()) -> Schema:
    names = ("X-Response-Id", "X-Service-Registry-Extensions", *headers)
    response = {"description": text, "headers": {name: _reference("headers", name) for name in names}}
    return {**response, "content": content} if content else response


def _faults(types: Iterable[str], bodyLimit: int) -> Schema:
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
        responses[str(code)] = _response(text, _content(schema), headers)
    return responses


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
    # The client's cache adds "stale" to the metadata of a page, never a registry.
    metadata = _ofType(types.PageMetadata)
    del metadata["properties"]["stale"]
    targets = {"targets": _listOf(_TEXT, minItems=1, maxItems=1), "labels": _ofType(dict[str, str])}
    failed = _reference("schemas", "Fault")
    outcomes = [
        each
        for kind in ("id", "lock")
        for each in (_object({kind: _TEXT, "token": token}), _object({kind: _ofType(str | None), "fault": failed}))
    ]
    schemas = {
        "ConfigurationValue": _ofType(types.ConfigurationValue, id=KEY.rule.schema),
        "Event": {**_ofType(types.Event, id=token, payload={"type": "object"}), "oneOf": _payloads()},
        "Lock": _ofType(types.Lock),
        "Service": _ofType(types.Service, id=SERVICE_ID.rule.schema, state={**_TEXT, "enum": ["drain", "out"]}),
        "ServiceState": _ofType(types.ServiceState),
    }
    pages = {
        f"{name}Page": _object(
            {
                "values": _listOf(_reference("schemas", name), maxItems=MAXIMUM_LIMIT),
                "metadata": _reference("schemas", "PageMetadata"),
            }
        )
        for name in schemas
    }
    return {
        **schemas,
        **pages,
        "AcquiredLock": _ofType(types.AcquiredLock),
        "ConsoleLink": _ofType(types.ConsoleLink),
        "EventStream": _TEXT,
        "Fault": _ofType(types.FaultBody, type={**_TEXT, "enum": list(FAULT_TYPES)}, code=faultCode, lock=lock),
        "HeartbeatOutcomes": _object({"values": _listOf({"oneOf": outcomes}, minItems=1)}),
        "HeartbeatToken": _ofType(types.HeartbeatToken, token=token),
        "Limits": _ofType(types.Limits),
        "PageMetadata": metadata,
        "PrometheusTargets": _listOf(_object(targets)),
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
