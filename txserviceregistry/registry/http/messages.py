"""The framing of every request and response: how a body is parsed, and what a response looks like on the wire."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IPushProducer
from twisted.internet.tcp import Connection

# By name, because every look into this module costs a detour that Twisted makes for names that it deprecates.
from twisted.web.http import NO_CONTENT, RESPONSES, datetimeToString
from twisted.web.server import Request
from zope.interface import implementer

from ...util.deferred import Waiters
from ..faults import Fault, Headers, badRequest, invalidBody
from .connections import ipOf

#: The paths of the API and the Auth API.
API = "/v1.0"
AUTH = "/v2.0"
#: The kinds of credentials, and the name of the API key in each. The key is the only password that there is.
CREDENTIALS = {"RAX-KSKEY:apiKeyCredentials": "apiKey", "passwordCredentials": "password"}
#: The extensions of the API that this registry has.
EXTENSIONS = (
    "etag",
    "event-stream",
    "event-types",
    "events-wait",
    "heartbeats",
    "locks",
    "prometheus-sd",
    "roles",
    "service-state",
)

#: A body as it is sent.
inJSON = json.JSONEncoder(ensure_ascii=False).encode

# The lines in the head of every response, and of those in JSON.
_LINES = b"Date: %%b\r\nX-Response-Id: %%b\r\nX-Service-Registry-Extensions: %b\r\n" % ", ".join(EXTENSIONS).encode()
_JSON_LINES = _LINES + b"Content-Type: application/json; charset=UTF-8\r\n"
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")

#: Bytes that are kept for a client that reads its event stream too slowly. With more it is disconnected.
BUFFER = 256 * 1024
#: Milliseconds after which a connection counts as lost whose peer does not acknowledge what was sent.
_UNACKNOWLEDGED = 45_000


@attrs.frozen(repr=False)
class Response:
    """The response to a request."""

    code: int
    body: Mapping[str, Any] | None = None  # sent as JSON
    headers: Headers = attrs.field(factory=dict)  # more of them; several values are lines of their own
    text: bytes | None = None  # sent instead of a body; JSON, unless the headers name its Content-Type
    isStream: bool = False  # what follows the head has no length, and ends with the connection


def faultBody(fault: Fault, txnId: str) -> dict[str, Any]:
    body = {"type": fault.type, "code": fault.code, "message": fault.message, "details": fault.details, "txnId": txnId}
    return {**body, **fault.more}


def faultResponse(fault: Fault, txnId: str) -> Response:
    return Response(fault.code, faultBody(fault, txnId), fault.headers)


def write(request: Request, response: Response, txnId: str) -> None:
    # In one piece. Twisted's own way cleans the headers and puts them in order one by one.
    channel, version = request.channel, request.clientproto
    mustClose = not channel.persistent and version == b"HTTP/1.1"
    data = inBytes(response, txnId, version, mustClose=mustClose, isHead=request.method == b"HEAD")
    request.startedWriting = 1
    channel.write(data)


def inBytes(
    response: Response, txnId: str, version: bytes = b"HTTP/1.1", *, mustClose: bool = False, isHead: bool = False
) -> bytes:
    """A whole response as it goes over the wire; *mustClose* is whether it says that it ends the connection."""
    body = response.text if response.body is None else inJSON(response.body).encode()
    isJson = body is not None and "Content-Type" not in response.headers
    date: bytes = datetimeToString(time.time())
    parts = [
        b"%b %d %b\r\n" % (version, response.code, RESPONSES[response.code]),
        (_JSON_LINES if isJson else _LINES) % (date, txnId.encode("ascii")),
    ]
    # Nothing that a client has sent may begin a line of its own.
    parts += [
        f"{name}: {' '.join(value.splitlines())}\r\n".encode("ascii")
        for name, values in response.headers.items()
        for value in ((values,) if isinstance(values, str) else values)
    ]
    if mustClose:
        parts.append(b"Connection: close\r\n")
    if response.code != NO_CONTENT and not response.isStream:
        parts.append(b"Content-Length: %d\r\n" % len(body or b""))
    parts.append(b"\r\n")
    if body and not isHead:
        parts.append(body)
    return b"".join(parts)


@implementer(IPushProducer)
@attrs.define(eq=False, repr=False)
class Outlet:
    """The connection of an event stream. Data that its transport does not accept is kept here, up to a limit."""

    _request: Request
    _transport: Any
    _isClogged: bool = False
    _held: bytearray = attrs.field(factory=bytearray)
    _drained: Waiters[None] = attrs.field(factory=Waiters)

    def begin(self, head: Response, txnId: str) -> None:
        handle = getattr(self._transport, "socket", None)
        if handle is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED)
        self._request.channel.persistent = False
        write(self._request, head, txnId)
        # Not by the request: another attribute of it takes a kilobyte.
        self._request.channel.registerProducer(self, True)

    def end(self) -> None:
        """Finish the response. The kept data is left to the transport."""
        self._request.channel.unregisterProducer()
        self._transport.write(bytes(self._held))
        self._request.finish()
        self.stopProducing()

    def write(self, data: bytes) -> None:
        transport = self._transport
        if self._isClogged:
            self._held += data
            # The transport keeps 64 KiB.
            if len(self._held) > BUFFER - 64 * 1024:
                self._held.clear()
                transport.abortConnection()
            return
        # Plain TCP writes at once. (Wrappers, such as TLS, have the same names, and would send the data as it is.)
        # Twisted's way takes three times as long: it waits for the reactor to say that there is room.
        if isinstance(transport, Connection) and not transport.dataBuffer and not transport._tempDataLen:
            sent = transport.writeSomeData(data)
            if sent == len(data):
                return
            if isinstance(sent, int):
                data = data[sent:]
        transport.write(data)

    def drained(self) -> Deferred[None]:
        return self._drained.wait() if self._isClogged else succeed(None)

    def pauseProducing(self) -> None:
        self._isClogged = True

    def resumeProducing(self) -> None:
        self._isClogged = False
        held, self._held = self._held, bytearray()
        if held:
            self._transport.write(bytes(held))
        if not self._isClogged:
            self.stopProducing()

    def stopProducing(self) -> None:
        self._drained.fire(None)


def header(request: Request, name: bytes) -> str:
    """The first header with this name; empty if there is none. Any bytes may come in it."""
    return (request.requestHeaders.getRawHeaders(name) or [b""])[0].decode("latin-1")


def baseUrl(request: Request) -> str:
    """The URL under which the client reached this registry or its proxy, from the headers or the local address."""
    host = header(request, b"Host")
    if not _HOST.fullmatch(host):
        address: Any = request.getHost()
        ip = ipOf(address)
        host = "localhost" if ip is None else f"[{ip}]:{address.port}" if ip.version == 6 else f"{ip}:{address.port}"
    isSecure = request.isSecure() or header(request, b"X-Forwarded-Proto").lower().startswith("https")
    return f"{'https' if isSecure else 'http'}://{host}"


def _refuseConstant(name: str) -> None:
    raise invalidBody(f"{name} is not valid JSON")


_PARSER = json.JSONDecoder(parse_constant=_refuseConstant)


def parseBody(request: Request) -> dict[str, Any]:
    """The JSON object that a request brings, empty if it has no body; or the fault for what is not a JSON object."""
    content: Any = request.content
    content.seek(0)
    raw: bytes = content.read()
    if not raw:
        return {}
    mediaType = header(request, b"Content-Type").partition(";")[0].strip()
    if mediaType and mediaType.lower() != "application/json":
        raise badRequest(f"Unsupported content type: {mediaType}")
    try:
        body = _PARSER.decode(raw.decode("utf-8"))
        if b"\\u" in raw:
            # An escape can spell half of a surrogate pair, which can neither be kept nor sent.
            inJSON(body).encode("utf-8")
    except RecursionError:
        raise invalidBody("nested too deep")
    except UnicodeError as error:
        raise invalidBody(f"not UTF-8: {error.args[-1]}")
    except json.JSONDecodeError as error:
        raise invalidBody(str(error))
    except ValueError:
        raise invalidBody("a number has too many digits")
    if not isinstance(body, dict):
        raise invalidBody("not an object")
    return body
