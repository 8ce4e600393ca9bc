"""
Register Twisted applications, keep them registered, and find them.

Most programs need :class:`Client` and :class:`RegisteredService`; every exception is in
:mod:`txserviceregistry.errors`, and :mod:`txserviceregistry.testing` has a registry for your own tests.
"""

from typing import TYPE_CHECKING

from ._version import __version__
from .util import lazyNames

if TYPE_CHECKING:
    from .api.auth import Credentials
    from .client import Client
    from .clock import useMonotonic
    from .errors import ServiceRegistryError
    from .heartbeats.heartbeater import HeartBeater
    from .registration import RegisteredService

__all__ = [
    "Client",
    "Credentials",
    "HeartBeater",
    "RegisteredService",
    "ServiceRegistryError",
    "__version__",
    "useMonotonic",
]

if not TYPE_CHECKING:
    # The command line's help needs none of the names, nor treq below them, which takes most of a program's start.
    __getattr__, __dir__ = lazyNames(
        __name__,
        Client="client",
        Credentials="api.auth",
        HeartBeater="heartbeats.heartbeater",
        RegisteredService="registration",
        ServiceRegistryError="errors",
        useMonotonic="clock",
    )
