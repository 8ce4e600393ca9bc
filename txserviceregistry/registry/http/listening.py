"""The listeners of a registry: endpoint strings, and the certificate files of those with TLS."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from OpenSSL.crypto import FILETYPE_PEM, X509, load_privatekey
from OpenSSL.SSL import Connection
from OpenSSL.SSL import Error as TLSError
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    SSL4ServerEndpoint,
    TCP4ServerEndpoint,
    serverFromString,
)
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.internet.ssl import CertificateOptions
from zope.interface import implementer

from ...http.tls import daysLeft, namesOf, whyNotNow
from ...util.files import Reloaded, absolutePath
from ...util.logs import Logger
from .server import HandshakingFactory

#: A registry that starts warns so many days before its certificate expires.
WARNING_DAYS = 14.0
#: How many connections may wait to be accepted, unless the endpoint string says. When a registry comes back, all of its
#: clients connect at the same moment, and those for which there is no place try again only after a second.
BACKLOG = 1_000

_EXAMPLE = "ssl:8443:privateKey=key.pem:certKey=cert.pem"
_NAMES = ("port", "privateKey", "certKey", "interface")
_LOOPBACK = ("127.0.0.1", "::1")


class EndpointError(ValueError):
    """An endpoint string can't be used; the text, one line, says why."""


# A certificate, and the same with its key and the intermediate certificates.
_Loaded: TypeAlias = tuple[x509.Certificate, CertificateOptions]


