"""
``GET /openapi.json``: the API as an OpenAPI 3.1 document, made from the records of the operations. Only the pages
beside the API are described here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache

from ..._version import __version__
from ...errors import FAULT_TYPES
from ..limits import RATE_HEADERS
from .components import TEXT, components, credentials, objectOf, reference
from .messages import API, EXTENSIONS
from .operations import MAXIMUM_BODY, Operation
from .routes import ROUTES, TOKENS
from .rules import Schema, schemaOf
from .validation import LIMIT

#: The path of the document.
PATH = "/openapi.json"

# The faults that every operation can have, and those that every request can. A path can name what does not exist, if
# only a page.
_ANYWHERE = ("badRequest", "requestTooLargeError", "internalError")
_ALWAYS = (*_ANYWHERE, "unauthorizedError", "forbiddenError", "systemFailureError", "notFoundError")

_FAULT_TEXTS = {
    400: "The request is invalid, or a limit is reached.",
    401: "The auth token is missing, unknown, expired or another tenant's, or the credentials are invalid.",
    403: "This client may not read the page, or this user may not change the object.",
    404: "The object or the path does not exist.",
    409: "Another holds the lock.",
    412: "The value does not fit the request's If-Match or If-None-Match.",
    500: "Internal error.",
    503: "The store is unreachable, or the registry is overloaded.",
}


def document(baseUrl: str) -> bytes:
    """The description, ready to be sent; *baseUrl* is under which the client reached the registry."""
    servers = json.dumps({"servers": [{"url": baseUrl}]})
    return f"{servers[:-1]}, {_text()[1:]}".encode()


@lru_cache(maxsize=1)
def _text() -> str:
    return json.dumps(description(), ensure_ascii=False)


def description() -> Schema:
    """The description as an OpenAPI document, but for its ``servers``."""
    paths: dict[str, Schema] = {path: {"get": page} for path, page in PAGES.items()}
    paths[TOKENS] = {"post": _authentication()}
    for path, methods in ROUTES.items():
        names = ["tenant", *(part[1:-1] for part in path.split("/") if part.startswith("{"))]
        paths[f"{API}/{{tenant}}{path}"] = {
            "parameters": [reference("parameters", name) for name in names],
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
            **components(),
        },
    }


def _described(operation: Operation) -> Schema:
    faults = [*_ALWAYS, *operation.faults]
    headers = list(operation.sends)
    if LIMIT in operation.query:
        faults.append("invalidLimit")
    if operation.method == "GET":
        faults.append("rateLimitReached")
        headers += RATE_HEADERS
    schema = None if operation.schema is None else reference("schemas", operation.schema)
    succeeded = _response(operation.success, schema, headers, mediaType=operation.mediaType)
    if operation.links:
        succeeded["links"] = operation.links
    described: Schema = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {str(operation.code): succeeded, **_faults(faults, operation.maximumBody)},
    }
    parameters = [("query", parameter) for parameter in operation.query]
    parameters += [("header", parameter) for parameter in operation.headers]
    if parameters:
        described["parameters"] = [
            {"name": each.name, "in": place, "description": each.summary, "schema": each.schema()}
            for place, each in parameters
        ]
    if operation.body is not None:
        described["requestBody"] = _body(schemaOf(operation.body))
    return described


def _authentication() -> Schema:
    described = _open(
        "Get an auth token for a user's name and API key",
        "The token, when it expires, and the URLs of the account's API.",
        reference("schemas", "Access"),
        faults=["systemFailureError"],
    )
    for code, kind, text in (
        (400, "badRequest", "The body has no valid credentials."),
        (401, "unauthorized", "Wrong user name or API key."),
    ):
        fault = objectOf({kind: objectOf({"code": {"const": code}, "message": TEXT})})
        described["responses"][str(code)] = _response(text, fault)
    return {**described, "operationId": "authenticate", "requestBody": _body(credentials())}


def _open(
    summary: str,
    success: str,
    schema: Schema,
    mediaType: str = "application/json",
    faults: Sequence[str] = (),
    others: Mapping[str, str] | None = None,
) -> Schema:
    """An operation that needs no token; *others* are the texts of responses beside 200, by code."""
    responses = {
        code: _response(text, schema, mediaType=mediaType) for code, text in {"200": success, **(others or {})}.items()
    }
    responses.update(_faults([*_ANYWHERE, *faults], MAXIMUM_BODY))
    return {"summary": summary, "security": [], "responses": responses}


def _body(schema: Schema) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _response(
    text: str, schema: Schema | None, headers: Sequence[str] = (), *, mediaType: str = "application/json"
) -> Schema:
    names = ("X-Response-Id", "X-Service-Registry-Extensions", *headers)
    response: Schema = {"description": text, "headers": {name: reference("headers", name) for name in names}}
    if schema is not None:
        response["content"] = {mediaType: {"schema": schema}}
    return response


def _faults(types: Sequence[str], bodyLimit: int) -> dict[str, Schema]:
    """The responses that are faults of these types, by code."""
    ofCode: dict[int, list[str]] = {}
    for type in types:
        ofCode.setdefault(FAULT_TYPES[type], []).append(type)
    return {str(code): _fault(code, found, bodyLimit) for code, found in ofCode.items()}


def _fault(code: int, types: list[str], bodyLimit: int) -> Schema:
    narrower: Schema = {"properties": {"type": {"enum": types}, "code": {"const": code}}}
    headers: list[str] = []
    if code == 401:
        headers.append("WWW-Authenticate")
    if code == 503 or "rateLimitReached" in types:
        headers.append("Retry-After")
    if code == 409:
        seconds = {"type": "number", "minimum": 0}
        lock = objectOf({"name": TEXT, "holder": TEXT, "fence": {"type": "integer"}, "seconds_left": seconds})
        narrower.update(properties={**narrower["properties"], "lock": lock}, required=["lock"])
    if code == 412:
        headers += ["ETag", "Cache-Control"]
    text = f"The body has {bodyLimit} bytes or more." if code == 413 else _FAULT_TEXTS[code]
    return _response(text, {"allOf": [reference("schemas", "Fault"), narrower]}, headers)


_HEALTH = _open(
    "Check whether the registry can serve requests",
    "The registry can serve requests.",
    objectOf(
        {
            "store": objectOf({"name": TEXT, "state": TEXT}),
            "uptime": {"type": "number", "minimum": 0},
            "version": TEXT,
        }
    ),
    others={"503": "The registry can't serve all requests: its store can't be read or written."},
)

#: The descriptions of the pages beside the API, by path.
PAGES: Mapping[str, Schema] = {
    "/health": _HEALTH,
    "/health/ready": _HEALTH,
    "/health/live": _open("Check whether the registry's process responds", "It does.", objectOf({"state": TEXT})),
    "/metrics": _open(
        "Get the metrics for Prometheus (by default only from the registry's machine)",
        "The metrics in Prometheus's text format.",
        TEXT,
        "text/plain",
        ["forbiddenError", "notFoundError"],
        {"501": "The package prometheus_client is not installed."},
    ),
    PATH: _open("Get this description", "The API as an OpenAPI 3.1 document.", {"type": "object"}),
}
