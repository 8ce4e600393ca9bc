"""An agent that bounds how many requests to one server are under way, and ends them after a suspend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from ..clock import SuspendWatch
from ..util.deferred import PrioritySemaphore
from .pool import StaleConnection, WholeResponse, readWhole

#: A request that has had no response for so many seconds may hang: urgent requests do not wait for its slot any longer.
HANGING = 0.3
#: The most urgent requests that may hang without a slot.
MOST_BESIDE = 6


class AgentClosed(Exception):
    """The agent was closed before the request was done."""


class _Slots(PrioritySemaphore):
    """The slots for requests to one server. Some that hang need none: *besides* says how many more."""

    besides = MOST_BESIDE


class _Job:
    """One request through a :class:`QueueingAgent`."""

    def __init__(self, slots: _Slots, clock: IReactorTime | None, send: Callable[[], Deferred[IResponse]]) -> None:
        self._slots = slots
        self._clock = clock
        self._send = send
        self._hasSlot = self._hasEnded = False
        self._patience: IDelayedCall | None = None
        self.result: Deferred[IResponse] = Deferred(lambda _: self.end(CancelledError()))
        # It waits for a slot, then for the response.
        self._work: Deferred[Any] = slots.take(0.0)
        self._work.addCallbacks(self._start, lambda _: None)

    def _start(self, _: None) -> None:
        self._hasSlot = True
        if self._clock is not None:
            self._patience = self._clock.callLater(HANGING, self._mayHang)
        self._work = maybeDeferred(self._send)
        self._work.addBoth(self._arrived)

    def _mayHang(self) -> None:
        if self._slots.besides:
            self._slots.besides -= 1
            self._hasSlot = False
            self._slots.give()

    def _arrived(self, result: Any) -> Deferred[None] | None:
        if not isinstance(result, (WholeResponse, Failure)):
            return readWhole(result).addBoth(self._finished)
        self._finished(result)
        return None

    def _finished(self, result: WholeResponse | Failure) -> None:
        # The connection is closed, or can be used again: that may be later than the end of a cancelled request.
        if self._patience is not None and self._patience.active():
            self._patience.cancel()
        if self._hasSlot:
            self._slots.give()
        else:
            self._slots.besides += 1
        if not self._hasEnded:
            self.result.callback(result)

    def end(self, why: Exception) -> None:
        """Fail now."""
        if self._hasEnded:
            return
        self._hasEnded = True
        self._work.cancel()
        # A cancelled result fails by itself.
        if not isinstance(why, CancelledError):
            self.result.errback(why)

    def resumed(self, stoodStill: float) -> None:
        """Fail, because the machine was suspended: the connection is most likely dead."""
        self.end(StaleConnection([]))  # type: ignore[no-untyped-call] # Twisted has no types there


@implementer(IAgent)
@attrs.define(eq=False, slots=False, repr=False)
class QueueingAgent:
    """
    Bounds the requests to one server at once. The others wait, first come, first served.

    A request holds its slot from connecting to the last byte of the body, and its response comes whole, so that its
    deadline covers the body. Cancelling a request at any stage fails it with ``CancelledError``, closes its connection
    and frees its slot.

    :param most: the most requests at once, for each scheme, host and port.
    :param suspends: fails requests with ``StaleConnection`` when the machine was suspended.
    :param clock: given if the requests are urgent: those that have had no response for :data:`HANGING` seconds need no
        slot, up to :data:`MOST_BESIDE` of them.
    :param sharing: another one, for the same slots.
    """

    _agent: IAgent
    _most: int = 2
    _suspends: SuspendWatch | None = None
    _clock: IReactorTime | None = attrs.field(default=None, kw_only=True)
    _sharing: QueueingAgent | None = attrs.field(default=None, kw_only=True)
    _slots: dict[bytes, _Slots] = attrs.field(init=False)
    _jobs: dict[_Job, None] = attrs.field(factory=dict, init=False)
    _isClosed: bool = attrs.field(default=False, init=False)

    @_slots.default
    def _sharedSlots(self) -> dict[bytes, _Slots]:
        return {} if self._sharing is None else self._sharing._slots

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """
        Send a request when there is a slot for it. Fires with a ``WholeResponse``. Fails as the agent does, with
        ``ResponseTooLarge``, or with :class:`AgentClosed`.
        """
        if self._isClosed:
            return fail(AgentClosed())
        # scheme://host:port
        key = b"/".join(uri.split(b"/", 3)[:3])
        slots = self._slots.get(key) or self._slots.setdefault(key, _Slots(self._most))
        job = _Job(slots, self._clock, lambda: self._agent.request(method, uri, headers, bodyProducer))
        if job.result.called:
            return job.result
        self._jobs[job] = None
        if self._suspends is not None:
            self._suspends.add(job.resumed)
        return job.result.addBoth(self._over, job)

    def _over(self, result: Any, job: _Job) -> Any:
        del self._jobs[job]
        if self._suspends is not None:
            self._suspends.discard(job.resumed)
        return result

    def close(self) -> None:
        """End all requests, and accept no others: they fail with :class:`AgentClosed`."""
        self._isClosed = True
        # The waiting first: a slot that becomes free must not start one of them.
        for job in reversed(list(self._jobs)):
            job.end(AgentClosed())
