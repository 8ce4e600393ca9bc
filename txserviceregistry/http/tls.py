"""Verification of the server behind an ``https`` URL, explanations of its failures, and what certificates say."""

from __future__ import annotations

import datetime
import os
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from cryptography import x509
from cryptography.x509.oid import NameOID
from OpenSSL.crypto import X509
from OpenSSL.crypto import Error as CertificateError
from OpenSSL.SSL import VERIFY_PEER, Connection
from OpenSSL.SSL import Error as TLSError
from service_identity import CertificateError as UnreadableNames
from service_identity import VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address
from twisted.internet.error import ConnectionClosed, VerifyError
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    PrivateCertificate,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from ..errors import InvalidSettings
from ..util.fields import isAddress
from ..util.files import Reloaded, absolutePath, stampOf

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"

# The places where pyOpenSSL looks for the system's CA certificates, beside those that OpenSSL was built with.
_SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
)

_MOMENT = "%Y-%m-%d %H:%M UTC"

# OpenSSL's numbers of the errors of verification (x509_vfy.h).
_NOT_YET_VALID, _EXPIRED = 9, 10
_SELF_SIGNED, _SELF_SIGNED_IN_CHAIN = 18, 19
_UNKNOWN_ISSUER = {2, 20, 21}
_WEAK = {66: "its key is too short", 67: "the key of its CA is too short", 68: "it is signed with a weak hash"}

# OpenSSL's texts of a failed handshake, the alerts of the server among them, and ours.
_HANDSHAKE = {
    r"wrong version number|packet length too long|record layer failure|http request": (
        "the server at that port does not use TLS. If that is right, its URL begins with http://"
    ),
    r"alert protocol version|unsupported protocol|no protocols available|version too low": (
        "no common version of TLS: this program requires TLS 1.2 or newer. Update the server"
    ),
    r"alert handshake failure|no shared cipher": "no common cipher. Update the server or this program",
    r"unrecognized name": "the server has no certificate for that host name. Check the host name in the URL",
    r"alert (bad |unsupported |)certificate|alert unknown ca": (
        "the server requires a client certificate that it trusts. Check the files with the client certificate and key"
    ),
}


def namesOf(certificate: x509.Certificate) -> list[str]:
    """The host names and IP addresses of a certificate, as in verification."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        # Verification ignores the common name of the subject.
        return []
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def _ownerOf(name: x509.Name) -> str:
    """The short name of a subject or an issuer."""
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME) or name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(common[0].value) if common else name.rfc4514_string() or "an unnamed owner"


def whyNotNow(certificate: x509.Certificate, now: datetime.datetime | None = None) -> str | None:
    """Why a certificate is not valid *now*, as the end of a sentence that begins with it; ``None`` if it is."""
    now = now or datetime.datetime.now(datetime.timezone.utc)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        return f"expired on {end:{_MOMENT}}"
    if now < begin:
        return f"is not valid before {begin:{_MOMENT}}, and the clock of this machine says {now:{_MOMENT}}"
    return None


def daysLeft(certificate: x509.Certificate) -> float:
    """The days until a certificate expires; negative when it has expired."""
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
    return left.total_seconds() / 86_400


class CertificateRefused(TLSError):
    """The server's certificate is not valid; the text says why, and what to do."""

    def __init__(self, text: str) -> None:
        # In the form of OpenSSL's own errors, which Twisted inspects.
        super().__init__([("certificate", "", text)])

    def __str__(self) -> str:
        return str(self.args[0][0][2])


@implementer(IOpenSSLClientConnectionCreator)
@attrs.frozen
class _Connections:
    """TLS connections to one host."""

    _host: str
    _context: Callable[[], Any]

    def clientConnectionForTLS(self, tlsProtocol: Any) -> Any:
        connection: Any = Connection(self._context(), None)
        connection.host = self._host
        if not isAddress(self._host):
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        return connection


