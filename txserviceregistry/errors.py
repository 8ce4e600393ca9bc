"""
Every exception that a caller of this library can see.

Their texts say what was asked of which URL, what came back, and what to do about it. No text, ``repr`` or attribute
holds a credential or a token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from .util.escaping import escaped

__all__ = [
    "APIError",
    "AuthenticationFailed",
    "BadRequest",
    "ConnectionFailed",
    "Forbidden",
    "ForeignResponse",
    "InvalidSettings",
    "LimitReached",
    "MalformedResponse",
    "NoServiceAvailable",
    "NotFound",
    "NotRunning",
    "RateLimited",
    "RegistrationEnded",
    "RequestTimedOut",
    "ServerError",
    "ServiceExists",
    "ServiceRegistryError",
    "Unauthorized",
    "apiErrorFor",
]


class ServiceRegistryError(Exception):
    """
    What all errors of this library have in common: catch it to catch them all.

    ``str()`` of one is a line for people: what a server or a file has put into it is escaped. Attributes are exact.
    """

    def __str__(self) -> str:
        return escaped(self._text())

    def _text(self) -> str:
        return super().__str__()


class InvalidSettings(ServiceRegistryError):
    """A setting (an argument, an environment variable, a line of an INI file) can't be used; the text says which."""


class ConnectionFailed(ServiceRegistryError):
    """
    The registry, or the Auth API, could not be reached, or hung up before it had answered.

    :ivar wasSent: false if there was no connection at all, so that the request has surely had no effect.
    """

    wasSent = True


class RequestTimedOut(ServiceRegistryError):
    """No whole answer came before the request's deadline."""


class MalformedResponse(ServiceRegistryError):
    """The response is not what the API promises: it is not JSON, or it is cut short, or members are missing."""


class ForeignResponse(MalformedResponse):
    """
    The response is an error (4xx) or a redirect, but not a fault of this API: a proxy, a gateway or another server sent
    it. It says nothing about the registry and its objects, and the request may have been carried out or not. Heartbeats
    and subscribers retry as in an outage.

    :ivar status: the HTTP status code.
    :ivar method: the request's method.
    :ivar url: the requested URL.
    :ivar doubt: what may be wrong with that URL; empty if the status does not suggest anything.
    """

    def __init__(self, status: int, *, method: str = "", url: str = "", doubt: str = "") -> None:
        super().__init__(status)
        self.status = status
        self.method = method
        self.url = url
        self.doubt = doubt

    def _text(self) -> str:
        asked = f"{self.method} {self.url} was answered with " if self.url else ""
        advice = self.doubt or "Check the proxies in between"
        if self.status < 400:
            return f"{asked}{self.status}. {advice}"
        return f"{asked}{self.status}, but not by the registry: the response is not a fault of its API. {advice}"


class AuthenticationFailed(ServiceRegistryError):
    """The Auth API refused the credentials. Trying again with the same ones does not help."""


class RegistrationEnded(ServiceRegistryError):
    """The service was stopped before it was registered."""


class NotRunning(ServiceRegistryError, RuntimeError):
    """
    A ``Directory``, ``EventsFeed``, ``ConfigurationWatcher`` or ``RegisteredService`` was used before it was started:
    it knows nothing, and a wait for it would not end.
    """


class NoServiceAvailable(ServiceRegistryError):
    """
    No living service with a tag is known, or none of those that are could be reached.

    :ivar tag: the tag.
    :ivar stale: how many seconds ago it was last known which services there are; 0.0 for now, infinite for never.
    :ivar reasons: what went wrong with each service that was tried, by its id and address.
    :ivar unusable: how many services with the tag are disabled, or don't say where they are.
    """

    def __init__(
        self, tag: str, stale: float, reasons: Mapping[str, BaseException] | None = None, unusable: int = 0
    ) -> None:
        super().__init__(tag, stale)
        self.tag = tag
        self.stale = stale
        self.reasons = dict(reasons or {})
        self.unusable = unusable

    def _text(self) -> str:
        if math.isinf(self.stale):
            return f"No service with the tag {self.tag!r} is known: the registry has not been heard of yet"
        age = f" (as of {self.stale:.1f} s ago)" if self.stale else ""
        if self.reasons:
            tried = "; ".join(f"{where}: {str(why) or type(why).__name__}" for where, why in self.reasons.items())
            return f"No service with the tag {self.tag!r} could be reached{age}: {tried}"
        if self.unusable:
            return (
                f"No service with the tag {self.tag!r} can be used{age}: "
                f"all {self.unusable} are disabled, or have no host and port in their metadata"
            )
        return f"No service with the tag {self.tag!r} is registered{age}"


