"""``client.locks``: the requests for locks. One method is one request."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from reprlib import repr as shown
from typing import Any

from twisted.internet.defer import Deferred

from ..errors import BadRequest, NotFound
from ..http.messages import Lane, Response, WhenLate
from ..types import AcquiredLock, HeartbeatToken, Lock, LockPage
from ..util.deferred import returnsDeferred
from ..util.fields import KEY, KEY_RULE
from .shapes import readAcquiredLock, readLockPage, readToken
from .transport import LOCKS, APIGroup


class LocksClient(APIGroup):
    """
    The locks of the account, request by request: the registry's extension ``locks``.

    A lock is held as long as its heartbeats come. Every method returns a Deferred, which fails with a
    :class:`~txserviceregistry.errors.ServiceRegistryError`; with ``NotSupported`` if the registry has no locks.
    """

    @returnsDeferred
    async def acquire(
        self,
        name: str,
        timeout: int = 15,
        *,
        holder: str = "",
        nonce: str | None = None,
        wait: int = 0,
        metadata: Mapping[str, str] | None = None,
    ) -> AcquiredLock:
        """
        Acquire a lock. It expires *timeout* seconds after the registry has granted it. A holder must stop earlier: nine
        tenths of *timeout* after it sent the last request that was answered. After a wait, only heartbeats count.

        :param name: a configuration key.
        :param timeout: the heartbeat timeout, 3 to 120 seconds.
        :param holder: a name of the holder, for people; up to 255 characters.
        :param nonce: a UUID that names this acquisition, by default a new one. With the nonce of a lock that is held,
            this is a heartbeat of it, and the result is that of the first request.
        :param wait: seconds to wait while another holds it, up to 60.
        :param metadata: up to 20 pairs.
        :return: fires with ``{"token": …, "fence": …}``. Fails with ``LockHeld`` if another holds the lock. If the
            outcome is unknown, repeat the call with the same *nonce*.
        """
        if not isinstance(name, str) or not KEY.fullmatch(name):
            problem = f"{shown(name)} is not the name of a lock: {KEY_RULE}"
            raise BadRequest(400, "badRequest", "Validation error for key 'name'", problem)
        await self._transport.require(LOCKS)
        body = {"name": name, "timeout": timeout, "holder": holder, "nonce": nonce or str(uuid.uuid4())}
        body |= {"metadata": dict(metadata or {}), "wait": wait}
        response = await self._post("", body, wait=wait or None, lane=Lane.WAITING if wait else Lane.URGENT)
        return response.read(readAcquiredLock)

    @returnsDeferred
    async def heartbeat(
        self, name: str, token: str, *, timeout: float | None = None, whenLate: WhenLate | None = None
    ) -> HeartbeatToken:
        """
        Send a heartbeat with any token of this acquisition. Fires with ``{"token": …}``; fails with ``NotFound`` if the
        acquisition has ended. For *whenLate* see ``client.services.heartbeat``.
        """
        options: Any = {"timeout": timeout, "whenLate": whenLate, "lane": Lane.HEARTBEAT}
        return (await self._post("/heartbeat", {"name": name, "token": token}, **options)).read(readToken)

    @returnsDeferred
    async def release(self, name: str, token: str, *, timeout: float | None = None) -> bool:
        """
        Release a lock, with any token of this acquisition, so that another can acquire it at once. Fires with ``True``;
        fails with ``NotFound`` if this acquisition has ended already.
        """
        await self._post("/release", {"name": name, "token": token}, timeout=timeout)
        return True

    @returnsDeferred
    async def forceRelease(self, name: str, *, now: bool = False) -> bool:
        """
        End a lock that another client holds. Its heartbeats are refused, and it is free when its timeout has passed
        since the last one, or *now*: use that only when you know that its holder does not rely on it.
        """
        await self._transport.require(LOCKS)
        await self._post("/release", {"name": name, "force": True, "now": now})
        return True

    @returnsDeferred
    async def list(self, marker: str | None = None, limit: int | None = None) -> LockPage:
        """
        One page of the locks that are held, sorted by name: ``{"values": [lock, …], "metadata": {…}}``. For *marker*
        and *limit* see ``client.services.list``.
        """
        await self._transport.require(LOCKS)
        return await self._get("/locks", readLockPage, query={"marker": marker, "limit": limit})

    async def iterate(self) -> AsyncIterator[Lock]:
        """
        All locks that are held, page by page as they are needed::

            async for lock in client.locks.iterate():
                print(lock["name"], lock["holder"])
        """
        await self._transport.require(LOCKS)
        async for lock in self._pages("/locks", readLockPage):
            yield lock

    @returnsDeferred
    async def get(self, name: str) -> Lock:
        """One lock. Fails with ``NotFound`` if it is not held."""
        await self._transport.require(LOCKS)
        response = await self._transport.request("GET", "/locks", query={"name": name})
        locks = response.read(readLockPage)["values"]
        if not locks:
            message, details = "object does not exist", f'Object "Lock" with key "{name}" does not exist'
            raise NotFound(404, "notFoundError", message, details, method="GET", url=response.url)
        return locks[0]

    def _post(self, path: str, body: object, *, lane: Lane = Lane.URGENT, **options: Any) -> Deferred[Response]:
        return self._transport.request("POST", f"/locks{path}", body=body, repeatable=True, lane=lane, **options)
