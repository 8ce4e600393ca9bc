"""
Validation of the JSON of responses: each function returns the value that it is given, or raises ``ValueError``, whose
text never has a value, which may be a secret. Numbers have bounds, so that arithmetic and dates work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from .. import types
from ..errors import faultIn

_In = TypeVar("_In")
_Out = TypeVar("_Out")

# The most characters of a text, and the longest heartbeat timeout in seconds. The protocol's limits are lower.
_LONGEST, _LONGEST_TIMEOUT = 4096, 86_400
# The largest integer that every JSON implementation keeps exact, and the last millisecond that has a date.
_LARGEST, _LAST_MOMENT = 2**53, 253_402_300_799_999
_TIME_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-1[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.I | re.ASCII)

# The entries of a service catalog that may have the tenant, by name or type, in their order.
_TENANT_ENTRIES = ("cloudServersOpenStack", "cloudServers", "cloudMonitoring", "rax:service-registry")

# Validates a member of an object, which may be missing.
_Check = Callable[[dict[str, Any], str], object]


def _object(value: Any, name: str = "it") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value


def _members(checks: Mapping[str, _Check], value: Any, name: str = "it") -> Any:
    holder = _object(value, name)
    for member, check in checks.items():
        check(holder, member)
    return holder


def _rule(isRight: Callable[[Any], object], wrong: str) -> _Check:
    def check(holder: dict[str, Any], name: str) -> None:
        if not isRight(holder.get(name)):
            raise ValueError(f"{name} is {wrong}")

    return check


def _integer(most: int, least: int = 0) -> _Check:
    def check(holder: dict[str, Any], name: str) -> None:
        value = holder.get(name)
        if isinstance(value, float) and value.is_integer():
            # JSON has one kind of numbers: 30.0 is 30.
            value = holder[name] = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{name} is not an integer from {least} to {most}")

    return check


def _isText(value: Any) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST:
        return False
    try:
        # Half of a surrogate pair can be neither sent nor written.
        return value.isascii() or bool(value.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def _isPrintable(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isascii() and value.isprintable()


def _areStrings(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _momentOrNull(holder: dict[str, Any], name: str) -> None:
    if holder.get(name, 0) is not None:
        _moment(holder, name)


def _stateIfAny(holder: dict[str, Any], name: str) -> None:
    if name in holder:
        _text(holder, name)
        _note(holder, "state_reason")


_NO_TEXT = f"not a string of 1 to {_LONGEST} characters"
_text = _rule(_isText, _NO_TEXT)
_note = _rule(lambda value: value == "" or _isText(value), _NO_TEXT)
_string = _rule(lambda value: isinstance(value, str), "not a string")
_textOrNull = _rule(lambda value: value is None or isinstance(value, str), "neither a string nor null")
_uuid = _rule(lambda value: isinstance(value, str) and _TIME_UUID.fullmatch(value), "not a version-1 UUID")
_list = _rule(lambda value: isinstance(value, list), "not a list")
_strings = _rule(lambda value: isinstance(value, list) and _areStrings(value), "not a list of strings")
_metadata = _rule(lambda value: isinstance(value, dict) and _areStrings(value.values()), "not an object of strings")
_printable = _rule(_isPrintable, f"not a string of 1 to {_LONGEST} printable ASCII characters")
_count = _integer(_LARGEST)
_timeout = _integer(_LONGEST_TIMEOUT, least=1)
_moment = _integer(_LAST_MOMENT)

# The fields that a service and the payloads of its events share.
_REGISTRATION = {"id": _text, "heartbeat_timeout": _timeout, "tags": _strings, "metadata": _metadata}
_STATE = {"id": _text, "state": _text, "reason": _note, "expires_at": _momentOrNull}
_LOCK_TIMES = {"fence": _count, "timeout": _timeout, "acquired_at": _moment}
_LOCK = {"name": _text, "holder": _string, "metadata": _metadata, **_LOCK_TIMES}
_RATE = {"limit": _count, "used": _count, "window": _text}
# The payloads of events. That of a type that is not known here may be anything.
_PAYLOADS: Mapping[str, Mapping[str, _Check]] = {
    **dict.fromkeys(("service.join", "service.update", "service.remove", "service.timeout"), _REGISTRATION),
    "configuration_value.update": {"configuration_value_id": _text, "new_value": _text, "old_value": _textOrNull},
    "configuration_value.remove": {"configuration_value_id": _text, "old_value": _textOrNull},
    "service.state": {**_STATE, "old_state": _text},
    **dict.fromkeys(("lock.acquire", "lock.release", "lock.expire"), _LOCK),
}

readService: Callable[[Any], types.Service] = partial(
    _members, {**_REGISTRATION, "last_seen": _momentOrNull, "state": _stateIfAny}
)
readServiceState: Callable[[Any], types.ServiceState] = partial(_members, _STATE)
readConfigurationValue: Callable[[Any], types.ConfigurationValue] = partial(_members, {"id": _text, "value": _text})
readLock: Callable[[Any], types.Lock] = partial(_members, _LOCK)
readAcquiredLock: Callable[[Any], types.AcquiredLock] = partial(_members, {"token": _printable, "fence": _count})
readToken: Callable[[Any], types.HeartbeatToken] = partial(_members, {"token": _printable})
readConsoleLink: Callable[[Any], types.ConsoleLink] = partial(_members, {"href": _printable, "expires_in": _count})


def readEvent(value: Any) -> types.Event:
    event: types.Event = _members({"id": _uuid, "timestamp": _moment, "type": _text}, value)
    try:
        if event["type"] in _PAYLOADS:
            _members(_PAYLOADS[event["type"]], event.get("payload"))
    except ValueError as error:
        raise ValueError(f"payload: {error}")
    return event


def readHolder(value: Any) -> tuple[str, int | None, float | None]:
    """Holder, fence and seconds left of a lock that another holds, as far as a fault has them."""
    lock = value if isinstance(value, dict) else {}
    holder, fence, left = lock.get("holder"), lock.get("fence"), lock.get("seconds_left")
    return (
        holder if isinstance(holder, str) else "",
        fence if isinstance(fence, int) and not isinstance(fence, bool) else None,
        float(left) if isinstance(left, (int, float)) and 0 <= left <= _LONGEST_TIMEOUT else None,
    )


def readHeartbeats(value: Any, entries: Sequence[Mapping[str, str]]) -> list[types.HeartbeatToken | types.FaultBody]:
    values = _members({"values": _list}, value)["values"]
    if len(values) != len(entries):
        raise ValueError(f"values has {len(values)} items instead of {len(entries)}")
    return _each(_readOutcome, zip(values, entries, strict=True))


def _readOutcome(pair: tuple[Any, Mapping[str, str]]) -> types.HeartbeatToken | types.FaultBody:
    value, entry = pair
    outcome = _object(value)
    kind = "lock" if "lock" in entry else "id"
    if outcome.get(kind, entry[kind]) != entry[kind]:
        raise ValueError("it is of another lock" if kind == "lock" else "it is of another service")
    if "token" in outcome:
        _printable(outcome, "token")
        return {"token": outcome["token"]}
    fault = faultIn(outcome.get("fault"))
    if fault is None:
        raise ValueError("it is neither a token nor a fault")
    return cast(types.FaultBody, fault)


def _each(read: Callable[[_In], _Out], values: Iterable[_In]) -> list[_Out]:
    done: list[_Out] = []
    try:
        for value in values:
            done.append(read(value))
    except ValueError as error:
        raise ValueError(f"values[{len(done)}]: {error}")
    return done


def readLimits(value: Any) -> types.Limits:
    limits = _object(value)
    resources = _object(limits.get("resource"), "resource")
    _members(dict.fromkeys(resources, _count), resources)
    for rate in _object(limits.get("rate"), "rate").values():
        _members(_RATE, rate, "a rate")
    return cast(types.Limits, limits)


def readAccess(value: Any) -> tuple[str, str, object, list[dict[str, Any]]]:
    """The token, the tenant's id, ``expires`` as it was sent, and the objects in the service catalog."""
    access = _object(_object(value).get("access"), "access")
    token = _object(access.get("token"), "the token")
    try:
        _printable(token, "id")
    except ValueError as error:
        raise ValueError(f"the token's {error}")
    catalog = objectsIn(access.get("serviceCatalog"))
    tenant = _tenantIn(token, catalog)
    if not _isPrintable(tenant):
        raise ValueError("the tenant of the token is not a tenant id")
    return token["id"], tenant, token.get("expires"), catalog


