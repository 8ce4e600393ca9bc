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
    headers = request.requestHeaders
    match, noneMatch = (headers.getRawHeaders(parameter.name) for parameter in (IF_MATCH, IF_NONE_MATCH))
    if match is not None and noneMatch is not None:
        raise badRequest("'If-Match' and 'If-None-Match' headers can't be combined", "Send only one of them")
    if match is not None:
        # Several lines are one list.
        text = IF_MATCH.value(", ".join(match))
        return Precondition(True, None if text == "*" else frozenset(_TAG.findall(text)))
    if noneMatch is not None:
        IF_NONE_MATCH.value(", ".join(noneMatch))
        return Precondition(False)
    return UNCONDITIONAL
