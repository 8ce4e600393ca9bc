"""
The listeners of a registry: endpoint strings, and the certificate files of those with TLS.

Twisted's own parser of ``ssl:`` strings repeats the errors of OpenSSL, and serves only the first certificate of a file.
Browsers may know the missing ones, programs don't.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
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
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint, serverFromString
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.internet.ssl import CertificateOptions
from zope.interface import implementer

from ...http.tls import daysLeft, namesOf, whyNotNow
from ...util.files import Reloaded
from ...util.logs import Logger
from .server import handshakingFactory

#: A registry that starts warns so many days before its certificate expires.
WARNING_DAYS = 14.0
#: How many connections may wait to be accepted, unless the endpoint string says. When a registry comes back, all of its
#: clients connect at the same moment, and those for which there is no place try again only after a second.
BACKLOG = 1_000

_EXAMPLE = "ssl:8443:privateKey=key.pem:certKey=cert.pem"
_NAMES = ("port", "privateKey", "certKey", "extraCertChain", "interface", "backlog")
_NUMBERS = {"port": "", "backlog": str(BACKLOG)}
_LOOPBACK = ("127.0.0.1", "::1")


class EndpointError(ValueError):
    """An endpoint string can't be used; the text, one line, says why."""


# A certificate, and the same with its key and the intermediate certificates.
_Loaded: TypeAlias = tuple[x509.Certificate, CertificateOptions]


def _load(files: Mapping[str, str]) -> Reloaded[dict[str, bytes], _Loaded]:
    """
    Read the certificate of a listener and its key, now and whenever the files have changed.

    :param files: their paths, by the names of the endpoint string's arguments.
    """
    # The working directory may be another one when they are read again.
    paths = {name: os.path.abspath(path) for name, path in files.items()}
    shown = files["certKey"]

    def read() -> dict[str, bytes]:
        texts = {}
        for name, path in paths.items():
            try:
                texts[name] = Path(path).read_bytes()
            except OSError as error:
                raise EndpointError(f"cannot read {name} {files[name]}: {error.strerror}")
        return texts

    def make(texts: dict[str, bytes]) -> _Loaded:
        own, *intermediates = _certificates("certKey", shown, texts["certKey"])
        if "extraCertChain" in files:
            intermediates = _certificates("extraCertChain", files["extraCertChain"], texts["extraCertChain"])
        text, key = _privateKey(files["privateKey"], texts["privateKey"])
        if key.public_key() != own.public_key():
            raise EndpointError(f"the private key in {files['privateKey']} does not match the certificate in {shown}")
        options = CertificateOptions(
            privateKey=load_privatekey(FILETYPE_PEM, text),
            certificate=X509.from_cryptography(own),
            extraCertChain=[X509.from_cryptography(each) for each in intermediates] or None,
            # A client that resumes its session needs no signature.
            enableSessionTickets=True,
        )
        try:
            options.getContext()
        except TLSError as error:
            raise EndpointError(f"OpenSSL refused the certificate in {shown}: {_reasonOf(error)}")
        return own, options

    def whyNot(loaded: _Loaded) -> str | None:
        wrong = whyNotNow(loaded[0])
        return None if wrong is None else f"the certificate in {shown} {wrong}"

    return Reloaded(f"TLS certificate {shown}", list(paths.values()), read, make, whyNot=whyNot)


