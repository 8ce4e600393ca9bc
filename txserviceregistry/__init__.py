"""
Register Twisted applications, keep them registered, and find them.

Most programs need :class:`Client` and :class:`RegisteredService`; every exception is in
:mod:`txserviceregistry.errors`, and :mod:`txserviceregistry.testing` has a registry for your own tests.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

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

# Where each name lives. They are imported when they are first used: the command line's help needs none of them, nor
# treq below them, which takes most of a program's start.
_HOMES = {
    "Client": "client",
    "Credentials": "api.auth",
    "HeartBeater": "heartbeats.heartbeater",
    "RegisteredService": "registration",
    "ServiceRegistryError": "errors",
    "useMonotonic": "clock",
}

if not TYPE_CHECKING:
    # Type checkers know the names from above, and should tell of those that are not there.

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        elif name in _HOMES.values():
            value = import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
