r"""
The formats of values on the command line, in endpoint strings, in files of options and in headers.

Tags and metadata are ``a,b`` and ``key=value,key=value``: a comma separates; ``\,`` is a comma and ``\\`` a backslash,
and any other backslash stands for itself. A duration is ``90s``, ``15m``, ``24h`` or ``30d``, or a plain number of
seconds; a rate is a number and a duration, ``500000/24h``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

_PIECE = re.compile(r"(?:\\[\\,]|[^,])+")
_ESCAPE = re.compile(r"\\([\\,])")

_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([smhd]?)", re.ASCII)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)

#: The longest timeout, interval or pause that makes sense in a program, in seconds.
LONGEST_INTERVAL = 36_500 * 86_400.0
#: The last second of the year 9999, since the epoch: the latest moment that has a date.
LATEST = 253_402_300_799.0
#: No client waits for longer than this because a response says so, in seconds.
LONGEST_RETRY_AFTER = 3600.0


def parseTags(text: str) -> list[str]:
    """Tags, separated by commas. Blanks around a tag are not part of it, and where nothing is left there is no tag."""
    return [piece.strip() for piece in _pieces(text)]


def parseMetadata(text: str) -> dict[str, str]:
    """
    Pairs of a key and a value, separated by commas. A key ends at the first ``=``; its value may hold more of them.
    ``ValueError`` if a piece is not a pair, or a key occurs twice.
    """
    pairs: dict[str, str] = {}
    for piece in _pieces(text):
        key, equals, value = piece.lstrip().partition("=")
        if not key or not equals:
            raise ValueError(rf"{piece!r} is not a key=value pair (write a comma within a value as \,)")
        if key in pairs:
            raise ValueError(f"key {key!r} occurs twice")
        pairs[key] = value
    return pairs


def _pieces(text: str) -> list[str]:
    pieces = (_ESCAPE.sub(r"\1", piece) for piece in _PIECE.findall(text))
    return [piece for piece in pieces if piece.strip()]


def formatTags(tags: Iterable[str]) -> str:
    """The text that :func:`parseTags` reads as *tags*."""
    return ",".join(tag.replace("\\", "\\\\").replace(",", "\\,") for tag in tags)


def formatMetadata(metadata: Mapping[str, str]) -> str:
    """The text that :func:`parseMetadata` reads as *metadata*, as long as no key holds a ``=``."""
    return formatTags(f"{key}={value}" for key, value in metadata.items())


def parseCount(text: str, least: int = 0, most: int = 2**31 - 1) -> int:
    """A whole number from *least* to *most*, in digits, or ``ValueError``."""
    if not re.fullmatch("[0-9]{1,16}", text) or not least <= int(text) <= most:
        raise ValueError(f"{text!r} is not a whole number from {least} to {most}")
    return int(text)


def parseDuration(text: str, least: str = "0s", most: str = "36500d") -> float:
    """A duration (``90``, ``90s``, ``1.5m``, ``24h``, ``30d``) in seconds; ``ValueError`` if out of the bounds."""
    seconds = _seconds(text)
    if not _seconds(least) <= seconds <= _seconds(most):
        raise ValueError(f"{text!r} is not a duration from {least} to {most}")
    return seconds


def _seconds(duration: str) -> float:
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise ValueError(f"{duration!r} is not a duration such as 90s, 15m, 24h or 30d")
    return float(match[1]) * _UNITS[match[2]]


def parseRate(text: str) -> tuple[int | None, float]:
    """
    A rate: how many (``None`` for ``off``) in which time, in seconds. ``500000/24h``, ``100/1m``, ``10/s``.
    ``ValueError`` if it is not one, or the time is not from a second to 366 days.
    """
    if text == "off":
        return None, 86_400.0
    count, slash, period = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r} is not a rate such as 500000/24h, 100/1m or 10/s, or 'off'")
    # A shorter period is a burst, and no client waits for a longer one.
    seconds = parseDuration("1" + period if period in _UNITS and period else period, "1s", "366d")
    return parseCount(count, 1), seconds


def boundedNumber(value: object, least: float, most: float, name: str | None = None) -> float:
    """
    A number that comes from outside (a file, an argument, a response), or any text that Python reads as one.
    ``ValueError``, which begins with the *name*, if it is not one, is not finite, or is not from *least* to *most*.
    """
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    # Nothing is true of "not a number".
    if least <= number <= most:
        return number
    try:
        shown = repr(value)[:40] if isinstance(value, (int, float, str)) else type(value).__name__
    except ValueError:
        # Python refuses to write integers of many digits.
        shown = "int"
    named = "" if name is None else f"{name}: "
    raise ValueError(f"{named}{shown} is not a number from {least:g} to {most:g}")


def parseRetryAfter(text: str | None) -> float | None:
    """
    The header ``Retry-After`` in seconds, at most :data:`LONGEST_RETRY_AFTER`; ``None`` if it is not there or not a
    decimal number. (It may be a date, which the API never sends.)
    """
    if text is None or not re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text.strip()):
        return None
    return min(float(text), LONGEST_RETRY_AFTER)


def validTraceparent(text: object) -> str | None:
    """The W3C header ``traceparent``, which names the trace that a request belongs to; ``None`` if it is not valid."""
    return text if isinstance(text, str) and _TRACEPARENT.fullmatch(text) else None
