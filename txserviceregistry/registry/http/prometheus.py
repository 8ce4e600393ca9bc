"""Services as targets of Prometheus: what its ``http_sd_configs`` read."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

from ...types import Service
from ...util.fields import Unusable, isEnabled, netloc, readAddress
from ..core import Registry
from .messages import Response, inJSON

#: So many targets take about two milliseconds, after which other requests come first.
TARGETS_IN_A_TURN = 200

_PREFIX = "__meta_service_registry_"
# Characters that the name of a label can't have.
_OTHERS = re.compile(r"[^A-Za-z0-9_]")


async def listTargets(registry: Registry, tenant: str, tag: str | None) -> Response:
    """The target groups of all services at one moment, or of those with a tag."""
    page = await registry.list(tenant, None, sys.maxsize - 1, tag, True)
    services, groups = cast(Sequence[Service], page.values), list[str]()
    for begin in range(0, len(services), TARGETS_IN_A_TURN):
        if begin:
            await registry.pause()
        groups += map(inJSON, targetGroups(services[begin : begin + TARGETS_IN_A_TURN]))
    return Response(200, text=f"[{', '.join(groups)}]".encode())


def targetGroups(services: Iterable[Service]) -> Iterator[dict[str, Any]]:
    """
    The target group of each service that is to be scraped. Services without a valid address, in the state ``out``, or
    with ``status=disabled`` have none.
    """
    for service in services:
        metadata = service["metadata"]
        try:
            host, port = readAddress(metadata)
        except Unusable:
            continue
        state = service.get("state", "up")
        if state == "out" or not isEnabled(metadata):
            continue
        labels = {
            f"{_PREFIX}id": service["id"],
            f"{_PREFIX}tags": f",{','.join(service['tags'])}," if service["tags"] else "",
            f"{_PREFIX}state": state,
        }
        for key in sorted(metadata):
            labels.setdefault(f"{_PREFIX}metadata_{_OTHERS.sub('_', key)}", metadata[key])
        yield {"targets": [netloc(host, port)], "labels": labels}
