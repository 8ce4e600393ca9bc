"""
Watching etcd: every change below a prefix, in its order, as it happens.

A watch is a request whose answer never ends: JSON, a line for each change or group of changes. Lines may be longer than
any line reader expects, and a watch may go deaf silently; so its owner makes sure that something below the
prefix changes regularly, and says how long silence may last.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IPolicyForHTTPS, IResponse

from ....http.agent import httpAgent
from ....http.bodies import BytesProducer
from .gateway import KeyValue, encode, endOf, keyValue

# No change, and no group of changes of one revision, is this large; it bounds what a broken server can make us hold.
_LONGEST_LINE = 64 * 1024 * 1024
_HEADERS = Headers({b"Content-Type": [b"application/json"]})


class WatchEnded(Exception):
    """The watch has ended, for whatever reason: nothing is known any more about what happens."""


@attrs.frozen
class Change:
    """
    A key was set or deleted.

    :ivar now: the key as it is now; of a deleted one only its name, and the revision that deleted it.
    :ivar before: the key as it was; ``None`` if it was not there, or that is unknown.
    :ivar isDeleted: whether it was deleted.
    """

    now: KeyValue
    before: KeyValue | None
    isDeleted: bool


class Watch:
    """
    One watch, until it ends.

    :param agent: does the request; it must hand over the body as it comes.
    :param clock: for the silence.
    :param onChange: is called with each change.
    :param silence: seconds without any change after which the watch counts as deaf.
    :ivar ended: fires with :class:`WatchEnded` as a failure when the watch is over; with ``None`` after :meth:`stop`.
    """

    def __init__(
        self, agent: IAgent, clock: IReactorTime, onChange: Callable[[Change], None], *, silence: float
    ) -> None:
        self._agent = agent
        self._clock = clock
        self._onChange = onChange
        self._silence = silence
        self._request: Deferred[IResponse] | None = None
        self._body: _Lines | None = None
        self._deaf: IDelayedCall | None = None
        self.ended: Deferred[None] = Deferred()

    def start(self, url: str, prefix: str, revision: int) -> None:
        """
        Begin.

        :param url: of one member, without a path.
        :param prefix: of the keys.
        :param revision: the first whose changes are wanted.
        """
        create = {
            "key": encode(prefix),
            "range_end": encode(endOf(prefix)),
            "start_revision": str(revision),
            "prev_kv": True,
        }
        body = json.dumps({"create_request": create}).encode("ascii")
        self._deaf = self._clock.callLater(self._silence, self._end, "it is silent")
        self._request = self._agent.request(b"POST", f"{url}/v3/watch".encode("ascii"), _HEADERS, BytesProducer(body))
        self._request.addCallbacks(self._answered, self._failed)

    def stop(self) -> None:
        """End it."""
        self._finish(None)

    def _answered(self, response: IResponse) -> None:
        if self.ended.called:
            _Lines(lambda line: None, lambda why: None).abort(response)
            return
        if response.code != 200:
            _Lines(lambda line: None, lambda why: None).abort(response)
            self._end(f"it was refused with {response.code}")
            return
        self._body = _Lines(self._lineReceived, self._end)
        response.deliverBody(self._body)

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._end(failure.getErrorMessage())

    def _lineReceived(self, line: bytes) -> None:
        if self.ended.called:
            return
        try:
            message = json.loads(line)
            result = message["result"]
        except (ValueError, KeyError, TypeError):
            self._end("unexpected response to a watch")
            return
        if result.get("canceled"):
            # The answer stays open all the same.
            isCompacted = "compact_revision" in result
            self._end(str(result.get("cancel_reason") or ("it was compacted" if isCompacted else "canceled")))
            return
        if self._deaf is not None and result.get("events"):
            self._deaf.reset(self._silence)
        for event in result.get("events", ()):
            if self.ended.called:
                return
            before = keyValue(event["prev_kv"]) if "prev_kv" in event else None
            self._onChange(Change(keyValue(event["kv"]), before, event.get("type") == "DELETE"))

    def _end(self, why: str) -> None:
        self._finish(WatchEnded(why))

    def _finish(self, error: WatchEnded | None) -> None:
        if self.ended.called:
            return
        deaf, self._deaf = self._deaf, None
        if deaf is not None and deaf.active():
            deaf.cancel()
        request, self._request = self._request, None
        body, self._body = self._body, None
        if error is None:
            self.ended.callback(None)
        else:
            self.ended.errback(error)
        if body is not None:
            body.abort()
        elif request is not None:
            request.cancel()


class _QuietPool(HTTPConnectionPool):
    """Connections that are used once, without a line in the log for each."""

    def _factory(self, quiescentCallback: Callable[[Any], None], metadata: str) -> Any:  # type: ignore[override]  # Twisted has a class there
        factory = HTTPConnectionPool._factory(quiescentCallback, metadata)
        factory.noisy = False
        return factory


def watchingAgent(reactor: Any, policy: IPolicyForHTTPS, connectTimeout: float) -> IAgent:
    """An agent that hands over the body of a watch as it comes."""
    pool = _QuietPool(reactor, persistent=False)  # type: ignore[no-untyped-call]  # Twisted has no types there
    return httpAgent(reactor, policy, connectTimeout, pool)


class _Lines(Protocol):
    """Cuts a body into lines, of whatever length."""

    def __init__(self, onLine: Callable[[bytes], None], onEnd: Callable[[str], None]) -> None:
        self._onLine = onLine
        self._onEnd = onEnd
        self._parts: list[bytes] = []
        self._size = 0

    def dataReceived(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole = b"".join([*self._parts, line])
            self._parts, self._size = [], 0
            if whole.strip():
                self._onLine(whole)
        if rest:
            self._parts.append(rest)
            self._size += len(rest)
            if self._size > _LONGEST_LINE:
                self._parts = []
                self._onEnd("a line has no end")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._onEnd(reason.getErrorMessage())

    def abort(self, response: IResponse | None = None) -> None:
        """End the connection that this body comes from."""
        self._onLine, self._onEnd = lambda line: None, lambda why: None
        if response is not None:
            response.deliverBody(self)
        transport: Any = self.transport
        for name in ("abortConnection", "loseConnection", "stopProducing"):
            end = getattr(transport, name, None)
            if end is not None:
                end()
                return
