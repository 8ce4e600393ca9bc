"""
The common parts of the rows of the fault table: their length, and the report of their figures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from random import Random

from tests import ROOT
from tests.system.ports import freePorts
from tests.system.processes import Child, ProcessTestCase, reactor
from txserviceregistry.errors import NotFound

from .audit import Audit, Findings
from .journal import Application
from .proxy import Proxy

__all__ = ["FIGURES", "FULL", "ROOT", "FaultCase", "Figures"]

#: Set in the environment when the rows run at full length.
FULL = "FAULTS_FULL"
#: Names, in the environment, the file that figures are added to: a line of JSON each.
FIGURES = "FAULTS_FIGURES"

#: The folder from which the tests are imported.


class Figures:
    """
    Mixed into the test cases that are rows, with or without processes.

    :cvar row: the row's number in the table.
    :cvar fault: what is done, for the table.
    """

    row: int
    fault: str

    @property
    def isFull(self) -> bool:
        """Whether this run is at full length."""
        return FULL in os.environ

    def tell(self, what: str, figure: object) -> None:
        """Keep a figure for the table, if one is being made: *what* was counted or measured, with its unit."""
        path = os.environ.get(FIGURES)
        if path:
            line = {"row": self.row, "fault": self.fault, "what": what, "figure": figure}
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


class FaultCase(Figures, ProcessTestCase):
    """A row that runs processes."""

    # Of one test at full length, in seconds. Each step has its own timeout, which finds what hangs.
    timeout = 1800.0

    @property
    def heartbeatTimeout(self) -> int:
        """
        Of services, in seconds, where the fault is shorter than it: at full length the shortest. A short run has other
        tests beside it; with this one an application that gets no CPU for four seconds still sends its heartbeats.
        """
        return 3 if self.isFull else 10

    def setUp(self) -> None:
        super().setUp()
        #: The port on which the registry listens.
        self.port = freePorts(1)[0]

    async def registry(
        self, *arguments: str, environment: Mapping[str, str] | None = None, transport: str = "tcp"
    ) -> Child:
        """
        Start a registry, always on the same port and over the same data, and wait until it listens.

        :param transport: how it listens: ``tcp`` or ``ssl``, with a colon and options behind.
        """
        kind, _, options = transport.partition(":")
        listen = f"{kind}:{self.port}:interface=127.0.0.1{options and ':'}{options}"
        registry = self.twistd("service-registry", "--listen", listen, *arguments, environment=environment)
        await registry.says("Credentials")
        return registry

    def proxy(self, random: Random | None = None, *, isTLS: bool = False) -> Proxy:
        """A proxy before the registry that has been started."""
        proxy = Proxy(reactor, self.port, random, isTLS=isTLS)
        proxy.start()
        self.addCleanup(proxy.stop)
        return proxy

    async def application(
        self, *arguments: object, by: Proxy | None = None, environment: Mapping[str, str] | None = None
    ) -> Application:
        """
        Start an application (:mod:`tests.system.faults.application`) and wait until it runs.

        :param by: the proxy by which it reaches the registry; directly if there is none.
        """
        where = {"PYTHONPATH": str(ROOT), **(by.environment if by else {}), **(environment or {})}
        application = Application()
        self.spawn(
            "python",
            "-m",
            "tests.system.faults.application",
            *map(str, arguments),
            environment=where,
            child=application,
        )
        await application.says("started")
        return application

    async def registered(self, application: Application, count: int) -> None:
        """Wait until so many of the application's services are registered, as it sees it."""

        async def all_() -> bool:
            return sum(map(application.isRegistered, application.states)) == count

        try:
            await self.until(all_)
        except AssertionError:
            raise AssertionError(f"not registered: {application.troubles[-5:]} {application.log[-5:]}")

    async def stopped(self, application: Application) -> None:
        """
        Have an application stop its services, and end. If a process had no CPU for the three seconds that a
        deregistration may take, the application has logged that the service expires; here it is removed instead.
        """
        application.tell("stop")
        await application.says("stopped")
        for id in application.stayed:
            try:
                await self.client(cache=None).services.remove(id)
            except NotFound:
                pass

    def audit(self) -> Audit:
        """An audit of the registry that has been started."""
        return Audit(self.client(cache=None))

    def assertKept(self, findings: Findings) -> None:
        """All three promises have been kept."""
        self.assertEqual(findings, Findings(), f"{findings}")
