"""
The examples, as real processes beside a real registry.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import treq
from twisted.internet import reactor
from twisted.internet.defer import succeed

from tests import ROOT
from tests.system.processes import Child, ProcessTestCase, sharedRegistry
from txserviceregistry import Client
from txserviceregistry.coordination import Lock
from txserviceregistry.settings import readSettings

EXAMPLES = ROOT / "examples"
# Seconds without a leader that an application with a timeout of 3 s may notice.
_LONG = 2.0


class ExampleTests(ProcessTestCase):
    """Each example does what it says."""

    def setUp(self) -> None:
        super().setUp()
        settings = readSettings(environ=sharedRegistry(), home=Path(self.home))
        self.registry = Client(reactor=reactor, settings=settings)
        self.addCleanup(self.registry.close)

    def example(self, name: str, *arguments: str) -> Child:
        """Start one of them."""
        program = os.path.basename(sys.executable)
        return self.spawn(program, str(EXAMPLES / name), *arguments, environment=sharedRegistry())

    async def get(self, url: str) -> str:
        """The content of a URL."""
        response = await treq.get(url, persistent=False, timeout=10)
        text: str = await response.text()
        return text

    def urlIn(self, child: Child) -> str:
        """The address that a process has printed."""
        found = re.search(r"127\.0\.0\.1:\d+", child.output)
        assert found is not None
        return f"http://{found.group()}/"

    async def test_aSchedulerRunsOnce(self) -> None:
        """Of two schedulers one runs the job; when it is stopped, the other one does."""
        first = self.twistd("-y", str(EXAMPLES / "scheduler.py"), environment=sharedRegistry())
        await first.says("runs the job")
        second = self.twistd("-y", str(EXAMPLES / "scheduler.py"), environment=sharedRegistry())
        await self.until(lambda: self.registry.locks.get("/examples/scheduler"))
        self.assertNotIn("runs the job", second.output)
        first.kill("TERM")
        await second.says("runs the job")
        await first.ended
        self.assertIn("does not lead any more", first.output)

    async def test_workersShareQueues(self) -> None:
        """A worker takes all queues, and puts them away at its end."""
        worker = self.twistd("-y", str(EXAMPLES / "workerpool.py"), environment=sharedRegistry())
        await worker.says("takes queue-63")
        worker.kill("TERM")
        await worker.ended
        self.assertEqual(worker.output.count("takes queue-"), worker.output.count("puts queue-"))

    async def test_twoServicesAndALoadBalancer(self) -> None:
        """
        The page shows what a greeter says, through the load balancer too; when one greeter is stopped the other one
        answers, and when all are gone the page says so; all leave the registry.
        """
        greeters = [self.example("twoservices.py", "greeter", f"greeter-{number}") for number in (1, 2)]
        page = self.example("twoservices.py", "page")
        balancer = self.example("loadbalancer.py", "page", "0")
        for child in [*greeters, page]:
            await child.says("is registered")
        await balancer.says("listens on")
        greetings = {f"<h1>Hello from greeter-{number}</h1>\n" for number in (1, 2)}
        for child in (page, balancer):

            async def areBothFound(child: Child = child) -> bool:
                # A service that has just been registered may not be known everywhere yet.
                return {await self.get(self.urlIn(child)) for _ in range(2)} == greetings

            await self.until(areBothFound)
        greeters[0].kill("TERM")
        await greeters[0].ended
        said = {await self.get(self.urlIn(balancer)) for _ in range(3)}
        self.assertEqual(said, {"<h1>Hello from greeter-2</h1>\n"})
        for child in (greeters[1], page):
            child.kill("INT")
            await child.ended
        self.assertEqual((await self.registry.services.listForTag("page"))["values"], [])
        self.assertEqual((await self.registry.services.listForTag("greeter"))["values"], [])
        self.assertNoTraceback()

    async def test_aWorkerThatReloads(self) -> None:
        """The worker begins with the defaults, and takes each change as soon as it is made."""
        worker = self.example("reloadingworker.py")
        await worker.says("Hello")
        await self.registry.configuration.set("/worker/greeting", "Good evening")
        await worker.says("/worker/greeting: None -> Good evening\nGood evening\n")
        await self.registry.configuration.set("/worker/interval", "0.1")
        await worker.says("/worker/interval: None -> 0.1\nGood evening\nGood evening\n")
        await self.registry.configuration.remove("/worker/greeting")
        await worker.says("/worker/greeting: Good evening -> None\nHello\n")
        await self.registry.configuration.remove("/worker/interval")
        worker.kill("INT")
        await worker.ended
        self.assertNoTraceback()

    async def test_asyncio(self) -> None:
        """
        Applications that asyncio runs register, find each other, are found by a program under ``asyncio.run``, and
        leave the registry when they are told to stop.
        """
        echoes = [self.example("asyncioservice.py", f"echo-{number}") for number in (1, 2)]
        for number, echo in enumerate(echoes, start=1):
            await echo.says(f"echo-{number} is registered")
            await echo.says(f"join: echo-{3 - number}")
        look = self.example("asynciolook.py", "echo", "good evening")
        await look.ended
        self.assertEqual(
            (look.exitCode, look.output, look.errors), (0, "echo-1: GOOD EVENING\necho-2: GOOD EVENING\n", "")
        )
        echoes[0].kill("TERM")
        await echoes[0].ended
        await echoes[1].says("remove: echo-1")
        echoes[1].kill("INT")
        await echoes[1].ended
        self.assertEqual([(echo.exitCode, echo.errors) for echo in echoes], [(0, ""), (0, "")])
        self.assertEqual((await self.registry.services.listForTag("echo"))["values"], [])

    async def test_asyncioWithoutARegistry(self) -> None:
        """A program under ``asyncio.run`` that fails says why, and ends."""
        look = self.spawn(
            os.path.basename(sys.executable),
            str(EXAMPLES / "asynciolook.py"),
            "echo",
            "hello",
            environment={**sharedRegistry(), "RAXSR_API_URL": "http://127.0.0.1:9/v1.0"},
        )
        await look.ended
        self.assertEqual(look.exitCode, 1)
        self.assertIn("http://127.0.0.1:9/v1.0", look.errors)
        self.assertNoTraceback()

    async def test_aSynchronousProgram(self) -> None:
        """
        A program that never runs the reactor itself stays registered, reads its configuration, and is out of the
        registry when it has ended.
        """
        counter = self.example("synchronous.py", "counter-1")
        await counter.says("counter-1 is registered\n1\n2\n")
        listed = (await self.registry.services.listForTag("counter"))["values"]
        self.assertEqual([service["id"] for service in listed], ["counter-1"])
        await self.registry.configuration.set("/counter/step", "1000")
        await self.until(lambda: succeed(re.search(r"\n1\d{3}\n", counter.output)))
        await self.registry.configuration.remove("/counter/step")
        counter.kill("TERM")
        await counter.ended
        self.assertEqual(counter.exitCode, 0)
        self.assertEqual((await self.registry.services.listForTag("counter"))["values"], [])
        self.assertNoTraceback()

    async def test_aProgramFromConsul(self) -> None:
        """The program that was migrated prints what it did, also while another process has its lock."""
        program = self.example("fromconsul.py")
        await program.ended
        found = "10.0.0.5 8000\n4\n"
        self.assertEqual((program.exitCode, program.output, program.errors), (0, f"{found}reporting\n", ""))
        held = await Lock(self.registry, "/web/report", holder="other").acquire()
        self.addCleanup(held.release)
        program = self.example("fromconsul.py")
        await program.ended
        self.assertEqual((program.exitCode, program.output), (0, f"{found}held by other\n"))
        self.assertEqual((await self.registry.services.listForTag("web"))["values"], [])


class ClusterTests(ProcessTestCase):
    """The example that brings its own registries."""

    async def test_nothingIsNoticed(self) -> None:
        """
        Members of etcd and registries are killed, and the application notices nothing; and no process and no folder is
        left. (If no etcd is installed that may be killed, it says in one line what is lacking. On a busy machine an
        election may take most of the service's timeout, and be noticed.)
        """
        folder = os.path.join(self.home, "tmp")
        os.mkdir(folder)
        program = str(EXAMPLES / "cluster" / "cluster.py")
        # The application, with a timeout of 3 s, also notices if its machine stands still for half of that.
        for _ in range(3):
            cluster = self.spawn(os.path.basename(sys.executable), program, environment={"TMPDIR": folder})
            await cluster.ended
            if "No suitable etcd found" in cluster.errors:
                self.assertEqual((cluster.exitCode, cluster.errors.count("\n")), (1, 1))
                return
            self.assertIn(" leads\n", cluster.output, cluster.errors)
            killed, leads = (
                float(re.findall(rf"([\d.]+) s  .*{what}$", cluster.output, re.MULTILINE)[0])
                for what in (", etcd's leader", " leads")
            )
            wasNoticed = leads - killed > _LONG and "the application had errors" in cluster.output
            if wasNoticed or cluster.exitCode == 0:
                break
        self.assertEqual((cluster.exitCode, cluster.errors), (int(wasNoticed), ""), cluster.output)
        self.assertIn("errors" if wasNoticed else "the application had no errors", cluster.output)
        self.assertEqual(len(re.findall(r"killed", cluster.output)), 4)
        self.assertEqual(os.listdir(folder), [])
