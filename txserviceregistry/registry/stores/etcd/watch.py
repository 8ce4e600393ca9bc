"""
Watching etcd: every change below a prefix, in its order, as it happens.

A watch is a request whose answer never ends: JSON, a line for each change or group of changes. It may go deaf silently;
so its owner makes sure that something below the prefix changes regularly, and ends a watch that does not show it.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse

from ....http.bodies import BytesProducer
from .gateway import KeyValue, User, encode, endOf, jsonBytes

# No group of changes of one revision is this large; it bounds what a broken server can make us hold.
_LONGEST_LINE = 64 * 1024 * 1024


class Watch(Protocol):
    """
    One watch, until it ends.

    :param agent: does the request; it must hand over the body as it comes.
    :param user: in whose name the request is sent; ``None`` where etcd asks for no user.
    :param onChange: is called with each changed key, and whether it was deleted: then it has no value, and was modified
        by the revision that deleted it.
    :param onEnd: is called with the reason when the watch ends, unless it was stopped: nothing is known any more about
        what happens.
    """

    def __init__(
        self, agent: IAgent, user: User | None, onChange: Callable[[KeyValue, bool], None], onEnd: Callable[[str], None]
    ) -> None:
        self._agent = agent
        self._user = user
        self._onChange = onChange
        self._onEnd = onEnd
        self._isOver = False
        self._request: Deferred[IResponse] | None = None
        # The received part of a line.
        self._line = bytearray()

    def start(self, url: str, prefix: str, revision: int) -> None:
        """Begin, at the member with this *url*, with the changes below a prefix from this revision on."""
        create = {"key": encode(prefix), "range_end": encode(endOf(prefix)), "start_revision": str(revision)}
        headers = Headers({b"Content-Type": [b"application/json"]})
        if self._user is not None and self._user.header is not None:
            headers.addRawHeader(*self._user.header)
        body = BytesProducer(jsonBytes({"create_request": create}))
        self._request = self._agent.request(b"POST", f"{url}/v3/watch".encode("ascii"), headers, body)
        self._request.addCallbacks(self._answered, self._failed)

    def stop(self) -> None:
        self._isOver = True
        if self.transport is not None:
            self.transport.loseConnection()
        elif self._request is not None:
            self._request.cancel()

    def _answered(self, response: IResponse) -> None:
        if response.code != 200:
            self._end(f"it was refused with {response.code}")
        response.deliverBody(self)
        if self._isOver:
            self.stop()

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._end(failure.getErrorMessage())

    def dataReceived(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole, self._line = bytes(self._line + line), bytearray()
            if whole.strip() and not self._isOver:
                self._lineReceived(whole)
        self._line += rest
        if len(self._line) > _LONGEST_LINE:
            self._end("a line has no end")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end(reason.getErrorMessage())

    def _lineReceived(self, line: bytes) -> None:
        try:
            result = json.loads(line)["result"]
        except (ValueError, KeyError, TypeError):
            self._end("unexpected response to a watch")
            return
        if result.get("canceled"):
            # The answer stays open all the same.
            isCompacted = "compact_revision" in result
            self._end(str(result.get("cancel_reason") or ("it was compacted" if isCompacted else "canceled")))
            return
        for event in result.get("events", ()):
            if not self._isOver:
                self._onChange(KeyValue.of(event["kv"]), event.get("type") == "DELETE")

    def _end(self, why: str) -> None:
        if not self._isOver:
            self.stop()
            self._onEnd(why)
