"""``client.configuration``, ``client.locks`` and ``client.account``."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from reprlib import repr as shown
from typing import Any

from twisted.internet.defer import Deferred

from ..errors import BadRequest, NotFound, NotSupported
from ..http.messages import Lane, Response, WhenLate, segment
from ..types import (
    AcquiredLock,
    ConfigurationPage,
    ConfigurationValue,
    ConsoleLink,
    HeartbeatToken,
    Limits,
    Lock,
    LockPage,
)
from ..util.deferred import returnsDeferred
from ..util.fields import ETAGS, KEY, KEY_RULE
from .shapes import (
    readAcquiredLock,
    readConfigurationPage,
    readConfigurationValue,
    readConsoleLink,
    readLimits,
    readLockPage,
    readToken,
)
from .transport import ETAG, LOCKS, APIGroup, etagOf


def _path(key: Any, what: str = "configuration key") -> str:
    if not isinstance(key, str) or not KEY.fullmatch(key):
        message = "Invalid value for 'configurationId' query string parameter"
        raise BadRequest(400, "badRequest", message, f"{shown(key)} is not a {what}: {KEY_RULE}")
    # The slashes of a qualified key are slashes of the path, its first one too: /configuration//production/x_y.
    return "/configuration/" + "/".join(segment(part) if part else "" for part in key.split("/"))


def _namespacePath(namespace: str) -> str:
    namespace = namespace.rstrip("/")
    # All qualified keys are below the slash alone.
    return (_path(namespace, "namespace") if namespace else "/configuration/") + "/"


def _condition(ifMatch: str | None, ifNoneMatch: str | None) -> tuple[str, str]:
    if ifMatch is None and ifNoneMatch == "*":
        return "If-None-Match", "*"
    if ifNoneMatch is None and isinstance(ifMatch, str) and ETAGS.fullmatch(ifMatch):
        return "If-Match", ifMatch
    given = f"ifMatch is {shown(ifMatch)} and ifNoneMatch is {shown(ifNoneMatch)}"
    raise BadRequest(
        400, "badRequest", f"{given}, but one has to be '*', or ifMatch a tag in quotes from getWithEtag()"
    )


class ConfigurationClient(APIGroup):
    """
    The configuration values of the account.

    A key is a simple name (``listen_ip``) or a qualified one, with a namespace (``/production/cassandra/listen_ip``).
    Every method returns a Deferred, which fails with a :class:`~txserviceregistry.errors.ServiceRegistryError`.
    """

    @returnsDeferred
    async def list(self, marker: str | None = None, limit: int | None = None) -> ConfigurationPage:
        """
        One page of the values, sorted by key: ``{"values": [{"id": …, "value": …}, …], "metadata": {…}}``. For *marker*
        and *limit* see ``client.services.list``.
        """
        return await self._get("/configuration", readConfigurationPage, query={"marker": marker, "limit": limit})

    @returnsDeferred
    async def listForNamespace(
        self, namespace: str, marker: str | None = None, limit: int | None = None
    ) -> ConfigurationPage:
        """
        :meth:`list` for a namespace such as ``/production/cassandra`` and the namespaces in it; ``/`` is for all values
        that have one.
        """
        query = {"marker": marker, "limit": limit}
        return await self._get(_namespacePath(namespace), readConfigurationPage, query=query)

    async def iterate(self, namespace: str | None = None) -> AsyncIterator[ConfigurationValue]:
        """All values, or all below a *namespace*, page by page as in ``client.services.iterate``."""
        path = "/configuration" if namespace is None else _namespacePath(namespace)
        async for value in self._pages(path, readConfigurationPage):
            yield value

    @returnsDeferred
    async def get(self, id: str) -> ConfigurationValue:
        """One value, ``{"id": …, "value": …}``. Fails with ``NotFound`` if there is none."""
        return await self._get(_path(id), readConfigurationValue)

    @returnsDeferred
    async def getWithEtag(self, id: str) -> ConfigurationValue:
        """:meth:`get`, with the value's tag as ``etag``. Fails with ``NotSupported`` if the registry has no tags."""
        response = await self._transport.request("GET", _path(id))
        value, etag = response.read(readConfigurationValue), etagOf(response)
        if etag is None:
            raise NotSupported(ETAG)
        return {**value, "etag": etag}

    @returnsDeferred
    async def set(
        self, id: str, value: str, *, ifMatch: str | None = None, ifNoneMatch: str | None = None
    ) -> bool | str:
        """
        Set a value, or only on a condition::

            value = await client.configuration.getWithEtag("/production/www/workers")
            more = str(int(value["value"]) + 1)
            await client.configuration.set(value["id"], more, ifMatch=value["etag"])

        :param id: the key, 3 to 500 characters.
        :param value: a string of 1 to 1024 characters.
        :param ifMatch: set it only if the value has this tag; ``"*"`` is any tag.
        :param ifNoneMatch: ``"*"`` to set it only if there is no value.
        :return: fires with ``True``, or on a condition with the value's new tag. Then it fails with
            ``PreconditionFailed`` if the condition does not hold, ``OutcomeUnknown`` if its own first try may be the
            reason, and ``NotSupported`` if the registry has no conditional writes.
        """
        path, body = _path(id), {"value": value}
        if ifMatch is None and ifNoneMatch is None:
            await self._transport.request("PUT", path, body=body)
            return True
        return etagOf(await self._transport.write("PUT", path, _condition(ifMatch, ifNoneMatch), body)) or True

    @returnsDeferred
    async def remove(self, id: str, *, ifMatch: str | None = None) -> bool:
        """
        Remove a value, or only if it has the tag *ifMatch*. Fires with ``True``. Fails with ``NotFound`` if there is
        none; with a condition, as :meth:`set`.
        """
        if ifMatch is None:
            await self._transport.request("DELETE", _path(id))
        else:
            await self._transport.write("DELETE", _path(id), _condition(ifMatch, None))
        return True


class LocksClient(APIGroup):
    """
    The locks of the account, request by request: the registry's extension ``locks``. Every method returns a Deferred,
    which fails with a :class:`~txserviceregistry.errors.ServiceRegistryError`; ``NotSupported`` if there are no locks.
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

    async def iterate(self, marker: str | None = None) -> AsyncIterator[Lock]:
        """The locks that are held, from the name *marker* on, page by page as in ``client.services.iterate``."""
        await self._transport.require(LOCKS)
        async for lock in self._pages("/locks", readLockPage, marker=marker):
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


class AccountClient(APIGroup):
    """The limits of the account, and links to its web console."""

    def getLimits(self) -> Deferred[Limits]:
        """The account's limits: ``{"resource": {type: limit}, "rate": {pattern: {"limit", "used", "window"}}}``."""
        return self._transport.request("GET", "/limits").addCallback(Response.read, readLimits)

    def createConsoleLink(self) -> Deferred[ConsoleLink]:
        """
        Make a link that opens the web console as this client's user, once and within a minute: ``{"href",
        "expires_in"}``, a secret. Fails with ``NotFound`` if the registry has no console.
        """
        return self._transport.request("POST", "/console-links").addCallback(Response.read, readConsoleLink)
