"""Election: one of several processes leads."""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure

from ..discovery.task import BackgroundTask
from ..errors import LockHeld, ServiceRegistryError
from ..http.jsontransport import ClientClosed
from ..util.backoff import Backoff
from ..util.listeners import Listeners
from ..util.logs import Logger
from ..util.outage import Outage
from .lock import Held, Lock
from .tenure import Tenure
from .watch import lockWatchOf

if TYPE_CHECKING:
    from ..client import Client

# Seconds until a process that has led competes again, so that others are first; and longer while it keeps failing.
_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


class Leadership(Tenure):
    """The time for which this process leads."""

    def stepDown(self) -> None:
        """Give the leadership up: ``lead`` is cancelled, and when it has ended, another process can lead."""
        self.end()


class Election(Service):
    """
    Competes for a leadership, and leads when it has won it::

        async def lead(leadership):
            while True:
                await doTheWork(leadership.fence)

        Election(client, "/billing/leader", lead).setServiceParent(application)

    At most one process leads at a time. When this one may no longer be the leader, ``lead`` is cancelled, and this
    process competes again only after it has ended. A stop ends ``lead`` too, then releases the leadership.
    """

    _log = Logger()

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
        :param random: gives numbers from 0 to 1.
        :raises ValueError: if *timeout* is not valid.
        """
        self._name = name
        self._lock = Lock(client, name, timeout, holder, random=random)
        self._client = client
        self._lead = lead
        self._random = random
        self._leader: str | None = None
        # The fence of the last leader that is known: what is about earlier ones comes too late.
        self._fence = 0
        self._listeners: Listeners[[str | None]] = Listeners(self._log, f"the leader of {name}")
        self._forget: Callable[[], None] | None = None
        self._task: BackgroundTask | None = None
        self._leadership: Leadership | None = None
        # What may be cancelled while this process does not lead.
        self._waiting: Deferred[Any] | None = None

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

        :return: a function that ends it.
        """
        forget = self._listeners.add(listener)
        if self.running:
            self._watch()
        return forget

    # -- IService

    def startService(self) -> None:
        """Begin to compete. Never fails."""
        if self.running:
            return
        Service.startService(self)
        self._task = BackgroundTask(self._task)
        self._task.begin(self._run).addErrback(self._broken)
        if self._listeners:
            self._watch()

    def stopService(self) -> Deferred[None]:
        """
        Stop competing or leading.

        :return: fires when ``lead`` has ended, and the leadership is released.
        """
        Service.stopService(self)
        if self._forget is not None:
            forget, self._forget = self._forget, None
            forget()
        if self._task is None:
            return succeed(None)
        ended = self._task.stop(patiently=True)
        if self._leadership is not None:
            self._leadership.end()
        elif self._waiting is not None:
            self._waiting.cancel()
        return ended

    # -- inside

    async def _run(self, task: BackgroundTask) -> None:
        backoff = Backoff(_PAUSE, _LONGEST_PAUSE, self._random)
        outage = Outage(
            self._log, self._client.clock, "Election {name} is not possible (retrying): {reason}", name=self._name
        )
        delay = 0.0
        while not task.isStopping:
            try:
                if delay:
                    await self._wait(self._client.pause(delay))
                held = await self._wait(self._acquire())
                outage.succeeded()
                if task.isStopping:
                    await held.release()
                    return
                if await self._leadWith(held):
                    backoff.reset()
                    backoff.next()
            except CancelledError:
                pass
            except ClientClosed:
                return
            except ServiceRegistryError as error:
                outage.failed(reason=str(error))
            delay = max(_PAUSE / 2, backoff.next())

    async def _wait(self, waiting: Deferred[Any]) -> Any:
        self._waiting = waiting
        try:
            return await waiting
        finally:
            self._waiting = None

    def _acquire(self) -> Deferred[Held]:
        async def acquire() -> Held:
            try:
                return await self._lock.acquire(0)
            except LockHeld as error:
                self._setLeader(error.holder, error.fence)
            return await self._lock.acquire()

        return Deferred.fromCoroutine(acquire())

    async def _leadWith(self, held: Held) -> bool:
        """Lead until the end of it; returns whether nothing has failed."""
        self._leadership = leadership = Leadership(held)
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

    def _broken(self, failure: Failure) -> None:
        self._log.failure("Election {name} ended", failure, name=self._name)

    def _setLeader(self, leader: str | None, fence: int | None) -> None:
        if fence is not None and fence < self._fence:
            return
        self._fence = fence or self._fence
        if leader != self._leader:
            self._leader = leader
            self._listeners.call(leader)

    def _watch(self) -> None:
        if self._forget is None:
            self._forget = lockWatchOf(self._client).add(self._happened)

    def _happened(self, type: str, payload: Any) -> None:
        if not type:
            self._client.locks.get(self._name).addCallbacks(
                lambda lock: self._setLeader(lock["holder"], lock["fence"]),
                lambda failure: failure.trap(ServiceRegistryError),
            ).addErrback(self._broken)
        elif payload["name"] == self._name:
            self._setLeader(payload["holder"] if type == "lock.acquire" else None, payload["fence"])
