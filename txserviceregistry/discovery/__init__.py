"""Service discovery: find services, connect to them, watch changes."""

from .agent import RegistryAgent
from .balancing import Instance, IStrategy, instanceOf
from .directory import Directory
from .endpoints import RegisteredEndpoint, RegisteredPort, RegistryEndpoint
from .feed import EventsFeed, FeedEvent
from .shared import closeShared
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
