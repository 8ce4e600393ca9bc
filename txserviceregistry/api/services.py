"""``client.services``: the requests for services, and the last good page of each listing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from functools import partial
from reprlib import repr as shown
from typing import Any, cast

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime

from ..errors import BadRequest, ConnectionFailed, MalformedResponse, RequestTimedOut, ServerError
from ..http.jsontransport import ClientClosed
from ..http.messages import Lane, Response, WhenLate, pathOf
from ..types import FaultBody, HeartbeatToken, Service, ServicePage, ServiceState, ServiceStatePage
from ..util.deferred import returnsDeferred
from ..util.fields import ID_RULE, SERVICE_ID
from .shapes import readHeartbeats, readService, readServicePage, readServiceState, readServiceStatePage, readToken
from .transport import SERVICE_STATE, APIGroup, Transport


def _path(id: Any) -> str:
    if not isinstance(id, str) or not SERVICE_ID.fullmatch(id):
        message = "Invalid value for 'serviceId' query string parameter"
        raise BadRequest(400, "badRequest", message, f"{shown(id)} is not a service id: {ID_RULE}")
    # A valid id has no character that has to be encoded in a path.
    return f"/services/{id}"


class ListCache:
    """The last page of each listing, for the time when the registry can't be reached. The oldest ones are dropped."""

    def __init__(self, maxBytes: int = 8 * 1024 * 1024) -> None:
        self._left = maxBytes
        # As JSON, so that no caller changes the page of another, with the times when they came.
        self._pages: dict[str, tuple[bytes, float]] = {}

    def keep(self, key: str, page: bytes, now: float) -> None:
        """Keep the JSON of a page of the listing with this path and query."""
        earlier, _ = self._pages.pop(key, (b"", 0.0))
        self._pages[key] = page, now
        self._left += len(earlier) - len(page)
        while self._left < 0:
            oldest, _ = self._pages.pop(next(iter(self._pages)))
            self._left += len(oldest)

    def stale(self, key: str, now: float) -> Any:
        """The page, with its age in seconds as ``stale`` in its ``metadata``; ``None`` if there is none."""
        if key not in self._pages:
            return None
        text, since = self._pages[key]
        page = json.loads(text)
        page["metadata"]["stale"] = max(0.0, now - since)
        return page


