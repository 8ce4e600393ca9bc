"""A die over HTTP, with the number of sides from the configuration."""

from random import randint

from twisted.application.service import MultiService
from twisted.application.strports import service as listen
from twisted.web.resource import Resource
from twisted.web.server import Site

from txserviceregistry import RegisteredService
from txserviceregistry.discovery import ConfigurationWatcher


class Die(Resource):
    """Each GET is a roll."""

    isLeaf = True

    def __init__(self, configuration):
        super().__init__()
        self.configuration = configuration

    @property
    def sides(self):
        try:
            return max(2, int(self.configuration.get("/dice/sides", "6")))
        except ValueError:
            return 6

    def render_GET(self, request):
        return b"%d of %d\n" % (randint(1, self.sides), self.sides)


def diceService(client, name, port):
    """Serve a die on a port, and register it."""
    services = MultiService()
    configuration = ConfigurationWatcher(client, "/dice")
    configuration.setServiceParent(services)
    listen(f"tcp:{port}", Site(Die(configuration))).setServiceParent(services)
    me = RegisteredService(client, name, 30, tags=["dice"], metadata={"port": str(port)})
    me.setServiceParent(services)
    return services
