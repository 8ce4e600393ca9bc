"""The faults of the API. :mod:`txserviceregistry.registry.http.resource` sends them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from ..errors import FAULT_TYPES

Headers: TypeAlias = Mapping[str, str | tuple[str, ...]]

#: The header of a response that no cache may keep.
NO_STORE: Mapping[str, str] = MappingProxyType({"Cache-Control": "no-store"})


class Fault(Exception):
    """
    A response that is an error: its type (:data:`~txserviceregistry.errors.FAULT_TYPES`), to which the status code
    belongs; what went wrong, on which clients match; why, the same if ``None``; headers, and more members of the body.
    """

    def __init__(
        self,
        type: str,
        message: str,
        details: str | None = None,
        headers: Headers = MappingProxyType({}),
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__(type, message, details)
        self.code = FAULT_TYPES[type]
        self.type = type
        self.message = message
        self.details = message if details is None else details
        self.headers = headers
        self.more = more


def badRequest(message: str, details: str | None = None) -> Fault:
    return Fault("badRequest", message, details)


def validationError(key: str, reason: str) -> Fault:
    return badRequest(f"Validation error for key '{key}'", reason)


def badParameter(name: str, reason: str) -> Fault:
    return badRequest(f"Invalid value for '{name}' query string parameter", reason)


def invalidBody(reason: str) -> Fault:
    return badRequest(f"Failed to parse request body: {reason}", reason)


def limitReached(resource: str, maximum: int) -> Fault:
    """The account has as many objects as it may; *resource* is ``service``, ``configuration_value`` or the like."""
    details = f"Limit for resource {resource} has been reached. Maximum allowed objects: {maximum}"
    return Fault("limitReached", "Resource limit has been reached", details)


def forbidden(details: str) -> Fault:
    return Fault("forbiddenError", "forbidden", details)


def notFound(kind: str, key: str) -> Fault:
    """*kind* is ``Service``, ``ConfigurationValue``, ``Lock`` or ``HeartbeatMarker``."""
    return Fault("notFoundError", "object does not exist", f'Object "{kind}" with key "{key}" does not exist')


def pageNotFound() -> Fault:
    return Fault("notFoundError", "The page cannot be found.")


def requestTooLarge(maximum: int) -> Fault:
    details = f"The request body has to be smaller than {maximum} bytes"
    return Fault("requestTooLargeError", "Request body is too large", details)


def systemFailure(details: str = "The store is unreachable; retry later", retryAfter: int | None = None) -> Fault:
    headers = {} if retryAfter is None else {"Retry-After": str(retryAfter)}
    return Fault("systemFailureError", "Service unavailable", details, headers)
