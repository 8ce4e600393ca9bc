"""The listeners of a registry: endpoint strings with TLS, valid and invalid ones."""

from __future__ import annotations

import configparser
import errno
import os
import select
import socket
import ssl
from pathlib import Path
from typing import Any
from unittest import mock

from cryptography.hazmat.primitives import serialization
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, TCP4ServerEndpoint, quoteStringArgument
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests import CHEAP
from tests.certificates import Holder, commonHolder
from txserviceregistry.client import Client
from txserviceregistry.registry.http import listening
from txserviceregistry.registry.http.listening import EndpointError, TLSEndpoint, parseEndpoint
from txserviceregistry.registry.service import RegistryService
from txserviceregistry.settings import readSettings


class FilesCase(TestCase):
    """With files for endpoint strings."""

    def file(self, *parts: bytes) -> str:
        path = Path(self.mktemp()).absolute()
        path.write_bytes(b"".join(parts))
        path.chmod(0o640)
        return str(path)

    def endpoint(self, holder: Holder, certificate: bytes | None = None, more: str = ":interface=127.0.0.1") -> str:
        key, own = self.file(holder.key), self.file(certificate or holder.fullChain)
        return f"ssl:0:privateKey={quoteStringArgument(key)}:certKey={quoteStringArgument(own)}{more}"


