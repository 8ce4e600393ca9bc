"""
The rules for what clients send: which values a field, a path or a query may have.

The tables say it in the rules of :mod:`~txserviceregistry.registry.http.rules`: what checks, here, and what describes
the API (:mod:`~txserviceregistry.registry.http.openapi`) both go by them. The functions return the value that was
meant, or raise the :class:`~txserviceregistry.registry.faults.Fault` that tells the client what is wrong. Nothing here
knows what is stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from ...types import EventType
from ..faults import badParameter, invalidEventQuery, invalidLimit, notFound, validationError
from ..model import NewService, ServiceChanges
from .rules import (
    AnyOf,
    Choice,
    DeferredFields,
    Field,
    Invalid,
    Items,
    MappingOf,
    Number,
    Rule,
    Text,
    TimeUUID,
    bounded,
)

EVENT_TYPES: tuple[str, ...] = get_args(EventType)
DEFAULT_LIMIT = 100
MAXIMUM_LIMIT = 1000
BAD_MARKER = r"Marker contains invalid characters. Valid characters are: /^[a-z0-9\-:_\.\/]{0,255}$/i"

_SERVICE_ID = Text(3, 65, r"[A-Za-z0-9_\-.]*")

_ID = Field("id", _SERVICE_ID)
_HEARTBEAT_TIMEOUT = Field("heartbeat_timeout", Number(3, 120))
_TAGS = Field("tags", Items(Text(1, 55), most=10), default=())
_METADATA = Field("metadata", MappingOf(Text(1, 255), Text(1, 255), most=20), default={})
_TOKEN = Field("token", TimeUUID())
_VALUE = Field("value", Text(1, 1024))
# What is wrong with one of them is told in its own place of the answer.
_HEARTBEATS = Field("heartbeats", Items(DeferredFields((_ID, _TOKEN)), most=1000, least=1))

SERVICE_FIELDS = (_ID, _HEARTBEAT_TIMEOUT, _TAGS, _METADATA)
HEARTBEAT_FIELDS = (_TOKEN,)
BATCH_FIELDS = (_HEARTBEATS,)
# The pattern is the protocol's own. It lets a last part without a slash follow a namespace of 50 characters directly.
# That it can't end with a slash stands at its beginning, because not every dialect can look behind.
_KEY_PATTERN = r"(?!.*\/$)(\/[A-Za-z0-9_\-]{3,50}\/?){0,10}([A-Za-z0-9_\-.]{3,170})?"

PARAMETERS: Mapping[str, Text] = {
    "serviceId": _SERVICE_ID,
    "configurationId": Text(3, 500, _KEY_PATTERN),
    "tag": Text(1, 65, r"[A-Za-z0-9_\-.]*"),
    "marker": Text(0, 255, r"[A-Za-z0-9\-:_./]*"),
}
# A client may send a value's key in the body too, where it is ignored; but it has to be one.
_CONFIGURATION_ID = Field("id", PARAMETERS["configurationId"], isOptional=True)

VALUE_FIELDS = (_CONFIGURATION_ID, _VALUE)

_LIMIT = Number(1, MAXIMUM_LIMIT)
_EVENT_TYPE = Choice("type", EVENT_TYPES)
_WAIT = Number(1, 60)

_PAGE: Mapping[str, Rule] = {"limit": _LIMIT, "marker": PARAMETERS["marker"]}
_KEY_PAGE: Mapping[str, Rule] = {"limit": _LIMIT, "marker": AnyOf(PARAMETERS["configurationId"], PARAMETERS["marker"])}

#: What the query of a request can hold: by the name of what answers it, and by parameter.
QUERIES: Mapping[str, Mapping[str, Rule]] = {
    "listServices": {**_PAGE, "tag": PARAMETERS["tag"]},
    "listValues": _KEY_PAGE,
    "listNamespace": _KEY_PAGE,
    "listEvents": {"limit": _LIMIT, "marker": TimeUUID(), "type": _EVENT_TYPE, "wait": _WAIT},
}
#: The fields of bodies, by the name of what answers the request.
BODIES: Mapping[str, tuple[Field, ...]] = {
    "createService": SERVICE_FIELDS,
    "updateService": SERVICE_FIELDS,
    "heartbeat": HEARTBEAT_FIELDS,
    "heartbeats": BATCH_FIELDS,
    "setValue": VALUE_FIELDS,
}


def newService(body: Mapping[str, object]) -> NewService:
    """
    The service that the body of a ``POST /services`` describes.

    :raises Fault: for the first field that is not right, in the order of the API's table.
    """
    id, heartbeatTimeout, tags, metadata = (field.value(body) for field in SERVICE_FIELDS)
    return NewService(id, heartbeatTimeout, tags, dict(metadata))


def serviceChanges(body: Mapping[str, object], id: str) -> ServiceChanges:
    """
    The changes that the body of a ``PUT /services/<id>`` asks for. A ``null`` for ``tags`` or ``metadata`` sets the
    default.

    :param id: the service that it is about, which the body may name, but not rename.
    :raises Fault: for the first field that is not right.
    """
    if _ID.name in body:
        given = body[_ID.name]
        if not isinstance(given, str):
            raise validationError(_ID.name, "Not a string")
        if given != id:
            raise validationError(_ID.name, "Attempted to mutate immutable field")
    heartbeatTimeout, tags, metadata = (field.given(body) for field in (_HEARTBEAT_TIMEOUT, _TAGS, _METADATA))
    return ServiceChanges(heartbeatTimeout, tags, None if metadata is None else dict(metadata))


def heartbeatToken(body: Mapping[str, object]) -> str:
    """
    The token in the body of a heartbeat, as it was sent.

    :raises Fault: if it is missing, or is no version-1 UUID.
    """
    token: str = _TOKEN.value(body)
    return token


def heartbeats(body: Mapping[str, object]) -> Sequence[Any]:
    """
    The heartbeats in the body of a ``POST /heartbeats``, of which each may be anything: see :func:`heartbeatOfBatch`.

    :raises Fault: if they are missing, are no array, or are not from 1 to 1,000.
    """
    entries: Sequence[Any] = _HEARTBEATS.value(body)
    return entries


def heartbeatOfBatch(entry: Any) -> tuple[str, str]:
    """
    The service id and the token of one of many heartbeats.

    :raises Fault: if it is no object, or for the first field that is not right.
    """
    try:
        return _ID.rule.check(entry[_ID.name]), _TOKEN.rule.check(entry[_TOKEN.name])
    except (KeyError, TypeError, Invalid):
        # Of the few that are not right, it is found out with more care what is wrong with them.
        pass
    if not isinstance(entry, dict):
        raise validationError(_HEARTBEATS.name, "Not a hash")
    return _ID.value(entry), _TOKEN.value(entry)


def configurationValue(body: Mapping[str, object]) -> str:
    """
    The value in the body of a ``PUT /configuration/<key>``.

    :raises Fault: if it is missing, or is no string of the right length; also for an ``id`` that no value can have.
    """
    _CONFIGURATION_ID.given(body)
    value: str = _VALUE.value(body)
    return value


def serviceId(text: str) -> str:
    """
    A service id in a path.

    :raises Fault: if no service can have it.
    """
    return _parameter("serviceId", text)


def heartbeatId(text: str) -> str:
    """
    The service id in the path of a heartbeat.

    :raises Fault: 404 if no service can have it: then there is no such service.
    """
    try:
        return _SERVICE_ID.check(text)
    except Invalid:
        raise notFound("Service", text)


def configurationKey(text: str) -> str:
    """
    A configuration key in a path: simple (``listen_ip``), or qualified (``/production/listen_ip``).

    :raises Fault: if no value can have it.
    """
    return _parameter("configurationId", text)


def tag(text: str) -> str:
    """
    A tag in a query.

    :raises Fault: if it can't be asked for.
    """
    return _parameter("tag", text)


def marker(text: str) -> str:
    """
    A marker in the query of a collection (events have their own: :func:`eventMarker`).

    :raises Fault: if it breaks the rule for markers.
    """
    return _marker(PARAMETERS["marker"], text)


def configurationMarker(text: str) -> str:
    """
    A marker in the query of configuration values: one as everywhere, or a key. A key can be longer than a marker, and
    what a page tells as its ``next_marker`` has to be one.

    :raises Fault: if it is neither.
    """
    return _marker(_KEY_PAGE["marker"], text)


def _marker(rule: Rule, text: str) -> str:
    try:
        checked: str = rule.check(text)
    except Invalid:
        raise badParameter("marker", BAD_MARKER)
    return checked


def limit(*given: str) -> int:
    """
    How many values a page is to have.

    :param given: each ``limit`` in the query.
    :raises Fault: ``invalidLimit``, if it is not a number from 1 to :data:`MAXIMUM_LIMIT`, or given more than once.
    """
    if not given:
        return DEFAULT_LIMIT
    text, *others = given
    if others or not re.fullmatch(r"-?[0-9]+", text, re.ASCII):
        raise invalidLimit("Limit must be a number")
    number = bounded(text)
    if not _LIMIT.least <= number <= _LIMIT.greatest:
        raise invalidLimit(f"Invalid limit {text}. Minimum limit is 1 and maximum limit is {MAXIMUM_LIMIT}.")
    return number


def eventType(text: str) -> str:
    """
    A type of events in a query.

    :raises Fault: if there is no such type. (An empty ``type=`` is not a filter, and does not come here.)
    """
    try:
        return _EVENT_TYPE.check(text)
    except Invalid as reason:
        raise invalidEventQuery(str(reason))


def eventMarker(text: str) -> str:
    """
    A marker in a query of the events feed, in lower case. Whether its time is one that the feed can begin at is not
    decided here.

    :raises Fault: if it is no version-1 UUID.
    """
    try:
        return TimeUUID().check(text).lower()
    except Invalid as reason:
        raise invalidEventQuery(str(reason))


def wait(text: str) -> int:
    """
    How many seconds a query of the events feed may wait for something new.

    :raises Fault: if it is no integer from 1 to 60.
    """
    seconds: int = _checked(_WAIT, "wait", text)
    return seconds


def _parameter(name: str, text: str) -> str:
    checked: str = _checked(PARAMETERS[name], name, text)
    return checked


def _checked(rule: Rule, name: str, text: str) -> Any:
    try:
        return rule.check(text)
    except Invalid as reason:
        raise badParameter(name, str(reason))
