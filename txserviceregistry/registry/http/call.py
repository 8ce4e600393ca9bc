"""
Requests as handlers get them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import attrs

from ..model import Page
from ..stores.interfaces import UserRecord
from .messages import API, baseUrl
from .requestlog import RequestRecord
from .rules import Field


@attrs.frozen
class Call:
    """
    A request that has passed authentication, routing and the checks of its query.

    :ivar user: who sends it.
    :ivar tenant: whose objects it is about.
    :ivar argument: the id, key or namespace in its path, not checked so far; empty if it has none.
    :ivar query: the values of the operation's parameters, by name.
    :ivar parameters: the query as the client sent it.
    :ivar used: how many GETs of the tenant counted before this one.
    :ivar authenticate: checks the token of the request once more; raises a fault if it has ended.
    """

    record: RequestRecord
    user: UserRecord
    tenant: str
    argument: str
    query: Mapping[str, Any]
    parameters: Sequence[tuple[str, str]]
    body: Mapping[str, Any]
    used: int
    authenticate: Callable[[], Awaitable[object]]
    _fields: Sequence[Field]

    def fields(self) -> list[Any]:
        """
        The values of the operation's fields in the body, in their order.

        :raises Fault: for the first invalid one.
        """
        return [field.value(self.body) for field in self._fields]

    def authorize(self, kind: str, key: str) -> None:
        """
        Check that the user may change an object. Each handler that changes one calls this, after the checks of the body
        and before it looks whether the object exists.

        :param kind: one of :data:`~txserviceregistry.registry.roles.KINDS`.
        :param key: the object's id, key or name.
        :raises Fault: 403 if the user may not.
        """
        self.record.object = key
        self.user.role.check(kind, key)

    def url(self, path: str) -> str:
        """The absolute URL of *path* below the tenant. No id or key contains a character to escape."""
        return f"{baseUrl(self.record.request)}{API}/{self.tenant}{path}"

    def page(self, page: Page) -> dict[str, Any]:
        """A page of a collection, as JSON."""
        marker = page.nextMarker
        return {
            "values": page.values,
            "metadata": {
                "count": len(page.values),
                "limit": self.query["limit"],
                "marker": self.query["marker"],
                "next_marker": marker,
                "next_href": None if marker is None else self._nextHref(marker),
            },
        }

    def _nextHref(self, marker: str) -> str:
        request = self.record.request
        query = [(name, value) for name, value in self.parameters if name != "marker"]
        query.append(("marker", marker))
        # The path as the client wrote it: what was an escape stays one.
        path = quote(request.path, safe="/%:@!$&'()*+,;=~")
        return f"{baseUrl(request)}{path}?{urlencode(query, errors='surrogateescape')}"
