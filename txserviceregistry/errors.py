"""
The exceptions of this library. Texts say what failed, why, and what to do. No text, ``repr`` or attribute has a secret.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

from .util.fields import escaped

__all__ = [
    "APIError",
    "AuthenticationFailed",
    "BadRequest",
    "ConnectionFailed",
    "Forbidden",
    "ForeignResponse",
    "InvalidSettings",
    "LimitReached",
    "LockHeld",
    "MalformedResponse",
    "NoServiceAvailable",
    "NotFound",
    "NotRunning",
    "NotSupported",
    "OutcomeUnknown",
    "PreconditionFailed",
    "RateLimited",
    "RegistrationEnded",
    "RequestTimedOut",
    "ServerError",
    "ServiceExists",
    "ServiceRegistryError",
    "Unauthorized",
    "apiErrorFor",
]

#: The types of faults that the API has, with the status code of each.
FAULT_TYPES: Mapping[str, int] = {
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


class ServiceRegistryError(Exception):
    """The base class. ``str()`` is a line in which text from servers and files is escaped; attributes are exact."""

    def __str__(self) -> str:
        return escaped(self._text())

    def _text(self) -> str:
        return super().__str__()


class InvalidSettings(ServiceRegistryError):
    """A setting (an argument, an environment variable, an option in an INI file) is invalid; the text says which."""


class ConnectionFailed(ServiceRegistryError):
    """
    The registry, or the Auth API, could not be reached, or closed the connection before its response.

    :ivar wasSent: false if the request certainly had no effect.
    """

    wasSent = True


class RequestTimedOut(ServiceRegistryError):
    """There was no complete response before the request's deadline."""


class MalformedResponse(ServiceRegistryError):
    """The response is not one of the API: it is not JSON, it is truncated, or members are missing."""


@attrs.define(eq=False, repr=False, slots=False)
class ForeignResponse(MalformedResponse):
    """
    The response is an error (4xx) or a redirect, but not a fault of this API: a proxy, a gateway or another server sent
    it. It says nothing about the registry and its objects, and the request may have been carried out or not. Heartbeats
    and subscribers retry as in an outage.

    :ivar status: the HTTP status code of the response to the *method* at the *url*.
    :ivar doubt: a possible mistake in the URL, or empty.
    :ivar wasSent: false if the request certainly had no effect: a proxy that limits requests rejected it with 429.
    """

    status: int
    method: str = ""
    url: str = ""
    doubt: str = ""
    wasSent: bool = attrs.field(init=False, default=attrs.Factory(lambda self: self.status != 429, takes_self=True))

    def _text(self) -> str:
        asked = f"{self.method} {self.url} returned " if self.url else ""
        origin = "" if self.status < 400 else ", but the response is not from the registry"
        return f"{asked}{self.status}{origin}. {self.doubt or 'Check the proxies in between'}"


class AuthenticationFailed(ServiceRegistryError):
    """The Auth API refused the credentials. A retry with the same ones does not help."""


class RegistrationEnded(ServiceRegistryError):
    """The service was stopped before it was registered."""


class NotRunning(ServiceRegistryError, RuntimeError):
    """A ``Directory`` or another service of this library was used before it was started."""

    @classmethod
    def of(cls, service: Any) -> NotRunning:
        """The error of a Twisted *service*."""
        return cls(f"{type(service).__name__} is not running; call startService()")

    @classmethod
    def check(cls, service: Any) -> None:
        """Raise it before something waits for a service that is not running and has no parent to start it."""
        if not service.running and service.parent is None:
            raise cls.of(service)


@attrs.define(eq=False, repr=False, slots=False)
class NotSupported(ServiceRegistryError):
    """The registry does not have the *extension* of the API that the call needs."""

    extension: str

    def _text(self) -> str:
        return f"The registry does not have the extension {self.extension!r} of the API. Upgrade the registry"


@attrs.define(eq=False, repr=False, slots=False)
class OutcomeUnknown(ServiceRegistryError):
    """
    A conditional write had no response, and its condition does not hold any more: either the write had succeeded, or
    another client has changed the value.

    :ivar etag: the tag of the current value; ``None`` if there is no value.
    """

    etag: str | None

    def _text(self) -> str:
        now = "there is no value now" if self.etag is None else f"the value's tag is now {self.etag}"
        return f"The write had no response and may have succeeded: {now}. Read the value to find out"


@attrs.define(eq=False, repr=False, slots=False)
class NoServiceAvailable(ServiceRegistryError):
    """
    No service with a tag is registered, or none of them could be reached.

    :ivar stale: the age of the list of services, in seconds; 0.0 if it is current, infinite if there is none.
    :ivar reasons: the error of each service that was tried, by its id and address.
    :ivar unusable: how many services with the tag are drained or disabled, or have no host and port.
    """

    tag: str
    stale: float
    reasons: Mapping[str, BaseException] = attrs.field(factory=dict)
    unusable: int = 0

    def _text(self) -> str:
        if math.isinf(self.stale):
            return f"No service with the tag {self.tag!r} is known: no response from the registry yet"
        age = f" (as of {self.stale:.1f} s ago)" if self.stale else ""
        result, why = "is registered", ""
        if self.reasons:
            tried = [f"{where}: {str(each) or type(each).__name__}" for where, each in self.reasons.items()]
            more = [f"{len(tried) - 3} more"] if len(tried) > 3 else []
            result, why = "could be reached", ": " + "; ".join(tried[:3] + more)
        elif self.unusable:
            why = f": all {self.unusable} are drained or disabled, or have no host and port in their metadata"
            result = "can be used"
        return f"No service with the tag {self.tag!r} {result}{age}{why}"


