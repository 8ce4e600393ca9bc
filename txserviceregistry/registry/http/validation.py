"""The rules for what clients send: why a value breaks one, in the words of the API, and JSON Schemas of the others."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, get_args

import attrs

from ...types import State
from ...util.fields import ETAGS as ETAG_LIST
from ..faults import Fault, badParameter, badRequest, notFound, validationError
from ..model import EVENT_TYPES, PLAIN_TYPES, ServiceChanges

Schema: TypeAlias = dict[str, Any]

DEFAULT_LIMIT = 100
MAXIMUM_LIMIT = 1000
BAD_MARKER = r"Marker contains invalid characters. Valid characters are: /^[a-z0-9\-:_\.\/]{0,255}$/i"


class Invalid(Exception):
    """A value breaks a rule; the text is the reason, in the words of the API."""


@attrs.frozen
class Rule:
    """A rule for a value."""

    check: Callable[[Any], Any]  # returns the value that a value stands for, or raises Invalid
    schema: Schema  # the values that follow the rule


def text(shortest: int, longest: int, pattern: str | None = None) -> Rule:
    """A string of so many characters (code points); without a *pattern* of all that UTF-8 can express."""
    matches = _isUnicode if pattern is None else re.compile(pattern, re.ASCII).fullmatch

    def check(value: object) -> str:
        if not isinstance(value, str):
            raise Invalid("Not a string")
        if not shortest <= len(value) <= longest:
            raise Invalid(f"String is not in range ({shortest}..{longest})")
        if not matches(value):
            raise Invalid("Invalid characters")
        return value

    schema = {"type": "string"} if pattern is None else matching(pattern)
    return Rule(check, {**schema, "minLength": shortest, "maxLength": longest})


def number(least: int, greatest: int) -> Rule:
    """An integer, as ``30`` or ``30.0``, or as text, which the schema leaves out: ``"30"``, ``" 030"``, ``"3e1"``."""

    def check(value: object) -> int:
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            # A number that overflows is infinite: an integer out of every range.
            value = max(-_HUGE, min(float(value), _HUGE))
        if isinstance(value, float) and math.isfinite(value) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise Invalid("Invalid integer")
        if not least <= value <= greatest:
            raise Invalid(f"Value out of range ({least}..{greatest})")
        return value

    return Rule(check, {"type": "integer", "minimum": least, "maximum": greatest})


def choice(what: str, words: Sequence[str]) -> Rule:
    """One of a few words; *what* is the name of such a word, for the reason."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            given = _printable(str(value))
            raise Invalid(f"Invalid {what}: {given}. Valid {what}s are: {','.join(words)}")
        return value

    return Rule(check, {"type": "string", "enum": list(words)})


def someOf(what: str, words: Sequence[str]) -> Rule:
    """Some of a few words in a query, separated by commas, or ``all``."""
    one = choice(what, words)

    def check(value: str) -> frozenset[str]:
        return frozenset(words) if value == "all" else frozenset(map(one.check, value.split(",")))

    word = f"(?:{'|'.join(map(re.escape, words))})"
    return Rule(check, matching(f"|all|{word}(?:,{word})*"))


