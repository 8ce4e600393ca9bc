"""
Requests while they come in: a body that is too large is refused as soon as that is known.
"""

from __future__ import annotations

from typing import Any

from twisted.web import server

from ..faults import requestTooLarge
from . import routes
from .messages import closeAfterwards, faultResponse, write
from .operations import MAXIMUM_BODY
from .requestlog import newTxnId

#: How much of a body that was refused is read and thrown away, in bytes and seconds, before the connection is closed. A
#: connection that is closed with bytes unread is reset, and the client may never see the response.
DISCARD_BYTES = 2**20
DISCARD_SECONDS = 2.0


class ApiRequest(server.Request):
    """
    A request whose body is refused as soon as it is known to be too large, by its length or while it comes in.
    """

    channel: Any  # an ApiChannel
    _isRefused = False
    _received = 0
    _limit = MAXIMUM_BODY
    _target = b""

    def gotLength(self, length: int | None) -> None:
        """Called when the headers are there, with the ``Content-Length``."""
        # Twisted would put a large body, or one without a length, into a temporary file. All that is taken here has
        # room in memory.
        server.Request.gotLength(self, 0)
        if length is None or length >= self._limit:
            self._limit = self.channel.bodyLimit()
        if length is not None and length >= self._limit:
            # No client is invited to send a body that will be refused.
            self.requestHeaders.removeHeader(b"Expect")
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        """Called with each piece of the body."""
        self._received += len(data)
        if self._isRefused:
            if self._received > DISCARD_BYTES:
                self._hangUp()
        elif self._received >= self._limit:
            self._refuse()
        else:
            server.Request.handleContentChunk(self, data)
            if self._received >= MAXIMUM_BODY:
                self.channel.keeps(self._received)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Called when the whole request is there."""
        self._target = path if path.startswith(b"/") else routes.originForm(path)
        if not self._isRefused:
            # Twisted would take the query apart, into what nothing here uses.
            server.Request.requestReceived(self, command, self._target.partition(b"?")[0], version)
            return
        self.method, self.uri, self.path, self.clientproto = command, self._target, self._target, version
        self.channel.requestArrived()
        self.finish()  # type: ignore[no-untyped-call]  # Twisted's own

    def process(self) -> None:
        """Hand the request over. There is one resource, and it wants every path as it came, ``*`` too."""
        self.channel.requestArrived()
        self.site = self.channel.site
        self.uri = self._target
        resource = self.site.resource
        resource.answer(resource.requestLog.begin(self))

    def _refuse(self) -> None:
        self._isRefused = True
        self._received = 0
        content: Any = self.content
        content.seek(0)
        content.truncate()
        self.channel.keeps(0)
        # The request line has not been handed over yet, and every client that frames a body speaks 1.1.
        self.clientproto = b"HTTP/1.1"
        self.channel.endAfter(DISCARD_SECONDS, self._hangUp)
        txnId = newTxnId()
        closeAfterwards(self)
        write(self, faultResponse(requestTooLarge(self._limit), txnId), txnId)
        self.channel.noticeRefusal(413, txnId)

    def _hangUp(self) -> None:
        self.channel.loseConnection()
