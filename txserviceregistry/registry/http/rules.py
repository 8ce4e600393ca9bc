"""
Rules for values: what a field of a body or a parameter may be, the reasons why a value breaks a rule, and the JSON
Schema (2020-12) of the values that follow it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import attrs

from ..faults import Fault, badParameter, validationError

Schema: TypeAlias = dict[str, Any]


class Invalid(Exception):
    """A value breaks a rule; the text is the reason, in the words of the API."""


class Rule(Protocol):
    """A rule for a value."""

    def check(self, value: object) -> Any:
        """
        :return: the value that *value* stands for.
        :raises Invalid: if it breaks the rule.
        """

    def schema(self) -> Schema:
        """The values that follow the rule in a body."""


@attrs.frozen
class Text:
    """
    A string.

    :ivar shortest: the least number of characters (code points).
    :ivar pattern: what the whole string has to match; ``None`` for all characters that UTF-8 can express. It means the
        same to Python (with ``re.ASCII``) and to ECMAScript, the dialect of JSON Schema.
    """

    shortest: int
    longest: int
    pattern: str | None = None
    # Looking up the compiled pattern by its text would cost a heartbeat as much as its other checks.
    _compiled: re.Pattern[str] | None = attrs.field(init=False, eq=False, repr=False)

    @_compiled.default
    def _compile(self) -> re.Pattern[str] | None:
        return None if self.pattern is None else re.compile(self.pattern, re.ASCII)

    def check(self, value: object) -> str:
        if not isinstance(value, str):
            raise Invalid("Not a string")
        if not self.shortest <= len(value) <= self.longest:
            raise Invalid(f"String is not in range ({self.shortest}..{self.longest})")
        if not (_isUnicode(value) if self._compiled is None else self._compiled.fullmatch(value)):
            raise Invalid("Invalid characters")
        return value

    def schema(self) -> Schema:
        schema = {"type": "string"} if self.pattern is None else matching(self.pattern)
        return {**schema, "minLength": self.shortest, "maxLength": self.longest}


@attrs.frozen
class Number:
    """An integer, as ``30`` or ``30.0``, or as text that reads as one: ``"30"``, ``" 030"``, ``"3e1"``. No boolean."""

    least: int
    greatest: int

    def check(self, value: object) -> int:
        number = _integer(value)
        if not self.least <= number <= self.greatest:
            raise Invalid(f"Value out of range ({self.least}..{self.greatest})")
        return number

    def schema(self) -> Schema:
        numbers = "|".join(_digits(self.least, self.greatest))
        # Exponents and other white space are accepted too; no pattern can compare a number with an exponent.
        return {"anyOf": [self.inText(), matching(rf" *\+?0*(?:{numbers})(?:\.0*)? *")]}

    def inText(self) -> Schema:
        """The values in a path or a query, where a number is written in digits, and in one way only."""
        return {"type": "integer", "minimum": self.least, "maximum": self.greatest}


@attrs.frozen
class Unchecked:
    """A value that is checked later, by itself."""

    described: Schema

    def check(self, value: object) -> object:
        return value

    def schema(self) -> Schema:
        return self.described


@attrs.frozen
class Choice:
    """
    One of a few words.

    :ivar what: the name of such a word, for the reason.
    """

    what: str
    words: tuple[str, ...]

    def check(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.words:
            given = _printable(str(value))
            raise Invalid(f"Invalid {self.what}: {given}. Valid {self.what}s are: {','.join(self.words)}")
        return value

    def schema(self) -> Schema:
        return {"type": "string", "enum": list(self.words)}


@attrs.frozen
class Words:
    """Some of a few words, separated by commas, or ``all``; in a query."""

    choice: Choice

    def check(self, value: object) -> frozenset[str]:
        if value == "all":
            return frozenset(self.choice.words)
        return frozenset(map(self.choice.check, str(value).split(",")))

    def schema(self) -> Schema:
        word = f"(?:{'|'.join(map(re.escape, self.choice.words))})"
        return matching(f"|all|{word}(?:,{word})*")


@attrs.frozen
class AnyOf:
    """A value that follows one rule or another. The reason is the second one's."""

    first: Rule
    second: Rule

    def check(self, value: object) -> Any:
        try:
            return self.first.check(value)
        except Invalid:
            return self.second.check(value)

    def schema(self) -> Schema:
        return {"anyOf": [self.first.schema(), self.second.schema()]}


