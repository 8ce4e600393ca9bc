"""A die over HTTP."""

from random import randint

from twisted.application.service import MultiService
from twisted.application.strports import service as listen
from twisted.web.resource import Resource
from twisted.web.server import Site

from txserviceregistry import RegisteredService


class Die(Resource):
    """Each GET is a roll."""

    isLeaf = True

    def render_GET(self, request):
        return b"%d of 6\n" % randint(1, 6)


def diceService(client, name, port):
    """Serve a die on a port, and register it."""
    services = MultiService()
    listen(f"tcp:{port}", Site(Die())).setServiceParent(services)
    me = RegisteredService(client, name, 30, tags=["dice"], metadata={"port": str(port)})
    me.setServiceParent(services)
    return services
