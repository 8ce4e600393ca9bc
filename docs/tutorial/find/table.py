"""A table that rolls two dice, found by their tag."""

from treq.client import HTTPClient
from twisted.application.service import MultiService
from twisted.application.strports import service as listen
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from txserviceregistry.discovery import Directory, RegistryAgent
from txserviceregistry.errors import NoServiceAvailable


class Table(Resource):
    """Each GET rolls twice."""

    isLeaf = True

    def __init__(self, http):
        super().__init__()
        self.http = http

    def render_GET(self, request):
        Deferred.fromCoroutine(self.roll(request)).addErrback(request.processingFailed)
        return NOT_DONE_YET

    async def roll(self, request):
        try:
            for _ in range(2):
                response = await self.http.get("registry://dice/")
                request.write(await response.content())
        except NoServiceAvailable as error:
            request.setResponseCode(503)
            request.write(f"{error}\n".encode())
        request.finish()


def tableService(client, port):
    """Serve a table on a port."""
    services = MultiService()
    directory = Directory(client, "dice")
    directory.setServiceParent(services)
    http = HTTPClient(RegistryAgent(reactor, directory))
    listen(f"tcp:{port}", Site(Table(http))).setServiceParent(services)
    return services
