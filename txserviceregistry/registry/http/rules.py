"""
Rules for values: what a field of a body or a parameter may be, the reasons why a value breaks a rule, and the JSON
Schema (2020-12) of the values that follow it. A pattern means the same to Python (with ``re.ASCII``) and to ECMAScript,
the dialect of JSON Schema.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from ..faults import Fault, badParameter, validationError

Schema: TypeAlias = dict[str, Any]


class Invalid(Exception):
    """A value breaks a rule; the text is the reason, in the words of the API."""


@attrs.frozen
class Rule:
    """
    A rule for a value.

    :ivar check: returns the value that a value stands for, or raises :class:`Invalid`.
    :ivar schema: the values that follow the rule in a body.
    :ivar inText: the same in a path or a query, if it differs.
    """

    check: Callable[[object], Any]
    schema: Schema
    inText: Schema | None = None


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
    """An integer, as ``30`` or ``30.0``, or as text that reads as one: ``"30"``, ``" 030"``, ``"3e1"``. No boolean."""

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

    digits = "|".join(_digits(least, greatest))
    # In a path or a query a number is written in digits, and in one way only. In a body, exponents and other white
    # space are accepted too; no pattern can compare a number with an exponent.
    inText = {"type": "integer", "minimum": least, "maximum": greatest}
    return Rule(check, {"anyOf": [inText, matching(rf" *\+?0*(?:{digits})(?:\.0*)? *")]}, inText)


def unchecked(schema: Schema) -> Rule:
    """A value that is checked later, by itself."""
    return Rule(lambda value: value, schema)


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

    def check(value: object) -> frozenset[str]:
        return frozenset(words) if value == "all" else frozenset(map(one.check, str(value).split(",")))

    word = f"(?:{'|'.join(map(re.escape, words))})"
    return Rule(check, matching(f"|all|{word}(?:,{word})*"))


def anyOf(first: Rule, second: Rule) -> Rule:
    """A value that follows one rule or another. The reason is the second one's."""

    def check(value: object) -> Any:
        try:
            return first.check(value)
        except Invalid:
            return second.check(value)

    return Rule(check, {"anyOf": [first.schema, second.schema]})


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
    """A JSON object with free keys."""

    def pair(name: str, each: object) -> tuple[str, Any]:
        try:
            checked = key.check(name)
        except Invalid as reason:
            raise Invalid(f"Key {_printable(name)}: {reason}")
        try:
            return checked, value.check(each)
        except Invalid as reason:
            raise Invalid(f"Value for key '{name}': {reason}")

    def check(given: object) -> dict[str, Any]:
        if not isinstance(given, dict):
            raise Invalid("Not a hash")
        _checkCount(len(given), most)
        return dict([pair(name, each) for name, each in given.items()])

    schema = {"propertyNames": key.schema, "additionalProperties": value.schema, "maxProperties": most}
    return Rule(check, {"type": "object", **schema})


def matching(pattern: str) -> Schema:
    """A text of which the whole matches."""
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


_UUID = re.compile("[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", re.ASCII)
_TIME_UUID = re.compile(
    "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-1[0-9A-Fa-f]{3}-[89abAB][0-9A-Fa-f]{3}-[0-9A-Fa-f]{12}", re.ASCII
)


def _checkTimeUUID(value: object) -> str:
    if not isinstance(value, str):
        raise Invalid("Not a string")
    if _TIME_UUID.fullmatch(value):
        return value
    if not _UUID.fullmatch(value):
        raise Invalid("Invalid UUID")
    raise Invalid("UUID is not version 1" if value[14] != "1" else "Unsupported UUID variant")


def _checkUUID(value: object) -> str:
    if not isinstance(value, str):
        raise Invalid("Not a string")
    if not _UUID.fullmatch(value):
        raise Invalid("Invalid UUID")
    return value.lower()


def _checkFlag(value: object) -> bool:
    if not isinstance(value, bool):
        raise Invalid("Not a boolean")
    return value


