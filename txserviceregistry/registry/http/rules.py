"""
Rules for values: strings, numbers, lists and mappings, each with its bounds, and the reasons why a value breaks them.

A rule is data: the description of the API (:mod:`~txserviceregistry.registry.http.schemas`) is made from the rules that
check requests. Which field has which rule is in :mod:`~txserviceregistry.registry.http.validation`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import attrs

from ..faults import Fault, badParameter, validationError


class Invalid(Exception):
    """A value breaks a rule; the text is the reason, in the words of the API."""


class Rule(Protocol):
    """A rule for a value."""

    def check(self, value: object) -> Any:
        """
        :return: the value that *value* stands for.
        :raises Invalid: if it breaks the rule.
        """


@attrs.frozen
class Text:
    """
    A string.

    :ivar shortest: the least number of characters (code points).
    :ivar longest: the greatest.
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


@attrs.frozen
class Number:
    """An integer, as ``30`` or ``30.0``, or as text that reads as one: ``"30"``, ``" 030"``, ``"3e1"``. No boolean."""

    least: int
    greatest: int

    def check(self, value: object) -> int:
        number = self._integer(value)
        if not self.least <= number <= self.greatest:
            raise Invalid(f"Value out of range ({self.least}..{self.greatest})")
        return number

    def _integer(self, value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and math.isfinite(value) and value.is_integer():
            return int(value)
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            # A number that overflows is infinite: an integer out of every range.
            number = max(-_HUGE, min(float(value), _HUGE))
            if number.is_integer():
                return int(number)
        raise Invalid("Invalid integer")


@attrs.frozen
class DeferredFields:
    """
    An object with these fields, or with those of *others*, which is checked later, by itself.
    """

    fields: tuple[Field, ...]
    others: tuple[Field, ...]

    def check(self, value: object) -> object:
        return value


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


@attrs.frozen
class Words:
    """
    Some of a few words, separated by commas, or ``all``. An empty text is none of them.

    :ivar choice: the words.
    """

    choice: Choice

    def check(self, value: object) -> frozenset[str]:
        if not isinstance(value, str):
            raise Invalid("Not a string")
        if value == "all":
            return frozenset(self.choice.words)
        return frozenset(map(self.choice.check, value.split(",")))


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


@attrs.frozen
class TimeUUID:
    """
    The text of a version-1 UUID, in its canonical form, with letters of any case.

    :cvar pattern: what the whole text matches.
    """

    pattern: ClassVar[str] = "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-1[0-9A-Fa-f]{3}-[89abAB][0-9A-Fa-f]{3}-[0-9A-Fa-f]{12}"

    def check(self, value: object) -> str:
        if not isinstance(value, str):
            raise Invalid("Not a string")
        if _TIME_UUID.fullmatch(value):
            return value
        if not _UUID.fullmatch(value):
            raise Invalid("Invalid UUID")
        if value[14] != "1":
            raise Invalid("UUID is not version 1")
        raise Invalid("Unsupported UUID variant")


@attrs.frozen
class AnyUUID:
    """
    The text of a UUID of any version, in its canonical form; letters become lower-case.

    :cvar pattern: what the whole text matches.
    """

    pattern: ClassVar[str] = "[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"

    def check(self, value: object) -> str:
        if not isinstance(value, str):
            raise Invalid("Not a string")
        if not _UUID.fullmatch(value):
            raise Invalid("Invalid UUID")
        return value.lower()


@attrs.frozen
class Flag:
    """``true`` or ``false``."""

    def check(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise Invalid("Not a boolean")
        return value


_TIME_UUID = re.compile(TimeUUID.pattern, re.ASCII)
_UUID = re.compile(AnyUUID.pattern, re.ASCII)
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
        """Whether it must not be absent."""
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


@attrs.frozen
class Parameter:
    """
    A parameter of a path or a query.

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


def _checkCount(count: int, most: int, least: int = 0) -> None:
    if not least <= count <= most:
        raise Invalid(f"Object needs to have between {least} and {most} items")


def _isUnicode(text: str) -> bool:
    # JSON can spell half of a surrogate pair, which neither UTF-8 nor a store can express.
    return text.isascii() or _SURROGATE.search(text) is None


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
