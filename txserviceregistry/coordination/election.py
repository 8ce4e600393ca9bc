"""Election: one of several processes leads."""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred

from ..discovery.task import BackgroundTask
from ..errors import UNKNOWN_OUTCOME, LockHeld, ServiceRegistryError
from ..util.deferred import returnsDeferred
from ..util.logs import Listeners
from .lock import Held, Lock
from .tenure import Contender, Tenure
from .watch import lockWatchOf

if TYPE_CHECKING:
    from ..client import Client


class Leadership(Tenure):
    """The time for which this process leads."""

    def stepDown(self) -> None:
        """Give the leadership up: ``lead`` is cancelled, and when it has ended, another process can lead."""
        self.end()


class Election(Contender):
    """
    Competes for a leadership, and leads when it has won it::

        async def lead(leadership):
            while True:
                await doTheWork(leadership.fence)

        Election(client, "/billing/leader", lead).setServiceParent(application)

    At most one process leads at a time. When this one may no longer be the leader, ``lead`` is cancelled, and this
    process competes again only after it has ended. A stop ends ``lead`` too, then releases the leadership.
    """

    impossible = "Election {name} failed (retrying): {reason}"
    broken = "Election {name} ended"

    def __init__(
        self,
        client: Client,
        name: str,
        lead: Callable[[Leadership], Any],
        *,
        timeout: int = 15,
        holder: str | None = None,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        """
        :param client: sends the requests. The caller closes it, after this service has stopped.
        :param name: the name of a lock, which is a configuration key.
        :param lead: called with a :class:`Leadership` when this process leads. Returns a Deferred or a coroutine, which
            lasts for as long as the process wants to lead. When it fails, that is logged, and another process leads.
        :param timeout: seconds, 3 to 120, after which another process leads when this one was killed.
        :param holder: the name of this process, for people; by default the host's name and the process id.
        :param random: returns numbers from 0 to 1.
        :raises ValueError: if *timeout* is not valid.
        """
        super().__init__(client, Lock(client, name, timeout, holder, random=random), name, random)
        self._lead = lead
        self._leader: str | None = None
        # The fence of the last leader that is known: what is about earlier ones comes too late.
        self._fence = 0
        self._listeners: Listeners[[str | None]] = Listeners(self._log, f"the leader of {name}")
        self._forget: Callable[[], None] | None = None
        self._leadership: Leadership | None = None

    def __repr__(self) -> str:
        return f"<Election {self._name!r}: {'leads' if self.isLeading else 'does not lead'}>"

    @property
    def isLeading(self) -> bool:
        """Whether this process leads now; see :attr:`Held.isValid`."""
        return self._leadership is not None and self._leadership.isValid

    @property
    def leader(self) -> str | None:
        """
        The ``holder`` of the leader, as far as is known; ``None`` if there is none. It follows changes once there is a
        listener to :meth:`onChange`. Without one, it is what this process found when it began to compete.
        """
        return self._leader

    def onChange(self, listener: Callable[[str | None], object]) -> Callable[[], None]:
        """
        Call *listener* with the :attr:`leader` whenever it changes.

        :return: a function that removes the listener.
        """
        forget = self._listeners.add(listener)
        self._watch()
        return forget

    def startService(self) -> None:
        """Begin to compete. Never fails."""
        super().startService()
        self._watch()

    def stopService(self) -> Deferred[None]:
        """
        Stop competing or leading.

        :return: fires when ``lead`` has ended, and the leadership is released.
        """
        forget, self._forget = self._forget, None
        if forget is not None:
            forget()
        stopped = super().stopService()
        if self._leadership is not None:
            self._leadership.end()
        return stopped

    # -- inside

    @returnsDeferred
    async def _acquire(self, task: BackgroundTask) -> Held:
        try:
            return await self._lock.acquire(0)
        except LockHeld as error:
            self._setLeader(error.holder, error.fence)
            if task.isStopping:
                # A listener has stopped it, when there was nothing to cancel.
                raise CancelledError()
        except UNKNOWN_OUTCOME:
            # The next call retries that.
            pass
        return await self._lock.acquire()

    async def _hold(self, task: BackgroundTask, held: Held) -> bool:
        self._leadership = leadership = Leadership(held, self._client.clock)
        self._log.info("This process leads {name}, fence {fence}", name=self._name, fence=held.fence)
        self._setLeader(self._lock.holder, held.fence)
        try:
            await leadership.run(self._lead)
            return True
        except Exception:
            self._log.failure("Leading {name} failed; another process may lead", name=self._name)
            return False
        finally:
            self._leadership = None
            self._log.info("This process does not lead {name} any more", name=self._name)
            self._setLeader(None, held.fence)

    def _setLeader(self, leader: str | None, fence: int | None) -> None:
        if fence is not None and fence < self._fence:
            return
        self._fence = fence or self._fence
        if leader != self._leader:
            self._leader = leader
            self._listeners.call(leader)

    def _watch(self) -> None:
        if self.running and self._listeners and self._forget is None:
            self._forget = lockWatchOf(self._client).add(self._happened)

    def _happened(self, type: str, payload: Any) -> None:
        if not type:
            self._client.locks.get(self._name).addCallbacks(
                lambda lock: self._setLeader(lock["holder"], lock["fence"]),
                lambda failure: failure.trap(ServiceRegistryError),
            ).addErrback(self._failed)
        elif payload["name"] == self._name:
            self._setLeader(payload["holder"] if type == "lock.acquire" else None, payload["fence"])