class APIError(ServiceRegistryError):
    """
    The registry answered with a fault, or anything on the way to it with a 5xx.

    :ivar status: the HTTP status code.
    :ivar type: the fault's type, such as ``notFoundError``; empty if a 5xx is not a fault of the API.
    :ivar message: what the registry says went wrong.
    :ivar details: more of the same.
    :ivar txnId: the registry's id of the request, for its operators to find it in their logs.
    :ivar method: the request's method.
    :ivar url: the URL that was asked.
    :ivar doubt: what may be wrong with that URL; empty if nothing looks as if there were another one to be asked.
    """

    advice = ""

    def __init__(
        self,
        status: int,
        type: str = "",
        message: str = "",
        details: str = "",
        txnId: str = "",
        *,
        method: str = "",
        url: str = "",
        doubt: str = "",
    ) -> None:
        super().__init__(status, type, message, details, txnId)
        self.status = status
        self.type = type
        self.message = message
        self.details = details
        self.txnId = txnId
        self.method = method
        self.url = url
        self.doubt = doubt

    def _text(self) -> str:
        asked = f"{self.method} {self.url} was answered with " if self.url else ""
        said = ": ".join(dict.fromkeys(part for part in (self.message, self.details) if part))
        kind = f" {self.type}" if self.type else ""
        text = f"{asked}{self.status}{kind}" + (f": {said}" if said else "")
        if self.txnId:
            text += f" (txnId {self.txnId})"
        advice = self.doubt or self.advice
        if advice:
            text += f". {advice}"
        return text


class BadRequest(APIError):
    """A value that was sent is not valid (400, 413); ``details`` says which and why."""


class ServiceExists(APIError):
    """A service with this id is registered and alive (400)."""

    # Read by who has called create(), and beside programs that wait already.
    advice = (
        "After a restart, the id is free when the earlier run's heartbeat timeout has passed; register(), "
        "RegisteredService and the wrapper wait for that. If it is another service, choose another id"
    )


class LimitReached(APIError):
    """The account may not have more objects of this kind (400)."""

    advice = "Remove some, or ask the registry's operator to raise the limit"


class RateLimited(APIError):
    """
    The account has made too many requests (400).

    :ivar retryAfter: seconds until the registry takes requests again, 3600 at most, or ``None`` if it did not say.
    """

    retryAfter: float | None = None
    advice = "Ask less often, or ask the registry's operator to raise the limit"


class Unauthorized(APIError):
    """The auth token is not accepted (401), a fresh one neither."""

    advice = "Check that the user belongs to this registry"


class Forbidden(APIError):
    """The user may not do this (403)."""


class NotFound(APIError):
    """There is no such object, or no such path (404)."""


class ServerError(APIError):
    """The registry, or a gateway before it, can't do its work now (any 5xx)."""

    advice = "The request may be tried again later"


_BY_TYPE: dict[str, type[APIError]] = {
    "serviceWithThisIdExists": ServiceExists,
    "limitReached": LimitReached,
    "rateLimitReached": RateLimited,
}
_BY_STATUS: dict[int, type[APIError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    413: BadRequest,
}


def apiErrorFor(status: int, type: str) -> type[APIError]:
    """
    The class that stands for a fault: by the fault's *type* where that says more than the HTTP *status*.

    :return: a subclass of :class:`APIError`, or :class:`APIError` itself for a status that means nothing special.
    """
    if status == 400 and type in _BY_TYPE:
        return _BY_TYPE[type]
    if status >= 500:
        return ServerError
    return _BY_STATUS.get(status, APIError)


#: No response, or none that says anything about the request.
UNKNOWN_OUTCOME = (ConnectionFailed, RequestTimedOut, MalformedResponse, ServerError)


def isUnknown(error: BaseException | None) -> bool:
    """Whether it is unknown, after this *error*, if the registry has done what it was asked."""
    return isinstance(error, UNKNOWN_OUTCOME) and getattr(error, "wasSent", True)
