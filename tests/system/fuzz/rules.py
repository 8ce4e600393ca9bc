"""
The rules of the API for the values and the parameters of requests, and its faults, once more.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.system.fuzz.expectations import Expected, link, text
from tests.system.fuzz.inputs import ROLES
from tests.system.fuzz.records import Request, Service, Value

NO_PAGE = "The page cannot be found."
BAD_MARKER = r"Marker contains invalid characters. Valid characters are: /^[a-z0-9\-:_\.\/]{0,255}$/i"


class Refused(Exception):
    """The answer is a fault."""

    def __init__(
        self, status: int, type: str, message: Any, details: Any, headers: dict[str, Any] | None = None
    ) -> None:
        super().__init__(status, type, message, details)
        self.expected = Expected(
            status,
            {"type": type, "code": status, "message": message, "details": details, "txnId": text("[0-9a-z-]+")},
            headers or {},
        )


def bad(message: str, details: str) -> Refused:
    return Refused(400, "badRequest", message, details)


def invalid(key: str, reason: str) -> Refused:
    return bad(f"Validation error for key '{key}'", reason)


def gone(kind: str, key: str) -> Refused:
    return Refused(404, "notFoundError", "object does not exist", f'Object "{kind}" with key "{key}" does not exist')


def noPage() -> Refused:
    return Refused(404, "notFoundError", NO_PAGE, NO_PAGE)


def full(resource: str, most: int) -> Refused:
    details = f"Limit for resource {resource} has been reached. Maximum allowed objects: {most}"
    return Refused(400, "limitReached", "Resource limit has been reached", details)


def mayChange(request: Request, kind: str, key: str) -> None:
    """A request that changes something is refused if the user's role does not allow it."""
    prefixes = ROLES[request.role]
    if request.method == "GET" or prefixes == ("", ""):
        return
    if prefixes is not None:
        services, configuration = prefixes
        if kind == "services" and key.startswith(services):
            return
        if kind == "configuration" and (key + "/").startswith(configuration + "/"):
            return
    details = "This user may only read.*" if prefixes is None else "This user may only change .*"
    raise Refused(403, "forbiddenError", "forbidden", text(details))


def string(value: Any, least: int, most: int, pattern: str = r"(?s:.*)") -> str | None:
    if not isinstance(value, str):
        return "Not a string"
    if not least <= len(value) <= most:
        return f"String is not in range ({least}..{most})"
    return None if re.fullmatch(pattern, value, re.ASCII) else "Invalid characters"


def integer(value: Any, least: int, most: int) -> str | None:
    whole = wholeNumber(value)
    if whole is None:
        return "Invalid integer"
    return None if least <= whole <= most else f"Value out of range ({least}..{most})"


def wholeNumber(value: Any) -> int | None:
    """The value of a number, or of a text that reads as one; ``None`` if that is not a whole number."""
    if type(value) is str and re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", value, re.ASCII):
        # (A number that overflows is out of every range.)
        value = max(-1e300, min(float(value), 1e300))
    if type(value) is float and value == int(value):
        value = int(value)
    return value if type(value) is int else None


def idReason(value: Any) -> str | None:
    return string(value, 3, 65, r"[A-Za-z0-9_.-]*")


def tagsReason(value: Any) -> str | None:
    if not isinstance(value, list):
        return "Not an array"
    if len(value) > 10:
        return "Object needs to have between 0 and 10 items"
    return next((reason for tag in value if (reason := string(tag, 1, 55))), None)


def metadataReason(value: Any) -> str | None:
    if not isinstance(value, dict):
        return "Not a hash"
    if len(value) > 20:
        return "Object needs to have between 0 and 20 items"
    for key, each in value.items():
        if reason := string(key, 1, 255):
            return f"Key {key}: {reason}"
        if reason := string(each, 1, 255):
            return f"Value for key '{key}': {reason}"
    return None


def uuidReason(value: Any) -> str | None:
    if not isinstance(value, str):
        return "Not a string"
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value, re.ASCII):
        return "Invalid UUID"
    if value[14] != "1":
        return "UUID is not version 1"
    return None if value[19] in "89abAB" else "Unsupported UUID variant"


def anyUuidReason(value: Any) -> str | None:
    reason = uuidReason(value)
    return reason if reason in ("Not a string", "Invalid UUID") else None


def keyReason(key: Any) -> str | None:
    return string(key, 3, 500, r"(/[A-Za-z0-9_-]{3,50}/?){0,10}([A-Za-z0-9_.-]{3,170})?") or (
        "Invalid characters" if key.endswith("/") else None
    )


def parameter(name: str, reason: str | None) -> None:
    if reason:
        raise bad(f"Invalid value for '{name}' query string parameter", reason)


def tagOf(value: Value | None) -> dict[str, Any]:
    """The headers of a response with a value, or with none."""
    return {"cache-control": "no-store", "etag": None if value is None else value.change.etag}


