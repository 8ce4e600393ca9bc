"""``--only-leader``: the command runs on one host at a time."""

from __future__ import annotations

from collections.abc import Callable

from ...client import Client
from ...coordination import Held, Lock
from ...util.deferred import returnsDeferred

#: Seconds until another host can run the command when this one was lost.
TIMEOUT = 15
#: Seconds from SIGTERM to SIGKILL for a command whose lock was lost: less than the tenth of the timeout that is left.
GRACE = 0.05 * TIMEOUT


class Leading:
    """
    The lock that a wrapper holds while its command runs.

    :param connect: makes a client; raises :class:`~txserviceregistry.errors.InvalidSettings`.
    :param lost: called with the reason when the lock may no longer be relied on.
    """

    def __init__(self, name: str, connect: Callable[[], Client], lost: Callable[[str], None]) -> None:
        self._name = name
        self._connect = connect
        self._lost = lost
        self._client: Client | None = None
        self._held: Held | None = None

    @property
    def isValid(self) -> bool:
        """Whether the command may run now."""
        return self._held is not None and self._held.isValid

    @returnsDeferred
    async def begin(self) -> None:
        """Wait for the lock. Fails as :meth:`Lock.acquire <txserviceregistry.coordination.Lock.acquire>` does."""
        self._client = self._connect()
        self._held = await Lock(self._client, self._name, TIMEOUT).acquire()
        self._held.lost.addCallback(self._lost)

    @returnsDeferred
    async def end(self) -> None:
        """Release the lock: the command has ended."""
        if self._held is not None:
            await self._held.release()
        if self._client is not None:
            await self._client.close()
