"""
The handlers of the operations on the states of services.
"""

from __future__ import annotations

from ..core import Registry
from ..roles import SERVICES
from ..stores.states import UP
from . import validation
from .call import Call
from .messages import Response


class StateHandlers:
    """A part of :class:`~txserviceregistry.registry.http.handlers.Handlers`."""

    _registry: Registry

    async def getState(self, call: Call) -> Response:
        id = validation.EXISTING_SERVICE_ID.value(call.argument)
        return Response(200, (await self._registry.states.get(call.tenant, id)).toJSON())

    async def setState(self, call: Call) -> Response:
        id = validation.SERVICE_ID.value(call.argument)
        state, reason, seconds = call.fields()
        call.authorize(SERVICES, id)
        await self._registry.states.set(call.tenant, id, state, reason, seconds)
        return Response(204)

    async def clearState(self, call: Call) -> Response:
        id = validation.SERVICE_ID.value(call.argument)
        call.authorize(SERVICES, id)
        await self._registry.states.set(call.tenant, id, UP)
        return Response(204)

    async def listStates(self, call: Call) -> Response:
        query = call.query
        page = await self._registry.states.list(call.tenant, query["marker"], query["limit"])
        return Response(200, call.page(page))
