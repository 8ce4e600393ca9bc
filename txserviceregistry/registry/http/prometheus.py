"""Services as targets of Prometheus: what its ``http_sd_configs`` read."""

from __future__ import annotations

import re
import sys
from typing import Any

from ...util.fields import Unusable, isEnabled, netloc, readAddress
from ..core import Registry
from .messages import Response, inJSON

#: So many targets take about two milliseconds, after which other requests come first.
TARGETS_IN_A_TURN = 200

_PREFIX = "__meta_service_registry_"


async def listTargets(registry: Registry, tenant: str, tag: str | None) -> Response:
    """The target groups of all services at one moment, or of those with a tag."""
    page = await registry.list(tenant, None, sys.maxsize - 1, tag, True)
    groups = []
    for number, service in enumerate(page.values, 1):
        if number % TARGETS_IN_A_TURN == 0:
            await registry.pause()
        group = targetGroup(service)
        if group is not None:
            groups.append(inJSON(group))
    return Response(200, text=f"[{', '.join(groups)}]".encode())


def targetGroup(service: Any) -> dict[str, Any] | None:
    """
    The target group of a service; ``None`` for one without a valid address, in the state ``out``, or with
    ``status=disabled``.
    """
    metadata, state = service["metadata"], service.get("state", "up")
    try:
        host, port = readAddress(metadata)
    except Unusable:
        return None
    if state == "out" or not isEnabled(metadata):
        return None
    labels = {
        f"{_PREFIX}id": service["id"],
        f"{_PREFIX}tags": f",{','.join(service['tags'])}," if service["tags"] else "",
        f"{_PREFIX}state": state,
    }
    for key in sorted(metadata):
        labels.setdefault(f"{_PREFIX}metadata_{re.sub('[^A-Za-z0-9_]', '_', key)}", metadata[key])
    return {"targets": [netloc(host, port)], "labels": labels}
