"""``twistd -n service-registry``: the real process, killed, stopped, and with the clock moved under it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import treq
from twisted.internet.defer import Deferred, gatherResults

from tests.needs import fakeTime
from tests.system.ports import freePorts
from tests.system.processes import Child, ProcessTestCase, reactor
from txserviceregistry import Client
from txserviceregistry.errors import ServiceRegistryError
from txserviceregistry.settings import readSettings

ANY_PORT = "tcp:0:interface=127.0.0.1"
# Seconds. A service with a short heartbeat timeout expires if its process gets no CPU time for a third of it.
AGENT_TIMEOUT = 7

WITH_FEW_FILES = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
os.execv(sys.argv[1], sys.argv[1:])
"""


class RegistryProcessTests(ProcessTestCase):
    """Kills, stops, clock steps and failed starts."""

    def registry(self, *arguments: str, **options: Any) -> Child:
        return self.twistd("service-registry", *arguments, **options)

    def agent(self, *arguments: str, **options: Any) -> Child:
        """Start an agent."""
        timeout = ("--heartbeat-timeout", str(AGENT_TIMEOUT))
        return self.twistd("service-registry-agent", "--id", "web1", *timeout, *arguments, **options)

    async def started(self, listen: str | None = None) -> tuple[Child, Client, str]:
        listen = listen or f"tcp:{freePorts(1)[0]}:interface=127.0.0.1"
        registry = self.registry("--listen", listen)
        await registry.says("Credentials")
        return registry, self.client(), listen

    async def types(self, client: Client) -> list[str]:
        return [event["type"] async for event in client.events.iterate()]

    async def heartbeats(self, client: Client, id: str, count: int) -> None:
        """Wait until the registry has seen so many more heartbeats of a service."""
        seen: set[int | None] = set()

        async def enough() -> bool:
            seen.add((await client.services.get(id))["last_seen"])
            return len(seen) > count

        await self.until(enough)

    async def test_theLogInJson(self) -> None:
        """With --log-format json each line of the output is an object, from the start to the stop."""
        registry = self.registry("--listen", ANY_PORT, "--log-format", "json")
        await registry.says("The registry listens on")
        registry.kill("TERM")
        await registry.ended
        lines = [json.loads(line) for line in registry.output.splitlines()]
        self.assertIn("The registry has stopped", [line["message"] for line in lines])
        self.assertEqual({line["level"] for line in lines}, {"info"})
        refused = await self.twistd("--syslog", "service-registry", "--log-format", "json").ended
        self.assertIn("--log-format json can't be used with --syslog", refused.errors)

    async def test_theLogInJsonIsRotated(self) -> None:
        """SIGUSR1 rotates a file of it, as it does twistd's own."""
        log = os.path.abspath(self.mktemp())
        registry = self.twistd("--logfile", log, "service-registry", "--listen", ANY_PORT, "--log-format", "json")

        async def hasStarted() -> bool:
            return os.path.exists(log) and "listens on" in Path(log).read_text("utf-8")

        async def hasRotated() -> bool:
            return os.path.exists(f"{log}.1")

        await self.until(hasStarted)
        registry.kill("USR1")
        await self.until(hasRotated)
        registry.kill("TERM")
        await registry.ended
        self.assertIn("The registry has stopped", Path(log).read_text("utf-8"))

    async def test_keepsWhatItAcknowledgedThroughKill(self) -> None:
        """After kill -9 in the middle of writes, all that was acknowledged is there, and living services go on."""
        registry, client, where = await self.started()
        impatient = self.client(timeout=3.0)
        body, _ = await client.services.create("web1", 120, {"tags": ["a"]})
        token = (await client.services.heartbeat("web1", body["token"]))["token"]
        kept: dict[str, str] = {}

        async def write(worker: int) -> None:
            number = 0
            while registry.running:
                key, value = f"key_{worker}_{number}", str(number)
                try:
                    await impatient.configuration.set(key, value)
                except ServiceRegistryError:
                    # It was killed, or a busy machine took too long.
                    continue
                kept[key] = value
                number += 1

        writers = gatherResults([Deferred.fromCoroutine(write(worker)) for worker in range(4)])

        async def some() -> bool:
            return len(kept) > 100

        await self.until(some)
        registry.kill("KILL")
        await registry.ended
        await writers
        again = self.registry("--listen", where)
        await again.says("Credentials")
        found = {value["id"]: value["value"] async for value in client.configuration.iterate()}
        self.assertEqual({key: found.get(key) for key in kept}, kept)
        # At most the one request that each writer had under way was kept without being acknowledged.
        self.assertLessEqual(len(found) - len(kept), 4)
        # All tokens of the service are valid: the one before the last one too.
        await client.services.heartbeat("web1", token)
        await client.services.heartbeat("web1", body["token"])
        self.assertEqual((await self.types(client)).count("service.timeout"), 0)

    async def test_anOutageExpiresNoService(self) -> None:
        """Services whose application runs do not expire because the registry was down for longer than their timeout."""
        registry, client, where = await self.started()
        listen = f"tcp:{freePorts(1)[0]}:interface=127.0.0.1"
        agent = self.agent("--listen", listen)
        await agent.says("is registered")
        registry.kill("KILL")
        await registry.ended

        async def deadlineHasPassed() -> bool:
            page = await treq.get(f"http://127.0.0.1:{listen.split(':')[1]}/", persistent=False)
            return (await page.json())["state"] == "unreachable"

        await self.until(deadlineHasPassed)
        again = self.registry("--listen", where)
        await again.says("Credentials")
        await agent.says("succeed again after")
        await self.heartbeats(client, "web1", 1)
        self.assertEqual(await self.types(client), ["service.join"])

    async def test_aLongStopExpiresNoService(self) -> None:
        """After SIGSTOP for longer than a timeout, and SIGCONT, every service has its timeout again."""
        registry, client, _ = await self.started()
        agent = self.agent()
        await agent.says("is registered")
        registry.kill("STOP")
        # A request that begins now and is given up after more than the timeout.
        unanswered = self.client(cache=None, timeout=AGENT_TIMEOUT + 0.2).account.getLimits().addErrback(lambda _: None)
        # The agent's own log shows that its deadline has passed while nothing answered.
        await agent.says("failed for service web1")
        await unanswered
        registry.kill("CONT")
        await agent.says("succeed again after")
        await self.heartbeats(client, "web1", 1)
        self.assertEqual(await self.types(client), ["service.join"])

    async def test_theWallClockMayStep(self) -> None:
        """When the wall clock of all processes steps by an hour, both ways, no heartbeat is late, nothing expires."""
        stepped = Path(self.home, "faketime")
        fake = fakeTime(stepped)
        registry = self.registry("--listen", ANY_PORT, environment=fake)
        await registry.says("Credentials")
        agent = self.agent(environment=fake)
        await agent.says("is registered")
        client = self.client()
        for step in ("+3600", "-3600"):
            stepped.write_text(step + "\n")
            await self.heartbeats(client, "web1", 1)
        self.assertNotIn("failed for service web1", agent.output)
        stepped.write_text("-3600\n")
        events = (await client.events.list(limit=1000))["values"]
        self.assertEqual([event["type"] for event in events], ["service.join"])

    async def test_signalsWhileItStops(self) -> None:
        """Further signals, and a terminal that is closed, neither cut the stop short nor leave a traceback."""
        # A pipe without a reader, for which the stop waits.
        pipe = self.mktemp()
        os.mkfifo(pipe)
        registry = self.registry("--listen", ANY_PORT, "--audit-log", os.path.abspath(pipe))
        await registry.says("Credentials")
        # Two in the same turn of the reactor.
        for name in ("STOP", "TERM", "INT", "CONT"):
            registry.kill(name)
        await registry.says("The registry stops")
        registry.kill("TERM")
        registry.kill("HUP")
        await registry.ended
        self.assertIn("The registry has stopped", registry.output)
        self.assertNotIn("Traceback", registry.output)

    async def test_whatPreventsAStartIsOneLine(self) -> None:
        """A port in use, a second registry over a folder, a file that is not a database, a wrong option, no log."""
        taken = socket.socket()
        self.addCleanup(taken.close)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        damaged = os.path.join(self.home, "damaged")
        os.makedirs(damaged)
        Path(damaged, "registry.sqlite").write_text("this is not a database")
        registry, _, _ = await self.started()
        cases: list[tuple[list[str], str]] = [
            (
                ["--data-dir", os.path.join(self.home, "other"), "--listen", f"tcp:{port}:interface=127.0.0.1"],
                str(port),
            ),
            ([], "another registry uses"),
            (["--data-dir", damaged], "registry.sqlite"),
            (["--listen", "tcp:none"], "--listen"),
        ]
        children = [self.registry(*arguments) for arguments, _ in cases]
        for format in ("text", "json"):
            children.append(self.twistd("--logfile", damaged, "service-registry", "--log-format", format))
            cases.append(([], "can't write the log"))
        for failed, (_, expected) in zip(children, cases, strict=True):
            await failed.ended
            self.assertEqual(failed.exitCode, 1, failed.output + failed.errors)
            self.assertEqual(len(failed.errors.strip().splitlines()), 1, failed.errors)
            self.assertIn(expected, failed.errors)
        self.assertEqual(Path(damaged, "registry.sqlite").read_text(), "this is not a database")
        self.assertNoTraceback()
        self.assertTrue(registry.running)

    async def test_fewFiles(self) -> None:
        """With a low limit on files, a crowd of connections does not lock out clients, then or later."""
        twistd = str(Path(sys.executable).with_name("twistd"))
        registry = self.spawn(
            *(Path(sys.executable).name, "-c", WITH_FEW_FILES, twistd, "-n", "--pidfile="),
            *("service-registry", "--listen", ANY_PORT),
        )
        await registry.says("Credentials")
        self.assertIn("Connections limited to 32", registry.output)
        client = self.client(timeout=3.0)
        port = int(client.settings.baseUrls[0].split(":")[2].split("/")[0])

        async def isServed() -> bool:
            try:
                await client.account.getLimits()
            except ServiceRegistryError:
                return False
            return True

        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        await self.until(isServed)
        for one in crowd:
            one.close()
        await self.until(isServed)
        self.assertNotIn("Traceback", registry.output)

    async def test_inTheBackground(self) -> None:
        """Without -n it serves in the background; what keeps another one from starting there is in that one's log."""
        pid = Path(self.home, "pid")
        self.addCleanup(lambda: pid.exists() and os.kill(int(pid.read_text()), signal.SIGKILL))

        async def started(name: str, listen: str, line: str) -> None:
            log = Path(self.home, name)
            files = (f"--pidfile={pid if name == 'first' else ''}", f"--logfile={log}")
            data = os.path.join(self.home, f"data-{name}")
            twistd = await self.spawn("twistd", *files, "service-registry", "-d", data, "--listen", listen).ended
            self.assertEqual((twistd.exitCode, twistd.errors), (0, ""))

            async def isSaid() -> bool:
                return log.exists() and line in log.read_text()

            await self.until(isSaid)
            self.assertNotIn("Traceback", log.read_text())

        await started("first", ANY_PORT, "The registry listens on")
        settings = readSettings(environ={"RAXSR_DATA_DIR": os.path.join(self.home, "data-first")}, home=Path(self.home))
        async with Client(reactor=reactor, settings=settings) as client:
            await client.account.getLimits()
        port = settings.baseUrls[0].split(":")[2].split("/")[0]
        await started("second", f"tcp:{port}:interface=127.0.0.1", f"can't listen on 127.0.0.1:{port}: Address already")
        os.kill(int(pid.read_text()), signal.SIGTERM)

        async def isGone() -> bool:
            return not pid.exists()

        await self.until(isGone)
