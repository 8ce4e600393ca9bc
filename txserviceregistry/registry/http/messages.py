"""
The framing: requests as bytes come in, answers as bytes go out.

What belongs here is true of every request, whatever it asks for: how a body is bounded and parsed, and what an answer
looks like on the wire. What the answers say is :mod:`txserviceregistry.registry.http.resource`'s business, how
connections come, wait and end :mod:`txserviceregistry.registry.http.server`'s.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.python.failure import Failure
from twisted.web import server

# By name, because every look into this module costs a detour that Twisted makes for names that it deprecates.
from twisted.web.http import NO_CONTENT, datetimeToString

from ..faults import Fault, invalidBody, unsupportedContentType

#: Where the API and the Auth API are.
API = "/v1.0"
AUTH = "/v2.0"
#: The extensions of the API that this registry has.
EXTENSIONS: tuple[str, ...] = ("events-wait", "heartbeats")
_EXTENSIONS = ", ".join(EXTENSIONS).encode("ascii")

_JSON = json.JSONEncoder(ensure_ascii=False)


def _refuseConstant(name: str) -> None:
    raise invalidBody(f"{name} is no JSON")


_PARSER = json.JSONDecoder(parse_constant=_refuseConstant)
_JSON_TYPE = b"application/json; charset=UTF-8"
# What is in the head of every answer, and of those in JSON.
_LINES = b"Date: %%b\r\nX-Response-Id: %%b\r\nX-Service-Registry-Extensions: %b\r\n" % _EXTENSIONS
_JSON_LINES = b"%bContent-Type: %b\r\n" % (_LINES, _JSON_TYPE)
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


@attrs.frozen
class Answer:
    """
    What a request is answered with.

    :ivar code: the HTTP status code.
    :ivar body: what is sent as JSON; nothing at all if ``None``.
    :ivar headers: more headers, by name.
    :ivar text: what is sent instead of a body, as it is: JSON already, unless the headers name its ``Content-Type``.
    """

    code: int
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict)
    text: bytes | None = None


def _doNothing() -> None:
    pass


class FramedRequest(server.Request):
    """
    A request that can be answered in one piece. Twisted's ``write`` cleans headers and puts them in order one by one,
    and asks each answer for what none here has; and to hear of its end costs a Deferred.

    :ivar onGone: is called when the client has hung up before it has its answer.
    """

    onGone: Callable[[], None] = staticmethod(_doNothing)

    def respond(self, code: int, lines: bytes, body: bytes | None) -> None:
        """
        Send a whole answer; finishing the request is the caller's business.

        :param lines: of the head, each with its end; those of Twisted's ``responseHeaders`` are sent before them.
        """
        self.setResponseCode(code)
        self.startedWriting = 1
        head = [b"%b %d %b\r\n" % (self.clientproto, code, self.code_message)]
        for name, values in self.responseHeaders.getAllRawHeaders():
            head += [b"%b: %b\r\n" % (name, value) for value in values]
        head.append(lines)
        if body is not None:
            head.append(b"Content-Length: %d\r\n\r\n" % len(body))
            if self.method != b"HEAD":
                head.append(body)
        else:
            head.append(b"\r\n" if code == NO_CONTENT else b"Content-Length: 0\r\n\r\n")
        self.channel.write(b"".join(head))

    def connectionLost(self, reason: Failure) -> None:
        """Called when the connection is gone before the request is finished."""
        server.Request.connectionLost(self, reason)
        act, self.onGone = self.onGone, _doNothing
        act()

    def finish(self) -> None:
        """Send what is left of the answer."""
        # What was to be done may hold the request itself.
        self.onGone = _doNothing
        server.Request.finish(self)


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
    body, isJson = _bodyOf(answer)
    if isinstance(request, FramedRequest):
        request.respond(answer.code, _lines(answer, txnId, isJson), body)
        return
    request.setResponseCode(answer.code)
    headers = request.responseHeaders
    for name, value in answer.headers.items():
        headers.setRawHeaders(name, [value])
    headers.setRawHeaders(b"X-Response-Id", [txnId.encode("ascii")])
    headers.setRawHeaders(b"X-Service-Registry-Extensions", [_EXTENSIONS])
    if isJson:
        headers.setRawHeaders(b"Content-Type", [_JSON_TYPE])
    if body is None:
        request.write(b"")
    else:
        headers.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
        request.write(body)


def whenGone(request: server.Request, act: Callable[[], None]) -> None:
    """Have *act* called when the client hangs up before it has its answer."""
    if isinstance(request, FramedRequest):
        request.onGone = act
    else:
        request.notifyFinish().addErrback(lambda _: act())


def inBytes(answer: Answer, txnId: str, reason: bytes) -> bytes:
    """
    The whole of an answer as it goes over the wire, for where there is no request to send it with. It ends the
    connection.

    :param reason: the phrase of its status line.
    """
    body, isJson = _bodyOf(answer)
    body = body or b""
    return b"HTTP/1.1 %d %b\r\n%bContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
        answer.code,
        reason,
        _lines(answer, txnId, isJson),
        len(body),
        body,
    )


def _bodyOf(answer: Answer) -> tuple[bytes | None, bool]:
    """The body as it is sent, and whether that is JSON."""
    if answer.body is not None:
        return inJSON(answer.body).encode(), True
    return answer.text, answer.text is not None and "Content-Type" not in answer.headers


def _lines(answer: Answer, txnId: str, isJson: bool) -> bytes:
    """What is in the head of an answer, each line with its end."""
    lines: bytes = (_JSON_LINES if isJson else _LINES) % (_date(int(time.time())), txnId.encode("ascii"))
    for name, value in answer.headers.items():
        # Nothing that somebody has sent may begin a line of its own.
        lines += f"{name}: {' '.join(value.splitlines())}\r\n".encode("ascii")
    return lines


@lru_cache(maxsize=2)
def _date(seconds: int) -> bytes:
    date: bytes = datetimeToString(seconds)
    return date


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