@implementer(IOpenSSLServerConnectionCreator)
class TLSEndpoint(TCP4ServerEndpoint):
    """
    Listens with TLS. The certificate and its key are read again when their files have changed. Open connections stay as
    they are. A session of an earlier certificate is not resumed, so its client sees the new one.
    """

    _log = Logger()

    def __init__(self, reactor: Any, port: int, key: str, path: str, interface: str) -> None:
        super().__init__(reactor, port, BACKLOG, interface)  # type: ignore[no-untyped-call] # Twisted's own
        self.onChange: Callable[[], object] = lambda: None
        # The working directory may be another one when they are read again.
        self.path, self._key = absolutePath(path), absolutePath(key)
        self._bound = interface
        self._loaded: Reloaded[list[bytes], _Loaded] = Reloaded(
            f"TLS certificate {self.path}", [self._key, self.path], self._read, self._make, whyNot=self._whyNot
        )
        self._loaded.onChange = self._changed
        self.reload = self._loaded.reload

    def _read(self) -> list[bytes]:
        texts = []
        for name, path in (("privateKey", self._key), ("certKey", self.path)):
            try:
                texts.append(Path(path).read_bytes())
            except OSError as error:
                raise EndpointError(f"cannot read {name} {path}: {error.strerror}")
        return texts

    def _make(self, texts: list[bytes]) -> _Loaded:
        keyText, text = texts
        if b"-----BEGIN CERTIFICATE-----" not in text:
            raise EndpointError(f"no PEM certificate in certKey {self.path}")
        if b"-----BEGIN CERTIFICATE-----" in text.rpartition(b"-----END CERTIFICATE-----")[2]:
            raise EndpointError(f"incomplete certificate at the end of certKey {self.path}")
        try:
            own, *intermediates = x509.load_pem_x509_certificates(text)
        except ValueError:
            raise EndpointError(f"invalid certificate in certKey {self.path}")
        # The certificate may stand before the key in the same file.
        start = re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----", keyText)
        if start is None:
            raise EndpointError(f"no PEM private key in privateKey {self._key}")
        keyText = keyText[start.start() :]
        try:
            key = serialization.load_pem_private_key(keyText, password=None)
        except TypeError:
            raise EndpointError(f"the private key in {self._key} is encrypted; use one without a password")
        except (ValueError, UnsupportedAlgorithm):
            raise EndpointError(f"the private key in {self._key} is invalid or of an unsupported type")
        if key.public_key() != own.public_key():
            raise EndpointError(f"the private key in {self._key} does not match the certificate in {self.path}")
        options = CertificateOptions(
            privateKey=load_privatekey(FILETYPE_PEM, keyText),
            certificate=X509.from_cryptography(own),
            extraCertChain=[X509.from_cryptography(each) for each in intermediates] or None,
            # A client that resumes its session needs no signature.
            enableSessionTickets=True,
        )
        try:
            options.getContext()
        except TLSError as error:
            raise EndpointError(f"OpenSSL refused the certificate in {self.path}: {error}")
        return own, options

    def _whyNot(self, loaded: _Loaded) -> str | None:
        wrong = whyNotNow(loaded[0])
        return None if wrong is None else f"the certificate in {self.path} {wrong}"

    @property
    def certificate(self) -> x509.Certificate:
        return self._loaded.current()[0]

    def _changed(self) -> None:
        self._warn()
        self.onChange()

    def serverConnectionForTLS(self, protocol: object) -> Connection:
        return Connection(self._loaded.current()[1].getContext(), None)

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen, and warn if clients will refuse the certificate or other users can read the key."""
        self._warn()
        return super().listen(HandshakingFactory(self, False, protocolFactory))  # type: ignore[no-any-return, no-untyped-call] # as above

    def _warn(self) -> None:
        wrong, days = whyNotNow(self.certificate), daysLeft(self.certificate)
        if wrong is not None:
            self._log.warn("Certificate {path} {wrong}; clients will refuse it", path=self.path, wrong=wrong)
        elif days < WARNING_DAYS:
            self._log.warn("Certificate {path} expires in {days:.1f} days", path=self.path, days=days)
        if not namesOf(self.certificate):
            self._log.warn("Certificate {path} has no subjectAltName; clients will refuse it", path=self.path)
        with suppress(OSError):  # it has been read, and may be gone
            if os.stat(self._key).st_mode & (stat.S_IROTH | stat.S_IWOTH):
                text = "Private key {path} is readable by all users of this machine; run chmod o= {path}"
                self._log.warn(text, path=self._key)

    @property
    def ownAuthority(self) -> bytes | None:
        """The certificate as PEM if it is self-signed, so that clients need a copy of it."""
        isSelfSigned = self.certificate.subject == self.certificate.issuer
        return self.certificate.public_bytes(serialization.Encoding.PEM) if isSelfSigned else None

    def hostFor(self, address: str) -> str:
        """The host by which programs on this machine reach an address of the listener, so that its certificate fits."""
        names = namesOf(self.certificate)
        if address in names:
            return address
        if address in _LOOPBACK and "localhost" in names:
            return "localhost"
        if self._bound in _LOOPBACK:
            return address
        isAddress = re.compile(r".*:.*|[0-9.]+").fullmatch
        return next((name for name in names if not name.startswith("*") and not isAddress(name)), address)


def parseEndpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    """Raises EndpointError for an invalid endpoint string, or what the parsers of Twisted and of plugins raise."""
    if description.startswith("ssl:"):
        return _tlsEndpoint(reactor, description)
    if description.startswith(("tcp:", "tcp6:")) and ":backlog=" not in description:
        description += f":backlog={BACKLOG}"
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, description)
    except LookupError:
        if not description.startswith("systemd:"):
            raise
        text = "systemd passed no such socket; check the .socket unit, and start the service through systemd"
        raise EndpointError(text)
    except TypeError:
        # Twisted's message is about the arguments of its functions.
        raise EndpointError("missing or unknown arguments; example: tcp:8880:interface=127.0.0.1")
    if isinstance(endpoint, AdoptedStreamServerEndpoint):
        # The socket has the family, whatever the description says: ListenStream=8880 makes one of IPv6.
        endpoint.addressFamily = _familyOf(endpoint.fileno)
    return endpoint


def _familyOf(descriptor: int) -> int:
    """The address family of a socket that systemd has passed."""
    try:
        passed = socket.socket(fileno=descriptor)
        family = passed.family if passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) else None
        passed.detach()
    except OSError as error:
        raise EndpointError(f"systemd passed no socket: {error.strerror}")
    if family is None:
        raise EndpointError("systemd passed a socket that does not listen; use ListenStream= and Accept=no in the unit")
    return family


def _tlsEndpoint(reactor: Any, description: str) -> TLSEndpoint:
    # Twisted's own parser repeats the errors of OpenSSL. A backslash escapes a colon, an equals sign, or another one.
    arguments: dict[str, str] = {}
    for part in re.findall(r"(?:[^\\:]|\\.)+", description)[1:]:
        name, equals, value = re.fullmatch(r"((?:[^\\=]|\\.)*)(=?)(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]  # it matches everything
        if not equals:
            name, value = "port", name
        if name not in _NAMES or name in arguments:
            raise EndpointError(f"unknown or repeated argument {name}=; example: {_EXAMPLE}")
        arguments[name] = re.sub(r"\\(.)", r"\1", value)
    key, port = arguments.get("privateKey"), arguments.get("port", "")
    if key is None:
        raise EndpointError(f"missing argument privateKey=, the file with the private key; example: {_EXAMPLE}")
    if not re.fullmatch("[0-9]{1,5}", port):
        raise EndpointError(f"invalid port {port!r}: not a number; example: {_EXAMPLE}")
    return TLSEndpoint(reactor, int(port), key, arguments.get("certKey", key), arguments.get("interface", ""))


@attrs.frozen
class Listener:
    """A port as programs on this machine see it; *isLocal* is whether it is reached on loopback, without TLS."""

    root: str
    isLocal: bool
    ownAuthority: bytes | None = None


def listenerOf(endpoint: IStreamServerEndpoint, port: IListeningPort) -> Listener | None:
    """The *port* that an endpoint has made; ``None`` if it has no address of its own."""
    address = port.getHost()
    if not isinstance(address, (IPv4Address, IPv6Address)):
        return None
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    isPlain = not isinstance(endpoint, (SSL4ServerEndpoint, TLSEndpoint))
    isLocal = isPlain and host in _LOOPBACK
    ownAuthority = None
    if isinstance(endpoint, TLSEndpoint):
        host, ownAuthority = endpoint.hostFor(host), endpoint.ownAuthority
    if ":" in host:
        host = f"[{host}]"
    return Listener(f"{'http' if isPlain else 'https'}://{host}:{address.port}", isLocal, ownAuthority)
