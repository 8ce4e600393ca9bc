"""``client.account``: what the account may do."""

from __future__ import annotations

from ..types import Limits
from ..util.deferred import returnsDeferred
from .shapes import readLimits
from .transport import Transport


class AccountClient:
    """
    The account itself.

    :param transport: sends the requests.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @returnsDeferred
    async def getLimits(self) -> Limits:
        """
        The account's limits.

        :return: fires with ``{"resource": {type: limit}, "rate": {pattern: {"limit", "used", "window"}}}``. Fails with
            a :class:`~txserviceregistry.errors.ServiceRegistryError`.
        """
        response = await self._transport.request("GET", "/limits")
        return response.read(readLimits)
