"""
The twistd commands and the endpoint strings of txserviceregistry.

Every twistd on the machine imports this module, so it imports nothing of this package.
"""

from twisted.application.service import ServiceMaker
from twisted.internet.interfaces import (
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin
from zope.interface import implementer

serviceRegistry = ServiceMaker(
    "txserviceregistry: the registry",
    "txserviceregistry.commands.registry",
    "A service registry: services with heartbeats, configuration, events.",
    "service-registry",
)

serviceRegistryAgent = ServiceMaker(
    "txserviceregistry: the agent",
    "txserviceregistry.commands.agent",
    "Registers a test service; runs a registry too if none is configured.",
    "service-registry-agent",
)

serviceRegistryDns = ServiceMaker(
    "txserviceregistry: the DNS server",
    "txserviceregistry.commands.dns",
    "Answers DNS queries with the services of a registry.",
    "service-registry-dns",
)


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor)
class _RegistryParser:
    """``registry:TAG``: see txserviceregistry.discovery.endpoints."""

    prefix = "registry"

    def parseStreamClient(self, reactor, *args, **kwargs):
        from txserviceregistry.discovery.endpoints import parseRegistry

        return parseRegistry(reactor, *args, **kwargs)


@implementer(IPlugin, IStreamServerEndpointStringParser)
class _RegisteredParser:
    """``registered:id=…:endpoint=…``: see txserviceregistry.discovery.endpoints."""

    prefix = "registered"

    def parseStreamServer(self, reactor, *args, **kwargs):
        from txserviceregistry.discovery.endpoints import parseRegistered

        return parseRegistered(reactor, *args, **kwargs)


registryParser = _RegistryParser()
registeredParser = _RegisteredParser()
