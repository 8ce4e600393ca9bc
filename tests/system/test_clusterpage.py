"""
The instructions of the page on clusters, followed: three nodes on one machine and on three, a user of etcd's, backup
and restore.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random

import treq
from twisted.internet.error import ConnectError

from tests import ROOT
from tests.system.etcd.etcds import SYSTEMS
from tests.system.ports import freePorts, isFree, reserve
from tests.system.processes import Child, ProcessTestCase
from tests.system.test_operating import unitOf
from txserviceregistry import Client

PAGE = ROOT / "docs" / "cluster.rst"


def blocks(language: str) -> list[str]:
    """The blocks of one language, in their order."""
    found = re.findall(rf"\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)", PAGE.read_text())
    return [re.sub("^    ", "", block, flags=re.MULTILINE).rstrip() + "\n" for block in found]


class PageCase(ProcessTestCase):
    """Runs what is on the page in a folder of its own."""

    def setUp(self) -> None:
        super().setUp()
        programs = Path(self.home, "bin")
        programs.mkdir()
        if os.path.exists(SYSTEMS) and os.path.exists(f"{SYSTEMS}ctl"):
            # Those that most readers have; else those that the extra "test" brings.
            for name in ("etcd", "etcdctl"):
                (programs / name).symlink_to(Path(SYSTEMS).with_name(name))
        self.path = f"{programs}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """See ProcessTestCase."""
        return {**super().environment(extra), "PATH": self.path}

    def shell(self, script: str, **environment: str) -> Child:
        """Run a script. A process that it starts in the background outlives it, so its output goes to files."""
        Path(self.home, "script.sh").write_text(script)
        return self.spawn("/bin/sh", "-c", "exec /bin/sh -e script.sh >out 2>err", environment=environment)

    def read(self, name: str) -> str:
        """A file in the folder."""
        return Path(self.home, name).read_text()


class OneMachineTests(PageCase):
    """The shell blocks, as they stand there but for the ports."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.killAll)
        self.said = ""
        self.known: list[str] = []
        while True:
            # The ports that the page puts a 1, 2 or 3 before, or behind; all below those of connections.
            client, peer, registry = Random().sample(range(1000, 2700), 3)
            self.allPorts = [int(f"{n}{suffix}") for n in "123" for suffix in (client, peer)]
            self.allPorts += [10 * registry + n for n in (1, 2, 3)]
            if all(map(reserve, self.allPorts)):
                break
        self.ports = {"2379": str(client), "2380": str(peer), "888": str(registry)}
        self.endpoint = f"http://127.0.0.1:1{client}"

    def killAll(self) -> None:
        """End what the scripts have started, if one of them has not come to that."""
        for path in Path(self.home, "cluster").glob("*.pid"):
            try:
                os.kill(int(path.read_text()), 9)
            except (ProcessLookupError, FileNotFoundError):
                pass  # it has just ended, or its file is gone with it

    async def isOver(self) -> bool:
        """Whether nothing of it runs any more."""
        return all(map(isFree, self.allPorts))

    async def run_(self, script: str) -> None:
        """Run a block, with the variables that those before it have set."""
        for text, port in self.ports.items():
            script = script.replace(text, port)
        folder = Path(self.home, "backup")
        folder.mkdir(exist_ok=True)
        ran = await self.shell("".join(self.known) + script, BACKUP=str(folder), ETCDCTL_ENDPOINTS=self.endpoint).ended
        self.said = self.read("out")
        self.assertEqual(ran.exitCode, 0, self.said + self.read("err"))
        self.known += re.findall(r"^(?:export )?\w+=.*\n", script, re.MULTILINE)
        self.known += re.findall(r"^export \$.*\n", script, re.MULTILINE)

    async def test_fromNothingToABackup(self) -> None:
        """
        Three nodes come up and outlive one of them; a backup brings back what was there, and a user of etcd's is the
        only one that is let in.
        """
        members, nodes, client, away, user, backup, restore = blocks("sh")
        for block in (members, nodes, client):
            await self.run_(block)
        self.assertRegex(self.said, r"(?s)web1.*web1.*service\.join")
        await self.run_("raxsr configuration set colour blue\n")
        await self.run_(backup)
        await self.run_("raxsr configuration set colour red\n")
        await self.run_(user)
        users = "service-registry-users --store etcd --etcd $etcd"
        await self.run_(f"! {users} list 2>refusal\n")
        self.assertIn("user name is empty", self.read("refusal"))
        self.assertEqual(self.read("refusal").count("\n"), 1)
        asUser = "--etcd-user service-registry --etcd-password-file service-registry.password"
        await self.run_(f"{users} {asUser} list\n")
        self.assertIn("joe", self.said)
        for password in ("root.password", "service-registry.password"):
            self.assertEqual(os.stat(Path(self.home, password)).st_mode & 0o077, 0)
        await self.run_(away)
        await self.until(self.isOver)
        await self.run_(restore)
        await self.run_(members)
        await self.run_(re.sub(".*service-registry-users.*\n", "", nodes))
        await self.run_("raxsr configuration get colour\n")
        self.assertIn("blue", self.said)
        await self.run_(away.replace("rm cluster/registry1.pid\n", ""))