def meets(request: Request, key: str, value: Value | None) -> None:
    """Refuse a write whose condition is not met, or malformed."""
    if not request.conditions:
        return
    if len(request.conditions) > 1:
        raise bad("'If-Match' and 'If-None-Match' headers can't be combined", "Send only one of them")
    ((name, given),) = request.conditions
    if name == "If-None-Match":
        if given != "*":
            raise bad(f"Invalid value for '{name}' header", f"Invalid value: {given}. Valid values are: *")
        isMet = value is None
    else:
        tags = [each.strip(" ").removeprefix("W/") for each in given.split(",")]
        if given != "*" and not all(re.fullmatch('"[!#-~]*"', each) for each in tags):
            raise bad(f"Invalid value for '{name}' header", text("Not .*"))
        isMet = value is not None and (given == "*" or value.change.tag in tags)
    if not isMet:
        raise Refused(412, "preconditionFailed", "precondition failed", text(".*"), tagOf(value))


def timeoutReason(value: Any) -> str | None:
    return integer(value, 3, 120)


def parsed(request: Request) -> Any:
    raw = request.raw
    if not raw:
        return {}
    media = (request.contentType or "application/json").partition(";")[0].strip()
    if media.lower() != "application/json":
        raise Refused(400, "badRequest", f"Unsupported content type: {media}", text(".*"))
    try:
        body = json.loads(raw.decode("utf-8"))
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Refused(400, "badRequest", text("Failed to parse request body:.*"), text(".*"))
    return body


def changesIn(body: Any, id: str) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if "id" in body and body["id"] != id:
        raise invalid("id", "Attempted to mutate immutable field" if isinstance(body["id"], str) else "Not a string")
    if "heartbeat_timeout" in body:
        if why := timeoutReason(body["heartbeat_timeout"]):
            raise invalid("heartbeat_timeout", why)
        changes["heartbeat_timeout"] = wholeNumber(body["heartbeat_timeout"])
    for key, reason, default in (("tags", tagsReason, []), ("metadata", metadataReason, {})):
        if key in body:
            changes[key] = default if body[key] is None else body[key]
            if why := reason(changes[key]):
                raise invalid(key, why)
    return changes


def stateIn(body: Any) -> tuple[str, str, int | None]:
    """The state, the reason and the seconds in a body."""
    if "state" not in body:
        raise invalid("state", "Missing required key (state)")
    state, reason, seconds = body["state"], body.get("reason"), body.get("expires_in")
    if state not in ("up", "drain", "out"):
        raise invalid("state", f"Invalid state: {state}. Valid states are: up,drain,out")
    if reason is not None and (why := string(reason, 0, 255)):
        raise invalid("reason", why)
    if "expires_in" in body:
        if why := integer(seconds, 1, 2_592_000):
            raise invalid("expires_in", why)
        seconds = wholeNumber(seconds)
    return state, reason or "", seconds


def withStates(request: Request) -> bool:
    """Whether a request asks for states."""
    value = request.parameter("states")
    if value not in (None, "true", "false"):
        parameter("states", f"Invalid value: {value}. Valid values are: true,false")
    return value == "true"


def limitOf(request: Request) -> int:
    limits = [value for name, value in request.query if name == "limit"]
    if not limits:
        return 100
    limit = limits[0]
    if len(limits) > 1 or not re.fullmatch("-?[0-9]+", limit, re.ASCII):
        raise Refused(400, "invalidLimit", "Invalid limit", "Limit must be a number")
    if not 1 <= int(limit) <= 1000:
        details = f"Invalid limit {limit}. Minimum limit is 1 and maximum limit is 1000."
        raise Refused(400, "invalidLimit", "Invalid limit", details)
    return int(limit)


def pageOf(request: Request) -> tuple[int, str | None]:
    limit, marker = limitOf(request), request.parameter("marker")
    if marker is not None:
        parameter("marker", BAD_MARKER if string(marker, 0, 255, r"[A-Za-z0-9:_./-]*") else None)
    return limit, marker


def page(request: Request, limit: int, marker: str | None, values: list[Any]) -> Expected:
    """A page of *values*: those from the marker on that there is room for."""
    isFeed = request.path.startswith("/events")
    key = "name" if request.path == "/locks" else "id"
    left = [value for value in values if isFeed or value[key] >= (marker or "")]
    following = left[limit][key] if len(left) > limit else None
    query = [(name, value) for name, value in request.query if name != "marker"]
    href = link(f"/v1.0/{request.tenant}{request.path}", [*query, ("marker", following)]) if following else None
    return Expected(
        200,
        {
            "values": left[:limit],
            "metadata": {
                "count": len(left[:limit]),
                "limit": limit,
                "marker": marker,
                "next_marker": following,
                "next_href": href,
            },
        },
    )


def isTarget(service: Service) -> bool:
    """Whether Prometheus is to scrape a service. (The metadata of the programs have good addresses, or none.)"""
    return "host" in service.metadata and service.metadata.get("status") != "disabled"


def target(service: Service, state: str) -> dict[str, Any]:
    """The target group of a service."""
    host, port = service.metadata["host"], service.metadata["port"]
    labels = {"id": service.id, "tags": ",".join(["", *service.tags, ""]) if service.tags else "", "state": state}
    for key, value in sorted(service.metadata.items(), reverse=True):
        labels["metadata_" + "".join(c if c.isascii() and c.isalnum() else "_" for c in key)] = value
    return {
        "targets": [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"],
        "labels": {"__meta_service_registry_" + name: value for name, value in labels.items()},
    }
