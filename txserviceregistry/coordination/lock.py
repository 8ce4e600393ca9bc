"""Lock: at most one holder at a time, in all processes that use a registry."""

from __future__ import annotations

import math
import os
import random as randomModule
import socket
import uuid
from collections.abc import Callable, Mapping

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, TimeoutError, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from ..client import Client
from ..errors import UNKNOWN_OUTCOME, LockHeld, NotFound, RateLimited, ServerError, ServiceRegistryError
from ..heartbeats.heartbeater import HeartBeater
from ..http.jsontransport import ClientClosed
from ..http.messages import WhenLate
from ..types import AcquiredLock, HeartbeatToken
from ..util.deferred import Backoff, Waiters, cancel, returnsDeferred, waitFor
from ..util.fields import LONGEST_INTERVAL, boundedNumber, checkedTimeout
from ..util.logs import Logger, Outage

_LONGEST_WAIT = 60  # seconds for which the registry holds back its response to a request for a lock, at most
# Seconds between two tries while the registry is unreachable; the first one is made at once. Soon after an outage all
# wait at the registry again, so that a release hands over at once. A server that refuses requests gets more time.
_SHORTEST_RETRY, _LONGEST_RETRY, _LONGEST_REFUSAL = 0.2, 0.5, 5.0
_SHORTEST_POLL = 1.0  # seconds between two requests that the registry refuses although it should wait
_LONGEST_RELEASE = 3.0  # seconds that a release may take; a lock that could not be released expires
_REQUESTS_FAIL = "Lock {name} can't be requested: {reason} (retrying)"
_REQUESTS_SUCCEED = "Lock {name} can be requested again after {seconds:.1f} s"

# A holder relies on its lock for this part of the timeout, counted from the sending of a request that was answered.
_RELIABLE = 0.9
_INTERVAL = 0.45  # an interval is this part of that time, so that several heartbeats in a row may be lost


class LockHeartBeater(HeartBeater):
    """Keeps a lock that was acquired, in the client's batches, until it is released or lost."""

    what = "lock"

    def __init__(self, client: Client, name: str, timeout: int, token: str, sent: float) -> None:
        services = client.services
        super().__init__(services, name, _RELIABLE * timeout, token, clock=client.clock, context=services.context)
        self._locks = client.locks
        services.adopt(self)
        self._answered: Waiters[None] = Waiters()
        self._bootTime = client.bootTime
        # Until when its holder may rely on it, in seconds of bootTime, as *sent*.
        self.validUntil = sent + self.heartbeatTimeout
        # For the times at which heartbeats were sent, by the reactor's clock, those of a clock that never steps.
        self._sent: Mapping[float, float] = {}

    @property
    def heartbeatInterval(self) -> float:
        return self.heartbeatTimeout * _INTERVAL

    def entry(self, sent: float) -> dict[str, str]:
        # After a step of the reactor's clock two may seem to be sent at one time: the first one counts.
        self._sent = {sent: self._bootTime(), **self._sent}
        return {"lock": self.serviceId, "token": self.nextToken or ""}

    def request(self, token: str, timeout: float, whenLate: WhenLate) -> Deferred[HeartbeatToken]:
        return self._locks.heartbeat(self.serviceId, token, timeout=timeout, whenLate=whenLate)

    def answered(self, sent: float, token: str) -> None:
        at = self._sent.get(sent)
        if at is not None:
            self.validUntil = max(self.validUntil, at + self.heartbeatTimeout)
            self._sent = {each: when for each, when in self._sent.items() if when > at}
        super().answered(sent, token)
        self._answered.fire(None)

    def whenAnswered(self) -> Deferred[None]:
        """Fires with the next response to a heartbeat; fails as ``whenStopped`` does, or with ``ClientClosed``."""
        waiter = self._answered.wait()
        closed = Failure(ClientClosed("This client has been closed"))
        self.whenStopped().addBoth(lambda result: self._answered.fire(result or closed))
        return waiter