@attrs.define(eq=False, repr=False, slots=False)
class APIError(ServiceRegistryError):
    """
    The registry returned a fault, or a server before it a 5xx.

    :ivar status: the HTTP status code of the response to the *method* at the *url*.
    :ivar type: the fault's type, such as ``notFoundError``; empty if a 5xx is not a fault of the API.
    :ivar message: the registry's message; *details* has its details.
    :ivar txnId: the registry's id of the request, with which its operators find it in their logs.
    :ivar doubt: a possible mistake in the URL, or empty.
    """

    status: int
    type: str = ""
    message: str = ""
    details: str = ""
    txnId: str = ""
    method: str = ""
    url: str = ""
    doubt: str = ""

    advice = ""

    def _text(self) -> str:
        asked = f"{self.method} {self.url} returned " if self.url else ""
        said = ": ".join(dict.fromkeys(filter(None, (self.message, self.details))))
        text = f"{asked}{self.status} {self.type}".rstrip() + (f": {said}" if said else "")
        text += f" (txnId {self.txnId})" if self.txnId else ""
        advice = self.doubt or self.advice
        return f"{text.rstrip('.')}. {advice}" if advice else text


class BadRequest(APIError):
    """A value in the request is not valid (400, 413); ``details`` says which and why."""


class ServiceExists(APIError):
    """A service with this id is registered (400)."""

    advice = "After a restart, wait for the heartbeat timeout, as register() and the wrapper do; else use another id"


class LimitReached(APIError):
    """The account has as many objects of this kind as it may have (400)."""

    advice = "Remove some, or ask the registry's operator to raise the limit"


class RateLimited(APIError):
    """The account has sent too many requests (400). ``retryAfter``: see :class:`ServerError`."""

    retryAfter: float | None = None
    advice = "Send fewer requests, or ask the registry's operator to raise the limit"


class Unauthorized(APIError):
    """The registry refused the auth token, and a new one too (401)."""

    advice = "Check that the user belongs to this registry"


class Forbidden(APIError):
    """The user's role does not allow this (403); ``details`` says what the user may change."""

    advice = "Use another user, or ask the registry's operator for another role"


class NotFound(APIError):
    """There is no such object, or no such path (404)."""


class LockHeld(APIError):
    """
    Another client holds the lock (409).

    :ivar holder: the name that the holder has given, or empty.
    :ivar fence: the fence of its acquisition.
    :ivar secondsLeft: the time until the lock expires without further heartbeats; ``None`` if unknown.
    """

    holder: str = ""
    fence: int | None = None
    secondsLeft: float | None = None
    advice = "Wait for it, or try again later"


class PreconditionFailed(APIError):
    """
    A conditional write was refused: the value has another tag, or there is none (412).

    :ivar etag: the tag of the current value; ``None`` if there is no value.
    """

    etag: str | None = None
    advice = "Read the value again, then decide"


class ServerError(APIError):
    """
    The registry, or a gateway before it, is unavailable (any 5xx).

    :ivar retryAfter: seconds after which to try again, at most 3600; ``None`` if the response does not say.
    """

    retryAfter: float | None = None
    advice = "Retry later"


# By the fault's type for 400, or by the HTTP status.
_CLASSES: Mapping[str | int, type[APIError]] = {
    "serviceWithThisIdExists": ServiceExists,
    "limitReached": LimitReached,
    "rateLimitReached": RateLimited,
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: LockHeld,
    412: PreconditionFailed,
    413: BadRequest,
}


def apiErrorFor(status: int, type: str) -> type[APIError]:
    """The subclass for a fault's *type* and HTTP *status*; :class:`APIError` itself for an unknown status."""
    if status == 400 and type in _CLASSES:
        return _CLASSES[type]
    return ServerError if status >= 500 else _CLASSES.get(status, APIError)


def faultIn(value: object, status: int | None = None) -> dict[str, Any] | None:
    """The fault of this API in a response's JSON. Errors of proxies may be JSON too, with a ``type`` (RFC 9457)."""
    if not isinstance(value, dict) or not isinstance(value.get("message"), str):
        return None
    type, code = value.get("type"), value.get("code")
    isKnown = isinstance(type, str) and code is not None and FAULT_TYPES.get(type) == code
    return value if isKnown and status in (None, code) else None


#: No response, or none that tells the outcome of the request.
UNKNOWN_OUTCOME = (ConnectionFailed, RequestTimedOut, MalformedResponse, ServerError)


def isUnknown(error: BaseException | None) -> bool:
    """Whether the outcome of a request is unknown after this *error*."""
    return isinstance(error, UNKNOWN_OUTCOME) and getattr(error, "wasSent", True)