def items(element: Rule, most: int, least: int = 0) -> Rule:
    """An array. The reason why an element is invalid is the element's own."""
    checkElement = element.check

    def check(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Invalid("Not an array")
        _checkCount(len(value), most, least)
        return tuple([checkElement(each) for each in value])

    return Rule(check, {"type": "array", "items": element.schema, "minItems": least, "maxItems": most})


def mapping(key: Rule, value: Rule, most: int) -> Rule:

    def check(given: object) -> dict[str, Any]:
        if not isinstance(given, dict):
            raise Invalid("Not a hash")
        _checkCount(len(given), most)
        for name, each in given.items():
            try:
                what = f"Key {_printable(name)}"
                key.check(name)
                what = f"Value for key '{name}'"
                value.check(each)
            except Invalid as reason:
                raise Invalid(f"{what}: {reason}")
        return given

    schema = {"propertyNames": key.schema, "additionalProperties": value.schema, "maxProperties": most}
    return Rule(check, {"type": "object", **schema})


def matching(pattern: str) -> Schema:
    """A text of which the whole matches; the pattern means the same to Python (with ``re.ASCII``) and to ECMAScript."""
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


def _checkUUID(value: object) -> str:
    if not isinstance(value, str):
        raise Invalid("Not a string")
    if not _UUID.fullmatch(value):
        raise Invalid("Invalid UUID")
    return value


def _checkTimeUUID(value: object) -> str:
    uuid = _checkUUID(value)
    if uuid[14] != "1" or uuid[19] not in "89abAB":
        raise Invalid("UUID is not version 1" if uuid[14] != "1" else "Unsupported UUID variant")
    return uuid


def _checkFlag(value: object) -> bool:
    if not isinstance(value, bool):
        raise Invalid("Not a boolean")
    return value


def _checkLimit(value: str) -> int:
    if not re.fullmatch(r"-?[0-9]+", value, re.ASCII):
        raise Invalid("Limit must be a number")
    # No number in range has as many digits as make int() slow, or refuse them.
    if not 1 <= (number := int(value[:30])) <= MAXIMUM_LIMIT:
        raise Invalid(f"Invalid limit {value}. Minimum limit is 1 and maximum limit is {MAXIMUM_LIMIT}.")
    return number


def _checkCount(count: int, most: int, least: int = 0) -> None:
    if not least <= count <= most:
        raise Invalid(f"Object needs to have between {least} and {most} items")


def _isUnicode(value: str) -> bool:
    # JSON can spell half of a surrogate pair, which neither UTF-8 nor a store can express.
    return value.isascii() or _SURROGATE.search(value) is None


def _printable(value: str) -> str:
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


# Each character can match in one place only, so that no text takes long.
_NUMBER = re.compile(r"\s*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", re.ASCII)
_HUGE = 1e30
_SURROGATE = re.compile("[\ud800-\udfff]")
_HEX = "[0-9A-Fa-f]"
_UUID = re.compile(f"{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}", re.ASCII)

#: The text of a version-1 UUID, in its canonical form, with letters of any case.
TIME_UUID = Rule(_checkTimeUUID, matching(f"{_HEX}{{8}}-{_HEX}{{4}}-1{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}"))
_ANY_UUID = Rule(lambda value: _checkUUID(value).lower(), matching(_UUID.pattern))
_FLAG = Rule(_checkFlag, {"type": "boolean"})
_WORD = choice("value", ("true", "false"))
_BOOLEAN = Rule(lambda value: _WORD.check(value) == "true", _WORD.schema)
_SERVICE_ID = text(3, 65, r"[A-Za-z0-9_\-.]*")
# The pattern is the protocol's own. It lets a last part without a slash follow a namespace of 50 characters directly.
# That it can't end with a slash stands at its beginning, because not every dialect can look behind.
_KEY_PATTERN = r"(?!.*\/$)(\/[A-Za-z0-9_\-]{3,50}\/?){0,10}([A-Za-z0-9_\-.]{3,170})?"
_KEY = text(3, 500, _KEY_PATTERN)
_MARKER_PATTERN = r"[A-Za-z0-9\-:_./]{0,255}"


@attrs.frozen
class Field:
    """A field of a body."""

    name: str
    rule: Rule
    default: Callable[[], Any] | None = None  # makes the value of an absent field, or of null
    isOptional: bool = False  # it may be absent, and is None then

    @property
    def isRequired(self) -> bool:
        return self.default is None and not self.isOptional

    def value(self, body: Mapping[str, object]) -> Any:
        """The field's value in *body*; raises the fault 400 if it is missing or breaks its rule."""
        if self.name not in body:
            if self.isRequired:
                raise validationError(self.name, f"Missing required key ({self.name})")
            return None if self.isOptional or self.default is None else self.default()
        value = body[self.name]
        if value is None and self.default is not None:
            return self.default()
        try:
            return self.rule.check(value)
        except Invalid as reason:
            raise validationError(self.name, str(reason))


def schemaOf(fields: Sequence[Field]) -> Schema:
    """An object with these fields; more of them are ignored."""
    properties = {
        field.name: field.rule.schema
        if field.default is None
        else {**field.rule.schema, "type": [field.rule.schema["type"], "null"]}
        for field in fields
    }
    schema: Schema = {"type": "object", "properties": properties}
    required = [field.name for field in fields if field.isRequired]
    return {**schema, "required": required} if required else schema


ID = Field("id", _SERVICE_ID)
TOKEN = Field("token", TIME_UUID)
LOCK = Field("lock", _KEY)
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
# Each entry is checked later, by itself.
_ENTRY = Rule(lambda value: value, {"anyOf": [schemaOf((ID, TOKEN)), schemaOf((LOCK, TOKEN))]})
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
    Field("nonce", _ANY_UUID, isOptional=True),
    Field("wait", number(0, 60), isOptional=True),
    _METADATA,
)
LOCK_HEARTBEAT_FIELDS = (_NAME, TOKEN)
RELEASE_FIELDS = (
    _NAME,
    attrs.evolve(TOKEN, isOptional=True),
    Field("force", _FLAG, isOptional=True),
    Field("now", _FLAG, isOptional=True),
)


