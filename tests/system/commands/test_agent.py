"""``twistd -n service-registry-agent``: the real process, as a newcomer meets it."""

from __future__ import annotations

import os
import re
import socket

from twisted.internet.utils import getProcessOutputAndValue

from tests.needs import needs
from tests.system.commands.printed import printedScripts
from tests.system.processes import Child, ProcessTestCase, isCrowded, reactor

ANY_PORT = "tcp:0:interface=127.0.0.1"


class AgentProcessTests(ProcessTestCase):
    """From nothing to a registered service, and back."""

    def agent(self, *arguments: str, environment: dict[str, str] | None = None) -> Child:
        return self.twistd("service-registry-agent", "--registry-listen", ANY_PORT, *arguments, environment=environment)

    async def test_runsARegistryAndRegistersAService(self) -> None:
        """Without configuration it runs its own registry, with a service whose heartbeats it sends."""
        agent = self.agent("--id", "web1", "--tags", "www,x", "--metadata", "a=b=c,d=e", "--heartbeat-timeout", "3")
        await agent.says("is registered")
        client = self.client()
        service = await client.services.get("web1")
        self.assertEqual((service["tags"], service["metadata"]), (["www", "x"], {"a": "b=c", "d": "e"}))
        seen = set()

        async def hasHeartbeats() -> bool:
            seen.add((await client.services.get("web1"))["last_seen"])
            return len(seen) >= 3

        await self.until(hasHeartbeats)
        self.assertNoTraceback()

    async def test_theLinesThatItPrintsWork(self) -> None:
        """The commands that it prints show the service: the curl lines in a shell, and the Python lines."""
        needs("curl")
        agent = self.agent("--id", "web1")
        await agent.says("\nEND")
        for script in printedScripts(agent.output):
            out, err, code = await getProcessOutputAndValue(
                "/bin/bash", ["-c", script], env=self.environment(), path=self.home
            )
            self.assertEqual(code, 0, err)
            self.assertIn(b"web1", out)

    async def test_saysWhereTheCredentialsAreAndNotWhatTheyAre(self) -> None:
        """The file is its owner's only, and no key is printed or logged."""
        agent = self.agent()
        await agent.says("is registered")
        raxrc = os.path.join(self.dataDir, "raxrc")
        self.assertIn(raxrc, agent.output)
        self.assertEqual(os.stat(raxrc).st_mode & 0o777, 0o600)
        with open(raxrc) as file:
            key = re.search(r"api_key *= *(\S+)", file.read())
        assert key is not None
        agent.kill("TERM")
        await agent.ended
        self.assertNotIn(key[1], agent.output + agent.errors)

    async def test_endsCleanlyOnSignals(self) -> None:
        """SIGTERM and SIGINT deregister, then end the process by that signal, within five seconds."""
        for name, number in (("TERM", 15), ("INT", 2)):
            agent = self.agent("--id", "web1")
            await agent.says("is registered")
            before = reactor.seconds()
            agent.kill(name)
            await agent.ended
            if not isCrowded():
                self.assertLess(reactor.seconds() - before, 5)
            self.assertEqual(agent.signal, number)
            # The service's own report, and the registry's record.
            self.assertIn("Service web1 deregistered", agent.output)
            self.assertRegex(agent.output, r"Services registered: \w+/web1\n(.*\n)*.*Services deregistered: \w+/web1\n")
        registry = self.twistd("service-registry", "--listen", ANY_PORT)
        await registry.says("listens on")
        types = [event["type"] for event in (await self.client().events.list())["values"]]
        self.assertEqual(types, ["service.join", "service.remove"] * 2)
        self.assertNoTraceback()

    async def test_whatPreventsAStartIsOneLine(self) -> None:
        """A port in use, a broken raxrc: one line, exit code 1, no traceback, and nothing is started."""
        taken = socket.socket()
        self.addCleanup(taken.close)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        broken = os.path.join(self.home, "broken")
        with open(broken, "w") as file:
            file.write("this is [no ini file\n")
        cases = (
            (["--registry-listen", f"tcp:{port}:interface=127.0.0.1"], {}, str(port)),
            ([], {"RAXSR_RAXRC": broken}, broken),
        )
        agents = [self.agent(*arguments, environment=environment) for arguments, environment, _ in cases]
        for agent, (_, _, expected) in zip(agents, cases, strict=True):
            await agent.ended
            self.assertEqual(agent.exitCode, 1, agent.output + agent.errors)
            self.assertEqual(len(agent.errors.strip().splitlines()), 1, agent.errors)
            self.assertIn(expected, agent.errors)
        self.assertNoTraceback()
