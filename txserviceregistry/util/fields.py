r"""
The rules of the protocol for services and configuration keys; the formats of values on command lines, in endpoint
strings, in options and in headers; and texts without secrets and control characters.

Only values that no registry accepts are refused before a request is sent. The protocol defines no metadata: the keys
are those that its clients have always used. In tags and metadata (``a,b``, ``key=value,key=value``), ``\,`` is a comma
and ``\\`` a backslash; any other backslash stands for itself.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote

from ..types import Service

#: The id of a service.
SERVICE_ID = re.compile(r"[A-Za-z0-9_.\-]{3,65}", re.ASCII)
#: A configuration key of 3 to 500 characters: the protocol's own pattern.
KEY = re.compile(r"(?!.*/$)(?=.{3,500}$)(/[A-Za-z0-9_\-]{3,50}/?){0,10}([A-Za-z0-9_\-.]{3,170})?", re.ASCII)
#: The values of ``If-Match``: ``*``, or a list of tags. It means the same to Python and to ECMAScript.
ETAGS = re.compile('[*]|[ \t,]*(W/)?"[!#-~]*"[ \t]*(,[ \t]*((W/)?"[!#-~]*"[ \t]*)?)*', re.ASCII)
#: The heartbeat timeouts, in seconds.
HEARTBEAT_TIMEOUTS = range(3, 121)

#: The metadata keys that may have the host of a service, and its port: the first one that is not empty is used.
HOST_KEYS = ("host", "address", "ip", "service.host")
PORT_KEYS = ("port", "service.port")
#: A host name in ASCII, or an IP address; not a URL, and no blanks.
HOST = re.compile(r"(?:(?![/?#@\[\]\\])[!-~])+")

#: The rules for ids and keys in words, for messages.
ID_RULE = "3 to 65 characters of a-z A-Z 0-9 _ - ."
KEY_RULE = "3 to 170 characters of a-z A-Z 0-9 _ - ., after namespaces of 3 to 50 if any, as in /production/web/workers"

_HIGHEST_PORT = 65535

_PIECE = re.compile(r"(?:\\[\\,]|[^,])+")
_ESCAPE = re.compile(r"\\([\\,])")

_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([smhd]?)", re.ASCII)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)

# A secret of this length is not part of an ordinary word, and is redacted wherever it occurs.
_LONG = 16

# The beginning of a word: after a character that is not a letter or digit, or that belongs to an escape in a URL or a
# quoted text.
_BEGINNING = r"(?:(?<![^\W_])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[abfnrtv])|(?<=\\x[0-9A-Fa-f]{2})|(?<=\\u[0-9A-Fa-f]{4}))"
_END = r"(?![^\W_])"

#: The longest timeout, interval or pause that makes sense in a program, in seconds.
LONGEST_INTERVAL = 36_500 * 86_400.0
#: The last second of the year 9999, since the epoch: the latest moment that has a date.
LATEST = 253_402_300_799.0
#: No client waits for longer than this because a response says so, in seconds.
LONGEST_RETRY_AFTER = 3600.0


def checkedId(serviceId: Any) -> str:
    wrong = f"serviceId is {serviceId!r}, but a service's id is a string of {ID_RULE}"
    if not isinstance(serviceId, str):
        raise TypeError(wrong)
    if not SERVICE_ID.fullmatch(serviceId):
        raise ValueError(wrong)
    return serviceId


def checkedTimeout(timeout: Any, name: str = "heartbeatTimeout") -> int:
    wrong = f"{name} is {timeout!r}, but it has to be a whole number of seconds from 3 to 120"
    if not isinstance(timeout, (int, float)):
        raise TypeError(wrong)
    # 30.0 is in the range, and a whole number in the protocol too.
    if timeout not in HEARTBEAT_TIMEOUTS:
        raise ValueError(wrong)
    return int(timeout)


def checkedTags(tags: Any, name: str = "tags", example: str = "www") -> list[str]:
    """Tags, or other texts, or ``TypeError`` if they are not strings, or are a single string."""
    if isinstance(tags, (str, bytes)) or not isinstance(tags, Iterable):
        raise TypeError(f"{name} is {tags!r}, but it has to be a list of strings, such as [{example!r}]")
    checked = list(tags)
    for tag in checked:
        if not isinstance(tag, str):
            raise TypeError(f"{tag!r} is in {name}, but each has to be a string")
    return checked


def checkedMetadata(metadata: Any) -> dict[str, str]:
    """Metadata, ``{}`` for ``None``, or ``TypeError`` if they are not a mapping of strings to strings."""
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata is {metadata!r}, but it has to be a mapping of strings to strings")
    for key, value in metadata.items():
        if not isinstance(key, str):
            raise TypeError(f"{key!r} is a key of metadata, but each has to be a string")
        if not isinstance(value, str):
            raise TypeError(f"metadata[{key!r}] is {value!r}, but each value has to be a string")
    return dict(metadata)


class Unusable(ValueError):
    """A service has no valid address."""


def isAddress(host: str) -> bool:
    """Whether a host is an IPv4 or IPv6 address, without brackets."""
    try:
        return bool(ip_address(host))
    except ValueError:
        return False


def readAddress(metadata: Mapping[str, str]) -> tuple[str, int]:
    """A service's host, without brackets, and its port; or :class:`Unusable`."""
    host, port = (_first(metadata, keys) for keys in (HOST_KEYS, PORT_KEYS))
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not HOST.fullmatch(host) or (":" in host and not isAddress(host)):
        raise Unusable(f"{host!r} in its metadata is not a host")
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= _HIGHEST_PORT:
        raise Unusable(f"{port!r} in its metadata is not a port from 1 to {_HIGHEST_PORT}")
    return host, int(port)