class ParsingTests(FilesCase, SynchronousTestCase):
    """Strings and their files."""

    def test_socketsOfSystemd(self) -> None:
        """The family of one is its own, whatever the string says, and one that does not listen is refused."""
        with socket.socket(socket.AF_UNIX) as passed, open(os.devnull, "rb") as file:

            def parse(descriptor: int) -> Any:
                endpoint = AdoptedStreamServerEndpoint(reactor, descriptor, socket.AF_INET)
                with mock.patch.object(listening, "serverFromString", lambda *_: endpoint):
                    return parseEndpoint(reactor, "systemd:domain=INET:index=0")

            passed.bind(self.mktemp())
            self.assertIn("does not listen", str(self.assertRaises(EndpointError, parse, passed.fileno())))
            passed.listen()
            self.assertEqual(parse(passed.fileno()).addressFamily, socket.AF_UNIX)
            self.assertIn("passed no socket", str(self.assertRaises(EndpointError, parse, file.fileno())))

    def test_whatCantBeUsedIsSaidInOneLine(self) -> None:
        """Every file that is missing, wrong or damaged is named, with what it was to be; nothing raw of OpenSSL's."""
        holder = commonHolder()
        key, certificate, other = self.file(holder.key), self.file(holder.certificate), self.file(Holder("x").key)
        junk, gone = self.file(b"junk"), str(Path(self.mktemp()).absolute())
        damaged = self.file(b"-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n")
        damagedKey = self.file(b"-----BEGIN PRIVATE KEY-----\nbm90aGluZw==\n-----END PRIVATE KEY-----\n")
        encrypted = self.file(
            serialization.load_pem_private_key(holder.key, None).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
        for arguments, text in (
            (f"0:privateKey={gone}:certKey={certificate}", f"cannot read privateKey {gone}: No such file"),
            (f"0:privateKey={key}:certKey={gone}", f"cannot read certKey {gone}: No such file"),
            (f"0:privateKey={key}:certKey=/", "cannot read certKey /: Is a directory"),
            (f"0:privateKey={junk}:certKey={certificate}", f"no PEM private key in privateKey {junk}"),
            (f"0:privateKey={damagedKey}:certKey={certificate}", f"the private key in {damagedKey} is invalid"),
            (f"0:privateKey={encrypted}:certKey={certificate}", f"the private key in {encrypted} is encrypted"),
            (f"0:privateKey={key}:certKey={junk}", f"no PEM certificate in certKey {junk}"),
            (f"0:privateKey={key}:certKey={damaged}", f"invalid certificate in certKey {damaged}"),
            (
                f"0:privateKey={other}:certKey={certificate}",
                f"in {other} does not match the certificate in {certificate}",
            ),
            (f"0:privateKey={key}", f"no PEM certificate in certKey {key}"),
            (f"x:privateKey={key}:certKey={certificate}", "invalid port 'x': not a number"),
            (f"privateKey={key}:certKey={certificate}", "invalid port '': not a number"),
            (f"0:1:privateKey={key}:certKey={certificate}", "unknown or repeated argument port="),
            (
                f"0:privateKey={key}:certKey={certificate}:sslmethod=TLSv1_METHOD",
                "unknown or repeated argument sslmethod=",
            ),
            ("0", "missing argument privateKey="),
        ):
            said = str(self.assertRaises(EndpointError, parseEndpoint, reactor, f"ssl:{arguments}"))
            self.assertIn(text, said)
            self.assertNotIn("\n", said)

    def test_tooFewParts(self) -> None:
        """The error for an incomplete endpoint of Twisted's does not speak of a function's arguments."""
        for description in ("tcp", "tcp6", "unix", "tcp:1:what=1"):
            said = str(self.assertRaises(EndpointError, parseEndpoint, reactor, description))
            self.assertIn("example: tcp:8880", said)

    def test_keyAndCertificateInOneFile(self) -> None:
        """One file may hold both, in any order."""
        holder = commonHolder()
        for parts in ((holder.certificate, holder.key), (holder.key, holder.certificate)):
            endpoint = parseEndpoint(reactor, f"ssl:0:privateKey={quoteStringArgument(self.file(*parts))}")
            assert isinstance(endpoint, TLSEndpoint)
            self.assertEqual(endpoint.certificate, holder.x509)

    def test_othersAreTwisteds(self) -> None:
        """All other strings are what Twisted makes of them."""
        self.assertIsInstance(parseEndpoint(reactor, "tcp:0"), TCP4ServerEndpoint)

    def test_theHostThatTheCertificateIsFor(self) -> None:
        """Programs on this machine are sent to a host that the certificate has, if there is one."""
        for names, interface, host in (
            (("registry.example.org", "127.0.0.1"), "", "127.0.0.1"),
            (("registry.example.org", "localhost"), "", "localhost"),
            (("localhost",), ":interface=127.0.0.1", "localhost"),
            (("*.example.org", "10.0.0.1", "fe80::1", "registry.example.org"), "", "registry.example.org"),
            (("registry.example.org",), ":interface=127.0.0.1", "127.0.0.1"),
            (("*.example.org",), "", "127.0.0.1"),
            ((), "", "127.0.0.1"),
        ):
            endpoint = parseEndpoint(reactor, self.endpoint(Holder("x", names=names), more=interface))
            assert isinstance(endpoint, TLSEndpoint)
            self.assertEqual(endpoint.hostFor("127.0.0.1"), host)


def ownerIn(secure: ssl.SSLSocket) -> str:
    """The name in the certificate of the other side."""
    certificate: Any = secure.getpeercert()
    return str(dict(pair for (pair,) in certificate["subject"])["commonName"])


class ListeningTests(FilesCase):
    """The certificate that clients receive."""

    def setUp(self) -> None:
        self.dataDir = Path(self.mktemp()).absolute()
        self.log: list[str] = []
        self.reloads: list[str] = []

        def observe(event: Any) -> None:
            text = formatEvent(event)
            if text.startswith(("Certificate ", "Private key ")):
                self.log.append(text)
            elif text.startswith("TLS certificate"):
                self.reloads.append(text)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    async def started(self, *endpoints: Any) -> RegistryService:
        registry = RegistryService(reactor, dataDir=self.dataDir, store="memory", endpoints=endpoints, keyCost=CHEAP)
        registry.startService()
        self.addCleanup(lambda: registry.stopService() if registry.running else None)
        await registry.whenListening()
        return registry

    async def test_manyConnectAtOnce(self) -> None:
        """A crowd that comes in one moment finds a place to wait, unless the endpoint string says otherwise."""
        for endpoint, isRoomy in [
            ("tcp:0:interface=127.0.0.1", True),
            ("tcp:0:interface=127.0.0.1:backlog=20", False),
            (self.endpoint(commonHolder()), True),
        ]:
            port = await parseEndpoint(reactor, endpoint).listen(Factory())
            crowd = [socket.socket() for _ in range(200)]
            for one in crowd:
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port.getHost().port))
            # The reactor has accepted none of them so far; the kernel of a busy machine may need a moment.
            areConnected = all(select.select([], [one], [], 30 if isRoomy else 0)[1] for one in crowd)
            self.assertEqual(areConnected, isRoomy, endpoint)
            for one in crowd:
                one.close()
            await port.stopListening()

    def raxrc(self, section: str, option: str) -> str | None:
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(self.dataDir / "raxrc")
        return parser.get(section, option, fallback=None)

    def handshake(self, registry: RegistryService, root: Holder, **options: Any) -> Deferred[tuple[str, str]]:
        """The version of TLS and the protocol that Python's own client agrees on with a registry."""
        host, _, port = registry.urls[0].removeprefix("https://").removesuffix("/v1.0").rpartition(":")

        def shake() -> tuple[str, str]:
            context = ssl.create_default_context(cadata=root.certificate.decode())
            context.set_alpn_protocols(["h2", "http/1.1"])
            for name, value in options.items():
                setattr(context, name, value)
            with (
                socket.create_connection((host, int(port)), timeout=10) as plain,
                context.wrap_socket(plain, server_hostname=host) as secure,
            ):
                return secure.version() or "", secure.selected_alpn_protocol() or ""

        return deferToThread(shake)

    async def test_aChainInOneFileIsServedWhole(self) -> None:
        """
        Of a file with the server's certificate and those between it and the authority, as authorities hand them out,
        all are sent. HTTP/1.1 is what is agreed on.
        """
        root = Holder("Root", names=())
        leaf = Holder("registry", issuer=Holder("Middle", names=(), issuer=root), ca=False)
        registry = await self.started(self.endpoint(leaf))
        self.assertEqual(await self.handshake(registry, root), ("TLSv1.3", "http/1.1"))

    async def test_nothingOlderThanTLS12(self) -> None:
        """TLS 1.2 and 1.3 are spoken, older versions are not, whatever the client would take."""
        registry = await self.started(self.endpoint(commonHolder()))
        v12, old = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_1
        self.assertEqual((await self.handshake(registry, commonHolder(), maximum_version=v12))[0], "TLSv1.2")
        with self.assertRaises(ssl.SSLError):
            await self.handshake(registry, commonHolder(), minimum_version=ssl.TLSVersion.TLSv1, maximum_version=old)

    async def test_aCertificateThatClientsWillRefuse(self) -> None:
        """A registry with a certificate that has expired, or will soon, starts, and says so."""
        for days, words in (
            ((-9, -2), "expired on"),
            ((2, 9), "is not valid before"),
            ((-1, 13.05), "expires in 13.0"),
        ):
            registry = await self.started(self.endpoint(Holder("registry", days=days)))
            self.assertEqual(len(self.log), 1)
            self.assertIn(words, self.log.pop())
            await registry.stopService()
        await self.started(self.endpoint(Holder("registry", days=(-1, 30))))
        self.assertEqual(self.log, [])

    def connect(self, registry: RegistryService, context: ssl.SSLContext, **options: Any) -> ssl.SSLSocket:
        """A new connection; to be called in a thread."""
        host, _, port = registry.urls[0].removeprefix("https://").removesuffix("/v1.0").rpartition(":")
        plain = socket.create_connection((host, int(port)), timeout=10)
        return context.wrap_socket(plain, server_hostname=host, **options)

    def shown(self, registry: RegistryService, trusted: Holder) -> Deferred[str]:
        """The name in the certificate that a new connection gets."""

        def shake() -> str:
            context = ssl.create_default_context(cadata=trusted.certificate.decode())
            with self.connect(registry, context) as secure:
                return ownerIn(secure)

        return deferToThread(shake)

    async def test_aRenewedCertificate(self) -> None:
        """
        Files that are replaced, one after the other, are read again when a client connects. Until they fit each other,
        and while one of them is damaged, the old certificate is shown; the log says so once.
        """
        root = Holder("Root", names=())
        first, second = (Holder(name, issuer=root, ca=False, days=(-1, 30)) for name in ("first", "second"))
        key, certificate = Path(self.file(first.key)), Path(self.file(first.certificate))
        registry = await self.started(f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1")
        self.assertEqual(await self.shown(registry, root), "first")
        for path, content in (
            (certificate, second.certificate),
            (certificate, second.certificate[:200]),
            (certificate, b""),
            (key, second.key[:100]),
            (certificate, second.certificate),
        ):
            path.write_bytes(content)
            self.assertEqual(await self.shown(registry, root), "first")
        (line,) = self.reloads
        self.assertEqual(
            line,
            f"TLS certificate {certificate} can't be reloaded: the private key in {key} does not match the certificate "
            f"in {certificate} (the previous content stays in use)",
        )
        key.write_bytes(second.key)
        self.assertEqual(await self.shown(registry, root), "second")
        self.assertEqual(self.reloads[1:], [f"TLS certificate {certificate} reloaded"])

    async def test_aRenewalAfterTheStop(self) -> None:
        """A registry that stops, or has stopped, shows no address, also if its endpoint reads a new certificate."""
        first, second = (Holder(name, ca=False, days=(-1, 30)) for name in ("first", "second"))
        key, certificate = Path(self.file(first.key)), Path(self.file(first.certificate))
        endpoint = parseEndpoint(reactor, f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1")
        assert isinstance(endpoint, TLSEndpoint)
        registry = await self.started(endpoint)
        self.assertEqual(registry.where, registry.urls[0])
        await registry.stopService()
        key.write_bytes(second.key)
        certificate.write_bytes(second.certificate)
        endpoint.reload()
        self.assertEqual(self.reloads, [f"TLS certificate {certificate} reloaded"])
        self.assertEqual((registry.urls, registry.where), ([], ""))

    async def test_openConnectionsStay(self) -> None:
        """
        A connection that is open when the certificate is renewed goes on. A client that brings the session of an older
        connection gets the new certificate, and no error.
        """
        root = Holder("Root", names=())
        first, second = (Holder(name, issuer=root, ca=False) for name in ("first", "second"))
        both = Path(self.file(first.certificate, first.key))
        registry = await self.started(f"ssl:0:privateKey={both}:interface=127.0.0.1")

        def ask(secure: ssl.SSLSocket) -> bytes:
            secure.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            return secure.recv(1000)[:12]

        for version in ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3:
            both.write_bytes(first.certificate + first.key)
            context = ssl.create_default_context(cadata=root.certificate.decode())
            context.maximum_version = version
            old = await deferToThread(self.connect, registry, context)
            self.assertEqual(await deferToThread(ask, old), b"HTTP/1.1 200")
            both.write_bytes(second.certificate + second.key)
            new = await deferToThread(self.connect, registry, context, session=old.session)
            for secure, owner in (old, "first"), (new, "second"):
                with secure:
                    self.assertEqual(await deferToThread(ask, secure), b"HTTP/1.1 200")
                    self.assertEqual(ownerIn(secure), owner)

    async def test_sessionsAreResumed(self) -> None:
        """A client that connects again with its session needs no signature of the registry."""
        registry = await self.started(self.endpoint(commonHolder()))

        def connect(context: ssl.SSLContext, session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession | None]:
            with self.connect(registry, context, session=session) as secure:
                secure.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                self.assertEqual(secure.recv(1000)[:12], b"HTTP/1.1 200")
                return bool(secure.session_reused), secure.session

        for version in ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3:
            context = ssl.create_default_context(cadata=commonHolder().certificate.decode())
            context.maximum_version = version
            isReused, session = await deferToThread(connect, context, None)
            self.assertFalse(isReused)
            self.assertTrue((await deferToThread(connect, context, session))[0])

    async def test_anExpiredCertificateReplacesNoGoodOne(self) -> None:
        """A new certificate that has expired, or is not valid yet, is not taken instead of one that is valid."""
        root = Holder("Root", names=())
        first = Holder("first", issuer=root, ca=False)
        both = Path(self.file(first.certificate, first.key))
        registry = await self.started(f"ssl:0:privateKey={both}:interface=127.0.0.1")
        for days in ((-9, -2), (2, 9)):
            other = Holder("second", issuer=root, ca=False, days=days)
            both.write_bytes(other.certificate + other.key)
            self.assertEqual(await self.shown(registry, root), "first")
        (line,) = self.reloads
        self.assertIn("expired on", line)

    async def test_theCertificateForThisMachine(self) -> None:
        """Programs on this machine, which trust a copy of a self-signed certificate, go on when it is renewed."""
        first, second = Holder("first"), Holder("second")
        both = Path(self.file(first.certificate, first.key))
        registry = await self.started(f"ssl:0:privateKey={both}:interface=127.0.0.1")
        settings = readSettings(environ={"RAXSR_DATA_DIR": str(self.dataDir)}, home=Path(self.mktemp()))
        both.write_bytes(second.certificate + second.key)
        registry.reloadCertificates()
        async with Client(settings=settings, reactor=reactor) as client:
            await client.account.getLimits()
        self.assertEqual(Path(settings.caFile or "").read_bytes(), second.certificate)

    async def test_aCertificateForNoHost(self) -> None:
        """Clients refuse a certificate without names, whatever its subject is; a registry that has one says so."""
        await self.started(self.endpoint(Holder("localhost", names=(), days=(-1, 30))))
        (line,) = self.log
        self.assertIn("has no subjectAltName", line)

    async def test_aKeyThatAllUsersMayRead(self) -> None:
        """A registry whose private key is everybody's starts, and says which file it is; never what is in it."""
        holder = Holder("registry", days=(-1, 30))
        key, own = self.file(holder.key), self.file(holder.certificate)
        Path(key).chmod(0o644)
        await self.started(f"ssl:0:privateKey={key}:certKey={own}:interface=127.0.0.1")
        self.assertEqual(self.log, [f"Private key {key} is readable by all users of this machine; run chmod o= {key}"])

    async def test_programsOnThisMachineNeedNoConfiguration(self) -> None:
        """
        With a self-signed certificate, the raxrc has the one to trust; with another kind of one, or
        another listener, it does so no longer. The operator's own lines there stay.
        """
        registry = await self.started(self.endpoint(Holder("registry", names=("localhost",))))
        self.assertTrue(registry.urls[0].startswith("https://localhost:"), registry.urls)
        settings = readSettings(environ={"RAXSR_DATA_DIR": str(self.dataDir)}, home=Path(self.mktemp()))
        async with Client(settings=settings, reactor=reactor) as client:
            await client.account.getLimits()
        elsewhere = readSettings(
            username="joe",
            apiKey="a key of its own",
            environ={"RAXSR_DATA_DIR": str(self.dataDir), "RAXSR_API_URL": "https://other.example/v1.0"},
            home=Path(self.mktemp()),
        )
        self.assertIsNone(elsewhere.caFile)
        await registry.stopService()
        leaf = Holder("registry", issuer=Holder("Root", names=()), ca=False)
        registry = await self.started(self.endpoint(leaf))
        self.assertIsNone(self.raxrc("ssl", "ca_file"))
        await registry.stopService()
        with (self.dataDir / "raxrc").open("a") as raxrc:
            raxrc.write("ca_file = /etc/ours.pem\n")
        await self.started(self.endpoint(leaf))
        self.assertEqual(self.raxrc("ssl", "ca_file"), "/etc/ours.pem")

    async def test_aLoopbackListenerIsForThisMachine(self) -> None:
        """Of several listeners, programs on this machine use the one without TLS on loopback."""
        holder = Holder("registry", names=("registry.example.org",))
        registry = await self.started(self.endpoint(holder, more=""), "tcp:0:interface=127.0.0.1")
        self.assertTrue(registry.urls[0].startswith("https://registry.example.org:"), registry.urls)
        self.assertEqual(self.raxrc("api", "url"), registry.urls[1])
        self.assertIsNone(self.raxrc("ssl", "ca_file"))

    async def test_ipv6(self) -> None:
        """``interface=`` takes an IPv6 address."""
        endpoint: Any = parseEndpoint(reactor, self.endpoint(commonHolder(), more=r":interface=\:\:1"))
        try:
            port = await endpoint.listen(Factory())
        except CannotListenError as error:
            # As most containers, this machine has no such address.
            self.assertEqual(error.interface, "::1")
            self.assertIn(error.socketError.errno, (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))
            return
        self.assertEqual(port.getHost().host, "::1")
        self.assertNotIsInstance(port.getHost(), IPv4Address)
        await port.stopListening()
