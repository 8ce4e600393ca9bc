"""Tenure: work that an application does while a lock is held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred

from .lock import Held

_Self = TypeVar("_Self", bound="Tenure")


class Tenure:
    """
    The time for which a lock is held.

    :ivar fence: the fencing token: it is larger than that of every earlier holder.
    """

    def __init__(self, held: Held) -> None:
        self.fence = held.fence
        self._held = held
        self._work: Deferred[Any] | None = None
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
        self._work = maybeDeferred(work, self)
        if self._ending.called:
            self._work.cancel()
        try:
            await self._work
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
            if self._work is not None:
                self._work.cancel()
