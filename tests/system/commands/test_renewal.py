"""Certificates that are renewed while a registry, an application, the wrapper and ``raxsr events follow`` run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from tests.certificates import LOOPBACK, Holder
from tests.system.etcd.etcds import startEtcd
from tests.system.ports import freePorts
from tests.system.processes import Child, ProcessTestCase, reactor
from txserviceregistry import Client
from txserviceregistry.settings import readSettings

APPLICATION = """
from twisted.application.service import Application
from txserviceregistry import Client, RegisteredService, useMonotonic
useMonotonic()
application = Application('web')
RegisteredService(Client.fromSettings(), 'web1', 7).setServiceParent(application)
"""


class RenewalCase(ProcessTestCase):
    """A registry with TLS and its clients, which trust what is in one file."""

    def setUp(self) -> None:
        super().setUp()
        self.port = freePorts(1)[0]
        self.trusted = Path(self.home, "ca.pem")
        self.trusting = {"RAXSR_CA_FILE": "ca.pem"}

    def write(self, holder: Holder, name: str = "registry") -> None:
        """The files of a server, replaced one after the other."""
        for kind, content in (("cert", holder.fullChain), ("key", holder.key)):
            new = Path(self.home, "new")
            new.write_bytes(content)
            new.chmod(0o600)
            new.replace(Path(self.home, f"{name}-{kind}.pem"))

    async def registry(self, *more: str) -> Child:
        registry = self.twistd(
            "service-registry",
            *(
                "--listen",
                f"ssl:{self.port}:privateKey=registry-key.pem:certKey=registry-cert.pem:interface={LOOPBACK}",
            ),
            *more,
        )
        await registry.says("Credentials")
        return registry

    def client(self, **options: Any) -> Client:
        """One that trusts what the clients of the test trust."""
        caFile = str(Path(self.home, self.trusting["RAXSR_CA_FILE"]))
        environ = {"HOME": self.home, "RAXSR_DATA_DIR": self.dataDir, "RAXSR_CA_FILE": caFile}
        client = Client(reactor=reactor, settings=readSettings(environ=environ), **options)
        self.addCleanup(client.close)
        return client

    async def programs(self) -> tuple[Child, Child, Child]:
        Path(self.home, "app.py").write_text(APPLICATION)
        application = self.twistd("-y", "app.py", environment=self.trusting)
        wrapper = self.spawn(
            "service-registry-wrapper", "--id=wrapped", "--interval=7", "sleep", "600", environment=self.trusting
        )
        follower = self.spawn("raxsr", "events", "follow", "-f", "json", environment=self.trusting)
        client = self.client()

        async def here() -> bool:
            services = (await client.services.list())["values"]
            await client.configuration.set("waiting", os.urandom(4).hex())
            return len([each for each in services if each["last_seen"]]) == 2 and "waiting" in follower.output

        await self.until(here)
        return application, wrapper, follower

    async def go(self, client: Client, word: str, follower: Child) -> None:
        """Wait until both services have sent a heartbeat since now, and the follower has told of a new value."""
        before = {each["id"]: each["last_seen"] for each in (await client.services.list())["values"]}
        self.assertEqual(set(before), {"web1", "wrapped"})
        await client.configuration.set(word, "1")

        async def sent() -> bool:
            services = (await client.services.list())["values"]
            return len(services) == 2 and all(each["last_seen"] != before[each["id"]] for each in services)

        await gatherResults([Deferred.fromCoroutine(self.until(sent)), follower.says(word)])

    async def types(self, client: Client) -> list[str]:
        return [event["type"] for event in (await client.events.list(limit=1000))["values"]]


class RenewalTests(RenewalCase):
    """The server's certificate, and the file of those that its clients trust."""

    async def test_theServersCertificate(self) -> None:
        """
        A certificate that is renewed is shown to new connections without a restart, at the latest after SIGHUP. Files
        that can't be used keep the old one. Services stay registered meanwhile.
        """
        root = Holder("Root", names=())
        first, second = (Holder(name, issuer=root, ca=False) for name in ("first", "second"))
        self.trusted.write_bytes(root.certificate)
        self.write(first)
        registry = await self.registry()
        _, _, follower = await self.programs()
        Path(self.home, "registry-cert.pem").write_bytes(second.certificate[:100])
        registry.kill("HUP")
        await registry.says("SIGHUP received: reloading certificates")
        await registry.says("registry-cert.pem can't be reloaded")
        await self.client().account.getLimits()
        self.write(second)
        registry.kill("HUP")
        await registry.says("registry-cert.pem reloaded")
        client = self.client()
        await self.go(client, "renewed", follower)
        self.assertEqual((await self.types(client)).count("service.timeout"), 0)
        self.assertEqual((await self.types(client)).count("service.join"), 2)
        self.assertEqual(registry.output.count("can't be reloaded"), 1)
        self.assertNoTraceback()

    async def test_theAuthority(self) -> None:
        """
        The CA file gets another authority, and the registry a certificate of it: the application, the wrapper and
        ``raxsr events follow`` go on without a restart. A CA file that can't be used changes nothing.
        """
        old, new = Holder("Old Root", names=()), Holder("New Root", names=())
        self.trusted.write_bytes(old.certificate)
        self.write(Holder("old", issuer=old, ca=False))
        registry = await self.registry()
        application, _, follower = await self.programs()
        for name, holder, authority in (("broken", old, b"-----BEGIN CERT"), ("replaced", new, new.certificate)):
            self.trusted.write_bytes(authority)
            self.write(Holder(name, issuer=holder, ca=False))
            # Every client has to connect anew.
            registry.kill("KILL")
            await registry.ended
            registry = await self.registry()
            if name == "broken":
                self.trusting = {"RAXSR_CA_FILE": "good.pem"}
                Path(self.home, "good.pem").write_bytes(old.certificate)
                await application.says("CA file ca.pem can't be reloaded")
            else:
                self.trusting = {"RAXSR_CA_FILE": "ca.pem"}
                await application.says("CA file ca.pem reloaded")
            await self.go(self.client(), name, follower)
        self.assertEqual((await self.types(self.client())).count("service.timeout"), 0)
        self.assertNoTraceback()

    async def test_theRegistryOfAnAgent(self) -> None:
        """SIGHUP lets an agent's own registry read its certificate again; its service stays registered."""
        root = Holder("Root", names=())
        self.trusted.write_bytes(root.certificate)
        self.write(Holder("first", issuer=root, ca=False))
        agent = self.twistd(
            *("service-registry-agent", "--id=web1", "--registry-listen"),
            f"ssl:{self.port}:privateKey=registry-key.pem:certKey=registry-cert.pem:interface={LOOPBACK}",
            environment=self.trusting,
        )
        await agent.says("is registered")
        self.write(Holder("second", issuer=root, ca=False))
        agent.kill("HUP")
        await agent.says("SIGHUP received: reloading certificates")
        await agent.says("registry-cert.pem reloaded")
        self.assertEqual((await self.client().services.get("web1"))["id"], "web1")
        self.assertNoTraceback()

    async def test_aClosedTerminal(self) -> None:
        """A registry in a terminal that is closed stops in good order, though SIGHUP is what it gets then."""
        registry = self.spawn(
            "twistd",
            *("-n", "--pidfile=", "--logfile=log", "service-registry", "--listen", f"tcp:0:interface={LOOPBACK}"),
            usePTY=True,
        )
        await registry.says("Credentials")
        registry.kill("HUP")

        async def reloaded() -> bool:
            return "SIGHUP received" in Path(self.home, "log").read_text()

        await self.until(reloaded)
        registry.transport.loseConnection()  # type: ignore[union-attr] # a process has one
        await registry.ended
        self.assertEqual((registry.exitCode, registry.signal), (0, None))
        self.assertIn("The registry has stopped", Path(self.home, "log").read_text())