class ThreeMachinesTests(PageCase):
    """The files, as they stand there but for the addresses, each of which is another port here."""

    def place(self, text: str) -> str:
        """The text with addresses that there are on this machine."""
        for address, port in self.ports.items():
            text = text.replace(address, f"127.0.0.1:{port}")
        return text

    async def isHealthy(self) -> bool:
        """Whether all members of etcd are there."""
        urls = [f"http://{self.place(address)}/health" for address in self.ports if address.endswith(":2379")]
        try:
            return all(["true" in await treq.text_content(await treq.get(url, persistent=False)) for url in urls])
        except ConnectError:
            return False

    async def test_theFilesMakeOneRegistry(self) -> None:
        """Three etcds and three registries that were started with them know of each other's doings."""
        etcd = shutil.which("etcd", path=self.path)
        assert etcd is not None
        machines = {f"192.0.2.{n}": f"h{n}" for n in (1, 2, 3)}
        addresses = [f"{host}:{port}" for host in machines for port in (2379, 2380)]
        self.ports = dict(zip(addresses, freePorts(len(addresses)), strict=True))
        settings, commands = blocks("text")
        own, cluster = settings.partition("ETCD_INITIAL_CLUSTER=")[::2]
        for host, name in machines.items():
            lines = own.replace("192.0.2.1", host).replace("h1", name) + f"ETCD_INITIAL_CLUSTER={cluster}"
            environment = dict(line.split("=", 1) for line in self.place(lines).splitlines())
            self.spawn(etcd, f"--data-dir={name}", environment=environment)
        options, service, listening, _ = blocks("ini")
        config = Path(self.home, "service-registry.ini")
        config.write_text(self.place(options))
        command = unitOf(service)["Service"]["ExecStart"].replace("/etc/service-registry.ini", str(config))
        await self.until(self.isHealthy)
        (add,) = re.findall("^.*service-registry-users (.*)$", commands, re.MULTILINE)
        users = await self.spawn("service-registry-users", *shlex.split(self.place(add))).ended
        self.assertEqual(users.exitCode, 0, users.errors)
        account = dict(line.split("=") for line in users.output.splitlines())
        urls = []
        for name in machines.values():
            here = command.replace("${STATE_DIRECTORY}", str(Path(self.home, f"{name}-data")))
            program, *arguments = shlex.split(here)
            listen = [each.replace("systemd:domain=INET:index=0", "tcp:0:interface=127.0.0.1") for each in arguments]
            self.assertNotEqual(listen, arguments)
            registry = self.spawn(Path(program).name, *listen)
            await registry.says("The registry listens on ")
            urls.append(registry.output.partition("listens on ")[2].split()[0])
        values = []
        for url in urls:
            client = Client(account["RAXSR_USERNAME"], account["RAXSR_API_KEY"], baseUrl=url)
            self.addCleanup(client.close)
            values.append(client.configuration)
        await values[0].set("colour", "blue")
        self.assertEqual([(await each.get("colour"))["value"] for each in values], ["blue"] * 3)
        self.assertEqual(unitOf(listening)["Socket"]["ListenStream"], "192.0.2.1:8880")
        self.assertNoTraceback()
