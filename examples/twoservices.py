"""
A web application of two services that find each other.

Start a registry first, with ``twistd -n --pidfile= service-registry``, and then, in two terminals::

    python examples/twoservices.py greeter
    python examples/twoservices.py page

Each listens on a free port and prints it. The page requests the greeting from a greeter. Start a second greeter
(``python examples/twoservices.py greeter greeter-2``), and they alternate; stop one, and the page keeps working.
"""

from __future__ import annotations

import sys

from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import react
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from txserviceregistry import Client, useMonotonic
from txserviceregistry.discovery import Directory, RegistryAgent


class Greeter(Resource):
    """Returns a greeting with its name."""

    isLeaf = True

    def __init__(self, name):
        super().__init__()
        self.name = name

    def render_GET(self, request):
        return f"Hello from {self.name}".encode()


class Page(Resource):
    """Shows the greeting of a greeter."""

    isLeaf = True

    def __init__(self, greeters):
        super().__init__()
        self.greeters = greeters

    def render_GET(self, request):
        Deferred.fromCoroutine(self.answer(request)).addErrback(self.fail, request)
        return NOT_DONE_YET

    async def answer(self, request):
        response = await self.greeters.get("registry://greeter/", timeout=5)
        greeting = await response.text()
        request.write(f"<h1>{greeting}</h1>\n".encode())
        request.finish()

    def fail(self, failure, request):
        request.setResponseCode(502)
        request.write(f"{failure.getErrorMessage()}\n".encode())
        request.finish()


async def main(reactor, kind, name=None):
    name = name or f"{kind}-1"
    if kind == "greeter":
        resource = Greeter(name)
    else:
        directory = Directory(Client.fromSettings(reactor))
        directory.startService()
        resource = Page(HTTPClient(RegistryAgent(reactor, directory)))
    description = rf"registered:id={name}:tags={kind}:endpoint=tcp\:0\:interface=127.0.0.1"
    port = await serverFromString(reactor, description).listen(Site(resource))
    await port.service.whenRegistered()
    print(f"{name} is registered, and listens on http://127.0.0.1:{port.getHost().port}/", flush=True)
    await Deferred()


useMonotonic(reactor)
react(lambda reactor, *arguments: Deferred.fromCoroutine(main(reactor, *arguments)), sys.argv[1:])
