"""
Whom to trust behind an ``https`` URL, and in words why somebody was not trusted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography import x509
from OpenSSL.crypto import X509
from OpenSSL.crypto import Error as CertificateError
from OpenSSL.SSL import VERIFY_PEER, Connection
from OpenSSL.SSL import Error as TLSError
from service_identity import CertificateError as UnreadableNames
from service_identity import VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.error import ConnectionClosed, VerifyError
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    PrivateCertificate,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.web.client import HostnameCachingHTTPSPolicy
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from .certificates import namesOf, ownerOf, whyNotNow
from .errors import InvalidSettings

__all__ = ["CertificateRefused", "describeTLS", "tlsPolicy"]

_END = b"-----END CERTIFICATE-----"

_CA_FILE = "ca_file under [ssl] in ~/.raxrc, or RAXSR_CA_FILE"

# OpenSSL's numbers for what it finds while it verifies (x509_vfy.h).
_NOT_YET_VALID, _EXPIRED = 9, 10
_SELF_SIGNED, _SELF_SIGNED_IN_CHAIN = 18, 19
_UNKNOWN_ISSUER = {2, 20, 21}
_WEAK = {66: "its key is too short", 67: "the key of its authority is too short", 68: "it is signed with a weak hash"}

# OpenSSL's words for how a handshake failed, and ours. The other side's alerts are among them.
_HANDSHAKE = {
    "no TLS is spoken at that port. If the registry there is one without TLS, its URL begins with http://": (
        "wrong version number",
        "packet length too long",
        "record layer failure",
        "http request",
    ),
    "it and this program, which wants TLS 1.2 or newer, have no version of TLS in common. Update the server": (
        "tlsv1 alert protocol version",
        "unsupported protocol",
        "no protocols available",
        "version too low",
    ),
    "it and this program can't agree on how to encrypt. Update the older of the two": (
        "sslv3 alert handshake failure",
        "ssl/tls alert handshake failure",
        "no shared cipher",
    ),
    "it has no certificate for that host name. Check the host name in the URL": ("tlsv1 unrecognized name",),
}


class CertificateRefused(TLSError):
    """
    The other side can't prove who it is.

    :param text: why, and what to do.
    """

    def __init__(self, text: str) -> None:
        # In the form of OpenSSL's own errors, which Twisted looks into.
        super().__init__([("certificate", "", text)])
        self._text = text

    def __str__(self) -> str:
        return self._text


@implementer(IOpenSSLClientConnectionCreator)
class _Verified:
    """
    TLS with who can prove to be *hostname*.

    OpenSSL verifies the chain and service_identity the name. Both are asked here, and not through Twisted's
    ``optionsForClientTLS``: what that fails with does not tell which certificate it was, and in some releases of
    Twisted (26.10 is one) it lets a certificate that names no host pass for any host.
    """

    def __init__(self, hostname: bytes, trustRoot: Any, caFile: str | None, own: PrivateCertificate | None) -> None:
        self._host = hostname.decode("ascii").strip("[]")
        self._isAddress = isIPAddress(self._host) or isIPv6Address(self._host)
        self._caFile = caFile
        shown = {} if own is None else {"privateKey": own.privateKey.original, "certificate": own.original}
        self._context = CertificateOptions(trustRoot=trustRoot, **shown).getContext()
        self._context.set_verify(VERIFY_PEER, self._verify)

    def clientConnectionForTLS(self, tlsProtocol: Any) -> Connection:
        connection = Connection(self._context, None)
        connection.set_app_data(tlsProtocol)
        if not self._isAddress:
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        return connection

    def _verify(self, connection: Connection, certificate: X509, error: int, depth: int, isGood: int) -> bool:
        """
        Called with each certificate of the chain, the server's own last, and with what OpenSSL finds wrong with it.

        :raises CertificateRefused: which ends the handshake, and is what the connection fails with.
        """
        try:
            seen = certificate.to_cryptography()
            if not isGood:
                raise CertificateRefused(_refused(seen, error, depth, self._caFile))
            if depth == 0:
                self._verifyName(seen)
        except CertificateRefused:
            raise
        except Exception as problem:
            raise CertificateRefused(f"its certificate can't be read: {problem}. The server needs another one")
        return True

    def _verifyName(self, certificate: x509.Certificate) -> None:
        try:
            if self._isAddress:
                verify_certificate_ip_address(certificate, self._host)
            else:
                verify_certificate_hostname(certificate, self._host)
        except (VerificationError, UnreadableNames):
            raise CertificateRefused(_wrongName(certificate, self._host))


@implementer(IOpenSSLClientConnectionCreator)
class _Unverified:
    """TLS with whoever answers."""

    def __init__(self, hostname: bytes) -> None:
        self._hostname = hostname
        self._context = CertificateOptions(verify=False).getContext()

    def clientConnectionForTLS(self, tlsProtocol: Any) -> Connection:
        connection = Connection(self._context, None)
        connection.set_app_data(tlsProtocol)
        connection.set_tlsext_host_name(self._hostname)
        return connection


@implementer(IPolicyForHTTPS)
class _TrustSome:
    """For registries that somebody who is trusted vouches for."""

    def __init__(self, trustRoot: Any, caFile: str | None, own: PrivateCertificate | None) -> None:
        self._trustRoot = trustRoot
        self._caFile = caFile
        self._own = own

    def creatorForNetloc(self, hostname: bytes, port: int) -> _Verified:
        return _Verified(hostname, self._trustRoot, self._caFile, self._own)


@implementer(IPolicyForHTTPS)
class _TrustAnybody:
    """For a registry whose certificate nobody vouches for, when its user says so."""

    def creatorForNetloc(self, hostname: bytes, port: int) -> _Unverified:
        return _Unverified(hostname)


def tlsPolicy(
    verify: bool = True,
    caFile: str | None = None,
    certFile: str | None = None,
    keyFile: str | None = None,
    *,
    caSource: str | None = None,
) -> IPolicyForHTTPS:
    """
    How certificates are verified, and which one is shown.

    :param verify: false: not at all; then none is shown either.
    :param caFile: a file with the PEM certificates to trust, instead of those that the platform trusts.
    :param certFile: a file with the PEM certificate to show to whoever asks for one, and
    :param keyFile: one with its private key.
    :param caSource: where the *caFile*'s name comes from, for texts.
    :raises InvalidSettings: if a file can't be read, or does not hold what it should.
    """
    if not verify:
        return HostnameCachingHTTPSPolicy(_TrustAnybody())
    own = None if certFile is None or keyFile is None else _ownCertificate(certFile, keyFile)
    if caFile is None:
        return HostnameCachingHTTPSPolicy(_TrustSome(platformTrust(), None, own))
    certificates = _certificatesIn(caFile, f"{caSource}: the CA file {caFile}" if caSource else f"The CA file {caFile}")
    return HostnameCachingHTTPSPolicy(_TrustSome(trustRootFromCertificates(certificates), caFile, own))


def _certificatesIn(path: str, name: str) -> list[Certificate]:
    try:
        text = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InvalidSettings(f"{name} can't be read: {error.strerror}")
    try:
        certificates = [Certificate.loadPEM(part + _END) for part in text.split(_END)[:-1]]
    except CertificateError:
        raise InvalidSettings(f"{name} holds a certificate that can't be read")
    if not certificates:
        raise InvalidSettings(f"{name} holds no PEM certificate")
    return certificates


def _ownCertificate(certFile: str, keyFile: str) -> PrivateCertificate:
    pieces = []
    for path in (certFile, keyFile):
        try:
            pieces.append(Path(path).expanduser().read_bytes())
        except OSError as error:
            raise InvalidSettings(f"The file {path} can't be read: {error.strerror}")
    try:
        loaded: PrivateCertificate = PrivateCertificate.loadPEM(b"\n".join(pieces))
    except (CertificateError, VerifyError, ValueError):
        raise InvalidSettings(f"{certFile} and {keyFile} are not a PEM certificate and its private key")
    return loaded


def describeTLS(error: BaseException, *, inHandshake: bool = False) -> str | None:
    """
    Why a TLS connection did not come about, and what to do; to stand behind the name of the other side and a colon.

    :param error: what the connection failed with.
    :param inHandshake: whether it is known to have failed before TLS was there.
    :return: ``None`` if the error is of another kind.
    """
    if isinstance(error, CertificateRefused):
        return str(error)
    if isinstance(error, ConnectionClosed) and inHandshake:
        return "the connection was closed during the TLS handshake. Check that the port is the right one"
    if not isinstance(error, TLSError):
        return None
    words = [str(part[-1]) for part in (error.args[0] if error.args and isinstance(error.args[0], list) else ())]
    for text, signs in _HANDSHAKE.items():
        if any(sign in word for word in words for sign in signs):
            return text
    return f"TLS failed: {'; '.join(word for word in words if word) or str(error) or 'no reason is known'}"


def _wrongName(certificate: x509.Certificate, host: str) -> str:
    names = namesOf(certificate)
    if not names:
        return f"its certificate names no host, so it is not for {host} either. The server needs another one"
    return (
        f"its certificate is for {', '.join(names[:5])}{', …' if len(names) > 5 else ''}, not for {host}. "
        "Use a URL with a name that the certificate has, or give the server a certificate for this one"
    )


def _refused(culprit: x509.Certificate, error: int, depth: int, caFile: str | None) -> str:
    """
    :param culprit: the certificate that something is wrong with.
    :param error: OpenSSL's number for what it is.
    :param depth: how far up in the chain it is; the server's own is at 0.
    """
    isOwn = depth == 0
    whose = "its certificate" if isOwn else f"the certificate of {ownerOf(culprit.subject)}, which vouches for it,"
    distrust = "which this machine does not trust" if caFile is None else f"which the CA file {caFile} does not hold"
    if error == _EXPIRED:
        return f"{whose} {whyNotNow(culprit) or 'has expired'}. The server needs a new one"
    if error == _NOT_YET_VALID:
        return f"{whose} {whyNotNow(culprit) or 'is not valid yet'}. Check the clocks of both machines"
    if error == _SELF_SIGNED:
        return (
            "its certificate is self-signed: nobody vouches for it. If it is the right server, copy its certificate "
            f"into a file, and name that ({_CA_FILE})"
        )
    if error == _SELF_SIGNED_IN_CHAIN:
        return (
            f"its certificate comes from {ownerOf(culprit.subject)}, {distrust}. If it is the right one, name a file "
            f"with the certificate of that authority ({_CA_FILE})"
        )
    if error in _UNKNOWN_ISSUER:
        return (
            f"{whose} {'is signed by' if isOwn else 'is in turn signed by'} {ownerOf(culprit.issuer)}, "
            f"{distrust}. Name a file with the certificate of that authority ({_CA_FILE}); if it is trusted "
            "elsewhere, the server does not send the certificates between the authority's and its own"
        )
    wrong = _WEAK.get(error, f"it does not pass verification; OpenSSL calls it error {error}")
    return f"{whose} can't be trusted: {wrong}. The server needs another one"