@attrs.frozen
class Items:
    """An array. The reason why an element is invalid is the element's own."""

    element: Rule
    most: int
    least: int = 0

    def check(self, value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Invalid("Not an array")
        _checkCount(len(value), self.most, self.least)
        check = self.element.check
        return tuple([check(element) for element in value])

    def schema(self) -> Schema:
        return {"type": "array", "items": self.element.schema(), "minItems": self.least, "maxItems": self.most}


@attrs.frozen
class MappingOf:
    """A JSON object with free keys."""

    key: Rule
    value: Rule
    most: int

    def check(self, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Invalid("Not a hash")
        _checkCount(len(value), self.most)
        return dict([self._pair(key, each) for key, each in value.items()])

    def _pair(self, key: str, value: object) -> tuple[str, Any]:
        try:
            name = self.key.check(key)
        except Invalid as reason:
            raise Invalid(f"Key {_printable(key)}: {reason}")
        try:
            return name, self.value.check(value)
        except Invalid as reason:
            raise Invalid(f"Value for key '{key}': {reason}")

    def schema(self) -> Schema:
        names, values = self.key.schema(), self.value.schema()
        return {"type": "object", "propertyNames": names, "additionalProperties": values, "maxProperties": self.most}


class TimeUUID:
    """The text of a version-1 UUID, in its canonical form, with letters of any case."""

    def check(self, value: object) -> str:
        if not isinstance(value, str):
            raise Invalid("Not a string")
        if _TIME_UUID.fullmatch(value):
            return value
        if not _UUID.fullmatch(value):
            raise Invalid("Invalid UUID")
        raise Invalid("UUID is not version 1" if value[14] != "1" else "Unsupported UUID variant")

    def schema(self) -> Schema:
        return matching(_TIME_UUID.pattern)


class AnyUUID:
    """The text of a UUID of any version, in its canonical form; letters become lower-case."""

    def check(self, value: object) -> str:
        if not isinstance(value, str):
            raise Invalid("Not a string")
        if not _UUID.fullmatch(value):
            raise Invalid("Invalid UUID")
        return value.lower()

    def schema(self) -> Schema:
        return matching(_UUID.pattern)


class Flag:
    """``true`` or ``false``."""

    def check(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise Invalid("Not a boolean")
        return value

    def schema(self) -> Schema:
        return {"type": "boolean"}


_UUID = re.compile("[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", re.ASCII)
_TIME_UUID = re.compile(
    "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-1[0-9A-Fa-f]{3}-[89abAB][0-9A-Fa-f]{3}-[0-9A-Fa-f]{12}", re.ASCII
)
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
        schema = self.rule.schema()
        if self.default is None:
            return schema
        default = self.default()
        default = list(default) if isinstance(default, tuple) else default
        return {**schema, "type": [schema["type"], "null"], "default": default}


@attrs.frozen
class Parameter:
    """
    A parameter of a path or a query, or a header.

    :ivar summary: what it means, for the description of the API.
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
        The parameter's value.

        :param given: each value that the request has for it; the first counts.
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
        return self.rule.inText() if isinstance(self.rule, Number) else self.rule.schema()


def schemaOf(fields: Sequence[Field]) -> Schema:
    """An object with these fields; more of them are ignored."""
    schema: Schema = {"type": "object", "properties": {field.name: field.schema() for field in fields}}
    required = [field.name for field in fields if field.isRequired]
    return {**schema, "required": required} if required else schema


def matching(pattern: str) -> Schema:
    """
    A text of which the whole matches.

    :param pattern: one that means the same to Python and to ECMAScript.
    """
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


def _integer(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        # A number that overflows is infinite: an integer out of every range.
        value = max(-_HUGE, min(float(value), _HUGE))
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    raise Invalid("Invalid integer")


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


def _isUnicode(text: str) -> bool:
    # JSON can spell half of a surrogate pair, which neither UTF-8 nor a store can express.
    return text.isascii() or _SURROGATE.search(text) is None


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
