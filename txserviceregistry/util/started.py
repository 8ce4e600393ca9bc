"""Whether a Twisted service was started, or will be: waiting for one that never starts would not end."""

from __future__ import annotations

from twisted.application.service import Service

from ..errors import NotRunning


def notRunning(service: Service) -> NotRunning:
    """The error that says of a service that it has to be started."""
    return NotRunning(f"{type(service).__name__} is not running; call startService()")


def checkRunning(service: Service, isRunning: bool) -> None:
    """
    Check, before something waits for a service, that it is running or the child of a service that will start it.

    :raises NotRunning: if it is neither.
    """
    if not isRunning and service.parent is None:
        raise notRunning(service)