class EtcdRenewalTests(RenewalCase):
    """The certificates of a registry that uses etcd."""

    async def test_hangup(self) -> None:
        """SIGHUP lets a registry read the certificates for etcd again, too."""
        root = Holder("Root", names=())
        self.trusted.write_bytes(root.certificate)
        self.write(Holder("registry", issuer=root, ca=False))
        self.write(Holder("etcd", issuer=root, ca=False), "etcd")
        certificate, key = (str(Path(self.home, f"etcd-{kind}.pem")) for kind in ("cert", "key"))
        url, end = await deferToThread(
            startEtcd, f"--cert-file={certificate}", f"--key-file={key}", files=(str(self.trusted), certificate, key)
        )
        self.addCleanup(end)
        tls = ("--etcd-ca-file", "ca.pem", "--etcd-cert-file", "etcd-cert.pem", "--etcd-key-file", "etcd-key.pem")
        registry = await self.registry("--store", "etcd", "--etcd", url, *tls)
        self.trusted.write_bytes(root.certificate + Holder("Another", names=()).certificate)
        registry.kill("HUP")
        await registry.says("CA file ca.pem reloaded")
        self.write(Holder("etcd", issuer=root, ca=False), "etcd")
        registry.kill("HUP")
        await registry.says("Client certificate etcd-cert.pem reloaded")
        await self.client().account.getLimits()
        self.assertNoTraceback()