@implementer(IOpenSSLServerConnectionCreator)
class TLSEndpoint(TCP4ServerEndpoint):
    """
    Listens with TLS. The certificate and its key are read again when their files have changed. Open connections stay as
    they are. A session of an earlier certificate is not resumed, so its client sees the new one.

    :raises EndpointError: if the files can't be used.
    :ivar onChange: called when there is another certificate.
    """

    _log = Logger()

    def __init__(self, reactor: Any, port: int, files: Mapping[str, str], backlog: int, interface: str) -> None:
        self._loaded = _load(files)
        self._loaded.onChange = self._changed
        super().__init__(reactor, port, backlog, interface)  # type: ignore[no-untyped-call] # Twisted's own
        self.onChange: Callable[[], object] = lambda: None
        self.path = files["certKey"]
        self._keyPath = files["privateKey"]
        self._bound = interface

    @property
    def certificate(self) -> x509.Certificate:
        """The server's own, as new connections get it."""
        return self._loaded.current()[0]

    def reload(self) -> None:
        """Read the files now, whether or not they seem to have changed."""
        self._loaded.reload()

    def _changed(self) -> None:
        self._warn()
        self.onChange()

    def serverConnectionForTLS(self, protocol: object) -> Connection:
        """See :class:`~twisted.internet.interfaces.IOpenSSLServerConnectionCreator`."""
        return Connection(self._loaded.current()[1].getContext(), None)

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen, and warn if clients will refuse the certificate or other users can read the key."""
        self._warn()
        factory = handshakingFactory(self, protocolFactory)
        listening: Deferred[IListeningPort] = super().listen(factory)  # type: ignore[no-untyped-call] # as above
        return listening

    def _warn(self) -> None:
        certificate = self.certificate
        wrong = whyNotNow(certificate)
        if wrong is not None:
            self._log.warn("Certificate {path} {wrong}; clients will refuse it", path=self.path, wrong=wrong)
        elif daysLeft(certificate) < WARNING_DAYS:
            days = daysLeft(certificate)
            self._log.warn("Certificate {path} expires in {days:.1f} days", path=self.path, days=days)
        if not namesOf(certificate):
            self._log.warn("Certificate {path} has no subjectAltName; clients will refuse it", path=self.path)
        if _isReadableByAll(self._keyPath):
            text = "Private key {path} is readable by all users of this machine; run chmod o= {path}"
            self._log.warn(text, path=self._keyPath)

    @property
    def ownAuthority(self) -> bytes | None:
        """The certificate as PEM if it is self-signed, so that clients need a copy of it."""
        isSelfSigned = self.certificate.subject == self.certificate.issuer
        return self.certificate.public_bytes(serialization.Encoding.PEM) if isSelfSigned else None

    def hostFor(self, address: str) -> str:
        """
        The host under which programs on this machine reach an address of the listener so that the certificate is for
        it.
        """
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
    """
    :param description: an endpoint string, such as ``tcp:8880:interface=127.0.0.1``.
    :raises EndpointError: if it begins with ``ssl:`` or ``systemd:`` and can't be used, or something is missing.
    :raises Exception: if any other one can't be used; the parsers of Twisted and of plugins raise anything.
    """
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
    return endpoint


def _isReadableByAll(path: str) -> bool:
    try:
        return bool(os.stat(path).st_mode & (stat.S_IROTH | stat.S_IWOTH))
    except OSError:
        return False  # it has been read, and is gone


def _tlsEndpoint(reactor: Any, description: str) -> TLSEndpoint:
    arguments = _argumentsOf(description)
    files: dict[str, str] = {
        name: arguments[name] for name in ("certKey", "privateKey", "extraCertChain") if name in arguments
    }
    if "privateKey" not in files:
        raise EndpointError(f"missing argument privateKey=, the file with the private key; example: {_EXAMPLE}")
    files.setdefault("certKey", files["privateKey"])
    port, backlog = (_number(name, arguments.get(name, default)) for name, default in _NUMBERS.items())
    return TLSEndpoint(reactor, port, files, backlog, arguments.get("interface", ""))


def _argumentsOf(description: str) -> dict[str, str]:
    """The arguments of an endpoint string; a backslash escapes a colon, an equals sign, or another one."""
    arguments: dict[str, str] = {}
    for part in re.findall(r"(?:[^\\:]|\\.)+", description)[1:]:
        name, equals, value = re.fullmatch(r"((?:[^\\=]|\\.)*)(=?)(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]  # it matches everything
        if not equals:
            name, value = "port", name
        if name not in _NAMES or name in arguments:
            raise EndpointError(f"unknown or repeated argument {name}=; example: {_EXAMPLE}")
        arguments[name] = re.sub(r"\\(.)", r"\1", value)
    return arguments


def _number(name: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text):
        raise EndpointError(f"invalid {name} {text!r}: not a number; example: {_EXAMPLE}")
    return int(text)


def _certificates(name: str, path: str, text: bytes) -> list[x509.Certificate]:
    if b"-----BEGIN CERTIFICATE-----" not in text:
        raise EndpointError(f"no PEM certificate in {name} {path}")
    if b"-----BEGIN CERTIFICATE-----" in text.rpartition(b"-----END CERTIFICATE-----")[2]:
        raise EndpointError(f"incomplete certificate at the end of {name} {path}")
    try:
        return x509.load_pem_x509_certificates(text)
    except ValueError:
        raise EndpointError(f"invalid certificate in {name} {path}")


def _reasonOf(error: TLSError) -> str:
    words = [str(part[-1]) for part in error.args[0]] if error.args and isinstance(error.args[0], list) else []
    return "; ".join(words) or "unknown reason"


def _privateKey(path: str, text: bytes) -> tuple[bytes, Any]:
    """A private key as PEM, and as an object."""
    start = re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----", text)
    if start is None:
        raise EndpointError(f"no PEM private key in privateKey {path}")
    # The certificate may stand before it in the same file.
    text = text[start.start() :]
    try:
        return text, serialization.load_pem_private_key(text, password=None)
    except TypeError:
        raise EndpointError(f"the private key in {path} is encrypted; use one without a password")
    except (ValueError, UnsupportedAlgorithm):
        raise EndpointError(f"the private key in {path} is invalid or of an unsupported type")


@attrs.frozen
class Listener:
    """
    A port as programs on this machine see it: its URL, without a path; whether it is reached on loopback, without TLS;
    and :attr:`TLSEndpoint.ownAuthority`.
    """

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


def nearest(listeners: Sequence[Listener]) -> Listener:
    """The one for programs on this machine: no name has to be resolved, and no certificate trusted, on loopback."""
    return next((listener for listener in listeners if listener.isLocal), listeners[0])
