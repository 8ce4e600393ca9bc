"""Tenure: work that an application does while a lock is held, and services that compete for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..discovery.task import BackgroundTask
from ..errors import ServiceRegistryError
from ..http.jsontransport import ClientClosed
from ..util.backoff import Backoff
from ..util.deferred import cancelWith
from ..util.logs import Logger, Outage
from .lock import Held, Lock

if TYPE_CHECKING:
    from ..client import Client

# Seconds until a process that has held a lock competes again, so that others are first; and longer while it keeps
# failing.
_PAUSE, _LONGEST_PAUSE = 1.0, 30.0

_Self = TypeVar("_Self", bound="Tenure")


class Tenure:
    """
    The time for which a lock is held.

    :ivar fence: the fencing token: it is larger than that of every earlier holder.
    """

    def __init__(self, held: Held, clock: IReactorTime) -> None:
        self.fence = held.fence
        self._held = held
        self._clock = clock
        self._ending: Deferred[None] = Deferred()

    @property
    def isValid(self) -> bool:
        """Whether no other process can have it now; see :attr:`Held.isValid`."""
        return self._held.isValid

    async def run(self: _Self, work: Callable[[_Self], Any], *, isLasting: bool = False) -> None:
        """
        Do the work, which is cancelled at the end of the tenure, then release the lock.

        :param isLasting: whether the tenure goes on when the work is done.
        """
        lost = self._held.lost.addCallback(lambda _: self.end())
        working = maybeDeferred(work, self)

        def cancelSoon(_: None) -> None:
            # Not now: the work may have called end(), and a coroutine that is running can't be cancelled.
            cancelWith(self._clock.callLater(0, working.cancel), working)

        self._ending.addCallback(cancelSoon)
        try:
            await working
            if isLasting:
                await self._ending
        except CancelledError:
            if not self._ending.called:
                raise
        finally:
            lost.addErrback(lambda _: None).cancel()
            await self._held.release()

    def end(self) -> None:
        """End it: cancel the work. The lock is released when the work has ended."""
        if not self._ending.called:
            self._ending.callback(None)


class Contender(Service):
    """A service that acquires a lock, uses it, and competes for it again, until it is stopped."""

    _log = Logger()
    # For the log: when the lock can't be acquired, and after a defect.
    impossible = ""
    broken = ""

    def __init__(self, client: Client, lock: Lock, name: str, random: Callable[[], float]) -> None:
        self._client = client
        self._lock = lock
        self._name = name
        self._random = random
        self._outage = Outage(self._log, client.clock, self.impossible, name=name)
        self._task: BackgroundTask | None = None

    def _acquire(self, task: BackgroundTask) -> Deferred[Held]:
        return self._lock.acquire()

    async def _hold(self, task: BackgroundTask, held: Held) -> bool:
        """Use the lock, and release it; returns whether nothing has failed."""
        raise NotImplementedError

    def startService(self) -> None:
        """Begin to compete. Never fails."""
        if not self.running:
            Service.startService(self)
            self._task = BackgroundTask(self._task)
            self._task.begin(self._run).addErrback(self._failed)

    def stopService(self) -> Deferred[None]:
        """
        End.

        :return: fires when the application's work has ended, and everything is released.
        """
        Service.stopService(self)
        return succeed(None) if self._task is None else self._task.stop(patiently=True)

    async def _run(self, task: BackgroundTask) -> None:
        backoff = Backoff(_PAUSE, _LONGEST_PAUSE, self._random)
        delay = 0.0
        while not task.isStopping:
            try:
                if delay:
                    await task.wait(self._client.pause(delay))
                held = await task.wait(self._acquire(task))
                self._outage.succeeded()
                if task.isStopping:
                    await held.release()
                elif await self._hold(task, held):
                    backoff.reset()
                    backoff.next()
            except CancelledError:
                pass
            except ClientClosed:
                return
            except ServiceRegistryError as error:
                self._outage.failed(reason=str(error))
            delay = max(_PAUSE / 2, backoff.next())

    def _failed(self, failure: Failure) -> None:
        self._log.failure(self.broken, failure, name=self._name)
