"""
Validation of the JSON of responses.

Each function takes a JSON value and returns it if it has the right shape, with ``30`` in place of an integer that is
written ``30.0``. Otherwise it raises ``ValueError``, whose text names the member and what it should be, but never a
value, which may be a secret. Unknown members are ignored. Numbers have bounds, so that arithmetic and dates work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from ..types import (
    AcquiredLock,
    ConfigurationPage,
    ConfigurationValue,
    ConsoleLink,
    Event,
    EventPage,
    FaultBody,
    HeartbeatToken,
    Limits,
    Lock,
    LockPage,
    Service,
    ServicePage,
    ServiceState,
    ServiceStatePage,
)
from ..util.faults import faultIn

# The most characters of a text. The protocol's limits are lower.
_LONGEST = 4096
# The last millisecond of the year 9999, which is the last one with a date.
_LAST_MILLISECOND = 253_402_300_799_999
# The longest heartbeat timeout in seconds: more than any registry allows.
_LONGEST_TIMEOUT = 86_400
# The largest integer that every JSON implementation keeps exact.
_LARGEST = 2**53

_TIME_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-1[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.I | re.ASCII)
# Text that is valid in a header or, encoded, in a path.
_PRINTABLE = re.compile(r"[ -~]+")

# The entries of a service catalog that may have the tenant (by name, the last one by type), in their order.
_TENANT_ENTRIES = ("cloudServersOpenStack", "cloudServers", "cloudMonitoring", "rax:service-registry")

# Validates a member of an object.
_Check = Callable[[dict[str, Any], str], object]

#: The token, the tenant's id, ``expires`` as it was sent, and the service catalog.
Access = tuple[str, str, object, list[dict[str, Any]]]


def readService(value: Any) -> Service:
    """A service."""
    service = _registration(value)
    if service.get("last_seen", False) is not None:
        _integer(service, "last_seen", _LAST_MILLISECOND)
    if "state" in service:
        _members(service, {"state": _text, "state_reason": _note})
    return cast(Service, service)


def readServiceState(value: Any) -> ServiceState:
    """The state of a service."""
    return cast(ServiceState, _members(value, _STATE))


def readConfigurationValue(value: Any) -> ConfigurationValue:
    """A configuration value."""
    return cast(ConfigurationValue, _members(value, {"id": _text, "value": _text}))


def readEvent(value: Any) -> Event:
    """
    An event.

    The payload of an event of a type that is not known here may be anything.
    """
    event = _object(value)
    id = event.get("id")
    if not isinstance(id, str) or not _TIME_UUID.fullmatch(id):
        raise ValueError("id is not a version-1 UUID")
    _integer(event, "timestamp", _LAST_MILLISECOND)
    type = _text(event, "type")
    try:
        if type in _SERVICE_EVENTS:
            _registration(event.get("payload"))
        elif type in _PAYLOADS:
            _members(event.get("payload"), _PAYLOADS[type])
    except ValueError as error:
        raise ValueError(f"payload: {error}")
    return cast(Event, event)


def readLock(value: Any) -> Lock:
    """A lock that is held."""
    lock = _members(value, {"name": _text, "fence": _count})
    _integer(lock, "timeout", _LONGEST_TIMEOUT, least=1)
    _integer(lock, "acquired_at", _LAST_MILLISECOND)
    if not isinstance(lock.get("holder"), str):
        raise ValueError("holder is not a string")
    _metadata(lock)
    return cast(Lock, lock)


def readAcquiredLock(value: Any) -> AcquiredLock:
    """The response to an acquisition: token and fence."""
    return cast(AcquiredLock, _members(value, {"token": _printable, "fence": _count}))


def readHolder(value: Any) -> tuple[str, int | None, float | None]:
    """Holder, fence and seconds left of a lock that another holds, as far as a fault has them."""
    lock = value if isinstance(value, dict) else {}
    holder, fence, left = lock.get("holder"), lock.get("fence"), lock.get("seconds_left")
    return (
        holder if isinstance(holder, str) else "",
        fence if isinstance(fence, int) and not isinstance(fence, bool) else None,
        float(left) if isinstance(left, (int, float)) and 0 <= left <= _LONGEST_TIMEOUT else None,
    )


def readToken(value: Any) -> HeartbeatToken:
    """The response to a registration and to a heartbeat: the token for the next heartbeat."""
    token = _object(value)
    _printable(token, "token")
    return cast(HeartbeatToken, token)


def readHeartbeats(value: Any, entries: Sequence[Mapping[str, str]]) -> list[HeartbeatToken | FaultBody]:
    """
    The response to these heartbeats in one request.

    :return: for each its token, or the fault.
    """
    values = _list(_object(value), "values")
    if len(values) != len(entries):
        raise ValueError(f"values has {len(values)} items instead of {len(entries)}")
    outcomes: list[HeartbeatToken | FaultBody] = []
    for entry, each in zip(entries, values, strict=True):
        try:
            outcome = _outcome(each)
            kind = "lock" if "lock" in entry else "id"
            if each.get(kind, entry[kind]) != entry[kind]:
                raise ValueError("it is of another lock" if kind == "lock" else "it is of another service")
        except ValueError as error:
            raise ValueError(f"values[{len(outcomes)}]: {error}")
        outcomes.append(outcome)
    return outcomes


def readLimits(value: Any) -> Limits:
    """The account's limits."""
    limits = _object(value)
    resources = _object(limits.get("resource"), "resource")
    for name in resources:
        _count(resources, name)
    for rate in _object(limits.get("rate"), "rate").values():
        _members(rate, {"limit": _count, "used": _count, "window": _text}, "a rate")
    return cast(Limits, limits)


