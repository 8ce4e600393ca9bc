"""
The twistd commands of txserviceregistry.

Every twistd on the machine imports this module: it names things and imports nothing of ours.
"""

from twisted.application.service import ServiceMaker

serviceRegistry = ServiceMaker(
    "txserviceregistry: the registry",
    "txserviceregistry.commands.registry",
    "A service registry: services with heartbeats, configuration, events.",
    "service-registry",
)

serviceRegistryAgent = ServiceMaker(
    "txserviceregistry: the agent",
    "txserviceregistry.commands.agent",
    "Registers a dummy service and keeps it alive; runs a registry too if none is configured.",
    "service-registry-agent",
)
