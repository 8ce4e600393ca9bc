"""``twistd -n --pidfile= service-registry-agent``: registers a test service; runs a registry if there is none."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Callable
from typing import Any

import attrs
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from ..client import Client
from ..errors import InvalidSettings, ServiceRegistryError
from ..registration import RegisteredService
from ..registry.service import DEFAULT_LISTEN, RegistryService, StartFailed
from ..settings import Settings, defaultDataDir, namesRegistry, readSettings
from ..util.deferred import returnsDeferred
from ..util.fields import parseMetadata, parseTags
from ..util.files import absolutePath
from ..util.logs import Logger
from .registry import parsedEndpoint, sayWhere
from .twistd import Option, TwistdOptions, endProcess, onHangup, parseHeartbeatTimeout, parseServiceId, prepare, say

_ID_CHARACTERS = re.compile(r"[^A-Za-z0-9_.\-]+")
_LONGEST_ID = 65


def defaultServiceId(hostName: str) -> str:
    return ("agent-" + _ID_CHARACTERS.sub("-", hostName).strip("-"))[:_LONGEST_ID].rstrip("-")


class Options(TwistdOptions):
    program = "service-registry-agent"
    synopsis = "[--id ID] [--tags a,b] [--metadata k=v,…] [--heartbeat-timeout SECONDS] [--listen ENDPOINT]"
    longdesc = (
        "Registers a test service and sends its heartbeats until it is stopped. The registry is the one of the "
        "environment (RAXSR_API_URL, …) or ~/.raxrc, else the one that uses the data directory; if none runs, the "
        "agent runs one itself. "
        "Example: twistd -n --pidfile= service-registry-agent --id web1 --tags www,test"
    )
    _TIMEOUT = "Seconds without a heartbeat, 3 to 120, after which the service expires."
    _LISTEN = "Endpoint where the test service serves its state as JSON over HTTP, such as tcp:8000."
    _DATA_DIR = "Data directory of the registry in this process (default: as service-registry's)."
    table = (
        Option("id", "i", None, "The service's id (default: made from this machine's name).", parseServiceId),
        Option("tags", "t", None, "Tags of the service, separated by commas.", parseTags),
        Option("metadata", "m", None, "Metadata of the service: key=value pairs, separated by commas.", parseMetadata),
        Option("heartbeat-timeout", "b", "30", _TIMEOUT, parseHeartbeatTimeout),
        Option("listen", "l", None, _LISTEN, parsedEndpoint),
        Option("registry-listen", None, DEFAULT_LISTEN, "Endpoint of the registry in this process.", parsedEndpoint),
        Option("data-dir", "d", None, _DATA_DIR, absolutePath),
    )

    def postOptions(self) -> None:
        TwistdOptions.postOptions(self)
        self["id"] = self["id"] or defaultServiceId(socket.gethostname())
        try:
            self["data-dir"] = str(self["data-dir"] or defaultDataDir())
        except InvalidSettings:
            if not namesRegistry():
                raise
            # The registry is elsewhere.
            self["data-dir"] = None

    def settings(self) -> Settings:
        return readSettings(environ={**os.environ, "RAXSR_DATA_DIR": self["data-dir"] or ""})


@attrs.define(eq=False, repr=False, slots=False)
class AgentProcess(Service):
    """The test service, and its *registry* if that is given, whose certificates SIGHUP reloads."""

    name = "service-registry-agent"
    _log = Logger()

    _reactor: Any
    _options: Options
    _registry: RegistryService | None
    _starting: Deferred[None] | None = attrs.field(init=False, default=None)
    # The functions that end what has been started, in its order.
    _endings: list[Callable[[], object]] = attrs.field(init=False, factory=list)

    def startService(self) -> None:
        Service.startService(self)
        self._starting = self._start().addErrback(self._failed)

    @returnsDeferred
    async def _start(self) -> None:
        options, registry = self._options, self._registry
        dummy = _Dummy()  # type: ignore[no-untyped-call] # Twisted has no types there
        if registry is not None:
            registry.startService()
            self._endings += [onHangup(self._reactor, registry.reloadCertificates), registry.stopService]
            await registry.whenListening()
            sayWhere(registry)
        settings, metadata = options.settings(), dict(options["metadata"] or {})
        client = Client(reactor=self._reactor, settings=settings)
        self._endings.append(client.close)
        if options["listen"] is not None:
            site = Site(dummy)
            # Requests to the test service are not worth a line in the log.
            site.log = lambda request: None  # type: ignore[method-assign]  # Site has no other switch for it
            try:
                port = await serverFromString(self._reactor, options["listen"]).listen(site)
            except Exception as error:
                raise StartFailed(f"can't listen on {options['listen']}: {error}") from None
            self._endings.append(port.stopListening)
            metadata.setdefault("port", str(getattr(port.getHost(), "port", "")))
        service = dummy.service = RegisteredService(
            client, options["id"], options["heartbeat-timeout"], options["tags"] or [], metadata
        )
        service.startService()
        self._endings.append(service.stopService)
        say(f"Registering service {service.serviceId} …")
        await service.whenRegistered()
        say(f"Service {service.serviceId} is registered while this process runs.")
        # The link is a secret: a terminal forgets it, a file keeps it.
        if registry is not None and sys.__stdout__ is not None and sys.__stdout__.isatty():
            try:
                link = await client.account.createConsoleLink()
                say(f"\nTo see it in a browser, open this link within {link['expires_in']} seconds:\n{link['href']}")
                say("Later, log in there with the user name and the API key in the file of the credentials.\n")
            except ServiceRegistryError as error:
                self._log.warn("Cannot make a link to the web console: {error}", error=str(error))
        where = "" if options["data-dir"] is None else f"RAXSR_DATA_DIR='{options['data-dir']}' "
        say(f"To see it, paste into another shell:\n\n{_curlLines(settings)}\n\nor this, for the same in Python:\n")
        say(_PYTHON.format(where=where, python=sys.executable, serviceId=service.serviceId))

    def _failed(self, failure: Failure) -> None:
        if not self.running:
            return
        reason = failure.getErrorMessage()
        if not failure.check(StartFailed, ServiceRegistryError):
            self._log.failure("The agent can't start", failure)
            reason = f"internal error: {type(failure.value).__name__}; see the log"
        endProcess(self._reactor, f"twistd service-registry-agent: {reason}")

    @returnsDeferred
    async def stopService(self) -> None:
        Service.stopService(self)
        if self._starting is not None:
            self._starting.cancel()
        while self._endings:
            await maybeDeferred(self._endings.pop())


class _Dummy(Resource):
    """Answers every request with the state of the test service."""

    isLeaf = True
    service: RegisteredService | None = None

    def render_GET(self, request: Request) -> bytes:
        request.setHeader(b"Content-Type", b"application/json; charset=UTF-8")
        service = self.service
        state = service and {"id": service.serviceId, "state": service.state, "healthy": service.healthy}
        return json.dumps(state or {}).encode() + b"\n"


def _curlLines(settings: Settings) -> str:
    """Shell lines that list the services. They read the key from the same source as the agent."""
    file = settings.raxrcPath
    read = "NAME=$RAXSR_USERNAME; KEY=$RAXSR_API_KEY"
    if file is not None:
        name, key = (f"$(sed -n 's/^{option} *= *//p' '{file}')" for option in ("username", "api_key"))
        read = f"NAME={name}; KEY={key}"
    trust = "" if settings.caFile is None else f" --cacert '{settings.caFile}'"
    return f"{read}\ncurl -s{trust} -u \"$NAME:$KEY\" '{settings.baseUrls[0]}/services'"


_PYTHON = """\
{where}{python} - <<'END'
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import react
from txserviceregistry import Client

async def main(reactor):
    async with Client.fromSettings(reactor) as client:
        print(await client.services.get("{serviceId}"))

react(lambda reactor: ensureDeferred(main(reactor)))
END
"""


def makeService(options: Options) -> IService:
    from twisted.internet import reactor

    prepare(reactor)
    try:
        ownRegistry = not namesRegistry() and not RegistryService.runsOver(options["data-dir"])
        if not ownRegistry:
            options.settings()
    except InvalidSettings as error:
        raise SystemExit(f"twistd service-registry-agent: {error}") from None
    registry = None
    if ownRegistry:
        registry = RegistryService(reactor, options["data-dir"], endpoints=[options["registry-listen"]])
    return AgentProcess(reactor, options, registry)
