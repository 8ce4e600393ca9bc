"""
Locks over HTTP: the rules for what clients send, and the handlers.
"""

from __future__ import annotations

from typing import cast

import attrs
from twisted.internet.defer import CancelledError

from ..core import Registry
from ..faults import validationError
from ..roles import LOCKS
from ..scopes import lockScope
from ..stores.interfaces import UserRecord
from ..stores.locks import NewLock
from .call import Call
from .messages import Response
from .requestlog import LOCK_WAITING
from .rules import AnyUUID, Field, Flag, Number, Parameter, Text, TimeUUID
from .validation import KEY, SERVICE_FIELDS

_NAME = Field("name", KEY.rule)
_TOKEN = Field("token", TimeUUID())
(_METADATA,) = (field for field in SERVICE_FIELDS if field.name == "metadata")

ACQUIRE_FIELDS = (
    _NAME,
    Field("timeout", Number(3, 120)),
    Field("holder", Text(0, 255), default=str),
    Field("nonce", AnyUUID(), isOptional=True),
    Field("wait", Number(0, 60), isOptional=True),
    _METADATA,
)
HEARTBEAT_FIELDS = (_NAME, _TOKEN)
RELEASE_FIELDS = (
    _NAME,
    attrs.evolve(_TOKEN, isOptional=True),
    Field("force", Flag(), isOptional=True),
    Field("now", Flag(), isOptional=True),
)
NAME = Parameter("name", KEY.rule, "Only the lock with this name.")


class LockHandlers:
    """A part of :class:`~txserviceregistry.registry.http.handlers.Handlers`."""

    _registry: Registry

    async def acquireLock(self, call: Call) -> Response:
        name, timeout, holder, nonce, wait, metadata = call.fields()
        call.authorize(LOCKS, name)
        if wait:
            call.record.route = LOCK_WAITING
            if call.record.isGone:
                raise CancelledError()

        async def check() -> None:
            # The token may have ended while the request waited, or the user may no longer acquire locks.
            user = cast(UserRecord, await call.authenticate())
            user.role.check(LOCKS, name)

        lock = NewLock(name, timeout, holder, nonce, metadata)
        return Response(201, await self._registry.locks.acquire(call.tenant, lock, wait or 0, check))

    async def heartbeatLock(self, call: Call) -> Response:
        name, token = call.fields()
        call.authorize(LOCKS, name)
        return Response(200, {"token": await self._registry.heartbeat(lockScope(call.tenant), name, token)})

    async def releaseLock(self, call: Call) -> Response:
        name, token, isForced, isNow = call.fields()
        if isNow and not isForced:
            raise validationError("now", "Only with force")
        if isForced and token is not None:
            raise validationError("force", "Only without token")
        if not isForced and token is None:
            raise validationError("token", "Missing required key (token)")
        call.authorize(LOCKS, name)
        await self._registry.locks.release(call.tenant, name, token, bool(isNow))
        return Response(204)

    async def listLocks(self, call: Call) -> Response:
        query = call.query
        page = await self._registry.locks.list(call.tenant, query["marker"], query["limit"], query["name"])
        return Response(200, call.page(page))
