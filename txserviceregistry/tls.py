"""
Whom to trust behind an ``https`` URL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from OpenSSL.crypto import Error as CertificateError
from OpenSSL.SSL import Connection
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import Certificate, CertificateOptions, trustRootFromCertificates
from twisted.web.client import BrowserLikePolicyForHTTPS, HostnameCachingHTTPSPolicy
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from .errors import InvalidSettings

__all__ = ["tlsPolicy"]

_END = b"-----END CERTIFICATE-----"


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
class _TrustAnybody:
    """For a registry whose certificate nobody vouches for, when its user says so."""

    def creatorForNetloc(self, hostname: bytes, port: int) -> _Unverified:
        return _Unverified(hostname)


def tlsPolicy(verify: bool = True, caFile: str | None = None) -> IPolicyForHTTPS:
    """
    How certificates are verified.

    :param verify: false: not at all.
    :param caFile: a file with the PEM certificates to trust, instead of those that the platform trusts.
    :raises InvalidSettings: if the file can't be read, or holds no certificate.
    """
    if not verify:
        return HostnameCachingHTTPSPolicy(_TrustAnybody())
    if caFile is None:
        return HostnameCachingHTTPSPolicy(BrowserLikePolicyForHTTPS())
    try:
        text = Path(caFile).expanduser().read_bytes()
    except OSError as error:
        raise InvalidSettings(f"The CA file {caFile} can't be read: {error.strerror}")
    try:
        certificates = [Certificate.loadPEM(part + _END) for part in text.split(_END)[:-1]]
    except CertificateError:
        raise InvalidSettings(f"The CA file {caFile} holds a certificate that can't be read")
    if not certificates:
        raise InvalidSettings(f"The CA file {caFile} holds no PEM certificate")
    return HostnameCachingHTTPSPolicy(BrowserLikePolicyForHTTPS(trustRootFromCertificates(certificates)))
