"""
What an operation of the API is: one method of one path below ``/v1.0/{tenant}``. The operations themselves are in
:mod:`~txserviceregistry.registry.http.handlers`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import attrs

from .call import Call
from .messages import Response
from .rules import Field, Parameter

#: A body of so many bytes is too large, unless an operation has another limit.
MAXIMUM_BODY = 5_000

#: Answers a request; a method of :class:`~txserviceregistry.registry.http.handlers.Handlers`.
Handler: TypeAlias = Callable[[Any, Call], Awaitable[Response]]


@attrs.frozen
class Operation:
    """
    One method of one path. Routing, the checks of queries and bodies, and ``/openapi.json`` come from these records.

    :ivar path: below the tenant, with at most one placeholder.
    :ivar summary: what it does.
    :ivar success: what the response to a request that succeeds means.
    :ivar schema: the name of its body's schema (:mod:`~txserviceregistry.registry.http.components`); ``None`` if it has
        no body.
    :ivar code: its status.
    :ivar query: the parameters of the query, in the order in which they are checked.
    :ivar body: the fields of the body, in the order in which they are checked; ``None`` if it takes no body.
    :ivar faults: the types of its faults, beside those that all operations have, and those of its parameters.
    :ivar headers: the headers of the request that its handler looks at.
    :ivar sends: the names of the response's headers, beside those that every response has.
    :ivar links: the operations that the response leads to, as links of OpenAPI.
    :ivar maximumBody: a body of so many bytes is too large.
    :ivar needsStore: whether it may wait for the store. An operation that is answered from memory does not make the
        account: a tenant that has a service has one.
    :ivar isAudited: whether its requests are in the audit log: it changes something, and is not a heartbeat.
    """

    name: str
    handler: Handler
    method: str
    path: str
    summary: str
    success: str
    schema: str | None = None
    code: int = attrs.field()
    query: tuple[Parameter, ...] = ()
    body: tuple[Field, ...] | None = None
    faults: tuple[str, ...] = ()
    headers: tuple[Parameter, ...] = ()
    sends: tuple[str, ...] = ()
    links: Mapping[str, Any] = attrs.field(factory=dict)
    mediaType: str = "application/json"
    maximumBody: int = MAXIMUM_BODY
    needsStore: bool = True
    isAudited: bool = attrs.field(init=False)

    @code.default
    def _code(self) -> int:
        return 204 if self.schema is None else 200

    @isAudited.default
    def _audited(self) -> bool:
        return self.method != "GET" and not self.path.endswith(("/heartbeat", "/heartbeats"))