class ServicesAPI(APIGroup):
    """The services of the account, request by request."""

    def __init__(self, transport: Transport, clock: IReactorTime, cache: ListCache | None = None) -> None:
        super().__init__(transport)
        self._clock = clock
        self._cache = cache
        #: Seconds that a request may take, unless it says otherwise.
        self.timeout = transport.timeout
        self._heartbeat = partial(transport.request, "POST", repeatable=True, lane=Lane.HEARTBEAT)

    def list(self, marker: str | None = None, limit: int | None = None) -> Deferred[ServicePage]:
        """
        One page of the services, sorted by id. While the registry is unreachable, it is the last page of the listing in
        the cache, if any; then ``page["metadata"]["stale"]`` is its age in seconds.

        :param marker: the id to begin at; ``page["metadata"]["next_marker"]`` of the page before.
        :param limit: the maximum number of services, 1 to 1000; 100 by default.
        :return: fires with ``{"values": [service, …], "metadata": {…}}``.
        """
        return self._list({"marker": marker, "limit": limit})

    def listForTag(self, tag: str, marker: str | None = None, limit: int | None = None) -> Deferred[ServicePage]:
        """One page of the services with a *tag*; see :meth:`list`."""
        return self._list({"tag": tag, "marker": marker, "limit": limit})

    def iterate(self, tag: str | None = None) -> AsyncIterator[Service]:
        """
        All services, or all with a *tag*, page by page as they are needed, without the cache::

            async for service in client.services.iterate("www"):
                print(service["id"])
        """
        return self._pages("/services", readServicePage, tag=tag, names=[SERVICE_STATE], further=self._withStates)

    def _withStates(self) -> dict[str, str]:
        return {"states": "true"} if SERVICE_STATE in self._transport.extensions else {}

    @property
    def servers(self) -> int:
        """The number of the registry's URLs; 0 before the first response."""
        return self._transport.servers

    @returnsDeferred
    async def get(self, id: str, *, timeout: float | None = None) -> Service:
        """One service. Fails with ``NotFound`` if there is none with this *id*."""
        path = _path(id)

        def ask(timeout: float) -> Awaitable[Service]:
            return self._get(path, readService, query=self._withStates(), timeout=timeout, lane=Lane.URGENT)

        return await self._transport.adapted([SERVICE_STATE], ask, timeout)

    @returnsDeferred
    async def createOnce(
        self,
        id: str,
        heartbeatTimeout: int,
        payload: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        whenLate: WhenLate | None = None,
    ) -> HeartbeatToken:
        """One request that creates a service, without the retries of ``create()`` and ``register()``."""
        _path(id)
        body = {**(payload or {}), "id": id, "heartbeat_timeout": heartbeatTimeout}
        response = await self._transport.request(
            "POST", "/services", body=body, timeout=timeout, isTraced=True, whenLate=whenLate, lane=Lane.URGENT
        )
        return response.read(readToken)

    def heartbeat(
        self, id: str, token: str, *, timeout: float | None = None, whenLate: WhenLate | None = None
    ) -> Deferred[HeartbeatToken]:
        """
        Send a heartbeat: the service expires no earlier than a heartbeat timeout from now.

        :param token: any token of this registration.
        :param whenLate: called with a Failure after *timeout* seconds; the request runs on for the seconds it returns.
        :return: fires with ``{"token": …}``, the token for the next heartbeat. Fails with ``NotFound`` if the service
            is not registered, or the token is not one of its tokens.
        """
        try:
            path = _path(id) + "/heartbeat"
        except BadRequest as error:
            return fail(error)
        asked = self._heartbeat(path, body={"token": token}, timeout=timeout, whenLate=whenLate)
        return asked.addCallback(Response.read, readToken)

    def heartbeats(
        self,
        heartbeats: Sequence[Mapping[str, str]],
        *,
        timeout: float | None = None,
        whenLate: WhenLate | None = None,
    ) -> Deferred[Sequence[HeartbeatToken | FaultBody]]:
        """
        Send up to 1,000 heartbeats with one request: the registry's extension ``heartbeats``. HeartBeaters use it.

        :param heartbeats: ``{"id": …, "token": …}`` for a service, or ``{"lock": …, "token": …}``.
        :return: fires with ``{"token": …}`` for each, in their order, or with its fault (``{"type": …, …}``).
        """
        body = {"heartbeats": heartbeats}
        asked = self._heartbeat("/heartbeats", body=body, timeout=timeout, whenLate=whenLate)
        return asked.addCallback(Response.read, lambda value: readHeartbeats(value, heartbeats))

    @returnsDeferred
    async def updateOnce(self, id: str, payload: Mapping[str, Any]) -> None:
        """One request that updates a service, without the retries of ``update()``."""
        await self._transport.request("PUT", _path(id), body=dict(payload), lane=Lane.URGENT)

    @returnsDeferred
    async def remove(self, id: str, *, timeout: float | None = None) -> bool:
        """Remove a service now. Fires with ``True``; fails with ``NotFound`` if there is none with this *id*."""
        await self._transport.request("DELETE", _path(id), timeout=timeout, lane=Lane.URGENT)
        return True

    @returnsDeferred
    async def setState(self, id: str, state: str, reason: str = "", *, expiresIn: int | None = None) -> None:
        """
        Set the state of a service, registered or not: ``drain`` (no new work), ``out`` (no traffic) or ``up``. This is
        the registry's extension ``service-state``.

        :param reason: for operators, up to 255 characters.
        :param expiresIn: seconds after which the service is up again, 1 to 2592000; without it, the state does not end.
        :return: fires with ``None``. Fails with ``BadRequest`` if a value is not valid, ``LimitReached`` if the account
            has too many states, and ``NotFound`` if the registry does not have the extension.
        """
        body = {"state": state, "reason": reason, **({} if expiresIn is None else {"expires_in": expiresIn})}
        await self._transport.request("PUT", f"{_path(id)}/state", body=body, lane=Lane.URGENT)

    @returnsDeferred
    async def clearState(self, id: str) -> None:
        """Clear the state of a service: it is up. See :meth:`setState`."""
        await self._transport.request("DELETE", f"{_path(id)}/state", lane=Lane.URGENT)

    @returnsDeferred
    async def getState(self, id: str) -> ServiceState:
        """The state of a service, registered or not: ``{"id": …, "state": …, "reason": …, "expires_at": …}``."""
        return await self._get(f"{_path(id)}/state", readServiceState, lane=Lane.URGENT)

    @returnsDeferred
    async def listStates(self, marker: str | None = None, limit: int | None = None) -> ServiceStatePage:
        """One page of the states that were set, ``{"values": [state, …], "metadata": {…}}``. See :meth:`list`."""
        return await self._get("/states", readServiceStatePage, query={"marker": marker, "limit": limit})

    @returnsDeferred
    async def _list(self, query: dict[str, object]) -> ServicePage:
        key = pathOf("/services", query)

        def ask(timeout: float) -> Deferred[Response]:
            return self._transport.request("GET", "/services", query={**query, **self._withStates()}, timeout=timeout)

        try:
            response = await self._transport.adapted([SERVICE_STATE], ask)
            page = response.read(readServicePage)
        except (ConnectionFailed, RequestTimedOut, ServerError, MalformedResponse) as error:
            stale = None if self._cache is None else self._cache.stale(key, self._clock.seconds())
            if stale is None or isinstance(error, ClientClosed):
                raise
            return cast(ServicePage, stale)
        if self._cache is not None:
            self._cache.keep(key, response.body, self._clock.seconds())
        return page