class Held:
    """
    A lock that was acquired. Heartbeats keep it until :meth:`release`.

    :ivar name: the lock's name.
    :ivar fence: the fencing token, an integer: it is larger than that of every earlier acquisition in this account.
    """

    _log = Logger()

    def __init__(self, client: Client, name: str, fence: int, heartBeater: LockHeartBeater) -> None:
        self.name = name
        self.fence = fence
        self.clock = client.clock
        self._client = client
        self._heartBeater = heartBeater
        self._hasEnded = False
        self._reason: str | None = None
        self._lostWaiters: Waiters[str] = Waiters()
        self._released: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        heartBeater.whenStopped().addCallbacks(
            lambda _: self._lose("the client was closed"), lambda failure: self._lose(failure.getErrorMessage())
        )
        if not self._hasEnded:
            self._look()

    @property
    def isValid(self) -> bool:
        """
        Whether no other process can hold the lock now: it was not released, and the last request that was answered was
        sent less than nine tenths of the timeout ago. It is computed from a clock that runs while the process is
        stopped or the machine suspended. A true value is true for this moment only.
        """
        return not self._hasEnded and self._client.bootTime() < self._heartBeater.validUntil

    @property
    def lost(self) -> Deferred[str]:
        """
        A Deferred that fires with the reason when the lock may no longer be relied on. It never fires after
        :meth:`release`. Each access returns another one, which may be cancelled.
        """
        return self._lostWaiters.wait() if self._reason is None else succeed(self._reason)

    def release(self) -> Deferred[None]:
        """
        Release the lock, so that another can acquire it at once. Fires with ``None`` when the registry has released it,
        or could not be reached within three seconds: then the lock expires. A second call waits for the first one.
        """
        if self._released is None:
            self._end()
            self._released = self._release()
        return waitFor(self._released)

    async def __aenter__(self) -> Held:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.release()

    @returnsDeferred
    async def _release(self) -> None:
        token = self._heartBeater.nextToken
        if token is None:
            return
        try:
            await self._client.locks.release(self.name, token, timeout=_LONGEST_RELEASE)
        except ServiceRegistryError as error:
            if not isinstance(error, NotFound):
                self._log.warn("Lock {name} was not released and expires: {reason}", name=self.name, reason=str(error))

    def _look(self) -> None:
        left = self._heartBeater.validUntil - self._client.bootTime()
        if left > 0:
            self._timer = self.clock.callLater(left, self._look)
        else:
            self._lose("no heartbeat was answered in time")

    def _lose(self, reason: str) -> None:
        if self._hasEnded:
            return
        self._log.warn("Lock {name} was lost: {reason}", name=self.name, reason=reason)
        # It is not released before the application does it, which may still be at work.
        self._end()
        self._reason = reason
        self._lostWaiters.fire(reason)

    def _end(self) -> None:
        if self._hasEnded:
            return
        self._hasEnded = True
        self._heartBeater.stop()
        cancel(self._timer)


