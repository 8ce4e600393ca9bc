"""Service discovery: find services, connect to them, watch changes."""

from .agent import RegistryAgent
from .balancing import Instance, IStrategy, instanceOf
from .directory import Directory
from .endpoints import RegisteredEndpoint, RegisteredPort, RegistryEndpoint, closeShared
from .feed import EventsFeed, FeedEvent
from .mirror import ConfigurationChange, ConfigurationWatcher

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