def readConsoleLink(value: Any) -> ConsoleLink:
    """A link to the console."""
    return cast(ConsoleLink, _members(_object(value), {"href": _printable, "expires_in": _count}, "a link"))


def readAccess(value: Any) -> Access:
    """The response of the Auth API. Of its service catalog, everything that is not an object is ignored."""
    access = _object(_object(value).get("access"), "access")
    token = _object(access.get("token"), "the token")
    try:
        id = _printable(token, "id")
    except ValueError as error:
        raise ValueError(f"the token's {error}")
    catalog = objectsIn(access.get("serviceCatalog"))
    tenant = _tenantIn(token, catalog)
    if not _PRINTABLE.fullmatch(tenant) or len(tenant) > _LONGEST:
        raise ValueError("the tenant of the token is not a tenant id")
    return id, tenant, token.get("expires"), catalog


def objectsIn(value: object) -> list[dict[str, Any]]:
    """The objects of a list; none of what is not a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def readServicePage(value: Any) -> ServicePage:
    """A page of services."""
    return cast(ServicePage, _page(value, readService))


def readServiceStatePage(value: Any) -> ServiceStatePage:
    """A page of states."""
    return cast(ServiceStatePage, _page(value, readServiceState))


def readConfigurationPage(value: Any) -> ConfigurationPage:
    """A page of configuration values."""
    return cast(ConfigurationPage, _page(value, readConfigurationValue))


def readEventPage(value: Any) -> EventPage:
    """A page of events."""
    return cast(EventPage, _page(value, readEvent))


def readLockPage(value: Any) -> LockPage:
    """A page of locks."""
    return cast(LockPage, _page(value, readLock, "name"))


def _page(value: Any, readOne: Callable[[Any], Any], key: str = "id") -> Any:
    page = _object(value)
    values = _list(page, "values")
    ids = {_each(readOne, number, each)[key] for number, each in enumerate(values)}
    if len(ids) != len(values):
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


def _each(readOne: Callable[[Any], Any], number: int, value: Any) -> Any:
    try:
        return readOne(value)
    except ValueError as error:
        raise ValueError(f"values[{number}]: {error}")


def _outcome(value: Any) -> HeartbeatToken | FaultBody:
    outcome = _object(value)
    if "token" in outcome:
        return {"token": _printable(outcome, "token")}
    fault = faultIn(outcome.get("fault"))
    if fault is None:
        raise ValueError("it is neither a token nor a fault")
    return cast(FaultBody, fault)


def _tenantIn(token: dict[str, Any], catalog: list[dict[str, Any]]) -> str:
    """The tenant's id: it has stood in different places over the years."""
    tenant = token.get("tenant")
    if isinstance(tenant, dict) and tenant.get("id") not in (None, ""):
        return _idText(tenant["id"])
    entries: dict[str, dict[str, Any]] = {}
    for entry in reversed(catalog):
        for name in (entry.get("type"), entry.get("name")):
            if isinstance(name, str):
                entries[name] = entry
    for name in _TENANT_ENTRIES:
        for endpoint in objectsIn(entries.get(name, {}).get("endpoints")):
            url = endpoint.get("publicURL")
            found = _idText(endpoint.get("tenantId")) or (
                url.rstrip("/").rpartition("/")[2] if isinstance(url, str) else ""
            )
            if found:
                return found
    raise ValueError("the token names no tenant")


