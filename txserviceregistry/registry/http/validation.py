"""
The rules for what clients send in bodies, paths, queries and headers, and the checks that a single rule can't express.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

import attrs

from ...types import State
from ...util.fields import ETAGS as ETAG_LIST
from ..faults import Fault, badHeader, badParameter, badRequest, invalidLimit, notFound, validationError
from ..model import EVENT_TYPES, PLAIN_TYPES, UNCONDITIONAL, Precondition, ServiceChanges
from .rules import (
    ANY_UUID,
    FLAG,
    TIME_UUID,
    Field,
    Parameter,
    Rule,
    anyOf,
    choice,
    items,
    mapping,
    number,
    schemaOf,
    someOf,
    text,
    unchecked,
)

DEFAULT_LIMIT = 100
MAXIMUM_LIMIT = 1000
BAD_MARKER = r"Marker contains invalid characters. Valid characters are: /^[a-z0-9\-:_\.\/]{0,255}$/i"

_SERVICE_ID = text(3, 65, r"[A-Za-z0-9_\-.]*")
# The pattern is the protocol's own. It lets a last part without a slash follow a namespace of 50 characters directly.
# That it can't end with a slash stands at its beginning, because not every dialect can look behind.
_KEY = text(3, 500, r"(?!.*\/$)(\/[A-Za-z0-9_\-]{3,50}\/?){0,10}([A-Za-z0-9_\-.]{3,170})?")
_MARKER = text(0, 255, r"[A-Za-z0-9\-:_./]*")

# -- fields of bodies

ID = Field("id", _SERVICE_ID)
TOKEN = Field("token", TIME_UUID)

_METADATA = Field("metadata", mapping(text(1, 255), text(1, 255), most=20), default=dict)
_NAME = Field("name", _KEY)

SERVICE_FIELDS = (
    ID,
    Field("heartbeat_timeout", number(3, 120)),
    Field("tags", items(text(1, 55), most=10), default=tuple),
    _METADATA,
)
CHANGE_FIELDS = tuple(attrs.evolve(field, isOptional=True) for field in SERVICE_FIELDS)
HEARTBEAT_FIELDS = (TOKEN,)
LOCK = Field("lock", _KEY)
_ENTRY = unchecked({"anyOf": [schemaOf((ID, TOKEN)), schemaOf((LOCK, TOKEN))]})
BATCH_FIELDS = (Field("heartbeats", items(_ENTRY, most=1000, least=1)),)
# A client may send a value's key in the body too, where it is ignored; but it has to be one.
VALUE_FIELDS = (Field("id", _KEY, isOptional=True), Field("value", text(1, 1024)))
STATE_FIELDS = (
    Field("state", choice("state", get_args(State))),
    Field("reason", text(0, 255), default=str),
    Field("expires_in", number(1, 30 * 86_400), isOptional=True),
)
ACQUIRE_FIELDS = (
    _NAME,
    Field("timeout", number(3, 120)),
    Field("holder", text(0, 255), default=str),
    Field("nonce", ANY_UUID, isOptional=True),
    Field("wait", number(0, 60), isOptional=True),
    _METADATA,
)
LOCK_HEARTBEAT_FIELDS = (_NAME, TOKEN)
RELEASE_FIELDS = (
    _NAME,
    attrs.evolve(TOKEN, isOptional=True),
    Field("force", FLAG, isOptional=True),
    Field("now", FLAG, isOptional=True),
)

# -- parameters of paths

SERVICE_ID = Parameter("serviceId", _SERVICE_ID, "The service's id.")
# Where an impossible id is a service that does not exist.
EXISTING_SERVICE_ID = attrs.evolve(SERVICE_ID, refusal=lambda value, reason: notFound("Service", value))
KEY = Parameter("configurationId", _KEY, "A key. The slashes of a qualified one may come as they are.")
PATH_PARAMETERS = (SERVICE_ID, KEY)

# -- parameters of queries

_WORD = choice("value", ("true", "false"))
_BOOLEAN = Rule(lambda value: _WORD.check(value) == "true", _WORD.schema)
_TAG = re.compile('"([^"]*)"')


class _Limit(Parameter):
    """The one parameter that may not be given twice."""

    def value(self, *given: str) -> int:
        if not given:
            return DEFAULT_LIMIT
        if len(given) > 1 or not re.fullmatch(r"-?[0-9]+", given[0], re.ASCII):
            raise invalidLimit("Limit must be a number")
        # No number in range has as many digits as make int() slow, or refuse them.
        number = int(given[0][:30])
        if not 1 <= number <= MAXIMUM_LIMIT:
            raise invalidLimit(f"Invalid limit {given[0]}. Minimum limit is 1 and maximum limit is {MAXIMUM_LIMIT}.")
        return number


def _refuseEventQuery(value: str, reason: str) -> Fault:
    return badRequest(reason)


_MARKER_SUMMARY = "The id at which the page starts. If there is no such object, it starts at the next id."

LIMIT = _Limit(
    "limit", number(1, MAXIMUM_LIMIT), f"The maximum number of values in the page (default: {DEFAULT_LIMIT})."
)
MARKER = Parameter("marker", _MARKER, _MARKER_SUMMARY, refusal=lambda value, reason: badParameter("marker", BAD_MARKER))
# A key can be longer than a marker, and the ``next_marker`` of a page has to be a valid marker.
KEY_MARKER = attrs.evolve(MARKER, rule=anyOf(_KEY, _MARKER))
# Whether the feed can begin at the marker's time is decided by the registry's core.
EVENT_MARKER = Parameter("marker", TIME_UUID, _MARKER_SUMMARY, refusal=_refuseEventQuery)
TAG = Parameter("tag", text(1, 65, r"[A-Za-z0-9_\-.]*"), "Only services with this tag.")
EVENT_TYPE = Parameter(
    "type",
    choice("type", tuple(type for type in EVENT_TYPES if type in PLAIN_TYPES)),
    "Only events of this type.",
    refusal=_refuseEventQuery,
    ignoresEmpty=True,
)
EVENT_TYPES_WANTED = Parameter(
    "types",
    someOf("type", EVENT_TYPES),
    "Only events of these types, separated by commas; all for all types, those that version 1.0 does not have included"
    " (the extension event-types). Not together with type.",
    refusal=_refuseEventQuery,
    ignoresEmpty=True,
)
LOCK_NAME = Parameter("name", _KEY, "Only the lock with this name.")
ETAGS = Parameter("etags", _BOOLEAN, "Whether each value has its tag, as etag (the extension etag).", default=False)
STATES = Parameter(
    "states",
    _BOOLEAN,
    "Whether services that are not up have their state and state_reason (the extension service-state).",
    default=False,
)
WAIT = Parameter("wait", number(1, 60), "The time to wait for an event that is newer than the marker, in seconds.")

# -- headers

IF_MATCH = Parameter(
    "If-Match",
    text(1, 5000, ETAG_LIST.pattern),
    "Write only if the value exists and has one of these tags; * is any tag (the extension etag).",
    refusal=lambda value, reason: badHeader("If-Match", 'Not * or a list of tags in quotes, such as "1", "2"'),
)
IF_NONE_MATCH = Parameter(
    "If-None-Match",
    choice("value", ("*",)),
    "Write only if there is no value with this key (the extension etag).",
    refusal=lambda value, reason: badHeader("If-None-Match", reason),
)


def eventTypes(query: Mapping[str, Any]) -> frozenset[str]:
    """The types of events that a query asks for; those of version 1.0 if it names none."""
    type, types = query.get("type"), query["types"]
    if type is not None and types is not None:
        raise badRequest("type can't be combined with types")
    if types is not None:
        return frozenset(types)
    return PLAIN_TYPES if type is None else frozenset([type])


def serviceChanges(body: Mapping[str, object], id: str) -> ServiceChanges:
    """
    The changes that the body of a ``PUT /services/<id>`` asks for. A ``null`` for ``tags`` or ``metadata`` sets the
    default.
    """
    idField, *fields = CHANGE_FIELDS
    given = body.get(idField.name, id)
    if not isinstance(given, str):
        raise validationError(idField.name, "Not a string")
    if given != id:
        raise validationError(idField.name, "Attempted to mutate immutable field")
    return ServiceChanges(*[field.value(body) for field in fields])


def preconditionOf(header: Callable[[bytes], str | None]) -> Precondition:
    """
    The precondition of a write (RFC 9110, 13.1), or the fault for headers that are malformed, or both there. ``W/``
    before a tag, which proxies that compress add, is ignored.
    """
    match, noneMatch = header(b"If-Match"), header(b"If-None-Match")
    if match is not None and noneMatch is not None:
        raise badRequest("'If-Match' and 'If-None-Match' headers can't be combined", "Send only one of them")
    if match is not None:
        tags = IF_MATCH.value(match)
        return Precondition(True, None if tags == "*" else frozenset(_TAG.findall(tags)))
    if noneMatch is not None:
        IF_NONE_MATCH.value(noneMatch)
        return Precondition(False)
    return UNCONDITIONAL
