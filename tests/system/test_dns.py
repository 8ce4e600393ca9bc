"""``twistd service-registry-dns`` with the programs that ask it: dig, kdig, dnsmasq and HAProxy."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from shutil import which
from typing import Any

from twisted.internet import reactor as globalReactor
from twisted.internet.task import deferLater

from tests.needs import needs
from tests.system.ports import freePorts
from tests.system.processes import Child, ProcessTestCase
from tests.unit.dns.test_messages import strangePackets
from txserviceregistry import Client

reactor: Any = globalReactor


class DnsTestCase(ProcessTestCase):
    """A registry over sqlite, the DNS server, and a client that registers services."""

    async def start(self, *options: str) -> None:
        """Start both."""
        self.registryPort, self.port = freePorts(2)
        await self.startRegistry()
        self.api: Client = self.client()
        listen = f"{self.port}:interface=127.0.0.1"
        self.dns = self.twistd("service-registry-dns", f"--listen=udp:{listen}", f"--listen=tcp:{listen}", *options)
        await self.dns.says("(TCP)")

    async def startRegistry(self) -> None:
        """Start the registry, perhaps once more."""
        self.registry = self.twistd("service-registry", f"--listen=tcp:{self.registryPort}:interface=127.0.0.1")
        await self.registry.says("Credentials")

    async def register(self, id: str, **metadata: str) -> None:
        """Register a service with the tag ``web``."""
        await self.api.services.create(id, 120, {"tags": ["web"], "metadata": metadata})

    async def prints(self, program: str, *arguments: str) -> str:
        """The output of a program."""
        path = which(program)
        assert path is not None
        return (await self.spawn(path, *arguments).ended).output

    async def dig(self, *words: str, program: str = "dig", port: int = 0) -> list[str]:
        """The lines of an answer, in any order."""
        output = await self.prints(program, "@127.0.0.1", "-p", str(port or self.port), "+short", "+time=30", *words)
        return sorted(filter(None, output.splitlines()))


class QueryTests(DnsTestCase):
    """The answers that programs get."""

    async def test_dig(self) -> None:
        """dig and kdig read the answers over UDP and TCP, also those that did not fit at first."""
        needs("dig", "kdig")
        await self.start()
        for number in range(1, 61):
            await self.register(f"web-{number}", host=f"127.0.0.{number}", port="8000", weight=str(number))
        name, srv = "web.service.registry", "_web._tcp.service.registry"
        everything = sorted(f"127.0.0.{number}" for number in range(1, 61))
        records = sorted(
            f"0 {-(-number * 256 // 100)} 8000 7f0000{number:02x}.addr.registry." for number in range(1, 61)
        )

        async def isComplete() -> bool:
            return await self.dig("+tcp", name) == everything

        await self.until(isComplete)
        for program in ("dig", "kdig"):
            # At first the answer is truncated, and the program asks again over TCP.
            self.assertEqual(await self.dig("+noedns", name, program=program), everything, program)
            self.assertEqual(await self.dig(srv, "SRV", program=program), records, program)
            self.assertEqual(await self.dig("web-7.id.registry", program=program), ["127.0.0.7"], program)
        truncated = await self.prints("dig", "@127.0.0.1", "-p", str(self.port), "+ignore", "+bufsize=700", srv, "SRV")
        self.assertRegex(truncated, r"flags: qr aa tc rd; QUERY: 1, ANSWER: 15,")
        self.assertNotIn("Warning", truncated)
        for words, status in (([name, "TXT"], "NOERROR"), (["no.service.registry"], "NXDOMAIN"), (["a.b"], "REFUSED")):
            self.assertIn(f"status: {status}", await self.prints("dig", "@127.0.0.1", "-p", str(self.port), *words))
        self.assertNoTraceback()

    async def test_dnsmasq(self) -> None:
        """dnsmasq forwards the domain to it, and serves what it gets."""
        needs("dnsmasq", "dig")
        await self.start()
        for number in range(1, 31):
            await self.register(f"web-{number}", host=f"127.0.0.{number}", port="8000")
        (port,) = freePorts(1)
        options = ["--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--listen-address=127.0.0.1"]
        options += ["--bind-interfaces", f"--server=/registry/127.0.0.1#{self.port}", "--user=", "--pid-file="]
        self.spawn(str(which("dnsmasq")), *options, f"--port={port}")

        async def isServed() -> bool:
            return len(await self.dig("web.service.registry", port=port)) == 30

        await self.until(isServed)
        self.assertEqual(len(await self.dig("_web._tcp.service.registry", "SRV", port=port)), 30)
        self.assertEqual(await self.dig("web-3.id.registry", port=port), ["127.0.0.3"])

    async def test_withoutRegistry(self) -> None:
        """Started without the registry it answers with the services of its file; without the file it is SERVFAIL."""
        needs("dig")
        await self.start("--cache=services.json")
        await self.register("web-1", host="127.0.0.1", port="8000")

        async def isKept() -> bool:
            path = Path(self.home, "services.json")
            return path.exists() and "web-1" in path.read_text()

        await self.until(isKept)
        for child in (self.dns, self.registry):
            child.kill("TERM")
            await child.ended
        for options, expected in (["--cache=services.json"], "127.0.0.1"), ([], "SERVFAIL"):
            again = self.twistd("service-registry-dns", f"--listen=udp:{self.port}", *options)
            await again.says("(UDP)")

            async def isAnswered(expected: str = expected) -> bool:
                output = await self.prints("dig", "@127.0.0.1", "-p", str(self.port), "web.service.registry")
                return expected in output

            await self.until(isAnswered)
            again.kill("TERM")
            await again.ended
        self.assertNoTraceback()

    async def test_strangePackets(self) -> None:
        """2,000 random packets over UDP do no harm: queries are answered, and no error is in the log."""
        needs("dig")
        await self.start()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.connect(("127.0.0.1", self.port))
            for packet in strangePackets(2_000, 3):
                asking.send(packet)

        async def isAnswered() -> bool:
            output = await self.prints("dig", "@127.0.0.1", "-p", str(self.port), "+tries=1", "registry", "SOA")
            return "status: NOERROR" in output

        # The system may have dropped a query while there were so many.
        await self.until(isAnswered)
        self.assertNoTraceback()


_RESOLVERS = """
resolvers {name}
    nameserver registry {nameserver}
    accepted_payload_size 8192
    timeout resolve 500ms
    timeout retry 500ms
    hold valid 500ms
    hold nx 1s
    hold timeout 1d
    hold refused 1s
    hold other 1s
    hold obsolete 0s