@attrs.frozen
class Parameter:
    """A parameter of a path or a query, or a header."""

    name: str
    rule: Rule
    summary: str
    default: Any = None
    refusal: Callable[[str, str], Fault] | None = None  # makes the fault for an invalid value, from it and the reason
    ignoresEmpty: bool = False  # an empty one is an absent one
    isSingle: bool = False  # two values are an invalid one

    def value(self, *given: str) -> Any:
        """Of several values the first counts. Raises the fault of one that breaks its rule."""
        if not given or (self.ignoresEmpty and not given[0]):
            return self.default
        value = ",".join(given) if self.isSingle else given[0]
        try:
            return self.rule.check(value)
        except Invalid as reason:
            if self.refusal is not None:
                raise self.refusal(value, str(reason))
            raise badParameter(self.name, str(reason))


SERVICE_ID = Parameter("serviceId", _SERVICE_ID, "The service's id.")
# For heartbeats and states: an impossible id is a service that does not exist.
EXISTING_SERVICE_ID = attrs.evolve(SERVICE_ID, refusal=lambda value, reason: notFound("Service", value))
KEY = Parameter("configurationId", _KEY, "A key. The slashes of a qualified one may come as they are.")
PATH_PARAMETERS = (SERVICE_ID, KEY)

LIMIT = Parameter(
    "limit",
    Rule(_checkLimit, number(1, MAXIMUM_LIMIT).schema),
    f"The maximum number of values in the page (default: {DEFAULT_LIMIT}).",
    DEFAULT_LIMIT,
    refusal=lambda value, reason: Fault("invalidLimit", "Invalid limit", reason),
    isSingle=True,
)
MARKER = Parameter(
    "marker",
    text(0, 255, _MARKER_PATTERN),
    "The id at which the page starts. If there is no such object, it starts at the next id.",
    refusal=lambda value, reason: badParameter("marker", BAD_MARKER),
)
# A key can be longer than a marker, and the ``next_marker`` of a page has to be a valid marker.
KEY_MARKER = attrs.evolve(MARKER, rule=text(0, 500, f"{_KEY_PATTERN}|{_MARKER_PATTERN}"))
# Whether the feed can begin at the marker's time is decided by the registry's core.
EVENT_MARKER = attrs.evolve(MARKER, rule=TIME_UUID, refusal=lambda value, reason: badRequest(reason))
TAG = Parameter("tag", text(1, 65, r"[A-Za-z0-9_\-.]*"), "Only services with this tag.")
EVENT_TYPE = Parameter(
    "type",
    choice("type", tuple(type for type in EVENT_TYPES if type in PLAIN_TYPES)),
    "Only events of this type.",
    refusal=lambda value, reason: badRequest(reason),
    ignoresEmpty=True,
)
EVENT_TYPES_WANTED = Parameter(
    "types",
    someOf("type", EVENT_TYPES),
    "Only events of these types, separated by commas, or all (the extension event-types). Not together with type.",
    refusal=lambda value, reason: badRequest(reason),
    ignoresEmpty=True,
)
LOCK_NAME = Parameter("name", _KEY, "Only the lock with this name.")
ETAGS = Parameter("etags", _BOOLEAN, "Whether each value has its tag, as etag (the extension etag).", default=False)
STATES = Parameter(
    "states", _BOOLEAN, "Whether services have their state (the extension service-state).", default=False
)
WAIT = Parameter("wait", number(1, 60), "The time to wait for an event that is newer than the marker, in seconds.")

IF_MATCH = Parameter(
    "If-Match",
    text(1, 5000, ETAG_LIST.pattern),
    "Write only if the value exists and has one of these tags; * is any tag (the extension etag).",
    refusal=lambda value, reason: badRequest(
        "Invalid value for 'If-Match' header", 'Not * or a list of tags in quotes, such as "1", "2"'
    ),
)
IF_NONE_MATCH = Parameter(
    "If-None-Match",
    choice("value", ("*",)),
    "Write only if there is no value with this key (the extension etag).",
    refusal=lambda value, reason: badRequest("Invalid value for 'If-None-Match' header", reason),
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
    """The changes that the body of a ``PUT /services/<id>`` asks for."""
    given = body.get("id", id)
    if not isinstance(given, str):
        raise validationError("id", "Not a string")
    if given != id:
        raise validationError("id", "Attempted to mutate immutable field")
    return ServiceChanges(*[field.value(body) for field in CHANGE_FIELDS[1:]])
