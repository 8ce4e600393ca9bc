"""The heartbeats of a lock that is held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ..heartbeats.heartbeater import HeartBeater
from ..http.jsontransport import ClientClosed
from ..http.messages import WhenLate
from ..types import HeartbeatToken
from ..util.waiters import Waiters

if TYPE_CHECKING:
    from ..client import Client

# A holder relies on its lock for this part of the timeout, counted from the sending of a request that was answered.
_RELIABLE = 0.9
# An interval is this part of that time, so that several heartbeats in a row may be lost.
_INTERVAL = 0.45


class LockHeartBeater(HeartBeater):
    """
    Keeps a lock that was acquired, in the client's batches, until it is released or lost.

    :ivar validUntil: until when its holder may rely on it, in seconds of the client's ``bootTime``.
    """

    what = "lock"

    def __init__(self, client: Client, name: str, timeout: int, token: str, sent: float) -> None:
        """
        :param sent: when the request that acquired it was sent, in seconds of ``bootTime``.
        """
        services = client.services
        super().__init__(services, name, _RELIABLE * timeout, token, clock=client.clock, context=services.context)
        self._locks = client.locks
        services.adopt(self)
        self._answered: Waiters[None] = Waiters()
        self._bootTime = client.bootTime
        self.validUntil = sent + self.heartbeatTimeout
        # For the times at which heartbeats were sent, by the reactor's clock, those of a clock that never steps.
        self._sent: Mapping[float, float] = {}

    @property
    def heartbeatInterval(self) -> float:
        """Nominal seconds between two heartbeats."""
        return self.heartbeatTimeout * _INTERVAL

    def entry(self, sent: float) -> dict[str, str]:
        """Its entry in a batch that is sent at this time."""
        # After a step of the reactor's clock two may seem to be sent at one time: the first one counts.
        self._sent = {sent: self._bootTime(), **self._sent}
        return {"lock": self.serviceId, "token": self.nextToken or ""}

    def request(self, token: str, timeout: float, whenLate: WhenLate) -> Deferred[HeartbeatToken]:
        """Send a single heartbeat."""
        return self._locks.heartbeat(self.serviceId, token, timeout=timeout, whenLate=whenLate)

    def answered(self, sent: float, token: str) -> None:
        """A heartbeat that was sent at that time was answered with this token."""
        at = self._sent.get(sent)
        if at is not None:
            self.validUntil = max(self.validUntil, at + self.heartbeatTimeout)
            self._sent = {each: when for each, when in self._sent.items() if when > at}
        super().answered(sent, token)
        self._answered.fire(None)

    def whenAnswered(self) -> Deferred[None]:
        """
        Wait for the next response to a heartbeat.

        :return: fires with ``None``; fails as ``whenStopped`` does if the lock is lost, or with ``ClientClosed``.
        """
        waiter = self._answered.wait()
        self.whenStopped().addBoth(self._stoppedBefore)
        return waiter

    def _stoppedBefore(self, result: Failure | None) -> None:
        self._answered.fire(result or Failure(ClientClosed("This client has been closed")))
