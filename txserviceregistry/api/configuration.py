"""``client.configuration``: values that the account's services share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from reprlib import repr as shown
from typing import Any

from ..errors import BadRequest, NotSupported
from ..http.messages import segment
from ..types import ConfigurationPage, ConfigurationValue
from ..util.deferred import returnsDeferred
from ..util.fields import ETAGS, KEY, KEY_RULE
from .shapes import readConfigurationPage, readConfigurationValue
from .transport import ETAG, APIGroup, etagOf


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
    """The header of a condition, its name and its value."""
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
        One page of the values, sorted by key.

        :param marker: the key to begin at; ``page["metadata"]["next_marker"]`` of the page before.
        :param limit: the maximum number of values, 1 to 1000; 100 by default.
        :return: fires with ``{"values": [{"id": …, "value": …}, …], "metadata": {…}}``.
        """
        return await self._get("/configuration", readConfigurationPage, query={"marker": marker, "limit": limit})

    @returnsDeferred
    async def listForNamespace(
        self, namespace: str, marker: str | None = None, limit: int | None = None
    ) -> ConfigurationPage:
        """
        One page of the values below a namespace such as ``/production/cassandra``, those of the namespaces in it
        included; ``/`` is for all values that have one. For the rest see :meth:`list`.
        """
        query = {"marker": marker, "limit": limit}
        return await self._get(_namespacePath(namespace), readConfigurationPage, query=query)

    async def iterate(self, namespace: str | None = None) -> AsyncIterator[ConfigurationValue]:
        """
        All values, or all below a *namespace*, page by page as they are needed::

            async for value in client.configuration.iterate("/production"):
                print(value["id"], value["value"])
        """
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
        Set a value, whether there is one already or not, or only on a condition::

            value = await client.configuration.getWithEtag("/production/www/workers")
            more = str(int(value["value"]) + 1)
            await client.configuration.set(value["id"], more, ifMatch=value["etag"])

        :param id: the key, 3 to 500 characters.
        :param value: a string of 1 to 1024 characters.
        :param ifMatch: set it only if the value has this tag; ``"*"`` is any tag.
        :param ifNoneMatch: ``"*"`` to set it only if there is no value.
        :return: fires with ``True``, or with the value's new tag if there is a condition. Then it fails with
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
        Remove a value, or only if it has the tag *ifMatch*; ``"*"`` is any tag. Fires with ``True``. Fails with
        ``NotFound`` if there is none; with a condition, as :meth:`set`.
        """
        if ifMatch is None:
            await self._transport.request("DELETE", _path(id))
        else:
            await self._transport.write("DELETE", _path(id), _condition(ifMatch, None))
        return True