def _first(metadata: Mapping[str, str], keys: tuple[str, ...]) -> str:
    value = next(filter(None, (metadata.get(key, "").strip() for key in keys)), None)
    if value is None:
        raise Unusable(f"its metadata have no {keys[0]!r}")
    return value


def netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def isEnabled(metadata: Mapping[str, str]) -> bool:
    return metadata.get("status") != "disabled"


def weightOf(metadata: Mapping[str, str]) -> int:
    """The weight of a service, from 0 to 1000; 100 by default."""
    text = metadata.get("weight", "")
    return int(text) if re.fullmatch("[0-9]{1,4}", text) and int(text) <= 1000 else 100


def takesWork(service: Service) -> bool:
    metadata = service["metadata"]
    return service.get("state", "up") == "up" and isEnabled(metadata) and weightOf(metadata) > 0


def parseTags(text: str) -> list[str]:
    """Tags, without the blanks around them and without empty ones."""
    return [piece.strip() for piece in _pieces(text)]


def parseMetadata(text: str) -> dict[str, str]:
    """Pairs, whose keys end at the first ``=``; ``ValueError`` if one is not a pair, or a key occurs twice."""
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
    return ",".join(tag.replace("\\", "\\\\").replace(",", "\\,") for tag in tags)


def formatMetadata(metadata: Mapping[str, str]) -> str:
    """The text that :func:`parseMetadata` reads as *metadata*, as long as no key holds a ``=``."""
    return formatTags(f"{key}={value}" for key, value in metadata.items())


def parseCount(text: str, least: int = 0, most: int = 2**31 - 1) -> int:
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
    """A rate, such as ``100/1m`` or ``10/s``: how many (``None``: ``off``) in how many seconds; or ``ValueError``."""
    if text == "off":
        return None, 86_400.0
    count, slash, period = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r} is not a rate such as 500000/24h, 100/1m or 10/s, or 'off'")
    # A shorter period is a burst, and no client waits for a longer one.
    seconds = parseDuration("1" + period if period in _UNITS and period else period, "1s", "366d")
    return parseCount(count, 1), seconds


def boundedNumber(value: object, least: float, most: float, name: str | None = None) -> float:
    """A number, or a text that Python reads as one; ``ValueError``, which has the *name*, if out of the bounds."""
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
    """The header ``Retry-After`` in seconds; ``None`` if it is not a number (a date, which the API never sends)."""
    if text is None or not re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text.strip()):
        return None
    return min(float(text), LONGEST_RETRY_AFTER)


def validTraceparent(text: object) -> str | None:
    return text if isinstance(text, str) and _TRACEPARENT.fullmatch(text) else None


def escaped(text: str, keep: str = "") -> str:
    """*text* with escapes for the characters, line ends included, that a terminal obeys or does not show."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else character.encode("unicode_escape").decode()
        for character in text
    )


def redacted(text: str, secrets: Iterable[str], replacement: str = "…") -> str:
    """*text* without secrets. A short one stays within a word: a token that is ``bad`` leaves ``badRequest``."""
    # The longest first, because others may be part of it.
    for secret in sorted({secret for secret in secrets if secret and secret in text}, key=len, reverse=True):
        beginning = end = ""
        if len(secret) < _LONG:
            # One that begins or ends with another character than a letter or digit is not within a word there.
            beginning, end = _BEGINNING if secret[0].isalnum() else "", _END if secret[-1].isalnum() else ""
        text = re.sub(f"{beginning}{re.escape(secret)}{end}", lambda _: replacement, text)
    return text


def encodings(secret: str) -> set[str]:
    """How a secret is written: as it is, in JSON and in a URL."""
    inJSON = {json.dumps(secret, ensure_ascii=isASCII)[1:-1] for isASCII in (True, False)}
    return {secret, *inJSON, quote(secret, safe="", errors="replace")}
