"""A registry that listens with TLS only, as a process, and every tool and kind of client against it."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.defer import gatherResults
from twisted.internet.utils import getProcessOutput

from tests.certificates import Holder
from tests.needs import needs
from tests.system.commands.printed import printedScripts
from tests.system.processes import Child, ProcessTestCase


class OverTLSTests(ProcessTestCase):
    """Nothing is configured: the registry's raxrc says all."""

    async def registry(self, holder: Holder) -> Child:
        key, certificate = Path(self.home, "key.pem"), Path(self.home, "cert.pem")
        key.write_bytes(holder.key)
        certificate.write_bytes(holder.fullChain)
        registry = self.twistd(
            "service-registry", "--listen", "ssl:0:privateKey=key.pem:certKey=cert.pem:interface=127.0.0.1"
        )
        await registry.says("Credentials")
        self.assertIn("The registry listens on https://127.0.0.1:", registry.output)
        return registry

    async def raxsr(self, *arguments: str) -> str:
        shown = await self.spawn("raxsr", *arguments).ended
        self.assertEqual((shown.exitCode, shown.errors), (0, ""))
        return shown.output

    async def test_everyProgramWorks(self) -> None:
        """The agent, the wrapper, an application with a RegisteredService, raxsr and a Client, to their ends."""
        await self.registry(Holder("registry"))
        client = self.client()
        self.assertTrue(client.settings.baseUrls[0].startswith("https://"))
        agent = self.twistd("service-registry-agent", "--id", "agent")
        wrapper = self.spawn(
            "service-registry-wrapper", "--id=wrapped", "--deregister", "sh", "-c", "echo runs; exec sleep 60"
        )
        await wrapper.says("runs")
        Path(self.home, "app.py").write_text(
            "from twisted.application.service import Application\n"
            "from txserviceregistry import Client, RegisteredService, useMonotonic\n"
            "useMonotonic()\n"
            "application = Application('web')\n"
            "me = RegisteredService(Client.fromSettings(), 'web1', 30, metadata={'port': '80'})\n"
            "me.setServiceParent(application)\n"
        )
        application = self.twistd("-y", "app.py")
        ids = {"agent", "wrapped", "web1"}

        async def registered() -> bool:
            return {service["id"] for service in (await client.services.list())["values"]} == ids

        await self.until(registered)
        self.assertEqual((await client.services.get("web1"))["metadata"], {"port": "80", "host": "127.0.0.1"})
        shown = await self.raxsr("services", "list", "-f", "value")
        for id in ids:
            self.assertIn(id, shown)
        await self.raxsr("configuration", "set", "greeting", "hello")
        self.assertIn("hello", await self.raxsr("configuration", "get", "greeting"))
        for child in (agent, wrapper, application):
            child.kill("TERM")
        await gatherResults([child.ended for child in (agent, wrapper, application)])
        self.assertEqual((await client.services.list())["values"], [])
        self.assertNoTraceback()

    async def test_whatTheAgentPrintsWorks(self) -> None:
        """The curl lines of an agent whose own registry has a certificate of its own making list the services."""
        needs("curl")
        holder = Holder("registry")
        Path(self.home, "both.pem").write_bytes(holder.certificate + holder.key)
        agent = self.twistd(
            "service-registry-agent", "--registry-listen", "ssl:0:privateKey=both.pem:interface=127.0.0.1"
        )
        await agent.says("\nEND")
        curl, _ = printedScripts(agent.output)
        shown = await getProcessOutput("/bin/sh", ["-ec", curl], errortoo=True)
        self.assertIn(b'"heartbeat_timeout": 30', shown)

    async def test_aCertificateThatIsNotTrusted(self) -> None:
        """If the authority is not known, a tool says so in one line, and ends with 1; with its file all is well."""
        root = Holder("Our Root", names=())
        await self.registry(Holder("registry", issuer=root, ca=False))
        refused = await self.spawn("raxsr", "services", "list").ended
        self.assertEqual((refused.exitCode, len(refused.errors.strip().splitlines())), (1, 1), refused.errors)
        self.assertIn("its certificate is signed by Our Root, an unknown CA", refused.errors)
        Path(self.home, "root.pem").write_bytes(root.certificate)
        listed = await self.spawn("raxsr", "services", "list", environment={"RAXSR_CA_FILE": "root.pem"}).ended
        self.assertEqual((listed.exitCode, listed.errors), (0, ""))
