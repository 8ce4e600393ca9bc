"""
Certificates: whom the client trusts, and what it says of the others.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import treq
from OpenSSL.SSL import Error as TLSError
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import Certificate, TLSVersion, trustRootFromCertificates
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import Agent, ResponseNeverReceived

from txserviceregistry.client import Client
from txserviceregistry.errors import ConnectionFailed, InvalidSettings, MalformedResponse, ServiceRegistryError
from txserviceregistry.http.tls import CertificateRefused, describeTLS, tlsPolicy
from txserviceregistry.registry.service import RegistryService
from txserviceregistry.settings import readSettings
from txserviceregistry.util import files

from ... import CHEAP
from ...certificates import Holder, commonHolder, selfSigned
from ...fakeagent import API_KEY, WEB1, access
from ...loopback import Call, LoopbackTestCase, Server


class TLSTestCase(LoopbackTestCase):
    """A registry behind https."""

    def registry(self, context: Any) -> Server:
        """One with a certificate, or, with None, with none."""

        def handle(call: Call) -> None:
            call.answer(200, access() if call.isAuthentication else {**WEB1, "token": "t"})

        return self.serve(handle, context)

    def pem(self, *parts: bytes) -> str:
        """A file with certificates."""
        path = Path(self.mktemp())
        path.write_bytes(b"".join(parts))
        return str(path)

    def client(self, *servers: Server | str, **options: Any) -> Client:
        urls = [server if isinstance(server, str) else server.url for server in servers]
        settings = readSettings(
            username="joe",
            apiKey=API_KEY,
            baseUrl=[f"{url}/v1.0" for url in urls],
            environ={},
            home=Path(self.mktemp()),
            **options,
        )
        client = Client(settings=settings, reactor=reactor)
        self.addCleanup(client.close)
        return client


class TrustTests(TLSTestCase):
    """A certificate of its owner's making, and those of authorities."""

    async def test_aFileOfCertificatesToTrust(self) -> None:
        """With a CA file the certificates in it are trusted."""
        server = self.registry(commonHolder().options())
        path = self.pem(b"# two of them\n", selfSigned("another name")[0], commonHolder().certificate)
        service = await self.client(server, caFile=path).services.get("web1")
        self.assertEqual(service["id"], "web1")

    async def test_verifyingCanBeTurnedOff(self) -> None:
        """With verify=False anybody is trusted."""
        service = await self.client(self.registry(commonHolder().options()), verify=False).services.get("web1")
        self.assertEqual(service["id"], "web1")

    async def test_anAuthorityIsTrustedThroughOthers(self) -> None:
        """A client that trusts an authority trusts intermediate authorities, too."""
        root = Holder("Root", names=())
        server = self.registry(Holder("registry", issuer=Holder("Middle", names=(), issuer=root)).options())
        service = await self.client(server, caFile=self.pem(root.certificate)).services.get("web1")
        self.assertEqual(service["id"], "web1")