def _idText(value: object) -> str:
    # Some deployments write the number of a tenant as a number.
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST:
        return str(value)
    return value if isinstance(value, str) else ""


def _object(value: Any, name: str = "it") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value


def _members(value: Any, checks: Mapping[str, _Check], name: str = "it") -> dict[str, Any]:
    """An object with these members."""
    holder = _object(value, name)
    for member, check in checks.items():
        check(holder, member)
    return holder


def _list(holder: dict[str, Any], name: str) -> list[Any]:
    value = holder.get(name)
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")
    return value


def _text(holder: dict[str, Any], name: str) -> str:
    value = holder.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST or not _isEncodable(value):
        raise ValueError(f"{name} is not a string of 1 to {_LONGEST} characters")
    return value


def _note(holder: dict[str, Any], name: str) -> None:
    """A text that may be empty."""
    if holder.get(name) != "":
        _text(holder, name)


def _momentOrNull(holder: dict[str, Any], name: str) -> None:
    if holder.get(name, 0) is not None:
        _integer(holder, name, _LAST_MILLISECOND)


def _isEncodable(text: str) -> bool:
    """Whether it has no half of a surrogate pair, which can be neither sent nor written."""
    try:
        return text.isascii() or bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def _textOrNull(holder: dict[str, Any], name: str) -> None:
    if not isinstance(holder.get(name, ""), (str, type(None))):
        raise ValueError(f"{name} is neither a string nor null")


def _printable(holder: dict[str, Any], name: str) -> str:
    value = holder.get(name)
    # A third of the time that a regular expression takes, for each heartbeat of a batch.
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST or not (value.isascii() and value.isprintable()):
        raise ValueError(f"{name} is not a string of 1 to {_LONGEST} printable ASCII characters")
    return value


def _integer(holder: dict[str, Any], name: str, most: int, least: int = 0) -> None:
    value = holder.get(name)
    if isinstance(value, float) and value.is_integer():
        # JSON has one kind of numbers: 30.0 is 30.
        value = holder[name] = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} is not an integer from {least} to {most}")


def _count(holder: dict[str, Any], name: str) -> None:
    _integer(holder, name, _LARGEST)


def _registration(value: Any) -> dict[str, Any]:
    """The common members of a service and of the payload of its events."""
    service = _object(value)
    _text(service, "id")
    _integer(service, "heartbeat_timeout", _LONGEST_TIMEOUT, least=1)
    if not all(isinstance(tag, str) for tag in _list(service, "tags")):
        raise ValueError("tags is not a list of strings")
    _metadata(service)
    return service


def _metadata(holder: dict[str, Any]) -> None:
    if not all(isinstance(text, str) for text in _object(holder.get("metadata"), "metadata").values()):
        raise ValueError("metadata is not an object of strings")


_SERVICE_EVENTS = frozenset({"service.join", "service.update", "service.remove", "service.timeout"})
_STATE: Mapping[str, _Check] = {"id": _text, "state": _text, "reason": _note, "expires_at": _momentOrNull}
# The members of the payloads of the other events.
_PAYLOADS: Mapping[str, Mapping[str, _Check]] = {
    "configuration_value.update": {"configuration_value_id": _text, "new_value": _text, "old_value": _textOrNull},
    "configuration_value.remove": {"configuration_value_id": _text, "old_value": _textOrNull},
    "service.state": {**_STATE, "old_state": _text},
}
