"""Whether a Twisted service was started, or will be: waiting for one that never starts would not end."""

from __future__ import annotations

from twisted.application.service import Service

from ..errors import NotRunning


def notRunning(service: Service) -> NotRunning:
    """The error that says of a service that it has to be started."""
    return NotRunning(f"{type(service).__name__} is not running; call startService()")


def checkRunning(service: Service, isRunning: bool) -> None:
    """Raise that error, before something waits for a service that is not running and has no parent to start it."""
    if not isRunning and service.parent is None:
        raise notRunning(service)
