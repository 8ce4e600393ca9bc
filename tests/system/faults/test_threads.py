"""Row 21: an application whose threads are busy, and a registry that is addressed by host name."""

from __future__ import annotations

from twisted.internet.task import deferLater

from tests.system.processes import reactor

from .faultcase import FaultCase

SERVICES = 5


class ThreadTests(FaultCase):
    """All threads of the reactor's pool are busy while the registry restarts."""

    row = 21
    fault = "An application's reactor threads are all busy while the registry, addressed by name, restarts"

    async def test_staysRegistered(self) -> None:
        """No service expires: neither resolving nor connecting waits for such a thread."""
        restarts = 5 if self.isFull else 1
        # In a short run the application may have no CPU for two seconds, too.
        timeout = 3 if self.isFull else 6
        registry = await self.registry()
        environment = {"RAXSR_API_URL": f"http://localhost:{self.port}/v1.0"}
        application = await self.application(f"--services={SERVICES}", f"--timeout={timeout}", environment=environment)
        await self.registered(application, SERVICES)
        audit = self.audit()
        for _ in range(restarts):
            application.tell("occupy", 2 * timeout)
            await application.says("occupied")
            registry.kill("KILL")
            await registry.ended
            await deferLater(reactor, 1.0, lambda: None)
            registry = await self.registry()
            await deferLater(reactor, timeout + 0.5, lambda: None)
            self.assertKept(await audit.look())
        self.assertEqual(audit.count("service.timeout"), 0)
        await self.registered(application, SERVICES)
        self.tell(f"threads, busy for {2 * timeout} s", 10)
        self.tell("restarts, 1 s each", restarts)
        self.tell(f"expirations, timeout {timeout} s", 0)