class ExplanationTests(TLSTestCase):
    """Each error of TLS says in words what is wrong, and what to do; not a byte of a request was sent."""

    async def refusal(self, server: Server | str, **options: Any) -> str:
        with self.assertRaises(ConnectionFailed) as caught:
            await self.client(server, **options).services.get("web1")
        if isinstance(server, Server):
            self.assertEqual(server.calls, [])
        text = str(caught.exception)
        for raw in ("[", "(", "Error", "routines"):
            self.assertNotIn(raw, text)
        return text

    async def refusalOf(self, holder: Holder, *trusted: Holder) -> str:
        path = self.pem(*(each.certificate for each in trusted or (holder,)))
        return await self.refusal(self.registry(holder.options()), caFile=path)

    async def test_selfSigned(self) -> None:
        """One that is signed by itself."""
        server = self.registry(commonHolder().options())
        text = await self.refusal(server)
        self.assertEqual(
            text,
            f"POST {server.url}/v2.0/tokens failed: can't connect to the Auth API: its certificate is self-signed. "
            "To trust it, set RAXSR_CA_FILE to a file with its certificate",
        )

    async def test_expired(self) -> None:
        """One that has expired, with the time when."""
        text = await self.refusalOf(Holder("registry", days=(-9, -2)))
        self.assertRegex(text, r"its certificate expired on \d{4}-\d\d-\d\d \d\d:\d\d UTC. Renew it$")

    async def test_notYetValid(self) -> None:
        """One that is not valid yet, with the time that this machine has."""
        text = await self.refusalOf(Holder("registry", days=(2, 9)))
        self.assertRegex(
            text, r"its certificate is not valid before .* UTC, and the clock of this machine says .* UTC. "
        )
        self.assertIn("Check the clocks", text)

    async def test_anAuthorityExpired(self) -> None:
        """One whose authority's has expired: whose it is, is told."""
        root = Holder("Old Root", names=(), days=(-9, -2))
        text = await self.refusalOf(Holder("registry", issuer=root, ca=False), root)
        self.assertIn("the CA certificate of Old Root expired on", text)

    async def test_anotherHost(self) -> None:
        """One for other hosts: which, and which one was wanted."""
        text = await self.refusalOf(Holder("registry", names=("registry.example.org", "10.0.0.1")))
        self.assertIn("its certificate is for registry.example.org, 10.0.0.1, not for 127.0.0.1. Use a name", text)

    async def test_noHost(self) -> None:
        """One for no host at all."""
        text = await self.refusalOf(Holder("127.0.0.1", names=()))
        self.assertIn("its certificate has no host names, so it is not valid for 127.0.0.1", text)

    async def test_unknownAuthority(self) -> None:
        """One of an authority that is not trusted: its name, and where one would have looked for it."""
        root = Holder("Our Root", names=())
        leaf = Holder("registry", issuer=root, ca=False)
        text = await self.refusal(self.registry(leaf.options()))
        self.assertIn("is signed by Our Root, an unknown CA. To trust it, set RAXSR_CA_FILE", text)
        path = self.pem(commonHolder().certificate)
        text = await self.refusal(self.registry(leaf.options()), caFile=path)
        self.assertIn(f"Our Root, a CA that is not in {path}", text)
        self.assertIn("RAXSR_CA_FILE", text)

    async def test_unknownAuthorityThatIsSent(self) -> None:
        """The same when the server sends the authority's certificate along."""
        root = Holder("Our Root", names=())
        leaf = Holder("registry", issuer=root, ca=False)
        leaf.chain = (root, root)
        text = await self.refusal(self.registry(leaf.options()))
        self.assertIn("its certificate comes from Our Root, an unknown CA. To trust it", text)

    async def test_aMissingLink(self) -> None:
        """One whose server does not send the certificates between it and an authority that is trusted."""
        root = Holder("Root", names=())
        leaf = Holder("registry", issuer=Holder("Middle", names=(), issuer=root), ca=False)
        leaf.chain = ()
        text = await self.refusalOf(leaf, root)
        self.assertIn("is signed by Middle, a CA that is not in", text)
        self.assertIn("let the server send its chain", text)

    async def test_whoMayNotVouch(self) -> None:
        """One that is signed by a certificate that may not sign others."""
        root = Holder("Root", names=())
        leaf = Holder("registry", issuer=Holder("Middle", names=(), issuer=root, ca=False), ca=False)
        text = await self.refusalOf(leaf, root)
        self.assertIn("is not valid: OpenSSL calls it error ", text)

    async def test_noTLS(self) -> None:
        """A registry without TLS behind an https URL."""
        registry = RegistryService(
            reactor, dataDir=self.mktemp(), store="memory", endpoints=["tcp:0:interface=127.0.0.1"], keyCost=CHEAP
        )
        registry.startService()
        self.addCleanup(registry.stopService)
        await registry.whenListening()
        text = await self.refusal(registry.urls[0].removesuffix("/v1.0").replace("http:", "https:"))
        self.assertIn("the server at that port does not use TLS. If that is right, its URL begins", text)

    async def test_noHTTP(self) -> None:
        """A registry with TLS behind an http URL: one that hangs up, and one that says why, as TLS has it."""
        silent = self.registry(commonHolder().options())
        alert = b"\x15\x03\x03\x00\x02\x02\x46"
        telling = self.serve(lambda call: (call.raw(alert), call.hangUp())[0])
        for url in silent.url.replace("https:", "http:"), telling.url:
            with self.assertRaises(ServiceRegistryError) as caught:
                await self.client(url).services.get("web1")
            self.assertIsInstance(caught.exception, (ConnectionFailed, MalformedResponse))
            self.assertIn("If the server uses TLS, its URL begins with https://", str(caught.exception))

    async def test_versions(self) -> None:
        """A server that knows older versions of TLS only."""
        context = commonHolder().options(
            insecurelyLowerMinimumTo=TLSVersion.TLSv1_0, lowerMaximumSecurityTo=TLSVersion.TLSv1_1
        )
        context.getContext().set_cipher_list(b"ALL:@SECLEVEL=0")
        text = await self.refusal(self.registry(context))
        self.assertIn("no common version of TLS: this program requires TLS 1.2 or newer", text)

    async def test_hungUp(self) -> None:
        """A server that hangs up in the middle of the handshake, or at its beginning."""

        class Silent(Protocol):
            def dataReceived(self, data: bytes) -> None:
                self.transport.loseConnection()

        factory = Factory.forProtocol(Silent)
        factory.noisy = False
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        text = await self.refusal(f"https://127.0.0.1:{port.getHost().port}")
        self.assertIn("the connection was closed during the TLS handshake. Check the port", text)

    async def test_theNextServer(self) -> None:
        """A server whose certificate is refused is skipped, for a create too: nothing was sent to it."""
        good, bad = commonHolder(), Holder("registry", days=(-9, -2))
        server = self.registry(good.options())
        client = self.client(self.registry(bad.options()), server, caFile=self.pem(good.certificate, bad.certificate))
        await client.services.heartbeat("web1", "token")
        self.assertEqual(len(server.calls), 2)


