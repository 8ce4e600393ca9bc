"""
Verification of the server behind an ``https`` URL, and explanations of its failures.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
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

from ..errors import InvalidSettings
from ..util.files import absolutePath
from ..util.reloading import Reloaded, stampOf
from .certificates import namesOf, ownerOf, whyNotNow

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"

# Where pyOpenSSL looks for the system's CA certificates, beside what OpenSSL itself was built with.
_SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
)

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
    "it requires a client certificate that it trusts. Check the files with the client certificate and its key": (
        "alert certificate required",
        "alert bad certificate",
        "alert certificate unknown",
        "alert certificate expired",
        "alert certificate revoked",
        "alert unsupported certificate",
        "alert unknown ca",
    ),
}


@attrs.frozen
class _Trust:
    """
    The certificates to trust.

    :ivar root: the same, for a context.
    :ivar problem: why they are of no use.
    """

    root: Any
    problem: str | None = None


# Files with what to trust, and with the certificate to show.
_TrustFiles = Reloaded[Any, _Trust]
_OwnFiles = Reloaded[list[bytes], PrivateCertificate]


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

    def __init__(self, hostname: bytes, trust: _TrustFiles, caFile: str | None, own: _OwnFiles | None) -> None:
        self._host = hostname.decode("ascii").strip("[]")
        self._isAddress = isIPAddress(self._host) or isIPv6Address(self._host)
        self._trust = trust
        self._caFile = caFile
        self._own = own
        self._context: Any = None
        self._madeOf: tuple[_Trust, PrivateCertificate | None] | None = None

    def clientConnectionForTLS(self, tlsProtocol: Any) -> Connection:
        connection = Connection(self._currentContext(), None)
        connection.set_app_data(tlsProtocol)
        if not self._isAddress:
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        return connection

    def _currentContext(self) -> Any:
        trust, own = self._trust.current(), None if self._own is None else self._own.current()
        if self._madeOf is None or self._madeOf[0] is not trust or self._madeOf[1] is not own:
            shown = {} if own is None else {"privateKey": own.privateKey.original, "certificate": own.original}
            self._context = CertificateOptions(trustRoot=trust.root, **shown).getContext()
            self._context.set_verify(VERIFY_PEER, self._verify)
            self._madeOf = trust, own
        return self._context

    def _verify(self, connection: Connection, certificate: X509, error: int, depth: int, isGood: int) -> bool:
        """
        Called with each certificate of the chain, the server's own last, and with what OpenSSL finds wrong with it.

        :raises CertificateRefused: which ends the handshake, and is what the connection fails with.
        """
        try:
            seen = certificate.to_cryptography()
            if not isGood:
                self._trust.suspect()
                text = _refused(seen, error, depth, self._caFile)
                if self._trust.problem is not None:
                    text += f" (what was read before is in use, because the file has changed: {self._trust.problem})"
                raise CertificateRefused(text)
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
    """For registries whose certificate a trusted CA has signed."""

    def __init__(self, trust: _TrustFiles, caFile: str | None, own: _OwnFiles | None) -> None:
        self._trust = trust
        self._caFile = caFile
        self._own = own

    def creatorForNetloc(self, hostname: bytes, port: int) -> _Verified:
        return _Verified(hostname, self._trust, self._caFile, self._own)


@implementer(IPolicyForHTTPS)
class _TrustAnybody:
    """Without verification of the certificate, when the user asks for it."""

    def creatorForNetloc(self, hostname: bytes, port: int) -> _Unverified:
        return _Unverified(hostname)


class TLSPolicy(HostnameCachingHTTPSPolicy):
    """
    How certificates are verified, and which one is shown. Files that have changed are read again before the next
    connection; connections that are open stay as they are.

    :param policy: what makes connections to a host that is new.
    :param files: what the connections are made from.
    """

    def __init__(self, policy: IPolicyForHTTPS, files: Sequence[Reloaded[Any, Any]] = ()) -> None:
        super().__init__(policy)
        self._files = files

    def reload(self) -> None:
        """Read all files now, whether or not they seem to have changed."""
        for each in self._files:
            each.reload()


def tlsPolicy(
    verify: bool = True,
    caFile: str | None = None,
    certFile: str | None = None,
    keyFile: str | None = None,
    *,
    caSource: str | None = None,
) -> TLSPolicy:
    """
    How certificates are verified, and which one is shown.

    Files are read now, and again when they have changed or, while they can't be used, once a second: in both cases not
    before there is a new connection. While they can't be used, what was read before stays in use.

    :param verify: false: not at all; then none is shown either.
    :param caFile: a file with the PEM certificates to trust, instead of those that the platform trusts.
    :param certFile: a file with the PEM certificate to show to whoever asks for one, and
    :param keyFile: one with its private key.
    :param caSource: where the *caFile*'s name comes from, for texts.
    :raises InvalidSettings: if a file can't be read, or does not hold what it should.
    """
    if not verify:
        return TLSPolicy(_TrustAnybody())
    own = None if certFile is None or keyFile is None else _ownFiles(certFile, keyFile)
    trust = _systemTrust() if caFile is None else _trustIn(caFile, caSource)
    return TLSPolicy(_TrustSome(trust, caFile, own), [trust] if own is None else [trust, own])


def _absolute(path: str) -> str:
    try:
        return absolutePath(path)
    except ValueError as error:
        raise InvalidSettings(str(error)) from None


def _trustIn(caFile: str, source: str | None) -> _TrustFiles:
    path = _absolute(caFile)
    name = f"{source}: the CA file {caFile}" if source else f"The CA file {caFile}"

    def read() -> bytes:
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise InvalidSettings(f"{name} can't be read: {error.strerror}")

    def make(text: bytes) -> _Trust:
        return _Trust(trustRootFromCertificates(_certificatesIn(text, name)))

    return Reloaded(f"CA file {caFile}", [path], read, make)


def _certificatesIn(text: bytes, name: str) -> list[Certificate]:
    *parts, rest = text.split(_END)
    try:
        certificates = [Certificate.loadPEM(part + _END) for part in parts]
    except CertificateError:
        raise InvalidSettings(f"{name} holds a certificate that can't be read")
    if _BEGIN in rest:
        raise InvalidSettings(f"{name} ends in the middle of a certificate")
    if not certificates:
        raise InvalidSettings(f"{name} holds no PEM certificate")
    return certificates


def _systemTrust() -> _TrustFiles:
    """
    What the platform trusts. OpenSSL reads it when a context is made, and raises nothing when there is nothing; so what
    is kept here is only when it has changed.
    """
    found = ssl.get_default_verify_paths()
    directories = (found.capath or found.openssl_capath or "").split(os.pathsep)
    places = [found.cafile, found.openssl_cafile, *directories, *_SYSTEM_BUNDLES]
    paths = [os.path.abspath(path) for path in dict.fromkeys(places) if path]

    named = os.environ.get(found.openssl_cafile_env)
    bundles = _SYSTEM_BUNDLES if named is None else (os.path.abspath(named),)

    def make(stamps: object) -> _Trust:
        return _Trust(platformTrust(), _whyNoBundle(bundles))

    return Reloaded(
        "CA certificates of the system",
        paths,
        lambda: [stampOf(path) for path in paths],
        make,
        whyNot=lambda trust: trust.problem,
    )


def _whyNoBundle(paths: Sequence[str]) -> str | None:
    """Why the first of these files that is there holds no certificates, if it does not."""
    path = next(filter(os.path.exists, paths), None)
    if path is None:
        return f"{paths[0]} does not exist"
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        return f"{path} can't be read: {error.strerror}"
    if _END not in text:
        return f"{path} holds no PEM certificate"
    return f"{path} ends in the middle of a certificate" if _BEGIN in text.rpartition(_END)[2] else None


def _ownFiles(certFile: str, keyFile: str) -> _OwnFiles:
    names = {_absolute(each): each for each in (certFile, keyFile)}

    def read() -> list[bytes]:
        texts = []
        for path, name in names.items():
            try:
                texts.append(Path(path).read_bytes())
            except OSError as error:
                raise InvalidSettings(f"The file {name} can't be read: {error.strerror}")
        return texts

    def make(texts: list[bytes]) -> PrivateCertificate:
        try:
            made: PrivateCertificate = PrivateCertificate.loadPEM(b"\n".join(texts))
        except (CertificateError, VerifyError, ValueError):
            raise InvalidSettings(f"{certFile} and {keyFile} are not a PEM certificate and its private key")
        return made

    def whyNot(made: PrivateCertificate) -> str | None:
        wrong = whyNotNow(made.original.to_cryptography())
        return None if wrong is None else f"the certificate in {certFile} {wrong}"

    return Reloaded(f"Client certificate {certFile}", list(names), read, make, whyNot=whyNot)


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
