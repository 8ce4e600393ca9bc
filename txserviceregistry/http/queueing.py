"""
Agents around the pool: a queue that bounds how many requests to one server are under way, and requests that are sent
again after a suspend.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from ..util.suspend import SuspendWatch
from .bodies import WholeResponse, readWhole
from .pool import StaleConnection

#: A request that has had no response for so many seconds may hang: urgent requests do not wait for its slot any longer.
HANGING = 0.3
_TICK = 0.001
#: The most urgent requests that are sent beside requests that may hang.
MOST_BESIDE = 6


class AgentClosed(Exception):
    """The agent was closed before the request was done."""


class _Job:
    """One request through a :class:`QueueingAgent`."""

    def __init__(self, origin: _Origin, send: Callable[[], Deferred[IResponse]], isUrgent: bool) -> None:
        self.isUrgent = isUrgent
        self.began = 0.0
        self._origin = origin
        self._send = send
        self._sent: Deferred[Any] | None = None
        self._endedBy: Exception | None = None
        self.result: Deferred[IResponse] = Deferred(lambda _: self.end(CancelledError()))

    def start(self) -> None:
        self._sent = maybeDeferred(self._send)
        self._sent.addBoth(self._arrived)

    def _arrived(self, result: Any) -> Deferred[None] | None:
        if not isinstance(result, (WholeResponse, Failure)):
            return readWhole(result).addBoth(self._finished)
        self._finished(result)
        return None

    def _finished(self, result: WholeResponse | Failure) -> None:
        self._origin.release(self)
        if self._endedBy is None:
            self.result.callback(result)

    def end(self, why: Exception) -> None:
        """Fail now. The slot is free when the connection is closed, which is not necessarily the same moment."""
        if self._endedBy is not None:
            return
        self._endedBy = why
        if self._sent is None:
            self._origin.leave(self)
        else:
            self._sent.cancel()
        # A cancelled result fails by itself.
        if not isinstance(why, CancelledError):
            self.result.errback(why)


class _Origin:
    """The requests to one server that are under way, and those that wait."""

    def __init__(self, slots: int, clock: IReactorTime | None) -> None:
        self._slots = slots
        self._clock = clock
        self._starting = False
        self.active: set[_Job] = set()
        self.waiting: OrderedDict[_Job, None] = OrderedDict()
        # The waiting requests that are urgent, and the timer that looks at them again when more of the active may hang.
        self._urgent: OrderedDict[_Job, None] = OrderedDict()
        self._look: IDelayedCall | None = None

    def enter(self, job: _Job) -> None:
        self.waiting[job] = None
        if job.isUrgent:
            self._urgent[job] = None
        self._startWaiting()

    def leave(self, job: _Job) -> None:
        self.waiting.pop(job, None)
        self._urgent.pop(job, None)
        if self._look is not None and not self._urgent:
            self._look.cancel()
            self._look = None

    def release(self, job: _Job) -> None:
        self.active.discard(job)
        self._startWaiting()

    def _startWaiting(self) -> None:
        # Requests that have a response at once (in memory) come back here while they start: one loop is enough.
        if self._starting:
            return
        self._starting = True
        try:
            while (job := self._next()) is not None:
                self.leave(job)
                self.active.add(job)
                if self._clock is not None:
                    job.began = self._clock.seconds()
                job.start()
        finally:
            self._starting = False

    def _next(self) -> _Job | None:
        if len(self.active) < self._slots:
            return next(iter(self.waiting), None)
        # Requests that hang must not delay urgent ones. One urgent request at a time needs no slot. More of them need
        # none if the active requests may hang.
        if self._urgent and (not any(job.isUrgent for job in self.active) or self._hangs()):
            return next(iter(self._urgent))
        return None

    def _hangs(self) -> bool:
        """Whether so many of the active may hang that one more is sent beside them. If not, it looks again in time."""
        if self._clock is None or len(self.active) >= self._slots + MOST_BESIDE:
            return False
        now = self._clock.seconds()
        # Seconds until each of the others may hang too.
        patience = [left for job in self.active if (left := job.began + HANGING - now) > 0]
        if len(patience) < self._slots:
            return True
        if self._look is None:
            # Sums of floating-point seconds may be slightly too small.
            self._look = self._clock.callLater(min(patience) + _TICK, self._lookAgain)
        return False

    def _lookAgain(self) -> None:
        self._look = None
        self._startWaiting()


@implementer(IAgent)
class QueueingAgent:
    """
    Bounds the requests to one server at once. The others wait, first come, first served.

    A request holds its slot from connecting to the last byte of the body, and its response comes whole, so that its
    deadline covers the body. Cancelling a request at any stage fails it with
    :class:`~twisted.internet.defer.CancelledError`, closes its connection and frees its slot.

    :param maxConnections: the most requests at once, for each scheme, host and port.
    :param clock: times the requests; see :meth:`lane`.
    """

    def __init__(self, agent: IAgent, maxConnections: int = 2, clock: IReactorTime | None = None) -> None:
        self._agent = agent
        self._clock = clock
        self._maxConnections = maxConnections
        self._origins: dict[bytes, _Origin] = {}
        self._closed = False

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
        *,
        isUrgent: bool = False,
    ) -> Deferred[IResponse]:
        """
        Send a request when there is a slot for it.

        :return: fires with a :class:`~txserviceregistry.http.bodies.WholeResponse`. Fails as the agent does, with
            ``ResponseTooLarge``, or with :class:`AgentClosed`.
        """
        if self._closed:
            return fail(AgentClosed())
        # scheme://host:port
        key = b"/".join(uri.split(b"/", 3)[:3])
        origin = self._origins.get(key)
        if origin is None:
            origin = self._origins[key] = _Origin(self._maxConnections, self._clock)
        job = _Job(origin, lambda: self._agent.request(method, uri, headers, bodyProducer), isUrgent)
        origin.enter(job)
        return job.result

    def lane(self, *, isUrgent: bool = False, suspends: SuspendWatch | None = None) -> IAgent:
        """
        An agent for some of the requests.

        :param isUrgent: whether they must not wait for others that hang. When other requests have all slots, one urgent
            request is sent beside them. With a clock, up to :data:`MOST_BESIDE` are sent beside requests that have had
            no response for :data:`HANGING` seconds.
        :param suspends: fails them with :class:`~txserviceregistry.http.pool.StaleConnection` when the machine was
            suspended, because their connections are most likely dead.
        """
        return _Lane(self, isUrgent, suspends)

    def close(self) -> None:
        """End all requests, and accept no others: they fail with :class:`AgentClosed`."""
        self._closed = True
        for origin in self._origins.values():
            # The waiting first: a slot that becomes free must not start one of them.
            for job in [*origin.waiting, *origin.active]:
                job.end(AgentClosed())


@implementer(IAgent)
@attrs.frozen
class _Lane:
    _queue: QueueingAgent
    _isUrgent: bool
    _suspends: SuspendWatch | None

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """See IAgent."""
        asked = self._queue.request(method, uri, headers, bodyProducer, isUrgent=self._isUrgent)
        suspends = self._suspends
        if suspends is None or asked.called:
            return asked
        isStale = False

        def resumed(stoodStill: float) -> None:
            nonlocal isStale
            isStale = True
            asked.cancel()

        def over(result: Any) -> Any:
            suspends.discard(resumed)
            if isStale:
                raise StaleConnection([])  # type: ignore[no-untyped-call] # Twisted has no types there
            return result

        suspends.add(resumed)
        return asked.addBoth(over)
