"""
The faults of the API. :mod:`txserviceregistry.registry.http.resource` sends them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class Fault(Exception):
    """
    A response that is an error.

    :ivar code: the HTTP status code.
    :ivar type: the fault's type, one of those that the API names.
    :ivar message: what went wrong; clients match on it.
    :ivar details: why; always a string.
    :ivar headers: headers that go with it, by name.
    """

    def __init__(
        self, code: int, type: str, message: str, details: str = "", headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        super().__init__(code, type, message, details)
        self.code = code
        self.type = type
        self.message = message
        self.details = details
        self.headers = headers


def badRequest(message: str, details: str) -> Fault:
    """400: a value is not valid."""
    return Fault(400, "badRequest", message, details)


def validationError(key: str, reason: str) -> Fault:
    """400: the body field *key* breaks a rule."""
    return badRequest(f"Validation error for key '{key}'", reason)


def badParameter(name: str, reason: str) -> Fault:
    """400: the path or query parameter *name* breaks a rule."""
    return badRequest(f"Invalid value for '{name}' query string parameter", reason)


def invalidEventQuery(reason: str) -> Fault:
    """400: the events feed can't be asked so; message and details are the same words."""
    return badRequest(reason, reason)


def invalidBody(reason: str) -> Fault:
    """400: the body is not a JSON object."""
    return badRequest(f"Failed to parse request body: {reason}", reason)


def unsupportedContentType(contentType: str) -> Fault:
    """400: the body is said to be something else than JSON."""
    message = f"Unsupported content type: {contentType}"
    return badRequest(message, message)


def invalidLimit(details: str) -> Fault:
    """400: ``limit`` is not a number in its range."""
    return Fault(400, "invalidLimit", "Invalid limit", details)


def serviceExists(serviceId: str) -> Fault:
    """400: the id is alive."""
    message = f"Service with id {serviceId} already exists."
    return Fault(400, "serviceWithThisIdExists", message, message)


def limitReached(resource: str, maximum: int) -> Fault:
    """400: the account has as many objects of *resource* (``service`` or ``configuration_value``) as it may."""
    return Fault(
        400,
        "limitReached",
        "Resource limit has been reached",
        f"Limit for resource {resource} has been reached. Maximum allowed objects: {maximum}",
    )


def rateLimitReached(details: str, retryAfter: int) -> Fault:
    """400: the account has asked too often; *retryAfter* is in seconds."""
    return Fault(
        400, "rateLimitReached", "Rate limit has been reached.", details, {"Retry-After": str(max(1, retryAfter))}
    )


def unauthorized(details: str, authUrl: str) -> Fault:
    """401: no token, or none that counts here."""
    return Fault(401, "unauthorizedError", "forbidden", details, {"WWW-Authenticate": f'Keystone uri="{authUrl}"'})


def forbidden(details: str) -> Fault:
    """403: it is there, but not for this client."""
    return Fault(403, "forbiddenError", "forbidden", details)


def notFound(kind: str, key: str) -> Fault:
    """404: no object of *kind* (``Service``, ``ConfigurationValue``, ``HeartbeatMarker``) has this *key*."""
    return Fault(404, "notFoundError", "object does not exist", f'Object "{kind}" with key "{key}" does not exist')


def pageNotFound() -> Fault:
    """404: the path is no resource, or takes no such method."""
    return Fault(404, "notFoundError", "The page cannot be found.", "The page cannot be found.")


def requestTooLarge(maximum: int) -> Fault:
    """413: the body has *maximum* bytes or more."""
    return Fault(
        413,
        "requestTooLargeError",
        "Request body is too large",
        f"The request body has to be smaller than {maximum} bytes",
    )


def internalError() -> Fault:
    """500: something broke inside; nothing of it leaks."""
    return Fault(500, "internalError", "Internal Error", "Internal Error")


def systemFailure(details: str = "The store is unreachable; retry later") -> Fault:
    """503: the store can't be reached, or the registry is overloaded."""
    return Fault(503, "systemFailureError", "Service unavailable", details)


def tooManyFollowers(retryAfter: int) -> Fault:
    """503: as many requests as may wait for events already do."""
    details = "Too many requests are waiting for events; retry later, or without wait"
    return Fault(503, "systemFailureError", "Service unavailable", details, {"Retry-After": str(retryAfter)})
