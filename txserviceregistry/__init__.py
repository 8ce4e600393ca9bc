"""
Register Twisted applications, keep them registered, and find them.

Most programs need :class:`Client` and :class:`RegisteredService`; every exception is in
:mod:`txserviceregistry.errors`, and :mod:`txserviceregistry.testing` has a registry for your own tests.
"""

from ._version import __version__
from .auth import Credentials
from .client import Client
from .clock import useMonotonic
from .errors import ServiceRegistryError
from .heartbeater import HeartBeater
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
