"""
Certificates for tests, made when they are needed, and what a server with one needs.
"""

from __future__ import annotations

import datetime
from functools import cache
from ipaddress import ip_address
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.ssl import Certificate, CertificateOptions, PrivateCertificate

LOOPBACK = "127.0.0.1"


def general(name: str) -> x509.GeneralName:
    """A name as certificates have it."""
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(ca: bool) -> x509.KeyUsage:
    """To speak TLS, and for an authority to sign other certificates as well."""
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


class Holder:
    """
    A certificate and its key; who holds them may sign others.

    :param owner: the common name.
    :param names: the host names and addresses that it is for.
    :param issuer: who signs it; itself if not given.
    :param days: from when until when it counts, from now.
    :param private: its key; a new one on an elliptic curve if not given.
    """

    def __init__(
        self,
        owner: str,
        names: tuple[str, ...] = (LOOPBACK,),
        issuer: Holder | None = None,
        days: tuple[float, float] = (-1, 1),
        ca: bool = True,
        private: Any = None,
    ) -> None:
        self._private = private or ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, owner)])
        self.chain: tuple[Holder, ...] = () if issuer is None else (issuer, *issuer.chain)
        signer = issuer or self
        now = datetime.datetime.now(datetime.timezone.utc)
        begin, end = (now + datetime.timedelta(days=each) for each in days)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(signer.name)
            .public_key(self._private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            # Without these, strict clients (Python from 3.13 on) refuse it.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._private.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer._private.public_key()), critical=False
            )
            .add_extension(_usage(ca), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([general(name) for name in names]), False)
        self.x509 = builder.sign(signer._private, hashes.SHA256())
        self.certificate = self.x509.public_bytes(serialization.Encoding.PEM)
        self.key = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def fullChain(self) -> bytes:
        """The PEM certificates as servers of certificates hand them out: its own first, without the root."""
        return b"".join(holder.certificate for holder in (self, *self.chain[:-1]))

    def options(self, **more: Any) -> CertificateOptions:
        """The context that a server listens with."""
        own = PrivateCertificate.loadPEM(self.certificate + self.key)
        between = [Certificate.loadPEM(holder.certificate).original for holder in self.chain[:-1]]
        return CertificateOptions(
            privateKey=own.privateKey.original,
            certificate=own.original,
            extraCertChain=between or None,
            **more,
        )


def selfSigned(owner: str) -> tuple[bytes, bytes]:
    """The PEM certificate and key of a server at 127.0.0.1 that is self-signed."""
    holder = Holder(owner)
    return holder.certificate, holder.key


@cache
def commonHolder() -> Holder:
    """One for all tests to which it does not matter which."""
    return Holder("registry")
