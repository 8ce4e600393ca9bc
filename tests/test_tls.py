"""
Certificates: whom the client trusts.
"""

from __future__ import annotations

import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import reactor
from twisted.internet.ssl import PrivateCertificate
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.client import Client
from txserviceregistry.errors import ConnectionFailed, InvalidSettings
from txserviceregistry.settings import readSettings
from txserviceregistry.tls import tlsPolicy

from .fakeagent import API_KEY, access
from .loopback import Call, LoopbackTestCase


def selfSigned(owner: str) -> tuple[bytes, bytes]:
    """The PEM certificate and key of a server at 127.0.0.1 that nobody vouches for but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, owner)])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class TLSTests(LoopbackTestCase):
    """A registry behind https, with a certificate of its own making."""

    def setUp(self) -> None:
        self.certificate, key = selfSigned("registry")
        context = PrivateCertificate.loadPEM(self.certificate + key).options()

        def handle(call: Call) -> None:
            call.answer(200, access() if call.isAuthentication else {"id": "web1"})

        self.server = self.serve(handle, context)

    def client(self, **options: Any) -> Client:
        home = Path(self.mktemp())
        settings = readSettings(
            username="joe", apiKey=API_KEY, baseUrl=f"{self.server.url}/v1.0", environ={}, home=home, **options
        )
        client = Client(settings=settings, reactor=reactor)
        self.addCleanup(client.close)
        return client

    async def test_unknownCertificatesAreRefused(self) -> None:
        """By default a certificate that nobody vouches for is refused, with a text that says what to do."""
        with self.assertRaises(ConnectionFailed) as caught:
            await self.client().services.get("web1")
        self.assertIn("certificate verify failed", str(caught.exception))
        self.assertIn("RAXSR_CA_FILE", str(caught.exception))
        self.assertEqual(self.server.calls, [])

    async def test_aFileOfCertificatesToTrust(self) -> None:
        """With a CA file the certificates in it are trusted."""
        path = Path(self.mktemp())
        path.write_bytes(b"# two of them\n" + selfSigned("somebody else")[0] + self.certificate)
        service = await self.client(caFile=str(path)).services.get("web1")
        self.assertEqual(service["id"], "web1")

    async def test_verifyingCanBeTurnedOff(self) -> None:
        """With verify=False anybody is trusted."""
        service = await self.client(verify=False).services.get("web1")
        self.assertEqual(service["id"], "web1")


class CAFileTests(SynchronousTestCase):
    """CA files that are none."""

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
