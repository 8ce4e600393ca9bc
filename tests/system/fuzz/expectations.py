"""
The expected response: exact JSON, and in places a value of which only the form is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import attrs


@attrs.frozen
class Expected:
    """
    An answer.

    :ivar body: JSON, with :class:`Form` for what is not known; ``None`` for no body at all.
    :ivar headers: those that matter, by lower-case name.
    """

    status: int
    body: Any = None
    headers: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class Form:
    """
    Something of which the form is known only.

    :ivar check: given what is there, says what is wrong with it; ``None`` if nothing is.
    """

    check: Callable[[Any], str | None]


def text(pattern: str) -> Form:
    """A string that matches *pattern*."""

    def check(actual: Any) -> str | None:
        return None if isinstance(actual, str) and re.fullmatch(pattern, actual, re.DOTALL) else f"is not /{pattern}/"

    return Form(check)


def link(path: str, query: list[tuple[str, str]]) -> Form:
    """An absolute URL of this *path* and *query*, the latter in any order."""

    def check(actual: Any) -> str | None:
        if not isinstance(actual, str):
            return "is not a URL"
        parts = urlsplit(actual)
        found = (parts.scheme, parts.path, sorted(parse_qsl(parts.query, keep_blank_values=True)))
        return None if found == ("http", path, sorted(query)) else f"is not a link to {path} with {query}"

    return Form(check)


def isTimeUUID(value: Any) -> bool:
    """Whether *value* is the text of a version-1 UUID."""
    return (
        isinstance(value, str)
        and re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-1[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", value) is not None
    )


def positionOf(id: str) -> int:
    """The time in a version-1 UUID: units of 100 ns since 1582-10-15."""
    return UUID(id).time


def difference(expected: Any, actual: Any, where: str = "body") -> str | None:
    """
    :return: where *actual* is not as expected, in words; ``None`` if it is.
    """
    if isinstance(expected, Form):
        wrong = expected.check(actual)
        return None if wrong is None else f"{where} {wrong}: {actual!r}"
    if isinstance(expected, dict) and isinstance(actual, dict) and set(expected) == set(actual):
        pairs = [(expected[key], actual[key], f"{where}.{key}") for key in expected]
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        pairs = [(*pair, f"{where}[{n}]") for n, pair in enumerate(zip(expected, actual, strict=True))]
    elif type(expected) is type(actual) and expected == actual:
        return None
    else:
        return f"{where} should be {expected!r}, and is {actual!r}"
    return next((found for pair in pairs if (found := difference(*pair)) is not None), None)