def objectsIn(value: object) -> list[dict[str, Any]]:
    """The objects of a list; none of what is not a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _tenantIn(token: dict[str, Any], catalog: list[dict[str, Any]]) -> str:
    """The tenant's id: it has stood in different places over the years."""
    tenant = token.get("tenant")
    if isinstance(tenant, dict) and tenant.get("id") not in (None, ""):
        return _idText(tenant["id"])
    entries = (each for name in _TENANT_ENTRIES for each in catalog if name in (each.get("name"), each.get("type")))
    for endpoint in (each for entry in entries for each in objectsIn(entry.get("endpoints"))):
        url = endpoint.get("publicURL")
        end = url.rstrip("/").rpartition("/")[2] if isinstance(url, str) else ""
        if found := _idText(endpoint.get("tenantId")) or end:
            return found
    raise ValueError("the token names no tenant")


def _idText(value: object) -> str:
    # Some deployments write the number of a tenant as a number.
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST:
        return str(value)
    return value if isinstance(value, str) else ""


def _page(read: Callable[[Any], Any], value: Any, key: str = "id") -> Any:
    page = _members({"values": _list}, value)
    values = page["values"]
    if len({each[key] for each in _each(read, values)}) != len(values):
        raise ValueError(f"values has the same {key} twice")
    metadata = _object(page.get("metadata"), "metadata")
    # A page without it would pass for the last one, and the objects on the next pages for removed ones.
    if "next_marker" not in metadata:
        raise ValueError("metadata has no next_marker")
    if metadata["next_marker"] is not None:
        _printable(metadata, "next_marker")
        if not values:
            raise ValueError("values is empty, although there is a next_marker")
    for name, check in (("count", _count), ("limit", _count), ("marker", _textOrNull), ("next_href", _textOrNull)):
        if name in metadata:
            check(metadata, name)
    return page


readServicePage: Callable[[Any], types.ServicePage] = partial(_page, readService)
readServiceStatePage: Callable[[Any], types.ServiceStatePage] = partial(_page, readServiceState)
readConfigurationPage: Callable[[Any], types.ConfigurationPage] = partial(_page, readConfigurationValue)
readEventPage: Callable[[Any], types.EventPage] = partial(_page, readEvent)
readLockPage: Callable[[Any], types.LockPage] = partial(_page, readLock, key="name")
