"""
Live discovery: find services, connect to them, follow changes.

What most programs need of it is named here, and imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agent import RegistryAgent
    from .directory import Directory
    from .endpoints import RegisteredEndpoint, RegisteredPort, RegistryEndpoint
    from .feed import EventsFeed
    from .instances import Instance, instanceOf
    from .shared import closeShared
    from .watcher import ConfigurationWatcher

__all__ = [
    "ConfigurationWatcher",
    "Directory",
    "EventsFeed",
    "Instance",
    "RegisteredEndpoint",
    "RegisteredPort",
    "RegistryAgent",
    "RegistryEndpoint",
    "closeShared",
    "instanceOf",
]

# Where each name lives.
_HOMES = {
    "ConfigurationWatcher": "watcher",
    "Directory": "directory",
    "EventsFeed": "feed",
    "Instance": "instances",
    "RegisteredEndpoint": "endpoints",
    "RegisteredPort": "endpoints",
    "RegistryAgent": "agent",
    "RegistryEndpoint": "endpoints",
    "closeShared": "shared",
    "instanceOf": "instances",
}

if not TYPE_CHECKING:
    # Type checkers know the names from above, and should tell of those that are not there.

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