backend {name}
    server-template web 60 _web._tcp.service.registry resolvers {name} init-addr none
"""


class HaproxyTests(DnsTestCase):
    """HAProxy, whose servers come from SRV records, over UDP and over TCP."""

    async def startHaproxy(self) -> None:
        """Start it."""
        ways = {"udp": f"127.0.0.1:{self.port}", "tcp": f"tcp@127.0.0.1:{self.port}"}
        config = Path(self.home, "haproxy.cfg")
        config.write_text(
            "global\n    stats socket unix@stats\ndefaults\n    mode http\n    timeout connect 5s\n"
            "    timeout client 5s\n    timeout server 5s\n"
            + "".join(_RESOLVERS.format(name=name, nameserver=nameserver) for name, nameserver in ways.items())
        )
        self.haproxy: Child = self.spawn(str(which("haproxy")), "-db", "-f", str(config))
        await self.until(self.listens)

    async def listens(self) -> bool:
        """Whether it runs."""
        try:
            self.servers("udp")
        except OSError:
            # The name of a socket is there before the program listens.
            return False
        return True

    def servers(self, backend: str) -> dict[str, int]:
        """The weights of the servers that are up, by address."""
        with socket.socket(socket.AF_UNIX) as asking:
            # The path from here is short enough for the address of a socket.
            asking.connect(os.path.relpath(os.path.join(self.home, "stats")))
            asking.send(b"show stat\n")
            output = b"".join(iter(lambda: asking.recv(65536), b"")).decode()
        names, *lines = [line.split(",") for line in output.removeprefix("# ").splitlines() if line]
        found = [dict(zip(names, line, strict=True)) for line in lines]
        return {
            each["addr"]: int(each["weight"])
            for each in found
            if each["pxname"] == backend and each["svname"].startswith("web") and each["status"] in ("UP", "no check")
        }

    async def has(self, expected: dict[str, int]) -> None:
        """Wait until both backends have these servers."""

        async def isSo() -> bool:
            return all(self.servers(backend) == expected for backend in ("udp", "tcp"))

        try:
            await self.until(isSo)
        except AssertionError:
            found = {backend: self.servers(backend) for backend in ("udp", "tcp")}
            raise AssertionError(f"{found} instead of {expected}") from None

    async def test_servers(self) -> None:
        """60 instances are 60 servers with their weights. They leave, are drained, join, and survive an outage."""
        needs("haproxy")
        await self.start("--ttl=1s")
        expected = {}
        for number in range(1, 61):
            weight = 100 * (number % 3 + 1)
            await self.register(f"web-{number}", host=f"127.0.0.{number}", port="8000", weight=str(weight))
            expected[f"127.0.0.{number}:8000"] = weight // 100
        await self.startHaproxy()
        await self.has(expected)
        await self.api.services.remove("web-1")
        await self.api.services.setState("web-2", "drain")
        for number in (1, 2):
            del expected[f"127.0.0.{number}:8000"]
        await self.has(expected)
        self.registry.kill("KILL")
        await self.registry.ended
        # Five times as long as HAProxy keeps a server that is not in the answers.
        for _ in range(20):
            await deferLater(reactor, 0.25, lambda: None)
            for backend in ("udp", "tcp"):
                self.assertEqual(self.servers(backend), expected, backend)
        await self.startRegistry()
        await self.register("web-new", host="127.0.1.1", port="8001")
        await self.has({**expected, "127.0.1.1:8001": 1})
        self.assertNoTraceback()
