"""
Service discovery: find services, connect to them, watch changes.

The names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from ..util.lazynames import lazyNames

if TYPE_CHECKING:
    from .agent import RegistryAgent
    from .directory import Directory
    from .endpoints import RegisteredEndpoint, RegisteredPort, RegistryEndpoint
    from .feed import EventsFeed, FeedEvent
    from .instances import Instance, instanceOf
    from .shared import closeShared
    from .strategies import IStrategy
    from .watcher import ConfigurationChange, ConfigurationWatcher

__all__ = [
    "ConfigurationChange",
    "ConfigurationWatcher",
    "Directory",
    "EventsFeed",
    "FeedEvent",
    "IStrategy",
    "Instance",
    "RegisteredEndpoint",
    "RegisteredPort",
    "RegistryAgent",
    "RegistryEndpoint",
    "closeShared",
    "instanceOf",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazyNames(
        __name__,
        {
            "ConfigurationChange": "watcher",
            "ConfigurationWatcher": "watcher",
            "Directory": "directory",
            "EventsFeed": "feed",
            "FeedEvent": "feed",
            "IStrategy": "strategies",
            "Instance": "instances",
            "RegisteredEndpoint": "endpoints",
            "RegisteredPort": "endpoints",
            "RegistryAgent": "agent",
            "RegistryEndpoint": "endpoints",
            "closeShared": "shared",
            "instanceOf": "instances",
        },
    )
