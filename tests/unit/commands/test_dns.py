"""``twistd service-registry-dns``, in this process."""

from __future__ import annotations

import io
import os
import socket
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import dns.message
import dns.name
from twisted.internet import reactor as globalReactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol
from twisted.trial.unittest import SynchronousTestCase, TestCase

from txserviceregistry.commands.dns import DnsProcess, Listener, Options, makeService
from txserviceregistry.discovery import Directory
from txserviceregistry.dns.server import View
from txserviceregistry.dns.zone import Zone
from txserviceregistry.testing import FakeRegistry

reactor: Any = globalReactor


class OptionsTests(SynchronousTestCase):
    """The options."""

    def refusal(self, *words: str) -> str:
        """The one line on stderr."""
        return str(self.assertRaises(SystemExit, Options().parseOptions, [*words]))

    def test_defaults(self) -> None:
        """By default it listens on the loopback address, for ``registry.``."""
        options = Options()
        options.parseOptions([])
        self.assertEqual(options["listen"], [Listener("udp", 8600), Listener("tcp", 8600)])
        self.assertEqual({each.interface for each in options["listen"]}, {"127.0.0.1"})
        self.assertEqual(
            (options["domain"], options["ttl"], options["cache"]), (dns.name.from_text("registry"), 5, None)
        )

    def test_listen(self) -> None:
        """A listener has a port, and perhaps an address of this machine."""
        options = Options()
        words = ["udp:53:interface=0.0.0.0", r"tcp:53:interface=\:\:1", "tcp:1"]
        options.parseOptions([f"--listen={word}" for word in words])
        expected = [Listener("udp", 53, "0.0.0.0"), Listener("tcp", 53, "::1"), Listener("tcp", 1)]
        self.assertEqual(options["listen"], expected)
        self.assertEqual([str(each) for each in expected[:2]], ["0.0.0.0:53 (UDP)", "[::1]:53 (TCP)"])
        for word in ("8600", "udp", "udp:", "udp:65536", "udp:x", "tls:853", "udp:53:x=1", "udp:53:interface="):
            self.assertIn("is not a listener; examples are udp:8600", self.refusal(f"--listen={word}"))

    def test_domain(self) -> None:
        """A domain is absolute, whether it ends in a dot or not; one that can't be is refused."""
        options = Options()
        options.parseOptions(["--domain", "sr.example"])
        self.assertEqual(options["domain"].to_text(), "sr.example.")
        self.assertIn("'a..b' is not a domain: A DNS label is empty", self.refusal("--domain=a..b"))

    def test_numbers(self) -> None:
        """The TTL and the panic threshold have bounds."""
        self.assertIn("--ttl: '2d' is not a duration from 0s to 1d", self.refusal("--ttl=2d"))
        self.assertIn("--panic-threshold: '2' is not a number from 0 to 1", self.refusal("--panic-threshold=2"))

    def test_withoutDnspython(self) -> None:
        """Without dnspython it says what to install; ``--help`` needs nothing."""
        with mock.patch.dict(sys.modules, {"dns": None, "dns.name": None, "dns.exception": None}):
            self.assertIn("pip install 'twisted-service-registry[dns]'", self.refusal())
            self.assertIn("--listen", str(Options()))


class ProcessTests(TestCase):
    """The process, with a registry in memory."""

    def setUp(self) -> None:
        self.said = io.StringIO()
        patched = mock.patch.object(sys, "__stdout__", self.said)
        patched.start()
        self.addCleanup(patched.stop)

    def process(self, *listeners: Listener) -> DnsProcess:
        """A server that is not started."""
        client = FakeRegistry().client()
        view = View(Directory(client), Zone(dns.name.from_text("registry."), 5), client.clock)
        return DnsProcess(reactor, client, view, [*listeners])

    async def test_answers(self) -> None:
        """It prints where it listens, answers there, and nothing of it is left when it has stopped."""
        process = self.process(Listener("udp", 0), Listener("tcp", 0))
        process.privilegedStartService()
        process.startService()
        udp, tcp = self.said.getvalue().splitlines()
        self.assertRegex(udp, r"^Answering DNS queries on 127\.0\.0\.1:\d+ \(UDP\)$")
        self.assertRegex(tcp, r"^Answering DNS queries on 127\.0\.0\.1:\d+ \(TCP\)$")
        received: Deferred[bytes] = Deferred()
        asking = DatagramProtocol()
        asking.datagramReceived = lambda data, address: received.callback(data)  # type: ignore[method-assign]
        port = reactor.listenUDP(0, asking, "127.0.0.1")
        query = dns.message.make_query("www.service.registry", "A")
        port.write(query.to_wire(), ("127.0.0.1", int(udp.split(":")[1].split(" ")[0])))
        self.assertTrue(query.is_response(dns.message.from_wire(await received)))
        await port.stopListening()
        await process.stopService()

    def test_portInUse(self) -> None:
        """A port that is in use ends the process with one line."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            process = self.process(Listener("tcp", port))
            refusal = self.assertRaises(SystemExit, process.privilegedStartService)
        self.assertRegex(
            str(refusal), rf"^twistd service-registry-dns: can't listen on 127\.0\.0\.1:{port} \(TCP\): .*in use"
        )

    def test_noCredentials(self) -> None:
        """Without credentials it says in one line what is missing."""
        home = os.path.abspath(self.mktemp())
        Path(home).mkdir()
        options = Options()
        options.parseOptions([])
        with mock.patch.dict(os.environ, {"HOME": home}, clear=True):
            refusal = self.assertRaises(SystemExit, makeService, options)
        self.assertRegex(str(refusal), r"^twistd service-registry-dns: .*\Z")