class Lock:
    """
    A lock by its name, which at most one process holds at a time::

        lock = Lock(client, "/billing/scheduler")
        async with lock as held:
            store.write(report, fence=held.fence)

    While a block of ``async with`` runs, another block of the same ``Lock`` in this process waits for its end.
    """

    _log = Logger()

    def __init__(
        self,
        client: Client,
        name: str,
        timeout: int = 15,
        holder: str | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        """
        :param client: sends the requests. Its registry needs the extension ``locks``.
        :param name: a configuration key: ``/billing/scheduler``.
        :param timeout: seconds, 3 to 120, after which others can acquire the lock when its holder was killed.
        :param holder: the name of this process, for people; by default the host's name and the process id.
        :param metadata: up to 20 pairs, which the list of locks shows.
        :param random: returns numbers from 0 to 1.
        :raises ValueError: if *timeout* is not valid. The registry checks the rest.
        """
        self.name = name
        self.timeout = checkedTimeout(timeout, "timeout")
        self._holder = holder
        self._client = client
        self._metadata = metadata
        self._random = random
        self._blocks = DeferredLock()
        self._entered: Held | None = None

    @property
    def holder(self) -> str:
        """The name of this process, for people. By default it has the current process id, which a fork changes."""
        return f"{socket.gethostname()}/{os.getpid()}" if self._holder is None else self._holder

    @returnsDeferred
    async def acquire(self, timeout: float | None = None) -> Held:
        """
        Acquire the lock. The registry grants it in the order of the requests. Cancel the Deferred to end the wait.

        :param timeout: seconds to wait for it; 0 for a single try, ``None`` for no limit. While it waits, requests that
            fail are retried.
        :return: fires with a :class:`Held`. Fails with :class:`~txserviceregistry.errors.LockHeld` if another has it
            when the time is over, with ``NotSupported`` if the registry has no locks, and otherwise as
            ``client.locks.acquire`` does.
        """
        longest = math.inf if timeout is None else boundedNumber(timeout, 0.0, LONGEST_INTERVAL)
        end = self._client.clock.seconds() + longest
        while True:
            nonce = str(uuid.uuid4())
            try:
                if (held := await self._acquire(nonce, end)) is not None:
                    return held
            except (CancelledError, ServiceRegistryError) as error:
                if isinstance(error, (CancelledError, *UNKNOWN_OUTCOME)):
                    # A request may have acquired it, even if the last one had no effect. With a wait this takes the
                    # place of the request that may still wait, and be granted, at the registry.
                    self._request(nonce, 1).addCallback(
                        lambda acquired: self._client.locks.release(self.name, acquired["token"])
                    ).addErrback(lambda failure: failure.trap(ServiceRegistryError))
                raise

    async def _acquire(self, nonce: str, end: float) -> Held | None:
        """One acquisition; ``None`` if it was lost before it could be used."""
        clock = self._client.clock
        backoff = Backoff(_SHORTEST_RETRY, _LONGEST_REFUSAL, self._random)
        outage = Outage(self._log, clock, _REQUESTS_FAIL, _REQUESTS_SUCCEED, after=2, name=self.name)
        while True:
            left = max(0.0, end - clock.seconds())
            sent, sentAt = self._client.bootTime(), clock.seconds()
            try:
                acquired = await self._request(nonce, math.ceil(min(left, _LONGEST_WAIT)))
                break
            except LockHeld:
                outage.succeeded()
                backoff.reset()
                if clock.seconds() >= end:
                    raise
                # A server that did not wait must not be asked without a pause.
                delay = max(0.0, sentAt + _SHORTEST_POLL - clock.seconds())
            except (*UNKNOWN_OUTCOME, RateLimited) as error:
                if isinstance(error, ClientClosed) or clock.seconds() >= end:
                    raise
                outage.failed(reason=str(error), cause=error)
                delay, told = backoff.next(), getattr(error, "retryAfter", None) or 0.0
                if isinstance(error, RateLimited):
                    delay = max(delay, told)
                else:
                    # A registry without locks after its start says for how long; a proxy may say anything.
                    delay = max(told, _SHORTEST_RETRY) if told else delay
                    delay = min(delay, _LONGEST_REFUSAL if isinstance(error, ServerError) else _LONGEST_RETRY)
            await self._client.pause(min(delay, max(0.0, end - clock.seconds())))
        outage.succeeded()
        heartBeater = LockHeartBeater(self._client, self.name, self.timeout, acquired["token"], sent)
        heartBeater.start(sentAt)
        if self._client.bootTime() >= sent + heartBeater.interval:
            # After a wait only a heartbeat shows how long it is valid.
            try:
                await heartBeater.whenAnswered().addTimeout(self.timeout, clock)
            except (NotFound, TimeoutError, CancelledError) as error:
                heartBeater.stop()
                if isinstance(error, CancelledError):
                    raise
                return None
        return Held(self._client, self.name, acquired["fence"], heartBeater)

    def _request(self, nonce: str, wait: int) -> Deferred[AcquiredLock]:
        return self._client.locks.acquire(
            self.name, self.timeout, holder=self.holder, nonce=nonce, wait=wait, metadata=self._metadata
        )

    async def __aenter__(self) -> Held:
        await self._blocks.acquire()
        try:
            self._entered = await self.acquire()
        except BaseException:
            self._blocks.release()
            raise
        return self._entered

    async def __aexit__(self, *error: object) -> None:
        assert self._entered is not None
        try:
            await self._entered.release()
        finally:
            self._blocks.release()
