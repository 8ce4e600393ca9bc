"""
Conditional writes: the precondition in a request's ``If-Match`` or ``If-None-Match`` (RFC 9110, 13.1).
"""

from __future__ import annotations

import re

from twisted.web.server import Request

from ..faults import badRequest
from ..model import UNCONDITIONAL, Precondition
from .validation import IF_MATCH, IF_NONE_MATCH

_TAG = re.compile('"([^"]*)"')


def preconditionOf(request: Request) -> Precondition:
    """
    The precondition of a write. ``W/`` before a tag, which proxies that compress add, is ignored.

    :raises Fault: 400 if a header is malformed, or both are there.
    """
    match, noneMatch = _header(request, b"If-Match"), _header(request, b"If-None-Match")
    if match is not None and noneMatch is not None:
        raise badRequest("'If-Match' and 'If-None-Match' headers can't be combined", "Send only one of them")
    if match is not None:
        text = IF_MATCH.value(match)
        return Precondition(True, None if text == "*" else frozenset(_TAG.findall(text)))
    if noneMatch is not None:
        IF_NONE_MATCH.value(noneMatch)
        return Precondition(False)
    return UNCONDITIONAL


def _header(request: Request, name: bytes) -> str | None:
    """A header, whose lines are one list; any bytes may come in it."""
    lines = request.requestHeaders.getRawHeaders(name)
    return None if lines is None else b", ".join(lines).decode("latin-1")