class OtherConnectionsTests(SynchronousTestCase):
    """Errors of connections of which no more is known."""

    def test_descriptions(self) -> None:
        """The error says all that is known."""
        for error, text in (
            (TLSError([("SSL routines", "", "no shared cipher")]), "no common cipher"),
            (TLSError([("SSL routines", "", "something new")]), "TLS failed: something new"),
            (TLSError([("SSL routines", "", "tlsv13 alert certificate required")]), "requires a client certificate"),
            (TLSError([("SSL routines", "", "tlsv1 alert unknown ca")]), "Check the files with the client certificate"),
            (TLSError("strange"), "TLS failed: strange"),
            (TLSError(), "TLS failed: no reason is known"),
        ):
            self.assertIn(text, describeTLS(error) or "")
        self.assertIsNone(describeTLS(ZeroDivisionError()))


class CAFileTests(SynchronousTestCase):
    """CA files that are none."""

    def test_namesAreSent(self) -> None:
        """The server is told the name by which it is asked (RFC 6066), but no address."""
        for policy in (tlsPolicy(), tlsPolicy(False)):
            for host, name in ((b"registry.test", b"registry.test"), (b"192.0.2.1", None), (b"[2001:db8::1]", None)):
                connection: Any = policy.creatorForNetloc(host, 443).clientConnectionForTLS(None)  # type: ignore[arg-type] # it needs no protocol
                self.assertEqual(connection.get_servername(), name)

    def test_unusableFilesAreNamed(self) -> None:
        """A file that is not there, holds no certificate, or a broken one, is an InvalidSettings that names it."""
        path = Path(self.mktemp())
        said = str(self.assertRaises(InvalidSettings, tlsPolicy, True, str(path)))
        self.assertIn(f"{path} can't be read: No such file", said)
        for text in (
            "",
            "nothing",
            "-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n",
            "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n",
        ):
            path.write_text(text)
            self.assertIn(str(path), str(self.assertRaises(InvalidSettings, tlsPolicy, True, str(path))))

    def test_whoNamesAnUnusableFileIsTold(self) -> None:
        """A client's error begins with the place that the file's name comes from, as that of any setting does."""
        path = Path(self.mktemp())
        for text, problem in ((None, "can't be read: No such file"), ("nothing", "contains no PEM certificate")):
            if text is not None:
                path.write_text(text)
            settings = readSettings(
                username="joe", apiKey="key", environ={"RAXSR_CA_FILE": str(path)}, home=Path(self.mktemp())
            )
            said = str(self.assertRaises(InvalidSettings, Client, reactor=Clock(), settings=settings))
            self.assertIn(f"the environment variable RAXSR_CA_FILE: the CA file {path} {problem}", said)

    def test_aCutFileIsNotACAFile(self) -> None:
        """A file that ends in the middle of a certificate is not taken for one that holds only those before."""
        path = Path(self.mktemp())
        whole = commonHolder().certificate
        path.write_bytes(whole + whole[: len(whole) // 2])
        said = str(self.assertRaises(InvalidSettings, tlsPolicy, True, str(path)))
        self.assertIn(f"{path} ends in the middle of a certificate", said)


class RotationTests(TLSTestCase):
    """Files with certificates that change while a client runs."""

    def setUp(self) -> None:
        self.old, self.new = Holder("Old Root", names=()), Holder("New Root", names=())
        self.leaf = Holder("registry", issuer=self.new, ca=False)

    def requesting(self, *options: Any) -> Any:
        """Connect anew, and request a service."""
        agent = Agent(reactor, tlsPolicy(*options))

        def ask(server: Server) -> Any:
            return treq.get(f"{server.url}/v1.0/1/services/web1", agent=agent).addCallback(lambda got: got.code)

        return ask

    async def refused(self, asked: Any) -> str:
        try:
            await asked
        except ResponseNeverReceived as error:
            (refusal,) = (reason.value for reason in error.reasons if isinstance(reason.value, CertificateRefused))
            return str(refusal)
        raise AssertionError("it was accepted")

    async def test_theCAFile(self) -> None:
        """A CA file that has been replaced counts from the next connection on, without a restart."""
        path = Path(self.pem(self.old.certificate))
        ask, server = self.requesting(True, str(path)), self.registry(self.leaf.options())
        self.assertIn(f"New Root, a CA that is not in {path}", await self.refused(ask(server)))
        path.write_bytes(self.old.certificate + self.new.certificate)
        self.assertEqual(await ask(server), 200)
        path.write_bytes(self.old.certificate)
        self.assertIn("a CA that is not in", await self.refused(ask(server)))

    async def test_theClient(self) -> None:
        """A Client goes on with the new file; what it has an open connection for is not interrupted by it."""
        path = Path(self.pem(self.old.certificate))
        before = self.registry(Holder("registry", issuer=self.old, ca=False).options())
        client = self.client(before, caFile=str(path))
        await client.services.get("web1")
        path.write_bytes(self.new.certificate)
        await client.services.get("web1")
        self.assertEqual(before.opened, 1)
        before.open[0].transport.loseConnection()
        with self.assertRaises(ConnectionFailed):
            await client.services.get("web1")
        path.write_bytes(self.old.certificate)
        self.assertEqual((await client.services.get("web1"))["id"], "web1")

    async def test_aBrokenCAFile(self) -> None:
        """While the new file can't be used, the old certificates are trusted, and a refusal says why these."""
        path = Path(self.pem(self.new.certificate))
        ask, server = self.requesting(True, str(path)), self.registry(self.leaf.options())
        for text in (b"", b"nothing", self.old.certificate[:100]):
            path.write_bytes(text)
            self.assertEqual(await ask(server), 200)
        other = self.registry(Holder("registry", issuer=self.old, ca=False).options())
        text = await self.refused(ask(other))
        self.assertIn("(the previous content of the file is in use: The CA file", text)
        path.write_bytes(self.old.certificate)
        self.assertEqual(await ask(other), 200)

    async def test_aRefusalLooksIntoTheFile(self) -> None:
        """After a refusal it is read again although it seems unchanged, as on a network file system that is late."""
        self.patch(files, "stampOf", lambda path: (0,))
        self.patch(files, "RETRY_SECONDS", 0.0)
        path = Path(self.pem(self.old.certificate))
        ask, server = self.requesting(True, str(path)), self.registry(self.leaf.options())
        path.write_bytes(self.new.certificate)
        self.assertIn("a CA that is not in", await self.refused(ask(server)))
        self.assertEqual(await ask(server), 200)

    async def test_theFileIsFoundFromAnyDirectory(self) -> None:
        """The file's name means the same after the working directory has changed."""
        path = Path(self.pem(self.old.certificate))
        ask, server = self.requesting(True, os.path.relpath(path)), self.registry(self.leaf.options())
        path.write_bytes(self.new.certificate)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir("/")
        self.assertEqual(await ask(server), 200)

    async def test_theSystemsCertificates(self) -> None:
        """The system's bundle, here the one that SSL_CERT_FILE names, may change as well."""
        path = Path(self.pem(self.old.certificate))
        # In the process's own environment, which OpenSSL looks at.
        environment = mock.patch.dict(os.environ, {"SSL_CERT_FILE": str(path.absolute())})
        environment.start()
        self.addCleanup(environment.stop)
        ask, server = self.requesting(), self.registry(self.leaf.options())
        self.assertIn("an unknown CA", await self.refused(ask(server)))
        path.write_bytes(self.new.certificate)
        self.assertEqual(await ask(server), 200)
        for text in (b"", self.new.certificate[:100]):
            path.write_bytes(text)
            self.assertEqual(await ask(server), 200)

    async def test_theClientCertificate(self) -> None:
        """The certificate that is shown, and its key, may change one after the other; until both have, none does."""
        seen: list[str] = []

        def handle(call: Call) -> None:
            certificate: Any = call.connection.transport.getPeerCertificate()  # type: ignore[attr-defined] # over TLS
            seen.append(certificate.get_subject().CN)
            call.answer(200, {})

        first, second = Holder("first", issuer=self.new, ca=False), Holder("second", issuer=self.new, ca=False)
        trusted = trustRootFromCertificates([Certificate.loadPEM(self.new.certificate)])
        server = self.serve(handle, self.leaf.options(trustRoot=trusted))
        certificate, key = Path(self.pem(first.certificate)), Path(self.pem(first.key))
        ask = self.requesting(True, self.pem(self.new.certificate), str(certificate), str(key))
        await ask(server)
        certificate.write_bytes(second.certificate)
        await ask(server)
        key.write_bytes(second.key[:50])
        await ask(server)
        key.write_bytes(second.key)
        await ask(server)
        expired = Holder("expired", issuer=self.new, ca=False, days=(-9, -2))
        certificate.write_bytes(expired.certificate)
        key.write_bytes(expired.key)
        await ask(server)
        self.assertEqual(seen, ["first", "first", "first", "second", "second"])

    async def test_forced(self) -> None:
        """A policy reads all its files when it is told to."""
        path = Path(self.pem(self.old.certificate))
        policy = tlsPolicy(True, str(path))
        path.write_bytes(self.new.certificate)
        with capturedLogs() as logs:
            policy.reload()
        self.assertEqual([formatEvent(event) for event in logs], [f"CA file {path} reloaded"])