@implementer(IPolicyForHTTPS)
@attrs.define(eq=False)
class TLSPolicy:
    """
    How certificates are verified (the chain by OpenSSL, the name by service_identity), and which client certificate is
    shown. Files that have changed are read again before the next connection.
    """

    # Not Twisted's optionsForClientTLS: its errors do not say which certificate is invalid, and some releases (such as
    # 26.10) accept one without host names for any host.
    _trust: Reloaded[Any, Any] | None
    _caFile: str | None = None
    _caSetting: str = ""
    _own: Reloaded[list[bytes], PrivateCertificate] | None = None
    _context: Any = None
    _madeOf: tuple[Any, PrivateCertificate | None] | None = None

    def creatorForNetloc(self, hostname: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        """See IPolicyForHTTPS."""
        return _Connections(hostname.decode("ascii").strip("[]"), self._currentContext)

    def reload(self) -> None:
        """Read all files now, whether or not they seem to have changed."""
        for each in filter(None, (self._trust, self._own)):
            each.reload()

    def _currentContext(self) -> Any:
        trust = None if self._trust is None else self._trust.current()
        own = None if self._own is None else self._own.current()
        if self._madeOf is None or self._madeOf[0] is not trust or self._madeOf[1] is not own:
            shown = {} if own is None else {"privateKey": own.privateKey.original, "certificate": own.original}
            options: Any = {"verify": False} if trust is None else {"trustRoot": trust, **shown}
            self._context = CertificateOptions(**options).getContext()
            if trust is not None:
                self._context.set_verify(VERIFY_PEER, self._verify)
            self._madeOf = trust, own
        return self._context

    def _verify(self, connection: Any, certificate: X509, error: int, depth: int, isGood: int) -> bool:
        """Called with each certificate of the chain, the server's own last, and with OpenSSL's number of its error."""
        assert self._trust is not None
        host = connection.host
        try:
            seen = certificate.to_cryptography()
            if not isGood:
                # The files are read again for the next connection.
                self._trust.suspect()
                problem = self._trust.problem
                end = "" if problem is None else f" (the previous content of the file is in use: {problem})"
                raise CertificateRefused(_refused(seen, error, depth, self._caFile, self._caSetting) + end)
            if depth == 0:
                (verify_certificate_ip_address if isAddress(host) else verify_certificate_hostname)(seen, host)
        except CertificateRefused:
            raise
        except (VerificationError, UnreadableNames):
            raise CertificateRefused(_wrongName(seen, host))
        except Exception as unreadable:
            raise CertificateRefused(f"its certificate can't be read: {unreadable}. Replace it")
        return True


def tlsPolicy(
    verify: bool = True,
    caFile: str | None = None,
    certFile: str | None = None,
    keyFile: str | None = None,
    *,
    caSource: str | None = None,
    caSetting: str = "RAXSR_CA_FILE",
) -> TLSPolicy:
    """
    A policy for these PEM files; ``InvalidSettings`` if one can't be used. Without *verify*, no client certificate is
    shown either. For messages, *caSource* is the source of the *caFile*'s name, and *caSetting* what may set it.
    """
    if not verify:
        return TLSPolicy(None)
    try:
        own = None if certFile is None or keyFile is None else _ownFiles(certFile, keyFile)
        return TLSPolicy(_systemTrust() if caFile is None else _trustIn(caFile, caSource), caFile, caSetting, own)
    except ValueError as error:
        raise InvalidSettings(str(error)) from None


def _read(path: str, name: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidSettings(f"{name} can't be read: {error.strerror}")


def _trustIn(caFile: str, source: str | None) -> Reloaded[Any, Any]:
    path = absolutePath(caFile)
    name = f"{source}: the CA file {caFile}" if source else f"The CA file {caFile}"
    return Reloaded(
        f"CA file {caFile}",
        [path],
        lambda: _read(path, name),
        lambda text: trustRootFromCertificates(_certificatesIn(text, name)),
    )


def _certificatesIn(text: bytes, name: str) -> list[Certificate]:
    *parts, rest = text.split(_END)
    try:
        certificates = [Certificate.loadPEM(part + _END) for part in parts]
    except CertificateError:
        raise InvalidSettings(f"{name} contains an invalid certificate")
    if _BEGIN in rest:
        raise InvalidSettings(f"{name} ends in the middle of a certificate")
    if not certificates:
        raise InvalidSettings(f"{name} contains no PEM certificate")
    return certificates


def _systemTrust() -> Reloaded[Any, Any]:
    """The certificates that the platform trusts. OpenSSL reads them when a context is made; here are their stamps."""
    found = ssl.get_default_verify_paths()
    directories = (found.capath or found.openssl_capath or "").split(os.pathsep)
    places = [found.cafile, found.openssl_cafile, *directories, *_SYSTEM_BUNDLES]
    paths = [os.path.abspath(path) for path in dict.fromkeys(places) if path]
    bundle = next(filter(os.path.isfile, paths), None)
    isFirst = True

    def make(stamps: object) -> Any:
        nonlocal isFirst
        # It raises nothing if there are none at first, as while they are replaced.
        if not isFirst and bundle is not None:
            _certificatesIn(_read(bundle, bundle), bundle)
        isFirst = False
        return platformTrust()

    return Reloaded("CA certificates of the system", paths, lambda: [stampOf(path) for path in paths], make)


def _ownFiles(certFile: str, keyFile: str) -> Reloaded[list[bytes], PrivateCertificate]:
    names = {absolutePath(each): each for each in (certFile, keyFile)}

    def make(texts: list[bytes]) -> PrivateCertificate:
        try:
            made: PrivateCertificate = PrivateCertificate.loadPEM(b"\n".join(texts))
        except (CertificateError, VerifyError, ValueError):
            raise InvalidSettings(f"{certFile} and {keyFile} are not a PEM certificate and its private key")
        return made

    def whyNot(made: PrivateCertificate) -> str | None:
        wrong = whyNotNow(made.original.to_cryptography())
        return None if wrong is None else f"the certificate in {certFile} {wrong}"

    def read() -> list[bytes]:
        return [_read(path, name) for path, name in names.items()]

    return Reloaded(f"Client certificate {certFile}", list(names), read, make, whyNot=whyNot)


def describeTLS(error: BaseException, *, inHandshake: bool = False) -> str | None:
    """Why a TLS connection failed, and what to do; ``None`` if the *error* is of another kind."""
    if isinstance(error, CertificateRefused):
        return str(error)
    if isinstance(error, ConnectionClosed) and inHandshake:
        return "the connection was closed during the TLS handshake. Check the port"
    if not isinstance(error, TLSError):
        return None
    parts = error.args[0] if error.args and isinstance(error.args[0], list) else ()
    words = "; ".join(filter(None, (str(part[-1]) for part in parts)))
    for signs, text in _HANDSHAKE.items():
        if re.search(signs, words):
            return text
    return f"TLS failed: {words or str(error) or 'no reason is known'}"


def _wrongName(certificate: x509.Certificate, host: str) -> str:
    names = namesOf(certificate)
    if not names:
        return f"its certificate has no host names, so it is not valid for {host}. Replace it"
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"its certificate is for {shown}, not for {host}. Use a name of it in the URL, or a certificate for {host}"


def _refused(culprit: x509.Certificate, error: int, depth: int, caFile: str | None, caSetting: str) -> str:
    """Why *culprit*, at this *depth* of the chain, is not valid, by OpenSSL's number of the *error*."""
    whose = "its certificate" if depth == 0 else f"the CA certificate of {_ownerOf(culprit.subject)}"
    distrust = "an unknown CA" if caFile is None else f"a CA that is not in {caFile}"
    trust = f"To trust it, set {caSetting} to a file with its certificate"
    if error == _EXPIRED:
        return f"{whose} {whyNotNow(culprit) or 'has expired'}. Renew it"
    if error == _NOT_YET_VALID:
        return f"{whose} {whyNotNow(culprit) or 'is not valid yet'}. Check the clocks of both machines"
    if error == _SELF_SIGNED:
        return f"its certificate is self-signed. {trust}"
    if error == _SELF_SIGNED_IN_CHAIN:
        return f"its certificate comes from {_ownerOf(culprit.subject)}, {distrust}. {trust}"
    if error in _UNKNOWN_ISSUER:
        return f"{whose} is signed by {_ownerOf(culprit.issuer)}, {distrust}. {trust}, or let the server send its chain"
    return f"{whose} is not valid: {_WEAK.get(error, f'OpenSSL calls it error {error}')}. Replace it"