#: The text of a version-1 UUID, in its canonical form, with letters of any case.
TIME_UUID = Rule(_checkTimeUUID, matching(_TIME_UUID.pattern))
#: The text of a UUID of any version, in its canonical form; letters become lower-case.
ANY_UUID = Rule(_checkUUID, matching(_UUID.pattern))
#: ``true`` or ``false``.
FLAG = Rule(_checkFlag, {"type": "boolean"})

# Each character can match in one place only, so that no text takes long.
_NUMBER = re.compile(r"\s*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", re.ASCII)
_HUGE = 1e30
_SURROGATE = re.compile("[\ud800-\udfff]")


@attrs.frozen
class Field:
    """
    A field of a body.

    :ivar default: makes the value of an absent field, or of ``null``; a field without a default is never ``null``.
    :ivar isOptional: whether the field may be absent, and stays so.
    """

    name: str
    rule: Rule
    default: Callable[[], Any] | None = None
    isOptional: bool = False

    @property
    def isRequired(self) -> bool:
        return self.default is None and not self.isOptional

    def value(self, body: Mapping[str, object]) -> Any:
        """
        The field's value in *body*; ``None`` if it is optional and absent.

        :raises Fault: if it is missing or breaks its rule.
        """
        if self.name in body:
            value = body[self.name]
            if value is None and self.default is not None:
                return self.default()
            try:
                return self.rule.check(value)
            except Invalid as reason:
                raise validationError(self.name, str(reason))
        if self.isRequired:
            raise validationError(self.name, f"Missing required key ({self.name})")
        return None if self.isOptional or self.default is None else self.default()

    def schema(self) -> Schema:
        schema = self.rule.schema
        if self.default is None:
            return schema
        default = self.default()
        default = list(default) if isinstance(default, tuple) else default
        return {**schema, "type": [schema["type"], "null"], "default": default}


@attrs.frozen
class Parameter:
    """
    A parameter of a path or a query, or a header.

    :ivar summary: its meaning, for the description of the API.
    :ivar default: the value of an absent parameter.
    :ivar refusal: makes the fault for a value that breaks the rule, from the value and the reason.
    :ivar ignoresEmpty: whether an empty value counts as absent.
    """

    name: str
    rule: Rule
    summary: str
    default: Any = None
    refusal: Callable[[str, str], Fault] | None = None
    ignoresEmpty: bool = False

    def value(self, *given: str) -> Any:
        """
        The parameter's value, of which the request may have several: the first counts.

        :raises Fault: if it breaks its rule.
        """
        if not given or (self.ignoresEmpty and not given[0]):
            return self.default
        try:
            return self.rule.check(given[0])
        except Invalid as reason:
            if self.refusal is not None:
                raise self.refusal(given[0], str(reason))
            raise badParameter(self.name, str(reason))

    def schema(self) -> Schema:
        return self.rule.inText or self.rule.schema


def schemaOf(fields: Sequence[Field]) -> Schema:
    """An object with these fields; more of them are ignored."""
    schema: Schema = {"type": "object", "properties": {field.name: field.schema() for field in fields}}
    required = [field.name for field in fields if field.isRequired]
    return {**schema, "required": required} if required else schema


def _digits(least: int, greatest: int) -> Iterator[str]:
    """Patterns that together match the numbers of a range; each matches 1, 10, 100, … of them."""
    while least <= greatest:
        size = 1
        while least and least % (size * 10) == 0 and least + size * 10 - 1 <= greatest:
            size *= 10
        yield f"{least // size}{'[0-9]' * (len(str(size)) - 1)}"
        least += size


def _checkCount(count: int, most: int, least: int = 0) -> None:
    if not least <= count <= most:
        raise Invalid(f"Object needs to have between {least} and {most} items")


def _isUnicode(value: str) -> bool:
    # JSON can spell half of a surrogate pair, which neither UTF-8 nor a store can express.
    return value.isascii() or _SURROGATE.search(value) is None


def _printable(value: str) -> str:
    return value.encode("utf-8", "backslashreplace").decode("utf-8")
