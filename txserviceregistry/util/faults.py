"""Which responses are faults of this API, and so the registry's own: one rule for everything that interprets them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

#: The types of faults that the API has, with the status code of each.
FAULT_TYPES: Mapping[str, int] = MappingProxyType(
    {
        "badRequest": 400,
        "serviceWithThisIdExists": 400,
        "invalidLimit": 400,
        "limitReached": 400,
        "rateLimitReached": 400,
        "unauthorizedError": 401,
        "forbiddenError": 403,
        "notFoundError": 404,
        "lockHeld": 409,
        "preconditionFailed": 412,
        "requestTooLargeError": 413,
        "internalError": 500,
        "notImplementedError": 501,
        "systemFailureError": 503,
    }
)


def faultIn(value: object, status: int | None = None) -> dict[str, Any] | None:
    """
    The fault of this API in a response's JSON.

    An error of a proxy or a gateway is often JSON too, and may have a ``type`` (RFC 9457). It says nothing about the
    registry or its objects.

    :param value: the JSON value.
    :param status: the HTTP status that it came with, if it came with one of its own.
    :return: ``None`` if it is not an object with a known ``type``, the ``code`` that belongs to it and a ``message``,
        or if the *status* is another one.
    """
    if not isinstance(value, dict) or not isinstance(value.get("message"), str):
        return None
    type, code = value.get("type"), value.get("code")
    if not isinstance(type, str) or type not in FAULT_TYPES or code != FAULT_TYPES[type]:
        return None
    return value if status is None or status == code else None
