"""
The framing: requests as bytes come in, answers as bytes go out.

What belongs here is true of every request, whatever it asks for: how a body is bounded and parsed, and what an answer
looks like on the wire. What the answers say is :mod:`txserviceregistry.registry.web`'s business, how connections come,
wait and end :mod:`txserviceregistry.registry.site`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.web import server

from . import routes
from .faults import Fault, invalidBody, requestTooLarge, unsupportedContentType

__all__ = [
    "EXTENSIONS",
    "JSON_HEADERS",
    "Answer",
    "baseUrl",
    "bodyLimit",
    "checkSize",
    "closeAfterwards",
    "faultAnswer",
    "faultBody",
    "inBytes",
    "inJSON",
    "parseBody",
    "send",
    "write",
]

#: The extensions of the API that this registry has.
EXTENSIONS: tuple[str, ...] = ("events-wait", "heartbeats")
_EXTENSIONS = ", ".join(EXTENSIONS).encode("ascii")

_JSON = json.JSONEncoder(ensure_ascii=False)


def _refuseConstant(name: str) -> None:
    raise invalidBody(f"{name} is no JSON")


_PARSER = json.JSONDecoder(parse_constant=_refuseConstant)
_JSON_TYPE = b"application/json; charset=UTF-8"
#: The headers of an answer whose text is JSON already.
JSON_HEADERS: Mapping[str, str] = MappingProxyType({"Content-Type": _JSON_TYPE.decode("ascii")})
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


@attrs.frozen
class Answer:
    """
    What a request is answered with.

    :ivar code: the HTTP status code.
    :ivar body: what is sent as JSON; nothing at all if ``None``.
    :ivar headers: more headers, by name.
    :ivar text: what is sent instead of a body, as it is; the headers should name its ``Content-Type``.
    """

    code: int
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict)
    text: bytes | None = None


def faultBody(fault: Fault, txnId: str) -> dict[str, Any]:
    """A fault as JSON."""
    return {
        "type": fault.type,
        "code": fault.code,
        "message": fault.message,
        "details": fault.details,
        "txnId": txnId,
    }


def faultAnswer(fault: Fault, txnId: str) -> Answer:
    """The answer that a fault is."""
    return Answer(fault.code, faultBody(fault, txnId), fault.headers)


def send(request: server.Request, answer: Answer, txnId: str) -> None:
    """Send an answer and finish the request."""
    write(request, answer, txnId)
    request.finish()


def write(request: server.Request, answer: Answer, txnId: str) -> None:
    """Send an answer; what comes after it, and when the request is finished, is the caller's business."""
    request.setResponseCode(answer.code)
    headers = request.responseHeaders
    for name, value in _headers(answer, txnId).items():
        headers.setRawHeaders(name, [value])
    body = answer.text
    if answer.body is not None:
        body = inJSON(answer.body).encode()
        headers.setRawHeaders(b"Content-Type", [_JSON_TYPE])
    if body is None:
        request.write(b"")
    else:
        headers.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
        request.write(body)


def inBytes(answer: Answer, txnId: str, reason: bytes) -> bytes:
    """
    The whole of an answer as it goes over the wire, for where there is no request to send it with. It ends the
    connection.

    :param reason: the phrase of its status line.
    """
    body = inJSON(answer.body or {}).encode()
    headers = {
        **_headers(answer, txnId),
        b"Content-Type": _JSON_TYPE,
        b"Content-Length": b"%d" % len(body),
        b"Connection": b"close",
    }
    status = b"HTTP/1.1 %d %b" % (answer.code, reason)
    return b"\r\n".join([status, *(name + b": " + value for name, value in headers.items()), b"", body])


def _headers(answer: Answer, txnId: str) -> dict[bytes, bytes]:
    headers = {
        b"X-Response-Id": txnId.encode("ascii"),
        b"X-Service-Registry-Extensions": _EXTENSIONS,
    }
    for name, value in answer.headers.items():
        headers[name.encode("ascii")] = value.encode("ascii")
    return headers


def inJSON(body: Mapping[str, Any]) -> str:
    """A body as it is sent."""
    return _JSON.encode(body)


def baseUrl(request: server.Request) -> str:
    """
    The scheme and authority under which the client reached this registry, from its ``Host`` header; the local
    address if there is none that can be used.
    """
    scheme = "https" if request.isSecure() else "http"
    host = _hostIn((request.requestHeaders.getRawHeaders(b"Host") or [b""])[0])
    if host is None:
        address = request.getHost()
        if isinstance(address, IPv4Address):
            host = f"{address.host}:{address.port}"
        elif isinstance(address, IPv6Address):
            host = f"[{address.host.partition('%')[0]}]:{address.port}"
        else:
            host = "localhost"
    return f"{scheme}://{host}"


@lru_cache(maxsize=64)
def _hostIn(header: bytes) -> str | None:
    """The authority that a ``Host`` header names, of which there are few; ``None`` if it can't be used."""
    host = header.decode("latin-1")
    return host if _HOST.fullmatch(host) else None


# -- bodies


def checkSize(request: server.Request) -> None:
    """
    Refuse what a :class:`~txserviceregistry.registry.site.ApiSite` refuses while it comes in, for a request that was
    read whole (by a plain Site).

    :raises Fault: if the body is too large.
    """
    content: Any = request.content
    size: int = content.seek(0, 2)
    content.seek(0)
    if size >= routes.MAXIMUM_BODY:
        limit = bodyLimit(request.method, request.path)
        if size >= limit:
            closeAfterwards(request)
            raise requestTooLarge(limit)


def bodyLimit(method: bytes, uri: bytes) -> int:
    """How many bytes are too many for the body of a request."""
    return routes.bodyLimit(method.decode("latin-1"), uri.partition(b"?")[0])


def parseBody(request: server.Request) -> dict[str, Any]:
    """
    The JSON object that a request brings; an empty one if it has no body.

    :raises Fault: if the body is said to be something else, or is no JSON object.
    """
    content: Any = request.content
    raw: bytes = content.read()
    if not raw:
        return {}
    contentType = (request.requestHeaders.getRawHeaders(b"Content-Type") or [b""])[0].decode("latin-1")
    mediaType = contentType.partition(";")[0].strip()
    if mediaType and mediaType.lower() != "application/json":
        raise unsupportedContentType(mediaType)
    try:
        body = _PARSER.decode(raw.decode("utf-8"))
        if b"\\u" in raw:
            # An escape can spell half of a surrogate pair, which is no text that could be kept or sent.
            json.dumps(body, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise invalidBody(f"not UTF-8 at byte {error.start}")
    except UnicodeEncodeError:
        raise invalidBody("half of a surrogate pair is no character")
    except RecursionError:
        raise invalidBody("nested too deep")
    except json.JSONDecodeError as error:
        raise invalidBody(str(error))
    except ValueError:
        raise invalidBody("a number has too many digits")
    if not isinstance(body, dict):
        raise invalidBody("not an object")
    return body


def closeAfterwards(request: server.Request) -> None:
    """Let the connection end with the answer to this request, and tell the client so."""
    request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
    request.channel.persistent = False
